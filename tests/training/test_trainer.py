"""A stage's bytes depend on the node alone, and are those of a plain loop with peft and torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from s3t.errors import IntegrityError, S3TError
from s3t.model.adapters.lora import StackedLinear, merge
from s3t.model.adapters.peft import from_peft, to_peft
from s3t.model.determinism import rounds_alike
from s3t.training.node.assignment import Assignment, TrainedNode
from s3t.training.node.objective import Pass
from s3t.training.node.optimizer import learning_rate
from s3t.training.node.rows import Batches, LabelledSet
from s3t.training.node.trainer import StageSteps, StageTrainer
from tests.support.tiny import (
    FAMILIES,
    inputs_of,
    node,
    random_adapter,
    random_head,
    tiny_group,
    tiny_model,
    tiny_trainer,
)

CASES = [
    pytest.param("vit", False, marks=pytest.mark.heavy),
    ("bert", False),
    pytest.param("gpt2", True, marks=pytest.mark.heavy),
    ("llama", True),
]
"""An encoder and a decoder; the other families of each kind are heavy."""
SIZES = (7, 12, 3, 12, 9, 5)
ROUGH = {
    "dropout": 0.2,
    "schedule": "cosine",
    "warmup": 0.25,
    "max_grad_norm": 0.1,
    "weight_decay": 0.1,
}
"""A recipe with everything in it that could tell lanes apart."""


PLAIN = {"dropout": 0.0}
"""What is drawn depends on the length of a batch; the rest does not."""


def same(one: TrainedNode, other: TrainedNode) -> bool:
    return (
        one.key == other.key
        and one.score == other.score
        and torch.equal(one.said, other.said)
        and one.tensors.keys() == other.tensors.keys()
        and all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
    )


STAGES = {
    "layers": ((1, 2), 2),
    "nested": ((1, 3), 2),
    "snapshot": ((0, 3), 0),
    "residual": ((0, 3), 0),
}
"""Of each isolation the layers that stage 2 trains, and from which up it inherits adapters."""


@pytest.mark.parametrize("isolation", STAGES)
@pytest.mark.parametrize(("family", "language_model"), CASES)
def test_a_group_changes_no_byte(family: str, language_model: bool, isolation: str) -> None:
    rough = ROUGH | ({"orthogonality": 0.1} if isolation == "residual" else {})
    trainer = tiny_trainer(family, language_model=language_model, isolation=isolation, **rough)
    block, lowest = STAGES[isolation]
    group = tiny_group(trainer, lowest, SIZES)
    alone = {a.key: trainer.train(block, [a])[0] for a in group}
    for members in (group[:2], group[::-1][:3], group):
        for trained in trainer.train(block, members):
            assert same(trained, alone[trained.key]), f"in a group of {len(members)}"


@pytest.mark.parametrize("merges", [True, False], ids=["merged", "beside"])
@pytest.mark.parametrize(("family", "language_model"), CASES)
def test_a_residual_stage_trains_beside_what_stands_still(
    family: str, language_model: bool, merges: bool
) -> None:
    """The new adapter learns what it would learn over a base with the old one merged in."""
    trainer = tiny_trainer(family, language_model=language_model, isolation="residual")
    trainer.base.merges = merges
    (one,) = tiny_group(trainer, 0, (16,))
    (found,) = trainer.train((0, 3), [one])
    fresh = {name: tensor for name, tensor in one.inherited.items() if name.startswith("head")}
    over = tiny_trainer(family, language_model=language_model, isolation="residual")
    with torch.no_grad():
        for target in over.base.targets:
            module = over.base.layers[target.layer].get_submodule(target.path)
            assert isinstance(module, StackedLinear)
            pair = one.inherited[target.a][None], one.inherited[target.b][None]
            merged = merge(over.base.layers, target, *pair, over.lora.scale)[0]
            weight = module.inner.weight
            assert isinstance(weight, torch.Tensor)
            weight.copy_(merged if isinstance(module.inner, Conv1D) else merged.t())
    over.base.weights.accept()
    over.base.run_plainly()
    (expected,) = over.train((0, 3), [replace(one, inherited=fresh)])
    assert found.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        torch.testing.assert_close(found.tensors[name], tensor, atol=2e-3, rtol=0)


def test_the_penalty_turns_a_stage_away_from_those_before() -> None:
    products = []
    for weight in (0.0, 1.0):
        trainer = tiny_trainer("vit", isolation="residual", orthogonality=weight)
        (one,) = tiny_group(trainer, 0, (40,))
        (found,) = trainer.train((0, 3), [one])
        products.append(
            sum(
                float((found.tensors[name] @ one.inherited[name].t()).square().sum())
                for name in found.tensors
                if name.endswith("lora_A")
            )
        )
    assert products[1] < 0.9 * products[0]


@pytest.mark.parametrize(("family", "language_model"), CASES)
def test_the_trunk_cache_changes_no_byte(family: str, language_model: bool) -> None:
    cached = tiny_trainer(family, language_model=language_model, **ROUGH)
    group = tiny_group(cached, 2, SIZES[:3])
    uncached = tiny_trainer(family, language_model=language_model, cap_bytes=0, **ROUGH)
    for one, other in zip(cached.train((1, 2), group), uncached.train((1, 2), group), strict=True):
        assert same(one, other)
    assert cached.on_private.trunk.cached, "the cache was used"
    assert not uncached.on_private.trunk.cached, "and here it was not"


@pytest.mark.parametrize(("family", "language_model"), CASES[1:])
def test_short_batches_of_texts_are_cut_and_change_no_byte_of_the_others(
    family: str, language_model: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = tiny_trainer(family, language_model=language_model, length=32, **ROUGH)
    short = (trainer.private.rows.mask.sum(dim=1) <= 16).nonzero().flatten()
    group = tiny_group(trainer, 2, SIZES[:4])
    group[1:3] = [replace(one, rows=short[: len(one.rows)]) for one in group[1:3]]
    seen: list[int] = []
    run = trainer.base.run
    monkeypatch.setattr(trainer.base, "run", lambda h, *a: (seen.append(h.shape[1]), run(h, *a))[1])
    alone = {a.key: trainer.train((1, 2), [a])[0] for a in group}
    assert {*seen} == {16, 32}
    for trained in trainer.train((1, 2), group):
        assert same(trained, alone[trained.key])
    # padded to one length they learn the same, up to rounding
    padded = tiny_trainer(family, language_model=language_model, length=32, **ROUGH | PLAIN)
    cut = tiny_trainer(family, language_model=language_model, length=32, **ROUGH | PLAIN)
    monkeypatch.setattr(LabelledSet, "longest", lambda self, index: 32)
    whole = padded.train((1, 2), group)
    monkeypatch.undo()
    for one, other in zip(whole, cut.train((1, 2), group), strict=True):
        assert all(
            torch.allclose(one.tensors[name], other.tensors[name], atol=1e-4)
            for name in one.tensors
        )


@pytest.mark.parametrize(("family", "language_model"), CASES)
def test_layers_run_again_change_no_byte(family: str, language_model: bool) -> None:
    plain = {**ROUGH, "dropout": 0.0}
    once = tiny_trainer(family, language_model=language_model, **plain)
    group = tiny_group(once, 2, SIZES[:3])
    twice = tiny_trainer(family, language_model=language_model, recompute=True, **plain)
    for one, other in zip(once.train((1, 2), group), twice.train((1, 2), group), strict=True):
        assert same(one, other)


def test_what_was_trained_before_changes_no_byte() -> None:
    trainer = tiny_trainer("vit")
    group = tiny_group(trainer, 2, SIZES)
    fresh = trainer.train((1, 2), group[:1])[0]
    trainer.train((2, 3), tiny_group(trainer, 3, (40, 40)))
    trainer.train((1, 2), group[3:])
    assert same(trainer.train((1, 2), group[:1])[0], fresh)


def test_results_come_in_the_order_of_the_group() -> None:
    trainer = tiny_trainer("vit")
    group = tiny_group(trainer, 2, SIZES)
    assert [t.key for t in trainer.train((1, 2), group)] == [a.key for a in group]


def test_global_random_state_is_neither_read_nor_written() -> None:
    trainer = tiny_trainer("vit", dropout=0.3)
    group = tiny_group(trainer, 2, (7,))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = trainer.train((1, 2), group)[0]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert same(trainer.train((1, 2), group)[0], one)


@pytest.mark.parametrize("source", ["order", "dropout"])
def test_order_and_dropout_belong_to_the_key(source: str) -> None:
    # with dropout a single row, so that no order is left to differ
    dropout, rows = (0.5, 1) if source == "dropout" else (0.0, 12)
    trainer = tiny_trainer("vit", dropout=dropout, epochs=4)
    (one,) = tiny_group(trainer, 0, (rows,))  # a snapshot: both start from the same weights
    other = Assignment(node("another"), one.rows, one.inherited)
    first, second = trainer.train((0, 3), [one, other])
    name = trainer.base.targets[0].b
    assert not torch.allclose(first.tensors[name], second.tensors[name], rtol=0, atol=1e-3)


# ── against peft and torch.optim ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("family", "language_model", "block"),
    [
        pytest.param(
            family,
            language_model,
            block,
            id=f"{family}-{language_model}-{name}",
            marks=[pytest.mark.heavy] if once and name != "middle" else [],
        )
        for family, language_model, once in (
            ("vit", False, True),
            ("bert", False, False),
            ("roberta", False, True),
            ("llama", False, True),
            ("gpt2", True, True),
            ("llama", True, False),
        )
        for name, block in {"top": (2, 3), "middle": (1, 2), "snapshot": (0, 3)}.items()
    ],
)
def test_a_stage_is_what_a_plain_loop_trains(
    family: str, language_model: bool, block: tuple[int, int]
) -> None:
    trainer = tiny_trainer(
        family, language_model=language_model, schedule="linear", weight_decay=0.05, epochs=3
    )
    inherits = {(2, 3): 3, (1, 2): 2, (0, 3): 0}[block]
    (assignment,) = tiny_group(trainer, inherits, (10,))
    expected = plain_loop(trainer, family, language_model, block, assignment)
    (trained,) = trainer.train(block, [assignment])
    assert trained.tensors.keys() == expected.keys()
    start = trainer.tensors.initial(block, assignment)
    for name, tensor in trained.tensors.items():
        assert torch.allclose(tensor, expected[name], rtol=0, atol=1e-4), name
        moved = float((tensor - start[name]).abs().max())
        assert moved > 5e-3, f"{name} moved by {moved}: the comparison shows nothing"


def plain_loop(
    trainer: StageTrainer,
    family: str,
    language_model: bool,
    block: tuple[int, int],
    assignment: Assignment,
) -> dict[str, Tensor]:
    """One node the ordinary way: a PeftModel of its own, autograd, torch.optim.AdamW."""
    lora, recipe, base = trainer.lora, trainer.recipe, trainer.base
    start = {**assignment.inherited, **trainer.tensors.initial(block, assignment)}
    # transformers' own model with its own forward: nothing of s3t is in the arithmetic
    untouched = tiny_model(family, base.depth, language_model)
    model = to_peft(untouched, base.targets, start, lora.rank, lora.alpha)
    trained = {t.a for t in base.targets if block[0] <= t.layer < block[1]}
    trained |= {t.b for t in base.targets if block[0] <= t.layer < block[1]}
    for name, parameter in named_adapters(model, base.targets).items():
        parameter.requires_grad_(name in trained)
    head = {n: start[n].clone().requires_grad_() for n in start if n.startswith("head.")}
    parameters = [p for p in model.parameters() if p.requires_grad] + list(head.values())
    optimizer = torch.optim.AdamW(
        parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    batches = Batches(assignment.key, assignment.rows, recipe.batch_size, recipe.epochs)
    rate = learning_rate(recipe, batches.steps)
    for step in range(batches.steps):
        index, weights = batches.at(step)
        index = index[weights > 0]
        rows = trainer.private.rows.rows(index)
        output = model(**inputs_of(rows))
        if language_model:
            assert rows.mask is not None
            labels = rows.values.masked_fill(rows.mask == 0, -100)[:, 1:]
            loss = functional.cross_entropy(output.logits[:, :-1].transpose(1, 2), labels)
        else:
            pooled = base.pool(output.last_hidden_state, rows.mask)
            logits = functional.linear(pooled, head["head.weight"], head["head.bias"])
            assert trainer.private.labels is not None
            loss = functional.cross_entropy(logits, trainer.private.labels[index])
        optimizer.param_groups[0]["lr"] = rate(step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    adapters = {n: t for n, t in from_peft(model, base.targets).items() if n in trained}
    return adapters | {name: tensor.detach() for name, tensor in head.items()}


def named_adapters(model: Any, targets: Any) -> dict[str, Tensor]:
    """s3t's names → the parameters of a PeftModel."""
    names = {f".{t.layer}.{t.path}.lora_A.default.weight": t.a for t in targets}
    names |= {f".{t.layer}.{t.path}.lora_B.default.weight": t.b for t in targets}
    return {
        name: parameter
        for full, parameter in model.named_parameters()
        for end, name in names.items()
        if full.endswith(end)
    }


