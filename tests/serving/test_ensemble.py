"""An ensemble answers as its members would, one by one, each through its own prefix and head."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from s3t.model.adapters.peft import to_peft
from s3t.model.base import Base
from s3t.model.inputs.encoders import Encoded
from s3t.serving.ensemble.ensemble import Ensemble, Member, aggregate, averaged
from s3t.training.node.assignment import CacheSettings, StageRows
from s3t.training.node.trainer import StageTrainer
from tests.support.tiny import (
    CLASSES,
    inputs_of,
    random_head,
    tiny_base,
    tiny_group,
    tiny_members,
    tiny_model,
    tiny_rows,
    tiny_trainer,
)

DEPTH = 4
SCALE = 2.0
LOWEST = (2, 0, 3, 0, DEPTH)
"""Lowest adapted layers of five shards: prefixes of several lengths, the last has none at all."""

SEEN = (10, 40, 5, 20, 25)


def members_of(base: Base, lowest: tuple[int, ...] = LOWEST) -> list[Member]:
    return tiny_members(base, lowest, SEEN)


def gather(base: Base, members: list[Member], method: str = "mean-probabilities") -> Ensemble:
    return Ensemble(base, members, SCALE, method, "uniform")


def alone(base: Base, member: Member, rows: Encoded, family: str) -> Tensor:
    """Class probabilities of one member, by transformers' and peft's own forward."""
    model: Any = tiny_model(family, DEPTH)
    if member.lowest < DEPTH:
        model = to_peft(model, base.targets, member.tensors, 4, 8.0)
    with torch.no_grad():
        pooled = base.pool(model(**inputs_of(rows)).last_hidden_state, rows.mask)
    logits = functional.linear(pooled, member.tensors["head.weight"], member.tensors["head.bias"])
    return logits.softmax(dim=1)


def alone_tokens(base: Base, member: Member, rows: Encoded, family: str) -> Tensor:
    """Token probabilities [n, T, V] of one member, by transformers' and peft's own forward."""
    model: Any = tiny_model(family, DEPTH, language_model=True)
    if member.lowest < DEPTH:
        model = to_peft(model, base.targets, member.tensors, 4, 8.0)
    with torch.no_grad():
        probabilities: Tensor = model(**inputs_of(rows)).logits.softmax(dim=2)
    return probabilities


@pytest.mark.parametrize("family", ["vit", "bert", "llama"])
def test_a_classifier_is_the_mean_of_its_members(family: str) -> None:
    base, rows = tiny_base(family, DEPTH), tiny_rows(family, 6)
    members = members_of(base)
    expected = torch.stack([alone(base, member, rows, family) for member in members])
    assert float(expected.std(dim=0).mean()) > 0.05, "the members differ"
    found = gather(base, members).probabilities(rows)
    assert torch.allclose(found, expected.mean(dim=0), rtol=0, atol=1e-5)
    assert torch.allclose(found.sum(dim=1), torch.ones(6), rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_language_model_is_the_mean_of_its_members(family: str) -> None:
    base = tiny_base(family, DEPTH, language_model=True)
    rows = tiny_rows(family, 5)
    assert rows.mask is not None
    members = members_of(base)
    each = torch.stack([alone_tokens(base, member, rows, family) for member in members])
    mean = each.mean(dim=0)
    ensemble = gather(base, members)
    tokens = rows.values[:, 1:].unsqueeze(2)
    losses = -mean[:, :-1].gather(2, tokens).squeeze(2).log() * rows.mask[:, 1:]
    assert torch.allclose(ensemble.token_losses(rows), losses, rtol=0, atol=1e-4)
    last = mean[torch.arange(5), rows.mask.sum(dim=1) - 1].log()
    assert torch.allclose(ensemble.next_token(rows), last, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["vit", "gpt2"])
def test_sharing_the_trunk_is_exact(family: str) -> None:
    language_model = family == "gpt2"
    base = tiny_base(family, DEPTH, language_model)
    rows, members = tiny_rows(family, 7), members_of(base)
    together, singles = gather(base, members), [gather(base, [m]) for m in members]
    if language_model:
        parts = torch.stack([single.next_token(rows).exp() for single in singles])
        found = together.next_token(rows).exp()
    else:
        parts = torch.stack([single.probabilities(rows) for single in singles])
        found = together.probabilities(rows)
    assert torch.allclose(found, parts.mean(dim=0), rtol=0, atol=1e-6)


def test_the_order_of_the_members_does_not_matter() -> None:
    base, rows = tiny_base("bert", DEPTH), tiny_rows("bert", 4)
    members = members_of(base)
    turned = gather(base, members[::-1])
    assert torch.equal(turned.probabilities(rows), gather(base, members).probabilities(rows))
    assert turned.shards == (0, 1, 2, 3, 4)


def test_an_answer_comes_from_the_members_alone() -> None:
    base, rows = tiny_base("vit", DEPTH), tiny_rows("vit", 4)
    members = members_of(base)
    whole = gather(base, members)
    without = gather(base, members[1:])
    expected = torch.stack([alone(base, member, rows, "vit") for member in members[1:]])
    assert torch.allclose(without.probabilities(rows), expected.mean(dim=0), rtol=0, atol=1e-5)
    assert whole.shards == (0, 1, 2, 3, 4)
    assert without.shards == (1, 2, 3, 4)


def test_a_member_without_adapters_is_the_base() -> None:
    base, rows = tiny_base("vit", DEPTH), tiny_rows("vit", 4)
    fallback = Member(0, DEPTH, random_head(base.hidden_size), 0)
    expected = alone(base, fallback, rows, "vit")
    found = gather(base, [fallback]).probabilities(rows)
    assert torch.allclose(found, expected, rtol=0, atol=1e-5)


def test_a_member_that_lacks_an_adapter_of_its_layers_is_refused() -> None:
    base = tiny_base("vit", DEPTH)
    member = members_of(base)[1]
    torn = dict(member.tensors)
    del torn[base.targets[0].b]
    with pytest.raises(KeyError):
        gather(base, [Member(0, 0, torn, 1)])


@pytest.mark.parametrize("family", ["vit", "bert", "gpt2"])
@pytest.mark.parametrize("tokens", [1, 100, 1000])
def test_passes_change_nothing(family: str, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    language_model = family == "gpt2"
    base = tiny_base(family, DEPTH, language_model)
    rows = tiny_rows(family, 9)
    ensemble = gather(base, members_of(base))
    answers = ["next_token", "token_losses"] if language_model else ["probabilities"]
    whole = [getattr(ensemble, answer)(rows) for answer in answers]
    passes = passes_of(ensemble, monkeypatch)
    monkeypatch.setattr(Ensemble, "_budget", lambda self: tokens)
    for answer, expected in zip(answers, whole, strict=True):
        found = getattr(ensemble, answer)(rows)
        assert found.shape == expected.shape
        assert torch.allclose(found, expected, rtol=0, atol=1e-5)
    assert len(passes) == len(answers) if tokens == 1000 else len(passes) > len(answers)
    longest = 5 if family == "vit" else 16
    assert all(members * taken <= max(tokens, longest) for members, taken in passes)
    if tokens == 1:
        assert {members for members, _ in passes} == {1}, "rows and members one by one"


def passes_of(ensemble: Ensemble, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Members and tokens (of each member) of the passes that the ensemble goes on to make."""
    passes: list[tuple[int, int]] = []
    plain = ensemble._group

    def group(trunk: Any, first: int, stop: int, *how: Any) -> Tensor:
        passes.append((stop - first, trunk.hidden.shape[0] * trunk.hidden.shape[1]))
        return plain(trunk, first, stop, *how)

    monkeypatch.setattr(ensemble, "_group", group)
    return passes


