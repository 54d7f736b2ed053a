"""The public head of a run: where stage 1 starts, or what answers when all nodes are dead.

    data.public.adapt ─► public_head (adapt.py) ─► RUN/base_head.safetensors ─► recipe, ledger

Invariant: it is of public rows and of the frozen base alone, and its file names that base.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from s3t.config import Config
from s3t.model.base import Base
from s3t.model.head import read_public_head, write_public_head
from s3t.run import RunDir
from s3t.store import tensors_digest
from s3t.training.prepare.adapt import public_head
from s3t.training.prepare.inputs import RunInputs
from s3t.types import Digest

__all__ = ["head_digest", "keep_head", "needs_head", "public_head_of", "starting_head"]


def needs_head(config: Config) -> bool:
    """Whether a classifier's run keeps a public head."""
    how = config.aggregation
    if config.stage.starts_public or how.falls_back:
        return True
    return how.weights == "public" and config.data.adapts  # the base is weighed beside the shards


def keep_head(run: RunDir, inputs: RunInputs, public_of: RunDir | None) -> None:
    """Write the run's public head.

    Args:
        run: where.
        inputs: the base and the public rows of which it is made.
        public_of: a run whose head is taken; None to train it.
    """
    base = inputs.base
    if public_of is None:
        head = public_head(inputs.config, base, inputs.adapt_rows, len(inputs.data.labels))
    else:
        head = read_public_head(public_of.head_path, base.fingerprint)
    write_public_head(run.head_path, head, base.fingerprint)


def public_head_of(run: RunDir, base: Base) -> dict[str, Tensor]:
    """The public head that a run keeps; empty without one."""
    return read_public_head(run.head_path, base.fingerprint) if run.head_path.is_file() else {}


def starting_head(run: RunDir, config: Config, base: Base) -> dict[str, Tensor]:
    """The public head from which stage 1 starts; empty if it starts from a random one."""
    return public_head_of(run, base) if config.stage.starts_public else {}


def head_digest(head: Mapping[str, Tensor]) -> Digest | None:
    """Digest of the tensors of a public head; None if there are none."""
    return tensors_digest(head) if head else None
