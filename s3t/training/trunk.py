"""The trunk cache: hidden states that enter a block from the frozen layers below it.

The layers below a block carry no adapter, so what enters the block depends on the sample alone: it
is computed once per sample and cut, and shared by all shards, sequences and epochs of a stage.

Size: samples × tokens × hidden × bytes of a number, for one cut at a time (800 × 17 × 64 × 4 B =
3.5 MB for digits; 10,003 × 32 × 384 × 4 B = 492 MB for banking77 on MiniLM). Above the cap nothing
is kept and the trunk runs anew for each batch; a node's bytes are the same either way.

Invariant: it lives in memory only, and holds nothing but the rows asked for at the present cut.
"""

from __future__ import annotations

import torch
from torch import Tensor

from s3t.model.base import Base
from s3t.model.encode import Encoded

__all__ = ["Trunk"]

_CHUNK = 32
"""Rows of one pass through the trunk; always full, so that every pass has one shape."""


class Trunk:
    """Hidden states of a fixed set of rows at one cut.

    Args:
        base: the frozen base.
        rows: all rows that may be asked for.
        cap_bytes: above this nothing is cached.
    """

    def __init__(self, base: Base, rows: Encoded, cap_bytes: int) -> None:
        self.base, self.rows, self.cap_bytes = base, rows, cap_bytes
        self._cut = -1
        self._cached: Tensor | None = None
        self._filled = torch.zeros(0, dtype=torch.bool)

    def __len__(self) -> int:
        return len(self.rows)

    def prepare(self, cut: int, index: Tensor) -> None:
        """Make the hidden states of rows ``index`` at layer ``cut`` ready, if they are cached."""
        if cut != self._cut:
            self._cut, self._cached = cut, None
        if self._cached is None:
            sample = self._compute(index[:1])
            if sample[0].nbytes * len(self.rows) > self.cap_bytes:
                return
            shape = (len(self.rows), *sample.shape[1:])
            self._cached = torch.empty(shape, dtype=sample.dtype, device=sample.device)
            self._filled = torch.zeros(len(self.rows), dtype=torch.bool)
        missing = index[~self._filled[index]].unique()
        if len(missing):
            self._cached[missing.to(self._cached.device)] = self._compute(missing)
            self._filled[missing] = True

    def hidden(self, index: Tensor) -> Tensor:
        """Hidden states [n, T, H] of rows ``index`` at the prepared cut."""
        if self._cached is not None:
            return self._cached[index.to(self._cached.device)]
        return self._compute(index)

    def mask(self, index: Tensor) -> Tensor | None:
        """Padding mask [n, T] of rows ``index``; None for images."""
        return None if self.rows.mask is None else self.rows.mask[index].to(self.base.device)

    @torch.no_grad()
    def _compute(self, index: Tensor) -> Tensor:
        parts = []
        for part in index.split(_CHUNK):
            full = torch.cat([part, part[:1].expand(_CHUNK - len(part))])
            rows = self.rows.rows(full).to(self.base.device)
            hidden = self.base.start(rows)
            hidden = self.base.run(hidden, 0, self._cut, self.base.attention(rows.mask))
            parts.append(hidden[: len(part)])
        return torch.cat(parts)
