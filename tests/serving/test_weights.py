"""Weights fitted on public rows: served, recorded, agreed on, and gone with what they are of."""

from __future__ import annotations

import json
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from s3t.audit.audit import audit
from s3t.audit.audited_run import AuditedRun
from s3t.audit.findings import Claim
from s3t.audit.leakage import snapshots
from s3t.config import Config, load_config
from s3t.data import load_public
from s3t.errors import ConfigError
from s3t.ledger.served import EVALUATION
from s3t.run import RunDir
from s3t.run.opened import OpenRun
from s3t.run.status import EvaluationStatus, WeightStatus
from s3t.service import S3T
from s3t.serving import weights as fitting
from s3t.serving.ensemble.ensemble import Ensemble
from s3t.serving.ensemble.mixture import Mixture
from s3t.serving.generation.completion import TextGenerator
from s3t.training.node.rows import encode_rows
from s3t.training.prepare.preview import preview
from s3t.training.work.train import train
from s3t.types import Digest, Draw, NodeKey
from tests.conftest import Once, Run, write_lines
from tests.support.evidence import Evidence, evidence_of, keep
from tests.support.small_runs import person_rows, small_configs, write_csv

ROWS = ["person 3 says 24", "person 5 says 40", "person 7 says 61"]


def weighed_config(folder: Path, adapt: bool = True, **sections: Any) -> Config:
    """The small run, with public rows that are divided."""
    make = small_configs(folder)
    write_csv(folder / "held.csv", person_rows(30, 4)[60:])
    held = {"format": "csv", "files": str(folder / "held.csv")}
    public: dict[str, Any] = {"validation": held, "test": held}
    if adapt:
        public["adapt"] = {"format": "csv", "files": str(folder / "public.csv")}
    tree = make(**sections).model_dump(mode="json", exclude_unset=True)
    tree["data"]["public"] = public
    return Config.model_validate(tree)


@pytest.fixture(scope="session")
def weighed_training(once: Once) -> Path:
    return once("weighed", lambda folder: train(weighed_config(folder))) / "run"


@pytest.fixture(scope="session")
def said(weighed_training: Path) -> tuple[Digest, Evidence]:
    """What the nodes of that run say of the validation rows."""
    opened = OpenRun(RunDir(weighed_training))
    found = evidence_of(opened)
    opened.close()
    return found


@pytest.fixture
def run(weighed_training: Path, tmp_path: Path) -> RunDir:
    return RunDir(shutil.copytree(weighed_training, tmp_path / "weighed"))


@pytest.fixture
def evidence(monkeypatch: pytest.MonkeyPatch, said: tuple[Digest, Evidence]) -> Evidence:
    """That evidence, as the store of this process gives it; to be changed as a test likes."""
    own = dict(said[1])
    keep(monkeypatch, said[0], own)
    return own


class Held:
    """Holds fits up until a test lets them go on."""

    def __init__(self) -> None:
        self.reached, self._open = threading.Event(), threading.Event()
        self.read: list[NodeKey] = []

    def __call__(self, key: NodeKey) -> None:
        self.read.append(key)
        self.reached.set()
        assert self._open.wait(30)

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch, said: tuple[Digest, Evidence]) -> Iterator[Held]:
    """Fits wait when they read the first evidence."""
    gate = Held()
    keep(monkeypatch, *said, read=gate)
    yield gate
    gate.open()


def weights_of(service: S3T) -> Mixture:
    service.serving.settle_weights()
    state = service.serving.weights
    assert state is not None and state.reason is None and state.fitted is not None
    return state.fitted


def serving_keys(service: S3T) -> list[NodeKey]:
    return [shard.node for shard in service.status().shards if shard.node is not None]


def chances(service: S3T) -> torch.Tensor:
    return torch.tensor([[*one.probabilities.values()] for one in service.predict(ROWS)])


def test_public_weights_are_the_default_and_keep_a_head(run: RunDir) -> None:
    assert run.config().aggregation.weights == "public" and run.head_path.is_file()


