"""The trunk cache holds what the frozen layers give, wherever it lies, and nothing stale."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from s3t.errors import S3TError
from s3t.model.base import Base
from s3t.training.node import shared_cache
from s3t.training.node.shared_cache import SharedCache
from s3t.training.node.trunk_cache import TrunkCache
from s3t.types import Digest, digest
from tests.support.tiny import (
    ENCODERS,
    IMAGES,
    from_config,
    tiny_base,
    tiny_group,
    tiny_rows,
    tiny_trainer,
)

BASE = tiny_base("vit")
ROWS = tiny_rows("vit", 70)
SAMPLES = [digest(number) for number in range(70)]
INDEX = torch.tensor([3, 60, 7, 3, 12])


def expected(cut: int, index: Tensor = INDEX) -> Tensor:
    with torch.no_grad():
        return BASE.run(BASE.start(ROWS.rows(index)), 0, cut, None)


def close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, atol=1e-5)


def shared(folder: Path, samples: list[Digest] = SAMPLES, base: str = "base") -> SharedCache:
    return SharedCache(folder, digest(base), samples)


def counted(trunk: TrunkCache, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows that the trunk computes from now on, call by call."""
    calls: list[int] = []
    compute = trunk._compute

    def counting(index: Tensor) -> Tensor:
        calls.append(len(index))
        return compute(index)

    monkeypatch.setattr(trunk, "_compute", counting)
    return calls


@pytest.mark.parametrize("where", ["memory", "disk", "off"])
def test_it_gives_what_the_frozen_layers_give(where: str, tmp_path: Path) -> None:
    cap = 0 if where == "off" else 2**30
    trunk = TrunkCache(BASE, ROWS, cap, shared(tmp_path) if where == "disk" else None)
    for cut in (1, 2, 1):
        trunk.prepare(cut, INDEX)
        assert trunk.cached == (where != "off")
        assert close(trunk.hidden(INDEX), expected(cut))


def test_every_way_gives_the_same_bytes(tmp_path: Path) -> None:
    found = []
    for cap, where in ((2**30, None), (2**30, shared(tmp_path)), (0, None)):
        trunk = TrunkCache(BASE, ROWS, cap, where)
        trunk.prepare(2, torch.arange(5, 50))
        found.append(trunk.hidden(torch.arange(10, 42)))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_another_worker_finds_what_one_has_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = TrunkCache(BASE, ROWS, 2**30, shared(tmp_path))
    first.prepare(1, torch.arange(40))
    second = TrunkCache(BASE, ROWS, 2**30, shared(tmp_path))
    calls = counted(second, monkeypatch)
    second.prepare(1, torch.arange(30, 45))
    assert sum(calls) == 1 + 5, "one row for the shape, and the five that were missing"
    some = torch.tensor([31, 44, 2])
    assert close(second.hidden(some), expected(1, some))
    first.prepare(1, torch.arange(45))
    assert torch.equal(first.hidden(torch.arange(45)), second.hidden(torch.arange(45)))


@pytest.mark.parametrize("changed", ["samples", "base", "boot"])
def test_what_is_no_longer_right_is_not_read(
    changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    TrunkCache(BASE, ROWS, 2**30, shared(tmp_path)).prepare(1, torch.arange(70))
    samples = [*SAMPLES[1:], SAMPLES[0]] if changed == "samples" else SAMPLES
    if changed == "boot":
        monkeypatch.setattr(shared_cache, "_boot", lambda: "another")
    base = "another" if changed == "base" else "base"
    other = TrunkCache(BASE, ROWS, 2**30, shared(tmp_path, samples, base))
    calls = counted(other, monkeypatch)
    other.prepare(1, torch.arange(70))
    assert sum(calls) == 1 + 70


def test_a_row_is_kept_beside_the_digest_of_its_sample(tmp_path: Path) -> None:
    TrunkCache(BASE, ROWS, 2**30, shared(tmp_path)).prepare(2, INDEX)
    (folder,) = tmp_path.glob("*/cut-002")
    found = (folder / "rows").read_text()
    assert [found[at : at + 64] for at in range(0, len(found), 64)] == SAMPLES
    filled = (folder / "filled").read_bytes()
    assert {row for row, mark in enumerate(filled) if mark} == set(INDEX.tolist())
    tokens, width = expected(2).shape[1:]
    assert (folder / "hidden").stat().st_size == 70 * tokens * width * 4


def test_a_full_disk_means_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    trunk = TrunkCache(BASE, ROWS, 2**30, shared(tmp_path))
    trunk.prepare(1, INDEX)
    assert not trunk.cached
    assert close(trunk.hidden(INDEX), expected(1))


def test_a_base_that_draws_dropout_is_refused() -> None:
    base = tiny_base("vit")
    base.model.train()
    with pytest.raises(S3TError, match="training mode"):
        TrunkCache(base, ROWS, 2**30)


def test_nodes_have_the_same_bytes_with_a_shared_cache(tmp_path: Path) -> None:
    alone = tiny_trainer("bert", dropout=0.1)
    group = tiny_group(alone, 2, (7, 12, 3))
    contents = [digest(number) for number in range(40)]
    sharing = [
        tiny_trainer(
            "bert", dropout=0.1, shared_cache=SharedCache(tmp_path, digest("bert"), contents)
        )
        for _ in range(2)
    ]
    for trainer in sharing:
        for one, other in zip(
            alone.train((1, 2), group), trainer.train((1, 2), group), strict=True
        ):
            assert all(torch.equal(one.tensors[n], other.tensors[n]) for n in one.tensors)


WIDTHS = [(10, 2, 40), (30, 3, 90), (32, 4, 37), (12, 2, 48), (64, 4, 172), (100, 4, 400)]


@pytest.mark.parametrize(
    ("family", "hidden", "heads", "inner"),
    [
        *(("bert", *width) for width in WIDTHS[::2]),
        ("vit", *WIDTHS[0]),
        *(pytest.param("vit", *width, marks=pytest.mark.heavy) for width in WIDTHS[1:]),
        *(pytest.param("bert", *width, marks=pytest.mark.heavy) for width in WIDTHS[1::2]),
    ],
)
def test_a_rows_states_do_not_depend_on_the_other_rows(
    family: str, hidden: int, heads: int, inner: int
) -> None:
    """A deletion moves all others by one place, and some into other passes."""
    config: Any = IMAGES["vit"](2) if family == "vit" else ENCODERS["bert"](2)
    config.hidden_size, config.num_attention_heads = hidden, heads
    config.intermediate_size = inner
    base = Base(from_config(config), language_model=False, length=None if family == "vit" else 16)
    rows = tiny_rows(family, 40)
    everything, less = torch.arange(40), torch.arange(1, 40)
    for cut in (0, 1, 2):
        trunk, other = TrunkCache(base, rows, 2**30), TrunkCache(base, rows, 2**30)
        trunk.prepare(cut, everything)
        other.prepare(cut, less)
        assert torch.equal(trunk.hidden(less), other.hidden(less))
        shuffled = less.flip(0)
        uncached = TrunkCache(base, rows, 0)
        uncached.prepare(cut, shuffled)
        assert torch.equal(trunk.hidden(shuffled), uncached.hidden(shuffled))
