"""Exact machine unlearning of fine-tuned transformers (S3T, arXiv 2406.16257).

    config = s3t.load_config("configs/digits.yaml")     what to train
    model = s3t.S3T.load("runs/digits")                 the live object over a trained run
    pipe = s3t.pipeline("runs/digits")                  transformers' pipeline over the same

Importing this package has no side effects and loads no third-party package: errors are here at
once, every other public name is loaded when first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from s3t.errors import (
    ConfigError,
    DamagedNodeError,
    DataError,
    ExhaustedError,
    InputError,
    IntegrityError,
    PublicSampleError,
    RequestConflictError,
    S3TError,
    UnavailableError,
    UnknownSampleError,
)
from s3t.version import __version__

__all__ = [
    "S3T",
    "Config",
    "ConfigError",
    "DamagedNodeError",
    "DataError",
    "ExhaustedError",
    "InputError",
    "IntegrityError",
    "PublicSampleError",
    "RequestConflictError",
    "S3TError",
    "UnavailableError",
    "UnknownSampleError",
    "__version__",
    "load_config",
    "pipeline",
]

if TYPE_CHECKING:
    from s3t.config import Config, load_config
    from s3t.service import S3T, pipeline
else:
    _LAZY = {
        "S3T": "s3t.service",
        "Config": "s3t.config",
        "load_config": "s3t.config",
        "pipeline": "s3t.service",
    }

    def __getattr__(name: str) -> object:
        """Load a public name from its module the first time it is asked for (PEP 562)."""
        if name not in _LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = globals()[name] = getattr(import_module(_LAZY[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
