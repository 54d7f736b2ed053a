"""One member answers a row: which, from how many passes, and who does when it is gone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from s3t.config import Config
from s3t.errors import ExhaustedError
from s3t.model.base import Base
from s3t.model.inputs.encoders import Encoded
from s3t.model.prototypes import Prototypes, clusters_of, features_of
from s3t.run import RunDir
from s3t.service import S3T
from s3t.serving.ensemble.ensemble import Ensemble, Member
from s3t.training.work.train import train
from tests.support.small_runs import small_configs
from tests.support.tiny import random_head, tiny_base, tiny_members, tiny_rows

DEPTH = 4
SCALE = 2.0
LOWEST = (2, 0, 3, 2)
"""Lowest adapted layers of four shards."""


def members_of(base: Base, lowest: tuple[int, ...] = LOWEST) -> list[Member]:
    return tiny_members(base, lowest, [10] * len(lowest))


def prototypes_near(base: Base, rows: Encoded, layer: int, count: int = len(LOWEST)) -> Prototypes:
    """Prototypes that are the features of some of the rows, so that each is somebody's nearest."""
    found = features_of(base, rows, layer)
    return Prototypes(layer, found[:count].clone(), (1,) * count)


def routed(base: Base, members: list[Member], prototypes: Prototypes) -> Ensemble:
    return Ensemble(base, members, SCALE, "route", "data", None, prototypes)


def of_one(base: Base, member: Member) -> Ensemble:
    return Ensemble(base, [member], SCALE, "mean-probabilities", "uniform")


@contextmanager
def counted(base: Base) -> Iterator[list[int]]:
    """Rows × layers that are run."""
    run, found = base.run, [0]

    def counting(hidden: Tensor, lo: int, hi: int, attention: Tensor | None, *more: Any) -> Tensor:
        found[0] += len(hidden) * (hi - lo)
        return run(hidden, lo, hi, attention, *more)

    base.run = counting  # type: ignore[method-assign]
    try:
        yield found
    finally:
        del base.run


@pytest.mark.parametrize(
    ("family", "layer"), [("vit", 0), ("vit", 3), ("bert", 1), ("bert", DEPTH)]
)
def test_each_row_is_answered_by_the_member_of_its_cluster_alone(family: str, layer: int) -> None:
    base, rows = tiny_base(family, DEPTH), tiny_rows(family, 23)
    members, prototypes = members_of(base), prototypes_near(base, rows, layer)
    expected = clusters_of(base, rows, prototypes)
    assert set(expected) == {0, 1, 2, 3}
    alone = torch.stack([of_one(base, member).probabilities(rows) for member in members])
    assert float(alone.std(dim=0).mean()) > 0.05, "the members differ"
    ensemble = routed(base, members, prototypes)
    found = ensemble.probabilities(rows)
    answers = alone[torch.tensor(expected), torch.arange(len(rows))]
    assert torch.allclose(found, answers, rtol=0, atol=1e-5)
    routes = ensemble.routes(rows)
    assert routes is not None
    stacked = sorted(range(4), key=lambda shard: (LOWEST[shard], shard))
    assert [stacked[number] for number in routes.tolist()] == expected
    few = [ensemble.probabilities(rows.rows(slice(at, at + 1))) for at in range(3)]
    assert torch.allclose(torch.cat(few), found[:3], rtol=0, atol=1e-5)


def test_all_others_have_no_routes() -> None:
    base, rows = tiny_base("vit", DEPTH), tiny_rows("vit", 4)
    assert of_one(base, members_of(base)[0]).routes(rows) is None


@pytest.mark.parametrize(
    ("layer", "lowest", "passes"),
    [(0, 2, DEPTH), (2, 2, DEPTH), (2, 3, DEPTH), (3, 1, DEPTH + 2), (DEPTH, 2, DEPTH + 2)],
)
def test_what_finds_the_member_begins_its_answer(layer: int, lowest: int, passes: int) -> None:
    base = tiny_base("bert", DEPTH, pooling="mean")  # whose last layer is run at all positions
    rows = tiny_rows("bert", 8)
    members = members_of(base, (lowest, lowest))
    ensemble = routed(base, members, prototypes_near(base, rows, layer, 2))
    ensemble.probabilities(rows)
    with counted(base) as found:
        ensemble.probabilities(rows)
    assert found[0] == len(rows) * passes


