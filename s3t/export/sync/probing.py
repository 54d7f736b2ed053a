"""Checks that a name answers as its adapter does, and not as the base or another adapter.

    the run's answers ─► prompts that tell the adapter apart ─► asked of the name, and of the base

The base's answers differ from the run's by noise (half precision, other kernels); an adapter's may
differ by a few times as much. That must be less than half the distance to the nearest other
adapter, else the prompts tell nothing apart, and the probe fails.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from s3t.errors import S3TError
from s3t.export.questions import Expected, Likely, Questions, choose, read_questions
from s3t.export.sync.engine import EngineAnswer
from s3t.run.files.exports import ExportFolder

__all__ = ["Probing"]

Ask = Callable[[str | None, list[list[int]]], list[EngineAnswer]]

_BASE = 0.5
"""Greatest difference of the base, in nats; more is not rounding but another base."""
_TIMES, _PART = 4.0, 0.02
"""Allowed difference of an adapter: times the base's, or this part of its distance to others."""
_LEAST = 1e-3
"""Least distance to others, in nats, at which an adapter can be told apart."""


class Probing:
    """Probes the adapters of a folder in one engine."""

    def __init__(self, folder: ExportFolder) -> None:
        self._folder = folder
        self._read: dict[str, Expected] = {}
        self._chosen: dict[tuple[str, frozenset[str]], Questions] = {}

    def probe(self, name: str, ask: Ask) -> float:
        """Ask for an adapter what tells it apart; how far off its answers are, in nats.

        Args:
            name: of the adapter.
            ask: the engine, as its ``ask`` does.

        Raises:
            UnavailableError: the engine cannot be reached.
            EngineError: it refused.
            IntegrityError: the adapter's probe cannot be read.
            S3TError: it answers otherwise, or nothing would tell it apart.
        """
        asked = self._questions(name)
        plain = ask(None, asked.prompts)
        noise = _off(asked.base, plain)
        if noise > _BASE:
            raise S3TError(
                f"the engine's base answers otherwise than the run's, by {noise:.2f} nats: does it "
                f"serve the base {self._base()}?"
            )
        allowed = max(_TIMES * noise, _PART * asked.apart)
        if asked.apart < _LEAST or allowed >= asked.apart / 2:
            raise S3TError(
                f"no probe tells {name} from {asked.nearest or 'the base'}: they differ by "
                f"{asked.apart:.1e} nats, and the engine's base is off by {noise:.1e}: serve the "
                "base in a finer type, or train for longer"
            )
        found = ask(name, asked.prompts)
        off = _off(asked.own, found)
        if off > allowed:
            rivals = {"the base": asked.base, **asked.others}
            like = [one for one, rival in rivals.items() if _off(rival, found) <= allowed]
            raise S3TError(
                f"{name} answers otherwise than the run does, by {off:.2g} nats where "
                f"{allowed:.2g} are allowed{f': as {like[0]} does' if like else ''}"
            )
        return off

    def _questions(self, name: str) -> Questions:
        known = self._folder.told()
        lying = {one for one in self._folder.names() if one in known}
        # others of the same nodes are the same function, cut to another rank
        others = frozenset(one for one in lying if {*known[one]} != {*known.get(name, ())})
        self._read = {one: self._expected(one) for one in {*lying, name}}
        if (name, others) not in self._chosen:
            chosen = choose(self._read[name], {one: self._read[one] for one in sorted(others)})
            self._chosen = {
                key: one for key, one in self._chosen.items() if {key[0], *key[1]} <= lying
            }
            self._chosen[name, others] = chosen
        return self._chosen[name, others]

    def _expected(self, name: str) -> Expected:
        return self._read.get(name) or read_questions(self._folder.path / name)

    def _base(self) -> str:
        document = self._folder.manifest() or {}
        return str(document.get("base", {}).get("name"))


def _off(expected: Likely, found: Sequence[EngineAnswer]) -> float:
    """The greatest gap between answers and what is expected, in nats."""
    tokens: Tensor = torch.tensor([[one.token for one in found]])
    logs = torch.tensor([[one.log_probability for one in found]], dtype=torch.float64)
    return float(expected.gap(tokens, logs).max())