def test_answers_are_those_of_the_fitted_weights(run: RunDir, evidence: Evidence) -> None:
    with S3T.load(run.root) as service:
        uniform = chances(service)
        found = weights_of(service)
        answer, model = chances(service), service.serving.model()
        rows = model.encode(ROWS)
        prefixes = OpenRun(run).schedule.prefixes
        plan = run.plan()
        apart = [model.ensemble([node], plan).probabilities(rows) for node in prefixes]  # type: ignore[union-attr]
        logs = torch.stack([*apart, model.base_ensemble().probabilities(rows)]).log()
        each = torch.tensor([*found.members, found.base])[:, None, None]
        if found.method == "mean-logits":
            expected = (logs * each).sum(dim=0).softmax(dim=1)
        else:
            expected = (logs.exp() * each).sum(dim=0)
        assert torch.allclose(answer, expected, atol=2e-6)
        assert not torch.allclose(answer, uniform, atol=1e-4)


def test_a_view_serves_uniform_weights_until_the_fit_is_there(run: RunDir, held: Held) -> None:
    with S3T.load(run.root) as service:
        first = chances(service)
        assert held.reached.wait(30)
        state = service.serving.weights
        assert state is not None and state.fitted is None and state.failures == 0
        assert torch.equal(first, chances(service)), "still uniform"
        assert service.status().weights == fitting_status(False)
        held.open()
        weights_of(service)
        assert not torch.equal(first, chances(service))
        assert {one.view for one in service.predict(ROWS)} == {0}, "the same view"


def fitting_status(fitted: bool) -> Any:
    return WeightStatus(fitted)


def test_a_deletion_does_not_wait_for_the_fit_and_drops_it(run: RunDir, held: Held) -> None:
    with S3T.load(run.root) as service:
        service.predict(ROWS)
        assert held.reached.wait(30)
        before = serving_keys(service)
        receipt = service.deactivate(subjects=["p03"])  # while the fit is held up
        assert receipt.effective_at is not None and receipt.seconds < 20
        assert service.predict(ROWS)[0].view == receipt.view
        assert service.ledger.served.read() is None
        dead = set(before) - set(serving_keys(service))
        assert dead, "the deletion has hit what serves"
        held.read.clear()
        held.open()
        weights_of(service)
        recorded = service.ledger.served.read()
        assert recorded is not None and recorded["view"] == receipt.view
        assert recorded["of"]["nodes"] == serving_keys(service)
        # the fit of before reads on to its end; the next one reads what serves now
        assert held.read[-len(serving_keys(service)) :] == serving_keys(service)


def test_the_first_to_record_wins_and_others_take_it_up(run: RunDir, evidence: Evidence) -> None:
    with S3T.load(run.root) as one, S3T.load(run.root) as two:
        first = weights_of(one)
        for key, rows in evidence.items():
            evidence[key] = rows.flip(0)  # a machine that would have come to others
        assert weights_of(two) == first
        assert torch.equal(chances(one), chances(two))


def test_a_record_of_other_nodes_is_not_used(run: RunDir, evidence: Evidence) -> None:
    with S3T.load(run.root) as service:
        found = weights_of(service)
        recorded = service.ledger.served.read()
    assert recorded is not None
    other = found.to_dict() | {"members": [0.9, 0.1], "base": 0.0, "method": "mean-probabilities"}
    for change in ({"nodes": ["a", "b"]}, {"rows": "other"}, {"method": "other"}, {"base": False}):
        with S3T.load(run.root) as service:
            service.ledger.served.record(0, recorded["of"] | change, other)
            assert weights_of(service) == found


def test_a_record_that_cannot_be_understood_is_not_used(run: RunDir, evidence: Evidence) -> None:
    with S3T.load(run.root) as service:
        uniform = chances(service)
        weights_of(service)
        recorded = service.ledger.served.read()
        assert recorded is not None
    with S3T.load(run.root) as service:
        service.ledger.served.record(0, {"nodes": []}, {})  # takes the place of the first
        service.ledger.served.record(0, recorded["of"], recorded["values"] | {"base": 7.0})
        service.serving.settle_weights()
        state = service.serving.weights
        assert state is not None and state.fitted is None and state.failures == 1
        assert "cannot be understood" in (state.reason or "")
        assert torch.equal(chances(service), uniform)


