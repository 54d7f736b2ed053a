"""Tokens per second of a language model's ensemble, with what is kept of a text and without.

    python -m benchmarks.generation [--output DIR] [--quick]

    kept         s3t: keys and values are kept, a set per shard above the trunk
    anew         s3t as it was before, ``Ensemble.next_token`` on the whole text for each token
    sequential   peft: ``generate`` with a cache, shard after shard: as many texts, no mixture
    single       peft: ``generate`` of one shard, its adapter merged into the base

m = 4, rank 8 on query and value; Llamas of two sizes with random weights, made here, and the real
one of 260,032 parameters if ../shared/data is there; 1 and 8 prompts of 64 tokens, 64 new ones,
the likeliest each; full prefixes, and ones of half the layers; one torch thread. The ways take
turns in one run; figures are medians of turns, and ratios of these. Of ``anew`` some tokens in the
middle of the text are timed, since all of them take too long. That the last token of ``kept`` is
that of the whole text is checked.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# before torch is loaded
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from benchmarks.environment import table
from benchmarks.reports import Report, main, spread
from s3t.model.adapters.peft import to_peft
from s3t.model.base import Base
from s3t.model.determinism import one_thread
from s3t.model.inputs.encoders import Encoded
from s3t.serving.ensemble.ensemble import Ensemble, Member
from s3t.serving.generation.kv_steps import KVSteps, find_kv_steps

__all__ = ["run"]

OUTPUT = Path("runs/benchmarks/generation")
SHARED = Path(__file__).resolve().parents[1] / os.environ.get("S3T_SHARED_DATA", "../shared/data")
SHARDS, RANK, ALPHA = 4, 8, 16.0
PROMPT, ANEW = 64, 4
MADE = {"hidden 128, 4 layers": (128, 4), "hidden 384, 6 layers": (384, 6)}

Way = Callable[[Tensor, int], float]
"""Tokens a second for prompts [n, T] and so many new ones."""


def run(output: Path, quick: bool) -> dict[str, Any]:
    """Time every way on every model; returns what is written."""
    report, new, turns = Report("generation", output), 16 if quick else 64, 1 if quick else 3
    found: dict[str, Any] = {}
    with one_thread(torch.device("cpu")):
        for name, make in _models(quick):
            for share, lowest in (("full", 0), ("half", make().config.num_hidden_layers // 2)):
                ways = _ways(make, lowest)
                for batch in (1, 8):
                    label = f"{name}, {share} prefixes, {batch} prompts"
                    found[label] = _timed(ways, batch, new, turns)
                    print(label, {way: round(v["median"]) for way, v in found[label].items()})
    rows = [[label, *(f"{_rate(cells, way):.0f}" for way in cells), *_ratios(cells)]
            for label, cells in found.items()]  # fmt: skip
    header = ["", "kept", "anew", "sequential", "single", "kept/anew", "kept/sequential"]
    print("tokens a second\n" + table(header, rows))
    return report.finish({"tokens_per_second": found, "new_tokens": new, "prompt_tokens": PROMPT})


def _models(quick: bool) -> Iterator[tuple[str, Callable[[], PreTrainedModel]]]:
    for name, (hidden, layers) in list(MADE.items())[: 1 if quick else None]:
        config = LlamaConfig(
            vocab_size=260,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 32,
            intermediate_size=4 * hidden,
            max_position_embeddings=256,
            initializer_range=0.1,
        )
        yield name, lambda config=config: _made(config)  # type: ignore[misc]
    folder = SHARED / "stories260k"
    if folder.is_dir():
        yield "stories260k", lambda: AutoModelForCausalLM.from_pretrained(folder).eval()
    else:
        print(f"no {folder}: left out")


def _made(config: LlamaConfig) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
    return model


def _ways(make: Callable[[], PreTrainedModel], lowest: int) -> dict[str, Way]:
    base = Base(make(), language_model=True, length=PROMPT * 2)
    members, steps = [_member(base, shard, lowest) for shard in range(SHARDS)], find_kv_steps(base)
    ensemble = Ensemble(base, members, ALPHA / RANK, "mean-probabilities", "uniform")
    # rank and alpha as trained; the adapter's own layers alone
    apart = [to_peft(make(), base.targets, m.tensors, RANK, ALPHA) for m in members]
    merged: Any = to_peft(make(), base.targets, members[0].tensors, RANK, ALPHA)
    single = merged.merge_and_unload()
    return {
        "kept": lambda prompts, new: _kept(ensemble, steps, prompts, new),
        "anew": lambda prompts, new: _anew(ensemble, prompts, new),
        "sequential": lambda prompts, new: _generated(apart, prompts, new),
        "single": lambda prompts, new: _generated([single], prompts, new),
    }


def _member(base: Base, shard: int, lowest: int) -> Member:
    generator, tensors = torch.Generator().manual_seed(shard), {}
    for target in base.targets:
        if target.layer >= lowest:
            tensors[target.a] = 0.1 * torch.randn(RANK, target.inputs, generator=generator)
            tensors[target.b] = 0.1 * torch.randn(target.outputs, RANK, generator=generator)
    return Member(shard, lowest, tensors, 1)


def _timed(ways: dict[str, Way], batch: int, new: int, turns: int) -> dict[str, dict[str, float]]:
    """Tokens a second of each way, in turns, after one turn of warming up."""
    generator = torch.Generator().manual_seed(batch)
    prompts = torch.randint(3, 260, (batch, PROMPT), generator=generator)
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(turns + 1):
        for way, measure in ways.items():
            rate = measure(prompts, min(new, 4) if turn == 0 else new)
            if turn:
                rates[way].append(rate)
    return {way: spread(each) for way, each in rates.items()}


def _kept(ensemble: Ensemble, steps: KVSteps | None, prompts: Tensor, new: int) -> float:
    rows = Encoded(prompts, torch.ones_like(prompts))
    started, written = time.perf_counter(), prompts
    decoding = ensemble.decoding(
        steps, rows, torch.full((len(prompts),), prompts.shape[1]), new - 1
    )
    assert decoding is not None
    for step in range(new):
        tokens = decoding.logs.argmax(dim=1)
        written = torch.cat([written, tokens[:, None]], dim=1)
        if step < new - 1:
            decoding.feed(tokens.tolist())
    seconds = time.perf_counter() - started
    _check(ensemble, written, prompts.shape[1])
    return len(prompts) * new / seconds


def _check(ensemble: Ensemble, written: Tensor, prompt: int) -> None:
    """The last token is the one that the whole text gives, but for ties within rounding."""
    before = written[:, :-1]
    logs = ensemble.next_token(Encoded(before, torch.ones_like(before)))
    lost = logs.max(dim=1).values - logs.gather(1, written[:, -1:])[:, 0]
    assert float(lost.max()) < 1e-3, f"another token than the whole text's, after {prompt}"


def _anew(ensemble: Ensemble, prompts: Tensor, new: int) -> float:
    middle = prompts.repeat(1, 2)[:, : prompts.shape[1] + new // 2]
    count = min(ANEW, new)
    started = time.perf_counter()
    for _ in range(count):
        length = middle.shape[1]
        padded = torch.zeros((len(middle), -(-length // 16) * 16), dtype=torch.int64)
        mask = padded.clone()
        padded[:, :length], mask[:, :length] = middle, 1
        tokens = ensemble.next_token(Encoded(padded, mask)).argmax(dim=1)
        middle = torch.cat([middle, tokens[:, None]], dim=1)
    return len(prompts) * count / (time.perf_counter() - started)


@torch.inference_mode()
def _generated(models: list[Any], prompts: Tensor, new: int) -> float:
    started = time.perf_counter()
    for model in models:
        model.generate(
            input_ids=prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=False,
            max_new_tokens=new,
            min_new_tokens=new,
            pad_token_id=0,
        )
    return len(prompts) * new / (time.perf_counter() - started)


def _rate(cells: dict[str, dict[str, float]], way: str) -> float:
    return cells[way]["median"]


def _ratios(cells: dict[str, dict[str, float]]) -> list[str]:
    kept = _rate(cells, "kept")
    return [f"{kept / _rate(cells, way):.2f}" for way in ("anew", "sequential")]


if __name__ == "__main__":
    main(run, __doc__, OUTPUT)
