"""What a node says of the public validation rows, computed with its score."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from s3t.audit.audit import audit
from s3t.model.adapters.lora import adapted
from s3t.model.head import BIAS, WEIGHT
from s3t.model.inputs.encoders import Encoded
from s3t.run import RunDir
from s3t.run.purge import purge
from s3t.service import S3T
from s3t.training.node import rows as node_rows
from s3t.training.node.rows import LabelledSet, evidence_rows, evidence_terms
from s3t.training.work.train import train
from tests.support.small_runs import Make
from tests.support.tiny import bank_of, tiny_group, tiny_trainer

# ── which rows ───────────────────────────────────────────────────────────────────────────────


def images(count: int) -> LabelledSet:
    return LabelledSet(Encoded(torch.zeros(count, 1), None), torch.zeros(count).long())


def texts(lengths: list[int]) -> LabelledSet:
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)).long()
    return LabelledSet(Encoded(torch.zeros_like(mask), mask), None)


def test_all_rows_are_taken_where_they_fit() -> None:
    assert evidence_rows(images(10_000), 10).tolist() == list(range(10_000))
    assert evidence_rows(texts([5, 1, 3]), 0).tolist() == [0, 1, 2]
    assert evidence_terms(texts([5, 1, 3]), 0).tolist() == [4, 0, 2], "no token is before the first"


@pytest.mark.parametrize(("count", "widest"), [(1_001, 2), (4_096, 8), (10_000, 16)])
def test_more_are_spread_over_all(count: int, widest: int) -> None:
    found = evidence_rows(images(count), 100)
    assert len(found) == 1_000
    gaps = found.diff(prepend=torch.tensor([-1]), append=torch.tensor([count]))
    assert int(gaps.min()) > 0 and int(gaps.max()) <= widest


def test_long_texts_count_by_their_tokens() -> None:
    rows = texts([1_001] * 300)
    found = evidence_rows(rows, 0)
    assert len(found) == 100 and int(evidence_terms(rows, 0)[found].sum()) == 100_000
    assert len(evidence_rows(images(3), 200_000)) == 1, "one row is always there"


# ── what a node says of them ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("cap", [100_000, 30])
def test_a_classifier_says_the_log_probabilities_of_all_classes(
    cap: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_rows, "EVIDENCE_TERMS", cap)
    trainer = tiny_trainer("bert", epochs=1)
    (assignment,) = tiny_group(trainer, 3, (8,))
    (trained,) = trainer.train((2, 3), [assignment])
    base, rows = trainer.base, trainer.validation
    index = evidence_rows(rows, trainer.classes)
    assert len(index) == min(len(rows), cap // trainer.classes)
    bank = bank_of(base.targets, trained.tensors, trainer.lora.scale)
    few = rows.rows.rows(index)
    with adapted(bank), torch.no_grad():
        features = base.features(base.start(few), 0, few.mask)
    logits = functional.linear(features, trained.tensors[WEIGHT], trained.tensors[BIAS])
    assert trained.said.shape == (len(index), trainer.classes)
    assert torch.allclose(trained.said, logits.log_softmax(1), atol=1e-5)
    if len(index) == len(rows):
        right = (trained.said.argmax(1) == rows.labels).double().mean()
        assert trained.score == float(f"{right:.6g}")


@pytest.mark.parametrize("cap", [100_000, 30])
def test_a_language_model_says_the_log_likelihood_of_each_token(
    cap: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_rows, "EVIDENCE_TERMS", cap)
    trainer = tiny_trainer("llama", language_model=True, epochs=1)
    (assignment,) = tiny_group(trainer, 3, (8,))
    (trained,) = trainer.train((2, 3), [assignment])
    base = trainer.base
    rows = trainer.validation.take(evidence_rows(trainer.validation, 0)).rows
    assert base.lm_head is not None
    bank = bank_of(base.targets, trained.tensors, trainer.lora.scale)
    with adapted(bank), torch.no_grad():
        hidden = base.run(base.start(rows), 0, base.depth, base.attention(rows.mask))
        logits = base.lm_head(base.finish(hidden))[:, :-1]
    each = logits.log_softmax(2).gather(2, rows.values[:, 1:, None])[..., 0]
    expected = each[rows.scored[:, 1:].bool()]
    assert trained.said.shape == expected.shape and len(expected) <= cap
    assert torch.allclose(trained.said, expected, atol=1e-5)
    if cap > 30:
        assert trained.score == pytest.approx(float(trained.said.double().mean()), rel=1e-5)


# ── in a run ─────────────────────────────────────────────────────────────────────────────────


def test_a_run_keeps_it_makes_it_again_and_purges_it(make: Make) -> None:
    config = make()
    train(config)
    run = RunDir(config.run_dir)
    with run.ledger() as ledger:
        told = ledger.plans.nodes()
    assert run.store.keys() == run.store.evidence_keys() == told.keys()
    for key, one in told.items():
        assert run.store.read_evidence(key).digest == one.evidence
    missing, damaged = sorted(told)[:2]
    before = run.store.evidence(missing, told[missing].rows)
    (run.store.root / f"{missing}.evidence").unlink()
    assert run.store.evidence(missing, told[missing].rows) is None
    judged = audit(run.root)["E2"]
    assert judged.status == "pending" and "no evidence" in judged.problems[0]
    report = train(config)
    again = run.store.evidence(missing, told[missing].rows)
    assert report.trained == 0 and before is not None and again is not None
    assert torch.equal(before, again), "the same bytes, in the same environment"
    (run.store.root / f"{damaged}.evidence").write_bytes(b"damaged")
    assert damaged in audit(run.root)["E2"].problems[0]
    train(config)
    assert run.store.read_evidence(missing).digest == told[missing].evidence, "it is left alone"
    with S3T.load(run.root) as model:
        model.deactivate(subjects=["p03"], request_id="r")
    dead = {node.key for node in run.plan().forest if node.is_hit(run.hits())}
    orphan = min(dead)
    run.store.path(orphan).unlink()
    assert orphan in run.store.traces(), "its evidence is left"
    assert orphan in purge(run).nodes
    assert run.store.traces() == run.store.evidence_keys() == told.keys() - dead
