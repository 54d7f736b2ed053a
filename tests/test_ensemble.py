"""An ensemble answers as its members would, one by one, each through its own prefix and head."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from s3t import ensemble as module
from s3t.ensemble import Ensemble, Member, aggregate
from s3t.model.base import Base
from s3t.model.encode import Encoded
from s3t.model.peft import to_peft
from s3t.training.stage import StageTrainer
from tests.tiny import (
    CLASSES,
    inputs_of,
    random_adapter,
    random_head,
    tiny_base,
    tiny_group,
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
    return [
        Member(
            shard,
            at,
            random_adapter(base.targets, at, seed=shard)
            | ({} if base.lm_head is not None else random_head(base.hidden_size, shard)),
            SEEN[shard],
        )
        for shard, at in enumerate(lowest)
    ]


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
def test_chunks_change_nothing(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    language_model = family == "gpt2"
    base = tiny_base(family, DEPTH, language_model)
    rows = tiny_rows(family, 9)
    ensemble = gather(base, members_of(base))
    answer = ensemble.next_token if language_model else ensemble.probabilities
    whole = answer(rows)
    for size in (1, 100_000):
        monkeypatch.setattr(module, "_CHUNK_BYTES", size)
        parts = answer(rows)
        assert parts.shape == whole.shape
        assert torch.allclose(parts, whole, rtol=0, atol=1e-5)
    if language_model:
        monkeypatch.setattr(module, "_CHUNK_BYTES", 1)
        assert ensemble.token_losses(rows).shape == (9, 15)


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
        trainer.lora,
        trainer.recipe,
        CLASSES,
        type(trainer.private)(private, trainer.private.labels),
        trainer.validation,
        0,
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