# ── E4, E9 ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("family", ["vit", "bert", "gpt2"])
def test_a_block_of_twelve_layers_trains_its_own_layers_alone(family: str) -> None:
    trainer = tiny_trainer(family, layers=12, epochs=1)
    assignment = Assignment(
        node("deep"),
        torch.arange(8),
        random_adapter(trainer.base.targets, 3, trainer.lora.rank)
        | random_head(trainer.base.hidden_size),
    )
    before = {name: tensor.clone() for name, tensor in assignment.inherited.items()}
    (trained,) = trainer.train((1, 3), [assignment])
    layers = {name.split(".")[1] for name in trained.tensors if name.startswith("layers.")}
    assert layers == {"001", "002"}, "not 10 and 11, which a substring match would take too"
    assert all(torch.equal(before[n], assignment.inherited[n]) for n in before)
    trainer.base.check_frozen(whole=True)


def test_a_child_starts_from_its_parents_head() -> None:
    trainer = tiny_trainer("vit")
    (assignment,) = tiny_group(trainer, 2, (8,))
    kept = {name: tensor.clone() for name, tensor in assignment.inherited.items()}
    start = trainer.tensors.initial((1, 2), assignment)
    assert torch.equal(start["head.weight"], assignment.inherited["head.weight"])
    assert torch.equal(start["head.bias"], assignment.inherited["head.bias"])
    (trained,) = trainer.train((1, 2), [assignment])
    assert not torch.equal(trained.tensors["head.weight"], kept["head.weight"]), "it was trained"
    for name, tensor in kept.items():
        assert torch.equal(assignment.inherited[name], tensor), f"the parent's {name} was written"


