"""The trunk cache: hidden states that enter a block from the frozen layers below it.

The layers below a block carry no adapter, so what enters the block depends on the sample alone: it
is computed once per sample and cut, and shared by all shards, sequences and epochs of a stage; in
a shared cache by all workers too.

Size: samples × tokens × hidden × bytes of a number for a cut (800 × 17 × 64 × 4 B = 3.5 MB for
digits; 10,003 × 32 × 384 × 4 B = 492 MB for banking77 on MiniLM; 100,000 × 512 × 4,096 × 2 B =
429 GB for a large language model). Above the cap nothing is kept and the trunk runs again for each
batch; a node's bytes are the same either way.

Invariants: it holds nothing but the rows asked for; a row's hidden states depend on that row alone,
whatever else is asked for (``determinism.RowByRow``), so that a deletion changes no byte of the
others; and a base that draws dropout is refused, since a row must always give the same.
"""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor

from s3t.errors import S3TError
from s3t.model.base import Base
from s3t.model.determinism import RowByRow, filled
from s3t.model.inputs.encoders import Encoded
from s3t.training.node.process_group import InTurn, ProcessGroup
from s3t.training.node.shared_cache import Cut, SharedCache

__all__ = ["TrunkCache"]

_CHUNK = 32
"""Rows that a process computes at a time."""


class TrunkCache:
    """Hidden states of a fixed set of rows at one cut.

    The processes of a group each compute some of its rows, so all must ask for the same.

    Args:
        base: the frozen base.
        rows: all rows that may be asked for.
        cap_bytes: above this nothing is cached.
        shared: where other workers find them too; None to keep them in this process's memory.
        process_group: the processes that compute parts of them; by default this one.

    Raises:
        S3TError: the base is in training mode.
    """

    def __init__(
        self,
        base: Base,
        rows: Encoded,
        cap_bytes: int,
        shared: SharedCache | None = None,
        process_group: ProcessGroup | None = None,
    ) -> None:
        if base.model.training:
            raise S3TError(
                "the base is in training mode, where its dropout would give a row other hidden "
                "states each time: call eval() on it"
            )
        self.base, self.rows, self.cap_bytes = base, rows, cap_bytes
        self._shared, self._process_group = shared, process_group or InTurn()
        self._at = -1
        self._cut: Cut | None = None
        self._each = RowByRow(self._pass, base.passed_together, self._process_group.all)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def cached(self) -> bool:
        """Whether hidden states of the prepared cut are kept."""
        return self._cut is not None

    @property
    def one_by_one(self) -> list[Hashable]:
        """Shapes at which rows are computed one by one (``determinism.RowByRow``)."""
        return self._each.one_by_one

    def prepare(self, cut: int, index: Tensor) -> None:
        """Make the hidden states of rows ``index`` at layer ``cut`` ready, if they are cached."""
        if cut != self._at:
            self._at, self._cut = cut, None
            self._cut = self._opened(self._compute(index[:1]))
        if self._cut is not None:
            missing, (own, *others) = self._cut.missing(index), self._process_group.parts
            whole = _CHUNK if others else _CHUNK * own.size  # all parts are here, or one is
            for part in missing.split(whole) if len(missing) else ():
                if whole > _CHUNK:
                    full = filled(part, whole)[own.of(whole)]
                    self._cut.fill(
                        part, self._process_group.joined(self._compute(full))[: len(part)]
                    )
                else:
                    self._cut.fill(part, self._compute(part))

    def hidden(self, index: Tensor, tokens: int | None = None) -> Tensor:
        """Hidden states [n, T, H] of rows ``index`` at the prepared cut, or their first tokens."""
        if self._cut is None:
            return self._compute(index)[:, :tokens]
        held = self._cut.hidden[:, :tokens]
        if held.device == self.base.device:
            return held[index.to(held.device)]
        return held[index].pin_memory().to(self.base.device, non_blocking=True)

    def mask(self, index: Tensor, tokens: int | None = None) -> Tensor | None:
        """Padding mask [n, T] of rows ``index``, or of their first tokens; None for images."""
        if self.rows.mask is None:
            return None
        return self.rows.mask[index, :tokens].to(self.base.device)

    def _opened(self, one: Tensor) -> Cut | None:
        """Room for all rows like ``one``, [1, T, H]; None above the cap."""
        count = len(self.rows)
        if one.nbytes * count > self.cap_bytes:
            return None
        shape = (count, *one.shape[1:])
        if self._shared is not None:
            return self._shared.open(self._at, shape, one.dtype)
        hidden = torch.empty(shape, dtype=one.dtype, device=one.device)
        return Cut(hidden, torch.zeros(count, dtype=torch.uint8))

    @torch.no_grad()
    def _compute(self, index: Tensor) -> Tensor:
        rows = self.rows.rows(index).to(self.base.device)
        tokens = self.base.tokens(rows)
        return self._each(rows, tokens, self.base.rounds_alike(tokens), self._at)

    def _pass(self, rows: Encoded) -> Tensor:
        hidden = self.base.start(rows)
        return self.base.run(hidden, 0, self._at, self.base.attention(rows.mask))