def test_rows_come_before_members(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base("vit", DEPTH)
    ensemble = gather(base, members_of(base))
    passes = passes_of(ensemble, monkeypatch)
    monkeypatch.setattr(Ensemble, "_budget", lambda self: 5 * 10)  # five tokens a row
    for count, expected in (
        (1, [(5, 5)]),
        (2, [(5, 10)]),
        (4, [(1, 20), (2, 20), (2, 20)]),
        (10, [(1, 50)] * 5),
        (21, [(1, 35)] * 15),  # three parts of as many rows
    ):
        passes.clear()
        ensemble.probabilities(tiny_rows("vit", count))
        assert passes == expected


def test_texts_are_cut_to_the_longest_of_their_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base("bert", DEPTH)
    generator = torch.Generator().manual_seed(3)
    lengths = torch.tensor([3, 40, 9, 33, 16, 2, 12, 17])
    mask = (torch.arange(40) < lengths[:, None]).long()
    rows = Encoded(torch.randint(3, 99, (8, 40), generator=generator) * mask, mask)
    ensemble = gather(base, members_of(base))
    passes = passes_of(ensemble, monkeypatch)
    monkeypatch.setattr(Ensemble, "_budget", lambda self: 80)
    found = ensemble.probabilities(rows)
    # 40 and 33 tokens, then 17 and 16, then the four of up to 12; member by member
    assert passes == [(1, 2 * 40)] * 5 + [(1, 2 * 32)] * 5 + [(1, 4 * 16)] * 5
    whole = torch.stack([alone(base, m, rows, "bert") for m in members_of(base)]).mean(dim=0)
    assert torch.allclose(found, whole, rtol=0, atol=1e-5)


def test_each_row_is_answered_for_itself() -> None:
    base, rows = tiny_base("bert", DEPTH), tiny_rows("bert", 6)
    ensemble = gather(base, members_of(base))
    whole = ensemble.probabilities(rows)
    for row in range(6):
        single = ensemble.probabilities(rows.rows(torch.tensor([row])))
        assert torch.allclose(single[0], whole[row], rtol=0, atol=1e-5)


def test_a_base_that_has_answered_can_be_trained_on() -> None:
    base = tiny_base("llama", DEPTH)
    # another length than the base was loaded for, asked for first in inference mode
    short = tiny_rows("llama", 3, length=8)
    gather(base, members_of(base)).probabilities(short)
    trainer = tiny_trainer("llama", base=base)
    private = tiny_rows("llama", 40, 1, length=8)
    short_trainer = StageTrainer(
        base,
        trainer.settings,
        StageRows(
            type(trainer.private)(private, trainer.private.labels), trainer.validation, CLASSES
        ),
        CacheSettings(0),
    )
    short_trainer.train((2, 3), tiny_group(trainer, 3, (6, 6)))


# ── how answers are combined ─────────────────────────────────────────────────────────────────

LOGITS = torch.tensor(
    [
        [[2.0, 0.0, 1.0], [0.0, 0.0, 3.0]],
        [[0.0, 1.0, 0.5], [1.0, 0.0, 0.0]],
        [[0.0, 2.0, 0.0], [4.0, 0.0, 0.0]],
    ]
)  # [3 members, 2 rows, 3 classes]
WEIGHTS = torch.tensor([0.5, 0.25, 0.25])


def test_mean_of_probabilities() -> None:
    found = aggregate(LOGITS, WEIGHTS, "mean-probabilities")
    parts = LOGITS.softmax(dim=2)
    assert torch.allclose(found, parts[0] / 2 + parts[1] / 4 + parts[2] / 4)


def test_mean_of_logits() -> None:
    found = aggregate(LOGITS, WEIGHTS, "mean-logits")
    assert torch.allclose(found, (LOGITS[0] / 2 + LOGITS[1] / 4 + LOGITS[2] / 4).softmax(dim=1))


def test_vote_counts_the_weights() -> None:
    found = aggregate(LOGITS, WEIGHTS, "vote")
    assert torch.equal(found, torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.0, 0.5]]))


