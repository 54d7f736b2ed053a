"""What is learnt: answers alone, over a whole step however it is cut, from rows of like length."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from s3t.model.adapters.lora import Bank, adapted
from s3t.model.inputs.encoders import Encoded
from s3t.training.node.assignment import StageRows, TrainedNode
from s3t.training.node.objective import Objective
from s3t.training.node.rows import Batches, LabelledSet
from s3t.training.node.trainer import StageTrainer
from tests.support.tiny import (
    DECODERS,
    bank_of,
    node,
    random_adapter,
    tiny_group,
    tiny_rows,
    tiny_trainer,
)

SIZES = (7, 12, 3, 5)
ROUGH = {"schedule": "cosine", "warmup": 0.25, "max_grad_norm": 0.1, "weight_decay": 0.1}


def same(one: TrainedNode, other: TrainedNode) -> bool:
    return (one.score == other.score and torch.equal(one.said, other.said)) and all(
        torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors
    )


def answered(rows: Encoded) -> Encoded:
    """The last third of each text is its answer."""
    assert rows.mask is not None
    lengths = rows.mask.sum(dim=1, keepdim=True)
    places = torch.arange(rows.values.shape[1])
    targets = ((places >= lengths - lengths // 3) & (places < lengths)).long()
    return Encoded(rows.values, rows.mask, targets=targets)


def instructed(family: str, length: int = 32, dropout: float = 0.0, **recipe: Any) -> StageTrainer:
    """A trainer of a language model on answers alone."""
    plain = tiny_trainer(family, language_model=True, length=length, dropout=dropout, **recipe)
    sets = [
        LabelledSet(answered(one.rows), one.labels) for one in (plain.private, plain.validation)
    ]
    return StageTrainer(plain.base, plain.settings, StageRows(*sets, 0))


# ── answers alone ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("family", [pytest.param("gpt2", marks=pytest.mark.heavy), "llama"])
@pytest.mark.parametrize(
    "recipe",
    [{}, {"gradient_accumulation": 3}, {"group_by_length": True, "gradient_accumulation": 2}],
    ids=["plain", "accumulated", "by length"],
)
def test_answers_give_the_same_bytes_in_every_group_and_on_every_run(
    family: str, recipe: dict[str, Any]
) -> None:
    trainer = instructed(family, dropout=0.1, **ROUGH, **recipe)
    group = tiny_group(trainer, 2, SIZES)
    again = instructed(family, dropout=0.1, **ROUGH, **recipe)
    alone = {a.key: again.train((1, 2), [a])[0] for a in group}
    for members in (group, group[::-1], group[:3]):
        for trained in trainer.train((1, 2), members):
            assert same(trained, alone[trained.key]), f"in a group of {len(members)}"


def test_what_is_padding_changes_no_byte() -> None:
    trainer = instructed("llama", **ROUGH)
    group = tiny_group(trainer, 2, SIZES[:3])
    plain = trainer.private.rows
    assert plain.mask is not None
    values = plain.values.masked_fill(plain.mask == 0, 7)
    private = LabelledSet(Encoded(values, plain.mask, targets=plain.targets), None)
    rows = StageRows(private, trainer.validation, 0)
    other = StageTrainer(trainer.base, trainer.settings, rows)
    for one, two in zip(trainer.train((1, 2), group), other.train((1, 2), group), strict=True):
        assert same(one, two)


def losses(
    objective: Objective, bank: Bank, chosen: tuple[Tensor, Tensor], passes: int = 1
) -> list[Tensor]:
    """The loss of one node of a language model, pass by pass."""
    return [objective.loss(2, bank, {}, taken) for taken in objective.passes([chosen], passes)]


def test_the_loss_is_the_mean_over_the_answers_tokens() -> None:
    trainer = instructed("llama")
    base, rows = trainer.base, trainer.private.rows
    tensors = random_adapter(base.targets, 2, trainer.lora.rank)
    bank = bank_of(base.targets, tensors, 2.0)
    index, weights = torch.tensor([3, 5, 8, 3]), torch.tensor([1.0, 1.0, 1.0, 0.0])
    trainer.on_private.trunk.prepare(2, index.unique())
    (loss,) = losses(trainer.on_private, bank, (index, weights))
    few = rows.rows(index[:3])
    with adapted(bank):
        hidden = base.run(base.start(few), 0, base.depth, base.attention(few.mask))
    assert base.lm_head is not None and few.targets is not None
    labels = few.values.masked_fill(few.targets == 0, -100)
    logits = base.lm_head(base.finish(hidden))[:, :-1]
    expected = functional.cross_entropy(logits.transpose(1, 2), labels[:, 1:])
    assert float(loss) == pytest.approx(float(expected), abs=1e-5)


def test_the_score_is_of_the_answers_alone() -> None:
    trainer = instructed("gpt2", epochs=1)
    (assignment,) = tiny_group(trainer, 2, (8,))
    scored = trainer.train((1, 2), [assignment])[0].score
    rows = trainer.validation.rows
    whole = LabelledSet(Encoded(rows.values, rows.mask), None)
    trainer.on_public = Objective(trainer.base, 0, whole, trainer.on_public.trunk)
    assert trainer.train((1, 2), [assignment])[0].score != scored


# ── several passes are one step ──────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("family", "passes"),
    [
        ("llama", 4),
        ("vit", 2),
        *(pytest.param(*case, marks=pytest.mark.heavy) for case in (("gpt2", 4), ("llama", 2))),
    ],
)
def test_passes_learn_what_one_large_batch_learns(family: str, passes: int) -> None:
    make: Any = instructed if family in DECODERS else tiny_trainer
    cut = make(family, batch_size=8 // passes, gradient_accumulation=passes, **ROUGH)
    whole = make(family, batch_size=8, **ROUGH)
    group = tiny_group(cut, 2, SIZES)
    told: list[int] = []
    large = whole.train((1, 2), group, told.append)
    for one, other in zip(cut.train((1, 2), group), large, strict=True):
        for name in one.tensors:
            assert torch.allclose(one.tensors[name], other.tensors[name], atol=2e-4), name
        assert one.score == pytest.approx(other.score, abs=1e-4)
    assert len(told) == 4, "12 rows take 2 steps of 8 an epoch"


def test_a_pass_weighs_as_much_as_it_holds() -> None:
    """The mean over passes of each one's mean would be another loss."""
    trainer = instructed("llama")
    scored = trainer.private.rows.scored[:, 1:].sum(dim=1)
    order = scored.argsort()
    index = torch.cat([order[:4], order[-4:]])
    assert scored[index[:4]].sum() < scored[index[4:]].sum() / 2
    bank = bank_of(trainer.base.targets, random_adapter(trainer.base.targets, 2, 2), 2.0)
    objective, weights = trainer.on_private, torch.ones(8)
    objective.trunk.prepare(2, index.unique())
    (whole,) = losses(objective, bank, (index, weights))
    parts = losses(objective, bank, (index, weights), passes=2)
    each = losses(objective, bank, (index[:4], weights[:4]))
    each += losses(objective, bank, (index[4:], weights[4:]))
    assert float(sum(parts)) == pytest.approx(float(whole), rel=1e-6)
    assert float(sum(each)) / 2 != pytest.approx(float(whole), rel=1e-3)