def test_a_snapshot_goes_on_from_the_parents_adapter() -> None:
    trainer = tiny_trainer("vit")
    (assignment,) = tiny_group(trainer, 0, (8,))
    start = trainer.tensors.initial((0, 3), assignment)
    assert start.keys() == assignment.inherited.keys()
    assert all(torch.equal(start[name], assignment.inherited[name]) for name in start)


def test_a_first_node_starts_from_its_key() -> None:
    trainer = tiny_trainer("vit")
    one, other = (Assignment(node(name), torch.arange(8), {}) for name in "ab")
    first, again, second = (trainer.tensors.initial((2, 3), a) for a in (one, one, other))
    a, b = trainer.base.targets[-1].a, trainer.base.targets[-1].b
    assert torch.equal(first[a], again[a])
    assert not torch.equal(first[a], second[a])
    assert not first[b].any(), "B is zero, so that training starts from the base"
    bound = trainer.base.hidden_size**-0.5
    assert float(first[a].abs().max()) <= bound


# ── what must not become a node ──────────────────────────────────────────────────────────────


def test_divergence_is_an_error_that_names_the_node() -> None:
    trainer = tiny_trainer("vit", optimizer="sgd", learning_rate=1e30)
    group = tiny_group(trainer, 2, (8, 8))
    with pytest.raises(S3TError, match=r"node [0-9a-f]{64}: training diverged"):
        trainer.train((1, 2), group)
    trainer.base.check_frozen(whole=True)


