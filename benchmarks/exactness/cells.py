"""Nodes of one width, batch and family at a time: alone, in groups, and without a sample.

    python -m benchmarks.exactness.cells native|portable [--quick]       prints one line of JSON

What ``machines`` runs in a process for each environment. A cell is a family, a type of numbers, a
hidden width, a number of classes, a batch size, and into how many parts a batch is cut. Its nodes
are trained

    alone       each by itself
    together    in a group of 2 to 16
    without     alone, by a trainer that has never seen one other row of the private set

over a base of three layers: the trunk is one, the block one, and one stands frozen above. Rows are
such that last batches are short, and nodes end at different steps.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from s3t.system.pinned import Arithmetic, pin

WIDTHS = (10, 12, 16, 30, 32, 36, 48, 64, 96, 100, 256, 384)
CLASSES = (2, 3, 10, 77)
BATCHES = range(1, 18)
PARTS = (1, 2, 4)
FAMILIES = ("vit", "bert", "llama")
TYPES = ("float32", "bfloat16")

Family = Literal["vit", "bert", "llama"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One shape that nodes are trained at."""

    family: str
    dtype: str
    hidden: int
    inner: int
    classes: int
    batch: int
    parts: int
    group: int


def cells(arithmetic: Arithmetic, quick: bool) -> Iterator[Cell]:
    """All cells: every batch size in whole, halves and quarters for each family, type and width.

    Classes, widths of the inner map, and sizes of the group take turns.
    """
    number = 0
    for family in FAMILIES:
        for dtype in TYPES if arithmetic == "native" else TYPES[:1]:
            for hidden in WIDTHS[:: 4 if quick else 1]:
                for batch in list(BATCHES)[:: 5 if quick else 1]:
                    for parts in PARTS:
                        if batch % parts:
                            continue
                        inner = (4 * hidden, hidden + 5, 2 * hidden)[number % 3]
                        group = 2 + number % 15 if hidden < 100 else 2 + number % 3
                        yield Cell(
                            family, dtype, hidden, inner, CLASSES[number % 4], batch, parts, group
                        )
                        number += 1


def model_of(cell: Cell) -> Any:
    """A model of three layers, its weights drawn large."""
    import torch
    import transformers as hf

    heads = 2 if cell.hidden % 4 == 0 else 1
    shape: dict[str, Any] = {
        "hidden_size": cell.hidden,
        "num_hidden_layers": 3,
        "num_attention_heads": heads,
        "intermediate_size": cell.inner,
        "initializer_range": 0.1,
    }
    text = {"vocab_size": 99, "max_position_embeddings": 40, "pad_token_id": 0}
    config: Any = {
        "vit": lambda: hf.ViTConfig(**shape, image_size=8, patch_size=2, num_channels=1),
        "bert": lambda: hf.BertConfig(**shape, **text),
        "llama": lambda: hf.LlamaConfig(**shape, **text),
    }[cell.family]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        model = hf.AutoModel.from_config(config).eval()
    return model.to(getattr(torch, cell.dtype))


def judged(cell: Cell) -> dict[str, Any]:
    """How many of the cell's nodes have other bytes in a group, and without another row."""
    import numpy as np
    import torch

    from s3t.config import LoraConfig, StageConfig
    from s3t.model.base import Base
    from s3t.model.determinism import draws
    from s3t.model.inputs.encoders import Encoded
    from s3t.training.node.assignment import Assignment, StageRows, StageSettings
    from s3t.training.node.rows import LabelledSet
    from s3t.training.node.trainer import StageTrainer
    from s3t.types import NodeKey, digest

    drawn, count = draws(5), 3 * cell.batch + 8
    if cell.family == "vit":
        images = drawn.random((count, 1, 8, 8), dtype=np.float32)
        rows = Encoded(torch.from_numpy(images), None)
    else:
        tokens = torch.from_numpy(drawn.integers(3, 99, (count, 32)))
        mask = torch.ones_like(tokens)
        for row, length in enumerate(drawn.integers(4, 33, count)):
            mask[row, length:] = 0
        rows = Encoded(tokens, mask)
    labels = torch.from_numpy(drawn.integers(0, cell.classes, count))
    base = Base(model_of(cell), language_model=False, length=None if cell.family == "vit" else 32)

    def trainer(kept: torch.Tensor) -> StageTrainer:
        recipe = StageConfig(
            epochs=1, batch_size=cell.batch, learning_rate=1e-2, processes=cell.parts
        )
        private = LabelledSet(rows.rows(kept), labels[kept])
        public = LabelledSet(rows.rows(slice(0, 8)), labels[:8])
        lora = LoraConfig(rank=3, alpha=6)
        return StageTrainer(
            base, StageSettings(recipe, lora), StageRows(private, public, cell.classes)
        )

    def inherited() -> dict[str, torch.Tensor]:
        found = {}
        for target in base.targets:
            if target.layer == 2:
                for name, shape in (
                    (target.a, (3, target.inputs)),
                    (target.b, (target.outputs, 3)),
                ):
                    found[name] = torch.from_numpy(drawn.random(shape, dtype=np.float32) - 0.5)
        return found

    group = []
    for number in range(cell.group):
        size = 1 + int(drawn.integers(cell.batch, 2 * cell.batch + 3))
        chosen = 1 + torch.from_numpy(drawn.permutation(count - 1)[:size])
        key = NodeKey(digest([number, size]))
        group.append(Assignment(key, chosen.sort().values, inherited()))
    everything, less = torch.arange(count), torch.arange(1, count)
    whole = trainer(everything)
    alone = [trainer(everything).train((1, 2), [one])[0] for one in group[:4]]
    together = whole.train((1, 2), group)[:4]
    apart = trainer(less)
    without = [
        apart.train((1, 2), [Assignment(one.key, one.rows - 1, one.inherited)])[0]
        for one in group[:4]
    ]

    def same(left: Any, right: Any) -> bool:
        return left.score == right.score and all(
            torch.equal(left.tensors[name], right.tensors[name]) for name in left.tensors
        )

    return {
        "nodes": len(alone),
        "in_a_group": sum(not same(*pair) for pair in zip(alone, together, strict=True)),
        "without_a_row": sum(not same(*pair) for pair in zip(alone, without, strict=True)),
        "one_by_one": bool(whole.one_by_one),
        "row_by_row": bool(whole.on_private.trunk.one_by_one),
    }


def main(arithmetic: Arithmetic, quick: bool) -> None:
    """Judge all cells in this environment, and print what was found."""
    if not pin(arithmetic):
        raise SystemExit("torch is loaded already")
    import torch

    from s3t.model.determinism import one_thread

    total: Counter[str] = Counter()
    wrong: list[str] = []
    single: Counter[str] = Counter()
    started = time.monotonic()
    with one_thread(torch.device("cpu")):
        for cell in cells(arithmetic, quick):
            found = judged(cell)
            total.update(cells=1, **{name: int(value) for name, value in found.items()})
            if found["in_a_group"] or found["without_a_row"]:
                wrong.append(str(cell))
            for name in ("one_by_one", "row_by_row"):
                if found[name]:
                    single[f"{name} {cell.family} {cell.dtype} {cell.hidden}"] += 1
    result = {
        **total,
        "wrong": wrong[:20],
        "single": dict(single),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "seconds": round(time.monotonic() - started, 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main("portable" if sys.argv[1:2] == ["portable"] else "native", "--quick" in sys.argv)