# ── the order of rows ────────────────────────────────────────────────────────────────────────


def drawn_lengths(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(1, 17, (count,), generator=generator) * 16


def epochs(batches: Batches, count: int) -> list[tuple[Tensor, Tensor]]:
    steps = [batches.at(step) for step in range(batches.steps)]
    size = batches.steps // count
    return [
        tuple(torch.cat(parts) for parts in zip(*steps[start : start + size], strict=True))
        for start in range(0, batches.steps, size)
    ]


@pytest.mark.parametrize("together", [1, 3])
@pytest.mark.parametrize("by_length", [False, True])
@pytest.mark.parametrize("count", [1, 4, 5, 12, 13, 250])
def test_an_epoch_has_every_row_once(count: int, together: int, by_length: bool) -> None:
    rows = torch.arange(1000, 1000 + count)
    lengths = drawn_lengths(count) if by_length else None
    batches = Batches(node("a"), rows, 4, 2, together, lengths)
    assert batches.steps == 2 * -(-count // (4 * together))
    orders = []
    for index, weights in epochs(batches, 2):
        assert sorted(index[weights > 0].tolist()) == rows.tolist()
        assert len(index) == len(weights) == batches.steps // 2 * 4 * together
        orders.append(index.tolist())
    assert count < 5 or orders[0] != orders[1], "another draw each epoch"


def test_batches_of_like_length_follow_from_the_key_alone() -> None:
    rows, lengths = torch.arange(400), drawn_lengths(400)
    one, again, other = (Batches(node(n), rows, 8, 1, 1, lengths) for n in ("a", "a", "b"))
    first = [one.at(step) for step in range(one.steps)]
    assert all(torch.equal(b[0], again.at(step)[0]) for step, b in enumerate(first))
    assert any(not torch.equal(b[0], other.at(step)[0]) for step, b in enumerate(first))
    plain = Batches(node("a"), rows, 8, 1)

    def padding(batches: list[Tensor]) -> int:
        return int(sum(8 * lengths[index].max() - lengths[index].sum() for index in batches))

    drawn = padding([plain.at(step)[0] for step in range(plain.steps)])
    grouped = padding([index for index, _ in first])
    assert grouped * 10 < drawn
    longest = [int(lengths[index].max()) for index, _ in first]
    assert longest != sorted(longest), "batches come in no order of length"


def test_what_a_step_lacks_is_filled_with_rows_of_its_own() -> None:
    rows, lengths = torch.arange(9), torch.tensor([16] * 8 + [320])
    batches = Batches(node("a"), rows, 2, 1, 4, lengths)
    for step in range(batches.steps):
        index, weights = batches.at(step)
        assert {*index.tolist()} == {*index[weights > 0].tolist()}


def test_rows_carry_their_targets() -> None:
    rows = answered(tiny_rows("llama", 6, length=32))
    assert rows.targets is not None
    for part in (rows.rows(torch.tensor([4, 1])), rows.to(torch.device("cpu")), rows.first(16)):
        assert part.targets is not None
        assert part.targets.shape == part.values.shape
    assert torch.equal(rows.rows(slice(2, 4)).scored, rows.targets[2:4])
    assert torch.equal(replace(rows, targets=None).scored, rows.mask)
