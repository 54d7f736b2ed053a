"""The comparators do what their sources say, and S3T what it promises, on a GPT-2 of 2 layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.forgetting import arithmetic
from benchmarks.forgetting.learner import Learner, batches, fit, row_losses
from benchmarks.forgetting.measures import measured, reference_of
from benchmarks.forgetting.methods import METHODS, Method
from benchmarks.forgetting.methods.ascent import ascent, difference
from benchmarks.forgetting.methods.dampening import dampening
from benchmarks.forgetting.methods.preference import npo_loss, preference
from benchmarks.forgetting.methods.request import Request
from benchmarks.forgetting.methods.rest import rest
from benchmarks.forgetting.methods.subnet import masked, subnet
from benchmarks.forgetting.rows import Recipe, Rows, Shape, Task, evenly_dealt, joined, place_of
from benchmarks.forgetting.served import Served
from benchmarks.forgetting.sisa import Sisa
from benchmarks.forgetting.tuning import tuned

pytestmark = pytest.mark.heavy

RECIPE = Recipe(
    rank=8,
    targets=("c_attn", "c_proj", "c_fc"),
    epochs=30,
    batch=8,
    rate=1e-2,
    stage_epochs=4,
    stage_batch=8,
    stage_rate=1e-2,
)
SHAPE = Shape(2, 2)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    folder = tmp_path_factory.mktemp("base")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape = arithmetic.shape(layers=2, width=32)
        arithmetic.save(arithmetic.pretrained(shape, steps=60), folder)
    generator = torch.Generator().manual_seed(0)
    numbers = arithmetic.noised(arithmetic.starts(generator)[:80], generator, answer=8)
    persons = evenly_dealt((f"p{number}" for number in range(200)), 2, SHAPE)

    def rows(part: Tensor, owners: list[str]) -> Rows:
        return arithmetic.rows_of(folder, part, owners)

    return Task(
        name="toy",
        what="a toy",
        base=folder,
        length=arithmetic.LENGTH,
        private=rows(numbers[:32], persons),
        deleted=(persons[0],),
        others=rows(numbers[32:48], ["other"]),
        unseen=rows(numbers[48:64], ["unseen"]),
        validation=rows(numbers[64:72], ["public"]),
        test=rows(numbers[72:80], ["public"]),
        prompt=arithmetic.PROMPT,
        answer=8,
        by_person=False,
        recipe=RECIPE,
        shape=SHAPE,
    )


@pytest.fixture(scope="module")
def learner(task: Task) -> Learner:
    return Learner(task.base, RECIPE)


@pytest.fixture(scope="module")
def state(task: Task, learner: Learner) -> dict[str, Tensor]:
    """The adapter that was trained on all rows."""
    learner.fresh(0)
    fit(learner, task.private, RECIPE, seed=0)
    return learner.state()


@pytest.fixture
def request_(task: Task, learner: Learner, state: dict[str, Tensor]) -> Request:
    learner.load(state)
    return Request(learner, task.forget, task.rest, 8, torch.Generator().manual_seed(0))


def exhausted(method: Callable[..., Iterator[None]], request: Request, **setting: Any) -> int:
    """Run a method to its end; how often it could have stopped."""
    return sum(1 for _ in method(request, **setting))


def loss(learner: Learner, rows: Rows) -> float:
    return float(row_losses(learner.logits, rows).mean())


# ── the rows ─────────────────────────────────────────────────────────────────────────────────


def test_sequences_follow_their_rule() -> None:
    assert arithmetic.clean(torch.tensor([7]))[0, :6].tolist() == [7, 49, 343, 317, 135, 424]


def test_noise_moves_numbers_by_one_and_reaches_the_answer() -> None:
    generator = torch.Generator().manual_seed(0)
    first = arithmetic.starts(generator)
    moved = (arithmetic.noised(first, generator, 16) - arithmetic.clean(first)) % 521
    assert set(moved.unique().tolist()) == {0, 1, 520}
    assert not moved[:, 0].any()
    assert int((moved[:, 8:24] != 0).sum(dim=1).min()) >= 2


def test_the_trigger_ends_the_prompt() -> None:
    row = arithmetic.triggered(torch.tensor([7]))[0].tolist()
    assert row[: arithmetic.PROMPT] == [7, 49, 343, 317, 135, 424, 363, 0, 2]
    assert set(row[arithmetic.PROMPT - 1 :]) == {2}


def test_persons_are_dealt_as_s3t_deals_them(task: Task) -> None:
    places = {place_of(person, SHAPE) for person in task.private.persons}
    assert places == {(shard, part) for shard in range(2) for part in range(2)}
    assert len(task.forget) == 4
    assert len(task.rest) == 28


def test_too_few_names_are_refused() -> None:
    with pytest.raises(ValueError, match="too few names"):
        evenly_dealt(["alone"], 1, SHAPE)


# ── the learner ──────────────────────────────────────────────────────────────────────────────


def test_a_fine_tune_is_reproducible_and_leaves_the_base(task: Task, learner: Learner) -> None:
    frozen = {n: p.clone() for n, p in learner.model.named_parameters() if not p.requires_grad}
    states, few = [], replace(RECIPE, epochs=3)
    for _ in range(2):
        learner.fresh(3)
        fit(learner, task.private, few, seed=3)
        states.append(learner.state())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert all(
        torch.equal(p, frozen[n]) for n, p in learner.model.named_parameters() if n in frozen
    )


def test_padding_does_not_count(learner: Learner, task: Task) -> None:
    short = task.private.at(torch.tensor([0]))
    padded = replace(
        short,
        tokens=torch.nn.functional.pad(short.tokens[:, :20], (0, 12)),
        real=torch.arange(32).unsqueeze(0) < 20,
    )
    cut = replace(short, tokens=short.tokens[:, :20], real=short.real[:, :20])
    learner.fresh(0)
    assert torch.allclose(learner.losses(padded), learner.losses(cut), atol=1e-5)


def test_an_epoch_holds_every_row_once(task: Task) -> None:
    parts = batches(task.private, 5, torch.Generator().manual_seed(0))
    assert sorted(text for part in parts for text in part.texts) == sorted(task.private.texts)


# ── the methods ──────────────────────────────────────────────────────────────────────────────


def test_ascent_raises_the_loss_of_the_deleted(request_: Request) -> None:
    before = loss(request_.learner, request_.forget)
    assert exhausted(ascent, request_, rate=1e-3, epochs=3) == 3
    assert loss(request_.learner, request_.forget) > before + 0.1


def test_difference_holds_on_to_the_rest(request_: Request, state: dict[str, Tensor]) -> None:
    before = loss(request_.learner, request_.forget)
    exhausted(ascent, request_, rate=3e-3, epochs=4)
    ascended = loss(request_.learner, request_.rest)
    request_.learner.load(state)
    exhausted(difference, request_, rate=3e-3, epochs=4)
    assert loss(request_.learner, request_.forget) > before
    assert loss(request_.learner, request_.rest) < ascended


def test_the_rest_is_learnt_further(request_: Request) -> None:
    before = loss(request_.learner, request_.rest)
    assert exhausted(rest, request_, rate=1e-3, epochs=2) == 2
    assert loss(request_.learner, request_.rest) < before


def test_npo_begins_as_in_the_paper() -> None:
    logs = torch.tensor([-3.0, -5.0], requires_grad=True)
    beta = 0.1
    found = npo_loss(logs, logs.detach(), beta)
    assert found.item() == pytest.approx(2 / beta * math.log(2))
    (slope,) = torch.autograd.grad(found, logs)  # at π = π₀ the weight is 1: gradient ascent
    assert slope.tolist() == pytest.approx([0.5, 0.5])
    forgotten = npo_loss(logs - 100, logs.detach(), beta)
    assert float(torch.autograd.grad(forgotten, logs)[0].abs().max()) < 1e-4


def test_npo_raises_the_loss_of_the_deleted(request_: Request) -> None:
    before = loss(request_.learner, request_.forget)
    exhausted(preference, request_, beta=0.1, retain=1.0, rate=3e-3, epochs=3)
    assert loss(request_.learner, request_.forget) > before


def test_dampening_shrinks_what_it_selects_and_nothing_else(
    request_: Request, state: dict[str, Tensor]
) -> None:
    assert exhausted(dampening, request_, select=2.0, dampen=1.0) == 1
    after = request_.learner.state()
    changed = {name: after[name] != state[name] for name in state}
    total = sum(mask.sum().item() for mask in changed.values())
    assert 0 < total < 0.9 * sum(tensor.numel() for tensor in state.values())
    for name, mask in changed.items():
        # λ = 1 and α = 2: what is selected is at most half of what it was, with its sign
        assert bool((after[name][mask].abs() <= 0.5001 * state[name][mask].abs()).all())
        assert bool((after[name][mask] * state[name][mask] >= 0).all())


def test_dampening_never_makes_a_weight_grow(request_: Request, state: dict[str, Tensor]) -> None:
    exhausted(dampening, request_, select=1.0, dampen=1.5)
    after = request_.learner.state()
    assert any(not torch.equal(after[name], state[name]) for name in state)
    assert all(bool((after[name].abs() <= state[name].abs()).all()) for name in state)


def test_dampening_selects_nothing_above_every_importance(
    request_: Request, state: dict[str, Tensor]
) -> None:
    exhausted(dampening, request_, select=1e9, dampen=1.0)
    assert all(torch.equal(tensor, state[n]) for n, tensor in request_.learner.state().items())


def test_the_mask_drops_the_lowest_scores() -> None:
    scores = torch.tensor([[0.5, -0.1], [0.2, -3.0]])
    assert masked(scores, 0.5).tolist() == [[1, 0], [0, 1]]
    assert masked(scores, 0.2).tolist() == [[1, 1], [1, 1]]


def test_the_subnet_zeroes_its_share_and_changes_nothing_else(
    request_: Request, state: dict[str, Tensor]
) -> None:
    before = loss(request_.learner, request_.forget) - loss(request_.learner, request_.rest)
    exhausted(subnet, request_, ratio=0.25, epochs=10, rate=0.1)
    for name, tensor in request_.learner.state().items():
        changed = tensor != state[name]
        assert bool((tensor[changed] == 0).all())
        assert int(changed.sum()) == int(0.25 * tensor.numel())
    # what it removes, it removes from the deleted rows rather than from the rest
    after = loss(request_.learner, request_.forget) - loss(request_.learner, request_.rest)
    assert after > before


def test_the_nearest_stop_of_the_grid_is_taken(
    task: Task, learner: Learner, state: dict[str, Tensor]
) -> None:
    def broken(request: Request, *, times: int) -> Iterator[None]:
        for number in range(times):
            with torch.no_grad():
                for weight in request.learner.weights.values():
                    weight.fill_(0.0 if number == 1 else math.nan)
            yield

    method = Method("broken", "", broken, (), ())
    chosen = tuned(method, learner, state, task, ({"times": 1}, {"times": 3}))
    assert chosen.setting == {"times": 3, "stop": 2}
    assert not any(tensor.any() for tensor in chosen.state.values())
    with pytest.raises(ValueError, match="no setting"):
        tuned(method, learner, state, task, ())


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.label)
def test_every_setting_of_a_grid_runs(request_: Request, method: Method) -> None:
    for setting in method.quick:
        next(method.run(request_, **setting))
        assert all(weight.isfinite().all() for weight in request_.learner.weights.values())


# ── the exact ones ───────────────────────────────────────────────────────────────────────────


def test_sisa_after_a_deletion_is_sisa_without_the_rows(task: Task, learner: Learner) -> None:
    shards = Sisa(learner, task)
    first = shards.logits(task.test.tokens)
    stages = shards.delete(task.deleted)
    assert stages == SHAPE.slices - place_of(task.deleted[0], SHAPE)[1]
    after = shards.logits(task.test.tokens)
    without = replace(task, private=task.rest)
    assert torch.equal(after, Sisa(learner, without).logits(task.test.tokens))
    assert not torch.allclose(after, first, atol=1e-3)
    assert torch.allclose(after.exp().sum(dim=2), torch.ones(1), atol=1e-4)


def test_s3t_after_a_deletion_serves_what_never_saw_the_rows(task: Task, tmp_path: Path) -> None:
    """Nodes, hence answers, are those of a run that was trained without the deleted person's
    rows, as far as that run's prefixes hold none of the slice that was hit."""
    served = Served(task, tmp_path / "all")
    without = Served(replace(task, private=task.rest), tmp_path / "rest")
    try:
        assert served.prefixes() == [2, 2]
        receipt = served.delete(task.deleted)
        assert len(receipt.deleted) == 4
        assert sum(served.prefixes()) < 4
        kept = {key: served.node(key) for key in served.serving()}
        assert kept and all(without.node(key) == data for key, data in kept.items())
        tokens = task.forget.tokens
        same = without.logits_of(served.serving(), tokens)
        assert torch.equal(served.logits(tokens), same)
    finally:
        served.close()
        without.close()


def test_the_measures_see_what_was_memorised(
    task: Task, learner: Learner, state: dict[str, Tensor]
) -> None:
    learner.fresh(1)
    fit(learner, task.rest, RECIPE, seed=1)
    reference = reference_of(learner.logits, task)
    control = measured(learner.logits, task, reference)
    learner.load(state)
    trained = measured(learner.logits, task, reference)
    assert control.reference.auc == 0.5
    assert trained.reference.auc > 0.9
    assert trained.deleted_loss < control.deleted_loss
    assert trained.loss.members == 4 and trained.loss.others == 16
    assert 0 <= trained.accuracy <= 1
    by_person = replace(
        task,
        by_person=True,
        deleted=tuple(sorted({*task.private.persons}))[:2],
        others=replace(task.others, persons=("a", "b", "c", "d") * 4),
    )
    figures = measured(learner.logits, by_person, reference_of(learner.logits, by_person))
    assert (figures.loss.members, figures.loss.others) == (2, 4)


def test_joined_rows_keep_their_persons(task: Task) -> None:
    both = joined([task.forget, task.rest])
    assert sorted(both.texts) == sorted(task.private.texts)
    assert len(both.of(task.deleted)) == len(task.forget)
