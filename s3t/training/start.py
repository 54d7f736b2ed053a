"""Training and plans from Python: a config as a file, a dict or keywords, and data as objects.

    config, overrides, sections ─► rows taken out of it ─► Config ─► train, preview
                                        └─ private: lent while that lasts; public: in the run

Invariant: a plan writes nothing but scratch files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s3t.config import Config, load_config
from s3t.data.lending import lent, taken_out
from s3t.errors import InputError
from s3t.run.directory import PUBLIC
from s3t.system.pinned import pin
from s3t.system.scratch import scratch

if TYPE_CHECKING:
    from s3t.training.work.train import Report

__all__ = ["planned", "trained"]

Given = str | Path | Mapping[str, Any] | Config | None
"""A config: the path of a YAML file, its keys and values, or a checked one."""


def trained(given: Given, overrides: str | tuple[str, ...], sections: Mapping[str, Any]) -> Report:
    """Train; see ``S3T.train``."""
    with _resolved(given, overrides, sections) as config:
        pin(config.training.arithmetic)  # before torch is loaded: then it is trained here
        from s3t.training.work.train import train

        return train(config)


def planned(
    given: Given,
    overrides: str | tuple[str, ...],
    sections: Mapping[str, Any],
    horizon: int | None,
) -> dict[str, Any]:
    """What would be trained; see ``S3T.plan``."""
    with scratch() as folder, _resolved(given, overrides, sections, folder) as config:
        pin(config.training.arithmetic)  # before torch is loaded
        from s3t.training.prepare.preview import preview

        return preview(config, horizon)


@contextmanager
def _resolved(
    given: Given,
    overrides: str | tuple[str, ...],
    sections: Mapping[str, Any],
    folder: Path | None = None,
) -> Iterator[Config]:
    """The checked config, while its private rows are lent.

    Args:
        given, overrides, sections: as ``S3T.train`` takes them.
        folder: for public rows; default: a folder of the run.
    """
    if isinstance(given, Config):
        if overrides or sections:
            raise InputError("a checked Config takes no overrides: give them to load_config")
        yield given
        return
    if given is not None and not isinstance(given, Mapping):
        if sections:
            raise InputError(
                f"{', '.join(sections)}: a config file takes overrides as 'key=value'; give its "
                "sections as keywords, or a file, not both"
            )
        yield load_config(given, overrides)
        return
    tree = {**(given or {}), **sections}
    private = None
    if isinstance(tree.get("data"), Mapping):
        place = folder or Path(tree.get("output") or f"runs/{tree.get('name', 'run')}") / PUBLIC
        tree["data"], private = taken_out(tree["data"], place)
    with lent(private):
        yield load_config(tree, overrides)