def test_a_tensor_that_stood_still_is_an_error() -> None:
    trainer = tiny_trainer("vit", learning_rate=1e-30, optimizer="sgd")
    with pytest.raises(IntegrityError, match="was not changed by its stage"):
        trainer.train((1, 2), tiny_group(trainer, 2, (8,)))


def test_what_is_learnt_already_may_stand_still(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = tiny_trainer("vit")
    (one,) = tiny_group(trainer, 2, (8,))
    before = trainer.tensors.initial((1, 2), one)

    def nothing(self: StageSteps, *asked: Any) -> dict[str, Tensor]:
        return {name: torch.zeros_like(found) for name, found in real(self, *asked).items()}

    real = StageSteps.gradients
    monkeypatch.setattr(StageSteps, "gradients", nothing)
    (found,) = trainer.train((1, 2), [one])
    assert all(torch.equal(found.tensors[name], before[name]) for name in before)


def test_a_written_base_is_an_error() -> None:
    trainer = tiny_trainer("vit")
    with torch.no_grad():
        next(iter(trainer.base.weights.tensors.values())).add_(1)
    with pytest.raises(IntegrityError, match="frozen parameter"):
        trainer.train((1, 2), tiny_group(trainer, 2, (8,)))


def test_a_node_of_one_step_is_a_node() -> None:
    trainer = tiny_trainer("vit", epochs=1, batch_size=8)
    (trained,) = trainer.train((2, 3), tiny_group(trainer, 3, (5,)))
    assert all(t.any() for name, t in trained.tensors.items() if name.endswith("lora_B"))


def test_agrees_finds_a_machine_where_groups_round_differently(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = tiny_trainer("vit")
    group = tiny_group(trainer, 2, SIZES)
    assert trainer.agrees((1, 2), group) == rounds_alike(torch.device("cpu"))
    if not rounds_alike(torch.device("cpu")):
        pytest.skip("nothing is stacked where arithmetic is not strict")
    alone = {one.key: trainer.train((1, 2), [one])[0] for one in group}
    found = StageSteps._found

    def rounding(run: Any, drawn: Any, share: Any, taken: Pass) -> dict[str, Tensor]:
        """One number of one node between the first and the last, in one small gradient."""
        gradients = found(run, drawn, share, taken)
        if len(taken.lanes) > 2:
            bias = gradients["head.bias"]
            bias[1, 0] = bias[1, 0].nextafter(torch.tensor(9.0))
        return gradients

    other = tiny_trainer("vit")
    monkeypatch.setattr(StageSteps, "_found", rounding)
    assert not other.agrees((1, 2), group)
    with caplog.at_level("WARNING"):
        together = tiny_trainer("vit").train((1, 2), group)
    assert "one by one" in caplog.text
    assert all(same(trained, alone[trained.key]) for trained in together), "and no byte differs"


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in ("vit", "bert")])
def test_every_family_trains(family: str) -> None:
    trainer = tiny_trainer(family, epochs=1)
    group = tiny_group(trainer, 2, (6, 6))
    together = trainer.train((1, 2), group)
    assert all(same(t, trainer.train((1, 2), [a])[0]) for t, a in zip(together, group, strict=True))


