"""Limits of the engines that serve adapters; every adapter is checked before one is written.

    vLLM     causal language models that its LoRA layers know; rank up to ``--max-lora-rank``,
             one of a fixed list; no ``modules_to_save``, bias or DoRA          (LoRA adapters)
    SGLang   the same, its rank being any number (``--max-lora-rank``), its maps among
             ``--lora-target-modules``; no DoRA, no new tokens                  (LoRA serving)

The engines' documentation has them under the headings in brackets. Neither serves classification
heads: both answer through the base's own language-model head. Both need one rank for all maps, and
know a map by the last part of its name. A map that an adapter leaves out, as prefixes leave out
lower layers, counts as zero.

Invariant: the config that is checked is the very one that is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from s3t.errors import InputError

__all__ = ["ENGINE_LIMITS", "EngineLimits", "engine_limits"]

_LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_JOINED = ("qkv_proj", "gate_up_proj")
"""Maps that some families, such as Phi-3, have joined."""


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What an engine takes for an adapter.

    Attributes:
        name: as ``--target`` names it.
        ranks: values that its ``--max-lora-rank`` may have, ascending; empty: any.
        modules: last names of the maps that it can adapt.
    """

    name: str
    ranks: tuple[int, ...]
    modules: frozenset[str]

    def rank(self, rank: int) -> int:
        """The least ``--max-lora-rank`` that takes adapters of a rank.

        Raises:
            InputError: there is none.
        """
        for most in self.ranks or (rank,):
            if rank <= most:
                return most
        raise InputError(
            f"{self.name} takes adapters up to rank {self.ranks[-1]}, and this one has rank "
            f"{rank}: give --rank {self.ranks[-1]} or less"
        )

    def check(self, config: Mapping[str, Any], task: str) -> None:
        """Refuse an adapter that the engine would.

        Args:
            config: of the adapter, as ``adapter_config.json`` holds it.
            task: of the run.

        Raises:
            InputError: with all that is wrong.
        """
        problems = [*self._problems(config, task)]
        if problems:
            raise InputError(
                f"{self.name} cannot serve this run, and nothing was written: {'; '.join(problems)}"
            )

    def _problems(self, config: Mapping[str, Any], task: str) -> Iterator[str]:
        if task != "causal-lm":
            yield (
                f"task {task} has a head of its own for each prefix, which the engine does not "
                "load (export without --target, and answer by peft or s3t serve)"
            )
        if self.ranks and config["r"] > self.ranks[-1]:
            yield f"rank {config['r']} is over {self.ranks[-1]} (give a smaller --rank)"
        if config.get("modules_to_save"):
            yield "it holds whole modules (modules_to_save)"
        if config.get("bias", "none") != "none":
            yield f"it adapts biases ({config['bias']})"
        if config.get("use_dora"):
            yield "it is a DoRA"
        if config.get("rank_pattern") or config.get("alpha_pattern"):
            yield "its maps have several ranks"
        if config.get("fan_in_fan_out"):
            yield "its maps are stored as in GPT-2 (fan_in_fan_out), a family without LoRA there"
        strange = sorted(
            {name.rpartition(".")[2] for name in config["target_modules"]} - self.modules
        )
        if strange:
            yield (
                f"it adapts {', '.join(strange)}, and the engine {', '.join(sorted(self.modules))}"
                " (see lora.targets)"
            )


ENGINE_LIMITS: Mapping[str, EngineLimits] = {
    "vllm": EngineLimits(
        "vllm", (1, 8, 16, 32, 64, 128, 256, 320, 512), frozenset((*_LLAMA, *_JOINED))
    ),
    "sglang": EngineLimits("sglang", (), frozenset((*_LLAMA, *_JOINED))),
}


def engine_limits(name: str | None) -> EngineLimits | None:
    """The limits of an engine; None without a name.

    Raises:
        InputError: no engine has this name.
    """
    if name is None or name in ENGINE_LIMITS:
        return None if name is None else ENGINE_LIMITS[name]
    raise InputError(f"--target {name} is not known: use one of {', '.join(sorted(ENGINE_LIMITS))}")