@pytest.mark.parametrize("method", ["mean-probabilities", "mean-logits"])
def test_language_models_answer_in_log_probabilities(method: str) -> None:
    tokens = LOGITS.unsqueeze(2)  # [S, n, 1, V]
    found = aggregate(tokens, WEIGHTS, method)
    assert torch.allclose(found[:, 0].exp(), aggregate(LOGITS, WEIGHTS, method), atol=1e-6)


def test_log_probabilities_stay_finite_where_probabilities_vanish() -> None:
    far = torch.tensor([[[[0.0, -500.0]]], [[[0.0, -400.0]]]])
    found = aggregate(far, torch.tensor([0.5, 0.5]), "mean-probabilities")
    assert torch.isfinite(found).all()
    assert float(found[0, 0, 1]) == pytest.approx(-400 + torch.tensor(0.5).log().item())


@pytest.mark.parametrize("method", ["mean-probabilities", "mean-logits", "vote"])
def test_weights_by_data_follow_what_a_prefix_has_seen(method: str) -> None:
    base, rows = tiny_base("vit", DEPTH), tiny_rows("vit", 5)
    members = members_of(base)
    ensemble = Ensemble(base, members, SCALE, method, "data")
    logits = torch.stack([alone(base, member, rows, "vit").log() for member in members])
    # log probabilities are logits but for a constant of the row, which softmax drops
    expected = aggregate(logits, torch.tensor(SEEN) / sum(SEEN), method)
    assert torch.allclose(ensemble.probabilities(rows), expected, rtol=0, atol=1e-5)