# ── the score ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("family", "language_model"), CASES)
def test_the_score_is_that_of_the_untouched_model_with_the_adapter(
    family: str, language_model: bool
) -> None:
    trainer = tiny_trainer(family, language_model=language_model)
    (assignment,) = tiny_group(trainer, 2, (8,))
    (trained,) = trainer.train((1, 2), [assignment])
    whole = {**assignment.inherited, **trained.tensors}
    base, rows = trainer.base, trainer.validation.rows
    model = to_peft(
        tiny_model(family, 3, language_model), base.targets, whole, trainer.lora.rank, 4.0
    )
    with torch.no_grad():
        output = model(**inputs_of(rows))
    if language_model:
        assert rows.mask is not None
        labels = rows.values.masked_fill(rows.mask == 0, -100)[:, 1:]
        expected = -functional.cross_entropy(output.logits[:, :-1].transpose(1, 2), labels)
    else:
        pooled = base.pool(output.last_hidden_state, rows.mask)
        logits = functional.linear(pooled, whole["head.weight"], whole["head.bias"])
        assert trainer.validation.labels is not None
        expected = (logits.argmax(1) == trainer.validation.labels).double().mean()
    assert trained.score == pytest.approx(float(expected), abs=1e-5)


def test_progress_is_told_per_node_and_step() -> None:
    trainer = tiny_trainer("vit")
    told: list[int] = []
    trainer.train((1, 2), tiny_group(trainer, 2, (12, 4)), told.append)
    assert told == [2, 2, 1, 1, 1, 1], "12 rows take 3 steps an epoch, 4 rows one"