def test_a_fit_that_a_deletion_overtakes_is_not_recorded(
    run: RunDir, evidence: Evidence, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a process that is killed, or slow, between the fit and its record."""
    real = fitting.fit

    with S3T.load(run.root) as service, S3T.load(run.root) as other:

        def overtaken(*arguments: Any) -> Mixture:
            found = real(*arguments)
            monkeypatch.setattr(fitting, "fit", real)
            assert other.deactivate(subjects=["p03"]).deleted
            return found

        monkeypatch.setattr(fitting, "fit", overtaken)
        service.serving.settle_weights()
        assert service.ledger.served.read() is None
        state = service.serving.weights
        assert state is not None and state.fitted is None and state.reason is None
        found = weights_of(service)  # takes the deletion's view up
        recorded = other.ledger.served.read()
        assert recorded is not None and recorded["of"]["nodes"] == serving_keys(other)
        assert weights_of(other) == found


def test_a_deletion_takes_the_record_in_its_transaction(run: RunDir, evidence: Evidence) -> None:
    with S3T.load(run.root) as service:
        weights_of(service)
    with S3T.load(run.root) as other:  # a command, which loads no model
        assert other.ledger.served.read() is not None
        assert other.deactivate(subjects=["p03"], dry_run=True).view == 1
        assert other.ledger.served.read() is not None
        other.deactivate(subjects=["p03"])
        assert other.ledger.served.read() is None
        assert other.status().weights == fitting_status(False)
        other.purge()
        assert other.ledger.served.read() is None


def test_weights_of_the_same_nodes_outlive_a_view(run: RunDir, evidence: Evidence) -> None:
    with S3T.load(run.root) as service:
        service.deactivate(subjects=["p03"])
        found, served = weights_of(service), serving_keys(service)
        asked = (
            service.deactivate([entry.sample_id], dry_run=True)
            for entry in service.ledger.samples(deleted=False)
        )
        harmless = next(one for one in asked if not one.nodes_dead)  # its slot was hit before
        service.deactivate(harmless.deleted)
        assert serving_keys(service) == served
        assert weights_of(service) == found and service.ledger.served.read() is not None


def test_missing_evidence_leaves_weights_uniform_and_is_told(
    run: RunDir, evidence: Evidence
) -> None:
    with S3T.load(run.root) as service:
        uniform = chances(service)
        weights_of(service)
        service.deactivate(subjects=["p03"])
        weights_of(service)
        keys = serving_keys(service)
        del evidence[keys[0]]
    with S3T.load(run.root) as service:
        service.deactivate(subjects=["p05"])
        keys = serving_keys(service)
        evidence.pop(keys[0], None)
        service.serving.settle_weights()
        told = service.status().weights
        assert told is not None and not told.fitted and told.failures == 1
        assert "has no log probabilities" in (told.reason or "")
        assert chances(service).shape == uniform.shape
        assert service.evaluate().validation is None


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_evidence_that_is_not_finite_is_not_used(
    run: RunDir, evidence: Evidence, value: float
) -> None:
    with S3T.load(run.root) as service:
        key = serving_keys(service)[0]
        evidence[key] = evidence[key].clone()
        evidence[key][0, 0] = value
        service.serving.settle_weights()
        state = service.serving.weights
        assert state is not None and state.fitted is None and "not finite" in (state.reason or "")


def test_evaluate_tells_base_and_validation(run: RunDir, evidence: Evidence) -> None:
    with S3T.load(run.root) as service:
        found = service.evaluate().to_dict()
        fitted = weights_of(service)
        told = service.status().weights
        base = service.serving.model().base_ensemble()
        again = service.serving.model().evaluation(base, 0)
        assert service.status().evaluation == EvaluationStatus(
            "accuracy", found["accuracy"], again.value, found["samples"]
        )
        service.deactivate(subjects=["p03"])
        assert service.status().evaluation is None
        assert service.ledger.served.read(EVALUATION) is None
        then = service.evaluate()
        before, after = service.picture()["evaluations"]
        assert (before["deleted"], before["value"]) == (0, found["accuracy"])
        assert (after["view"], after["value"]) == (then.view, then.value)
        assert after["deleted"] == service.status().deleted and after["base"] == again.value
        service.purge()
        assert service.picture()["evaluations"] == [after], "the figure of dead weights is gone"
    assert found["base"] == again.value and 0 <= found["accuracy"] <= 1
    assert found["validation"] == fitted.to_dict()
    validation = found["validation"]
    assert validation["log_likelihood"] >= validation["base_log_likelihood"] - 1e-6
    assert told is not None and told.fitted and told.shards == fitted.members
    assert (told.accuracy, told.base_accuracy) == (fitted.accuracy, fitted.base_accuracy)


def test_an_exhausted_run_has_no_weights(run: RunDir, evidence: Evidence) -> None:
    text = run.config_path.read_text().replace("on_exhausted: raise", "on_exhausted: base")
    run.config_path.write_text(text)
    with S3T.load(run.root) as service:
        weights_of(service)
        service.deactivate([entry.sample_id for entry in service.ledger.samples()])
        assert service.status().exhausted
        found = service.evaluate()
        assert found.validation is None and found.base == found.value
        assert service.ledger.served.read() is None


def test_a_base_without_a_head_gets_no_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(weighed_config(tmp_path, adapt=False))
    run = RunDir(tmp_path / "run")
    assert run.config().aggregation.weights == "public" and not run.head_path.exists()
    opened = OpenRun(run)
    keep(monkeypatch, *evidence_of(opened))
    opened.close()
    with S3T.load(run.root) as service:
        found = service.evaluate()
        assert found.base is None and found.validation is not None
        assert (found.validation.base, found.validation.base_log_likelihood) == (0.0, None)


@pytest.fixture
def replicated(either_run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A run on either kind of ledger, with public weights, and its evidence."""
    write_csv(tmp_path / "held.csv", person_rows(30, 4)[60:])
    config = either_run.config()
    public = config.data.public
    held = public.validation.model_copy(update={"files": str(tmp_path / "held.csv")})
    data = config.data.model_copy(
        update={"public": public.model_copy(update={"validation": held, "adapt": None})}
    )
    how = config.aggregation.model_copy(update={"weights": "public"})
    from s3t.config import dump_config

    config = config.model_copy(update={"data": data, "aggregation": how})
    either_run.config_path.write_text(dump_config(config), encoding="utf-8")
    run = RunDir(either_run.root)
    opened = OpenRun(run)
    keep(monkeypatch, *evidence_of(opened))
    opened.close()
    return run


def test_replicas_serve_the_same_weights(replicated: RunDir) -> None:
    with S3T.load(replicated.root) as one, S3T.load(replicated.root) as two:
        one.join("one", 60.0)
        two.join("two", 60.0)
        assert weights_of(one) == weights_of(two)
        assert torch.equal(chances(one), chances(two))
        receipt = one.deactivate(subjects=["p03"])
        assert receipt.effective_at is not None
        found = weights_of(one)
        assert weights_of(two) == found and torch.equal(chances(one), chances(two))
        recorded = two.ledger.served.read()
        assert recorded is not None and recorded["of"]["nodes"] == serving_keys(two)


def test_overlapping_public_rows_are_refused_or_leave_uniform(tmp_path: Path) -> None:
    config = small_configs(tmp_path)()
    assert config.aggregation.weights == "public"
    (note,) = [one for one in preview(config)["notes"] if "aggregation.weights" in one]
    assert note == (
        "aggregation.weights is uniform, not public, since 24 of 24 rows of "
        "data.public.validation are in .adapt too"
    )
    asked = small_configs(tmp_path)(aggregation={"weights": "public"})
    with pytest.raises(ConfigError, match="cannot be fitted, since 24 of 24 rows"):
        preview(asked)


def test_a_run_keeps_the_weights_that_were_settled(small_run: RunDir) -> None:
    assert small_run.config().aggregation.weights == "uniform"


@pytest.mark.parametrize("method", ["vote", "route"])
def test_weights_need_a_method_that_is_a_mean(
    method: str, tmp_path: Path, weighed_training: Path
) -> None:
    text = (weighed_training / "config.yaml").read_text()
    path = tmp_path / "one.yaml"
    path.write_text(text.replace("method: mean-probabilities", f"method: {method}"))
    with pytest.raises(ConfigError, match="weights 'public' does not fit method"):
        load_config(path)
    path.write_text(path.read_text().replace("  weights: public\n", ""))
    problems: Callable[[], Config] = lambda: load_config(path)  # noqa: E731
    if method == "route":
        with pytest.raises(ConfigError, match="nearest"):
            problems()
    else:
        assert problems().aggregation.weights == "uniform"


@pytest.fixture
def texts(language_run: RunDir, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A language model's run with public weights, and its evidence."""
    text = language_run.config_path.read_text()
    assert "  weights: uniform\n" in text
    language_run.config_path.write_text(text.replace("weights: uniform", "weights: public"))
    opened = OpenRun(language_run)
    keep(monkeypatch, *evidence_of(opened))
    opened.close()
    return language_run


def test_a_language_model_is_weighed_with_its_base(texts: RunDir) -> None:
    with S3T.load(texts.root) as service:
        found, model = weights_of(service), service.serving.model()
        assert found.base > 0 and found.base_log_likelihood is not None
        assert found.log_likelihood >= found.base_log_likelihood - 1e-6
        rows = load_public(service.config, "validation", ())
        encoded = encode_rows(model.encoder, rows).rows
        losses = service.serving.answer(lambda ensemble, _: ensemble.token_losses(encoded))
        counted = encoded.scored[:, 1:].bool()
        assert int(counted.sum()) == found.terms
        mean = float(losses[counted].double().mean())
        assert -mean == pytest.approx(found.log_likelihood, abs=1e-4)
        told = service.evaluate()
        assert told.base is not None and told.metric == "perplexity"


def merged(run: RunDir) -> RunDir:
    text = run.config_path.read_text()
    run.config_path.write_text(text.replace("method: mean-probabilities", "method: mean-adapters"))
    return run


def test_a_mean_adapter_gets_a_coefficient_and_tells_what_merging_costs(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fitting.fit_merged
    worse = lambda said, count, base, labels: real(said, count, base - 5, labels)  # noqa: E731
    monkeypatch.setattr(fitting, "fit_merged", worse)  # so that the base does not serve alone
    with S3T.load(merged(run).root) as service:
        plain, found = chances(service), weights_of(service)
        model, plan = service.serving.model(), run.plan()
        nodes = OpenRun(run).schedule.prefixes
        members = model.members(nodes, plan)
        scale = service.config.lora.scale
        one = Ensemble(model.base, members, scale, "mean-adapters", "uniform")
        rows = model.encode(ROWS)
        assert torch.allclose(plain, one.probabilities(rows), atol=2e-6), "1.0 until it is fitted"
        c = found.coefficient
        assert found.method == "mean-adapters" and c is not None
        heads = model.base_ensemble()._members[0].tensors
        moved = []
        for member in members:  # by hand: the mean of the products, and of the heads
            own = {name: c * member.tensors[name] + (1 - c) * heads[name] for name in heads}
            moved.append(replace(member, tensors={**member.tensors, **own}))
        by_hand = Ensemble(model.base, moved, scale * c, "mean-adapters", "uniform")
        assert torch.allclose(chances(service), by_hand.probabilities(rows), atol=1e-5)
        told = service.evaluate()
        assert told.validation == found and told.ensemble is not None
        assert told.to_dict()["ensemble"] == told.ensemble
    with S3T.load(run.root) as other:
        assert weights_of(other) == found, "recorded, so replicas agree"
        before = serving_keys(other)
        other.deactivate([], ["p03"])
        assert serving_keys(other) != before
        assert weights_of(other).coefficient is not None


def test_a_mean_adapter_of_a_language_model_is_never_below_its_base(texts: RunDir) -> None:
    with S3T.load(merged(texts).root) as service:
        found = weights_of(service)
        assert found.base_log_likelihood is not None
        assert found.log_likelihood >= found.base_log_likelihood - 1e-6
        assert found.base == pytest.approx(1 - (found.coefficient or 0))
        assert service.generate(["person 3 says"], max_new_tokens=3)


@pytest.mark.parametrize("merges", [False, True])
def test_attacks_ask_what_is_served(run: RunDir, merges: bool) -> None:
    if merges:
        merged(run)
    with S3T.load(run.root) as service:
        service.deactivate([], ["p03"])
        uniform, found = chances(service), weights_of(service)
        served, rows = chances(service), service.serving.model().encode(ROWS)
        assert found.base and not torch.allclose(served, uniform, atol=1e-4)
    attacked = snapshots.after(AuditedRun(run))
    assert attacked is not None
    assert torch.allclose(attacked.probabilities(rows), served, atol=2e-6)


def test_weighed_texts_are_continued_as_without_a_kv_cache(texts: RunDir) -> None:
    with S3T.load(texts.root) as service:
        weights_of(service)
        prompts, model = ["person 3 says", "person 11"], service.serving.model()
        cached = service.generate(prompts, max_new_tokens=6)
        draw = Draw(6, 0.0, 0, 0, 1.0)
        plain = TextGenerator(model.encoder)  # type: ignore[arg-type]
        tokens = model.prompts(prompts, draw)
        again = service.serving.answer(
            lambda ensemble, view: plain.completions(ensemble, tokens, draw, view, lambda: False)
        )
        assert [one.tokens for one in cached] == [one.tokens for one in again]


def test_tokens_are_weighed_by_entropy_on_top(texts: RunDir) -> None:
    with S3T.load(texts.root) as service:
        found, before = weights_of(service), service.evaluate()
    text = texts.config_path.read_text()
    assert "  tokens: none\n" in text
    texts.config_path.write_text(text.replace("  tokens: none\n", "  tokens: entropy\n"))
    with S3T.load(texts.root) as service:
        assert weights_of(service) == found, "the weights below are the same"
        after = service.evaluate()
        assert 1 < after.value < 1000 and after.value != before.value


def test_what_lies_beside_the_nodes_is_what_members_say(
    weighed_training: Path, said: tuple[Digest, Evidence]
) -> None:
    store, (rows, evidence) = RunDir(weighed_training).store, said
    assert evidence
    for key, expected in evidence.items():
        found = store.evidence(key, rows)
        assert found is not None and torch.allclose(found, expected, atol=1e-4)


def test_commands_wait_for_the_fit_and_tell_it(run: RunDir, tmp_path: Path, s3t: Run) -> None:
    found = json.loads(s3t("evaluate", run.root, "--json").out)
    validation = found["validation"]
    assert validation["log_likelihood"] >= validation["base_log_likelihood"] - 1e-6
    picture = tmp_path / "along.svg"
    assert "weights: shards 0." in s3t("evaluate", run.root, "--picture", picture).out
    assert "<!-- the base alone -->" in picture.read_text()
    told = s3t("status", run.root).out
    assert f"accuracy {found['accuracy']:.4f} (base {found['base']:.4f})" in told
    assert "weights: shards 0." in told
    write_lines(tmp_path / "rows.jsonl", [{"text": row} for row in ROWS])
    s3t("predict", run.root, "--input", tmp_path / "rows.jsonl", "--output", tmp_path / "out.jsonl")
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    with S3T.load(run.root) as service:
        weights_of(service)
        expected = [one.probabilities for one in service.predict(ROWS)]
    assert [json.loads(line)["probabilities"] for line in lines] == expected


def test_an_audit_finds_records_of_dead_nodes(run: RunDir, evidence: Evidence) -> None:
    with S3T.load(run.root) as service:
        service.evaluate()
        assert evidence_claim(run).status == "holds"
        recorded = service.ledger.served.read()
        assert recorded is not None
        receipt = service.deactivate(subjects=["p03"])
        service.serving.settle_weights()
        assert evidence_claim(run).status == "holds"
        assert set(receipt.nodes_dead) & set(recorded["of"]["nodes"])
        service.ledger.served.record(receipt.view, recorded["of"], recorded["values"])
    found = evidence_claim(run)
    assert found.status == "broken" and "came of nodes that are dead" in str(found.problems)


def test_records_go_with_the_nodes_that_they_are_of(run: RunDir, evidence: Evidence) -> None:
    with S3T.load(run.root) as service:
        service.evaluate()
        recorded = service.ledger.served.read(EVALUATION)
        assert recorded is not None
        serving = recorded["of"]["nodes"]
        others = [*run.store.keys() - {*serving}]
        service.ledger.deleted.purge(0, others, {})
        assert service.ledger.served.read(EVALUATION) == recorded
        service.ledger.deleted.purge(0, serving[:1], {})  # as a plan without it would have it
        assert service.ledger.served.read(EVALUATION) is None is service.ledger.served.read()


def test_an_audit_finds_figures_that_outlived_a_purge(run: RunDir, evidence: Evidence) -> None:
    with S3T.load(run.root) as service:
        service.evaluate()
        kept = json.dumps(service.ledger.served.history())
        service.deactivate(subjects=["p03"])
        service.purge()
        assert evidence_claim(run).status == "holds"
        assert service.ledger.served.history() == []
    with sqlite3.connect(run.root / "ledger.db") as database:
        database.execute("UPDATE run SET value = ? WHERE key = 'evaluations'", (kept,))
    database.close()
    found = evidence_claim(run)
    assert found.status == "broken" and "taken away by a purge" in str(found.problems)


def evidence_claim(run: RunDir) -> Claim:
    return next(one for one in audit(run.root).claims if one.name == "E6")