# ── adapters averaged into one ───────────────────────────────────────────────────────────────


def merged_by_hand(base: Base, members: list[Member], shares: Tensor, model: Any) -> Any:
    """An untouched model with the average of the members' scale · B·A added to its weights."""
    modules = model.base_model
    layers = next(
        module
        for module in modules.modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == DEPTH
    )
    for target in base.targets:
        module = layers[target.layer].get_submodule(target.path)
        for member, share in zip(members, shares, strict=True):
            if target.a in member.tensors:
                added = SCALE * share * member.tensors[target.b] @ member.tensors[target.a]
                module.weight.data += added.T if isinstance(module, Conv1D) else added
    return model


@pytest.mark.parametrize("weights", ["uniform", "data"])
@pytest.mark.parametrize("family", ["vit", "bert"])
def test_averaged_adapters_are_the_average_of_what_they_add(family: str, weights: str) -> None:
    base, rows = tiny_base(family, DEPTH), tiny_rows(family, 6)
    members = members_of(base)
    shares = torch.tensor(SEEN) / sum(SEEN) if weights == "data" else torch.full((5,), 0.2)
    model = merged_by_hand(base, members, shares, tiny_model(family, DEPTH))
    with torch.no_grad():
        pooled = base.pool(model(**inputs_of(rows)).last_hidden_state, rows.mask)
    head = {
        name: sum(w * m.tensors[name] for m, w in zip(members, shares, strict=True))
        for name in ("head.weight", "head.bias")
    }
    expected = functional.linear(pooled, head["head.weight"], head["head.bias"]).softmax(dim=1)
    ensemble = Ensemble(base, members, SCALE, "mean-adapters", weights)
    assert torch.allclose(ensemble.probabilities(rows), expected, rtol=0, atol=1e-5)
    assert ensemble.shards == (0, 1, 2, 3, 4)
    mean = Ensemble(base, members, SCALE, "mean-probabilities", weights)
    assert float((mean.probabilities(rows) - expected).abs().max()) > 0.01, "another answer"


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_averaged_adapters_of_a_language_model(family: str) -> None:
    base, rows = tiny_base(family, DEPTH, language_model=True), tiny_rows(family, 5)
    assert rows.mask is not None
    members = members_of(base)
    model = merged_by_hand(base, members, torch.full((5,), 0.2), tiny_model(family, DEPTH, True))
    with torch.no_grad():
        logs = model(**inputs_of(rows)).logits.log_softmax(dim=2)
    ensemble = Ensemble(base, members, SCALE, "mean-adapters", "uniform")
    losses = -logs[:, :-1].gather(2, rows.values[:, 1:].unsqueeze(2)).squeeze(2) * rows.mask[:, 1:]
    assert torch.allclose(ensemble.token_losses(rows), losses, rtol=0, atol=1e-4)
    last = logs[torch.arange(5), rows.mask.sum(dim=1) - 1]
    assert torch.allclose(ensemble.next_token(rows), last, rtol=0, atol=1e-4)


def test_averaged_adapters_take_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base("vit", DEPTH)
    ensemble = Ensemble(base, members_of(base), SCALE, "mean-adapters", "uniform")
    passes = passes_of(ensemble, monkeypatch)
    ensemble.probabilities(tiny_rows("vit", 3))
    assert passes == [(1, 15)]