def test_a_shard_without_a_prefix_leaves_its_rows_to_the_next_nearest() -> None:
    base, rows = tiny_base("vit", DEPTH), tiny_rows("vit", 30)
    members, prototypes = members_of(base), prototypes_near(base, rows, 1)
    before = clusters_of(base, rows, prototypes)
    whole = routed(base, members, prototypes).probabilities(rows)
    left = [member for member in members if member.shard != 1]
    found = routed(base, left, prototypes).probabilities(rows)
    rest = Prototypes(1, prototypes.centres[[0, 2, 3]], (1, 1, 1))
    after = [(0, 2, 3)[at] for at in clusters_of(base, rows, rest)]
    for row, (was, now) in enumerate(zip(before, after, strict=True)):
        assert was == now or was == 1
        answer = of_one(base, members[now]).probabilities(rows.rows(slice(row, row + 1)))[0]
        assert torch.allclose(found[row], answer, rtol=0, atol=1e-5)
        if was != 1:
            assert torch.allclose(found[row], whole[row], rtol=0, atol=1e-6)
    assert 1 in before


def test_one_that_is_left_answers_all_and_costs_no_choice() -> None:
    base, rows = tiny_base("bert", DEPTH, pooling="mean"), tiny_rows("bert", 9)
    members, prototypes = members_of(base), prototypes_near(base, rows, DEPTH)
    last = routed(base, [members[2]], prototypes)
    expected = of_one(base, members[2]).probabilities(rows)
    assert torch.allclose(last.probabilities(rows), expected, rtol=0, atol=1e-6)
    with counted(base) as found:
        last.probabilities(rows)
    assert found[0] == len(rows) * DEPTH
    nobody = Member(0, DEPTH, random_head(base.hidden_size), 1)  # the base as fallback
    expected = of_one(base, nobody).probabilities(rows)
    fallback = routed(base, [nobody], prototypes).probabilities(rows)
    assert torch.allclose(fallback, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_text_goes_on_where_its_prompt_leads(family: str) -> None:
    base, rows = tiny_base(family, DEPTH, language_model=True), tiny_rows(family, 12)
    assert rows.mask is not None
    members, prototypes = members_of(base), prototypes_near(base, rows, 2)
    ensemble = routed(base, members, prototypes)
    prompts = torch.full((12,), 2)
    places = torch.arange(rows.mask.shape[1])
    begun = Encoded(rows.values, rows.mask * (places < prompts.unsqueeze(1)))
    which = clusters_of(base, begun, prototypes)
    assert which != clusters_of(base, rows, prototypes) and len(set(which)) > 1
    alone = torch.stack([of_one(base, member).next_token(rows) for member in members])
    found = ensemble.next_token(rows, prompts)
    assert torch.allclose(found, alone[torch.tensor(which), torch.arange(12)], rtol=0, atol=1e-4)


def test_each_token_of_a_text_is_answered_as_if_the_text_ended_there() -> None:
    base, rows = tiny_base("gpt2", DEPTH, language_model=True), tiny_rows("gpt2", 6)
    assert rows.mask is not None
    ensemble = routed(base, members_of(base), prototypes_near(base, rows, 2))
    lengths = rows.mask.sum(dim=1)
    every, losses = ensemble.token_log_probabilities(rows), ensemble.token_losses(rows)
    seen = set()
    for length in range(1, int(lengths.max()) + 1):
        at = (lengths >= length).nonzero().squeeze(1)
        mask = (torch.arange(rows.values.shape[1]) < length).long().expand(len(at), -1)
        begun = Encoded(rows.values[at], mask)
        routes = ensemble.routes(begun)
        assert routes is not None
        seen.add(int(routes[0]))
        expected = ensemble.next_token(begun)
        assert torch.allclose(every[at, length - 1], expected, rtol=0, atol=1e-4)
        for row, logs in zip(at.tolist(), expected, strict=True):
            if length < lengths[row]:
                wanted = -logs[rows.values[row, length]]
                assert abs(float(losses[row, length - 1] - wanted)) < 1e-3
    assert len(seen) > 1, "no text changes its member: the test shows nothing"


def test_a_run_routes_and_falls_back_until_it_is_exhausted(tmp_path: Path) -> None:
    config: Config = small_configs(tmp_path)(
        partition={"clusters": {"layer": 1}}, aggregation={"method": "route"}
    )
    train(config)
    questions = [{"text": f"person {number} says {number}"} for number in range(8)]
    with S3T.load(config.run_dir) as service:
        whole = service.predict(questions)
        with RunDir(config.run_dir).ledger() as ledger:
            shards: dict[int, list[str]] = {0: [], 1: []}
            for entry in ledger.samples():
                shards[entry.shard].append(entry.sample_id)
        service.deactivate(shards[0])
        half = service.predict(questions)
        assert [answer.view for answer in half] == [1] * 8
        changed = sum(
            one.probabilities != other.probabilities for one, other in zip(whole, half, strict=True)
        )
        assert 0 < changed < 8, "those of the other shard are answered as before"
        service.deactivate(shards[1])
        with pytest.raises(ExhaustedError):
            service.predict(questions)