def test_one_member_averaged_is_the_member() -> None:
    base, rows = tiny_base("vit", DEPTH), tiny_rows("vit", 4)
    for member in members_of(base):
        one = Ensemble(base, [member], SCALE, "mean-adapters", "data")
        found = one.probabilities(rows)
        assert torch.allclose(found, gather(base, [member]).probabilities(rows), atol=1e-6)
        assert averaged([member], [1.0], base.targets).lowest == member.lowest


# ── from one view to the next ────────────────────────────────────────────────────────────────


def test_the_next_view_stacks_only_what_has_changed() -> None:
    base, rows = tiny_base("vit", DEPTH), tiny_rows("vit", 40)
    members = members_of(base, (0, 0, 0))
    first = gather(base, members)
    first.probabilities(rows)  # so that merged weights are there
    # the last of them loses its two lower layers
    shorter = {
        name: tensor
        for name, tensor in members[2].tensors.items()
        if not name.startswith(("layers.000", "layers.001"))
    }
    after = [*members[:2], Member(2, 2, shorter, 5)]
    second = Ensemble(base, after, SCALE, "mean-probabilities", "uniform", before=first)
    for layer in range(DEPTH):
        for path, one in second._stack._maps[layer].items():
            before = first._stack._maps[layer][path]
            assert (one is before) == (layer >= 2)
            assert len(one.a) == (3 if layer >= 2 else 2)
    found = second.probabilities(rows)
    assert torch.equal(found, gather(base, after).probabilities(rows))
    same = Ensemble(base, after, SCALE, "mean-probabilities", "uniform", before=second)
    assert same._stack._maps == second._stack._maps


def test_tensors_that_are_equal_but_not_the_same_are_not_taken_over() -> None:
    base = tiny_base("vit", DEPTH)
    members = members_of(base, (0, 1))
    first = gather(base, members)
    turned = gather(base, members[::-1])
    copied = [
        Member(m.shard, m.lowest, {name: t.clone() for name, t in m.tensors.items()}, 1)
        for m in members
    ]
    for after in (copied, [members[0]], [members[1]]):
        second = Ensemble(base, after, SCALE, "vote", "uniform", before=first)
        kept = {id(one) for maps in first._stack._maps for one in maps.values()}
        found = {id(one) for maps in second._stack._maps for one in maps.values()}
        # layer 0 is the first member's alone in both
        assert len(kept & found) == (len(second._stack._maps[0]) if after == members[:1] else 0)
    assert turned.shards == first.shards


def test_nothing_of_the_view_before_stays() -> None:
    base, rows = tiny_base("vit", DEPTH), tiny_rows("vit", 40)
    members = members_of(base, (0, 0, 2))
    first = gather(base, members)
    first.probabilities(rows)
    gone = [weakref.ref(members[1].tensors[name]) for name in members[1].tensors]
    stacks = [weakref.ref(one) for maps in first._stack._maps for one in maps.values()]
    del members[1]
    second = Ensemble(base, members, SCALE, "mean-probabilities", "uniform", before=first)
    del first
    gc.collect()
    assert not [one for one in gone if one() is not None]
    assert not [one for one in stacks if one() is not None]
    assert second.shards == (0, 2)


@pytest.mark.parametrize("count", [1, 4, 40])
def test_merged_or_beside_the_base_the_answer_is_the_same(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, rows = tiny_base("vit", DEPTH), tiny_rows("vit", count)
    members = members_of(base)
    found = gather(base, members).probabilities(rows)
    monkeypatch.setattr("s3t.serving.ensemble.stack._MERGED_NUMBERS", 0)
    members = [
        Member(m.shard, m.lowest, {n: _first_rank(n, t) for n, t in m.tensors.items()}, 1)
        for m in members
    ]
    beside, merged = gather(base, members), gather(base, members)
    assert not any(one.merges for maps in beside._stack._maps for one in maps.values())
    for maps in merged._stack._maps:
        for one in maps.values():
            one.merges = True
    answers = [ensemble.probabilities(rows) for ensemble in (beside, merged)]
    assert torch.allclose(*answers, rtol=0, atol=1e-5)
    assert not torch.allclose(answers[0], found, atol=1e-3), "the ranks that were cut off count"


def _first_rank(name: str, tensor: Tensor) -> Tensor:
    if name.endswith("lora_A"):
        return tensor[:1]
    return tensor[:, :1] if name.endswith("lora_B") else tensor
