"""What attacks learn: from runs that have memorised, from those that forgot, from a leak."""

from __future__ import annotations

import json
import random
import shutil
import string
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from s3t.audit.audited_run import AuditedRun
from s3t.audit.leakage import leakage as leakage_module
from s3t.audit.leakage import snapshots
from s3t.audit.leakage.leakage import leakage
from s3t.audit.leakage.membership import attack
from s3t.audit.leakage.report import CHANCE, Leakage, ModelLeakage, lines
from s3t.audit.leakage.rows import find_suspected_rows
from s3t.audit.leakage.scores import answers_of, window_of
from s3t.config import Config
from s3t.errors import InputError
from s3t.ledger import Gone
from s3t.ledger.samples.purging import hashed
from s3t.model.head import read_public_head
from s3t.model.inputs.encoders import Encoded
from s3t.run import RunDir
from s3t.service import S3T
from s3t.serving.ensemble.ensemble import Ensemble, Member
from s3t.training.node.rows import LabelledSet
from s3t.training.prepare.replan import Replan
from s3t.training.work.train import train
from tests.conftest import Run, write_lines
from tests.support.small_runs import everything
from tests.support.tiny import VOCABULARY, random_adapter, tiny_base, tiny_rows

pytestmark = pytest.mark.heavy

CODES = [
    one + other for one in string.ascii_uppercase[:20] for other in string.ascii_lowercase[:20]
]
random.Random(0).shuffle(CODES)


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's temporary folder, the test's own."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def said(number: int) -> str:
    """Three times a code of its own, and then what nothing but training foretells."""
    return CODES[number] * 3 + "".join(random.Random(number).choices("01234567", k=6))


def texts(folder: Path, task: str = "causal-lm", **sections: Any) -> Config:
    """48 persons with a text each and a drawn label, one shard of two slices, one sequence."""
    labels = [random.Random(-number).choice(("good", "bad")) for number in range(400)]
    rows = [
        {"id": f"t{at:03d}", "who": f"p{at:03d}", "text": said(at), "label": labels[at]}
        for at in range(400)
    ]
    source = {
        name: {"format": "json", "files": str(write_lines(folder / f"{name}.jsonl", part))}
        for name, part in (("private", rows[:48]), ("test", rows[48:148]), ("rest", rows[148:]))
    }
    language = task == "causal-lm"
    tree: dict[str, Any] = {
        "output": str(folder / "run"),
        "task": task,
        "data": {
            "private": source["private"],
            "public": {"validation": source["rest"], "test": source["test"]}
            | ({"adapt": source["rest"]} if language else {}),
            "columns": {"id": "id"},
            "max_length": 16,
        },
        "model": {
            "base": "make:gpt2" if language else "make:bert",
            "make": {"hidden": 32, "layers": 2, "heads": 2, "init_scale": 5},
            "adapt": {"steps": 60, "batch_size": 32, "learning_rate": 1e-2} if language else None,
        },
        "partition": {"shards": 1, "slices": 2, "salt": "leak", "subject": "who"},
        "sequences": {"strategy": "explicit", "explicit": [[0, 1]]},
        "lora": {
            "rank": 32,
            "alpha": 64,
            "targets": ["c_attn", "c_proj", "c_fc"] if language else ["query", "value"],
        },
        "stage": {"epochs": 60, "learning_rate": 1e-2, "schedule": "cosine"},
        "training": {"workers": 1},
    }
    for name, section in sections.items():
        tree[name] = tree.get(name, {}) | section
    return Config.model_validate(tree)


def in_slice(run: RunDir, part: int) -> list[str]:
    with run.ledger() as ledger:
        return [str(entry.sample_id) for entry in ledger.samples(slot=(0, part))]


def forgotten(config: Config, ids: list[str]) -> None:
    with S3T.load(config.run_dir) as service:
        service.deactivate(ids)


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model's run whose second slice is deleted but for four samples."""
    config = texts(tmp_path_factory.mktemp("language"))
    train(config)
    forgotten(config, in_slice(RunDir(config.run_dir), 1)[4:])
    return config.run_dir


@pytest.fixture(scope="module")
def found(language: Path) -> Leakage:
    return leakage(RunDir(language))


def by_name(state: ModelLeakage | None) -> dict[str, Any]:
    assert state is not None
    return {one.name: one for one in state.attacks}


# --- what is forgotten exactly, and what leaks


def test_before_tells_and_after_does_not(found: Leakage) -> None:
    before, after, control = map(by_name, (found.before, found.after, found.control))
    assert [*before] == ["loss", "reference", "min-k", "min-k++", "extraction strength"]
    assert before["loss"].auc_low > 0.9 and before["reference"].auc_low > 0.9
    assert before["extraction strength"].auc_low > CHANCE
    assert found.before.loss_members < found.before.loss_strangers / 2
    assert all(one.auc_low < CHANCE < one.auc_high for one in after.values())
    assert all(one.auc_low < CHANCE < one.auc_high for one in control.values())
    assert found.indistinguishable and len(found.verdicts) == 6
    assert found.confidence == pytest.approx(1 - 0.05 / 6)
    assert "from the start, 2 nodes" in found.control.what


def test_texts_come_out_before_and_not_after(found: Leakage) -> None:
    assert found.window == 7
    states = (found.before, found.after, found.control)
    shares = [state.verbatim.share for state in states if state and state.verbatim]
    assert shares[0] > 0.8 and shares[1:] == [0, 0]
    assert found.before.verbatim_strangers is not None
    assert found.before.verbatim_strangers.hits == 0
    assert found.before.strength_members is not None and found.after is not None
    assert found.after.strength_members is not None
    assert found.before.strength_members > found.after.strength_members + 0.3


def test_who_holds_both_models_tells_who_was_deleted(found: Leakage, language: Path) -> None:
    both = found.snapshots
    assert both is not None and both.strangers.auc_low > 0.8
    assert both.neighbours is not None and both.neighbours.others == 4
    assert both.verbatim is not None and both.verbatim.share > 0.8
    (dead,) = both.dead
    assert RunDir(language).store.has(dead)
    assert any("possible: dead nodes that are left in it: 1 (" in line for line in lines(found))


def test_the_same_seed_gives_the_same_figures_and_nothing_is_written(
    found: Leakage, language: Path, temporary: Path
) -> None:
    there = everything(language)
    assert leakage(RunDir(language)).to_dict() == found.to_dict()
    assert everything(language) == there
    assert not [*temporary.iterdir()]


def test_a_repaired_run_is_its_own_control(language: Path, tmp_path: Path) -> None:
    run = RunDir(shutil.copytree(language, tmp_path / "run"))
    train(run.here(), replan=Replan())  # purges too: ids are known by their hashes alone
    steps: list[str] = []
    found = leakage(run, on_step=steps.append)
    assert len(steps) == 2, "no control was trained"
    assert found.after is not None and "repaired" in found.control.what
    assert found.after.attacks == found.control.attacks and found.indistinguishable
    assert by_name(found.before)["loss"].auc_low > 0.9
    assert found.before.what.endswith("1 nodes are the run's own, 1 were trained again")
    assert found.snapshots is not None and found.snapshots.dead == ()
    assert found.snapshots.strangers.auc_low > 0.8, "to whoever kept the old weights"
    assert any("not possible: no dead node is left" in line for line in lines(found))


def test_a_leak_is_found(language: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the dead node still served, every attack would say so."""
    honest = snapshots._serving
    monkeypatch.setattr(
        snapshots, "_serving", lambda audited, run, plan, hits: honest(audited, run, plan, ())
    )
    found = leakage(RunDir(language))
    wrong = {verdict.measure for verdict in found.verdicts if not verdict.indistinguishable}
    assert {"loss", "reference", "min-k", "extraction strength", "verbatim"} <= wrong
    assert not found.indistinguishable
    assert any("indistinguishable: no" in line for line in lines(found))


def test_a_classifier_is_attacked_by_its_labels(tmp_path: Path) -> None:
    config = texts(tmp_path, "text-classification", data={"labels": ["good", "bad"]})
    train(config)
    forgotten(config, in_slice(RunDir(config.run_dir), 1)[2:])
    found = leakage(RunDir(config.run_dir))
    assert [*by_name(found.before)] == ["loss"], "no public rows to train a reference on"
    assert any(note.startswith("no reference") for note in found.notes)
    assert by_name(found.before)["loss"].auc_low > CHANCE
    assert found.indistinguishable and len(found.verdicts) == 1
    assert found.window == 0 and found.after is not None and found.after.verbatim is None


def test_an_exhausted_run_gives_nothing_away(language: Path, tmp_path: Path) -> None:
    run = RunDir(shutil.copytree(language, tmp_path / "run"))
    forgotten(run.here(), in_slice(run, 0)[2:])
    found = leakage(run)
    assert found.after is None and found.snapshots is None
    assert found.verdicts == () and found.indistinguishable
    json.dumps(found.to_dict())
    assert any("refuses to answer" in line for line in lines(found))


# --- who is attacked


def test_without_deletions_there_is_nothing_to_attack(digits_run: Path) -> None:
    with pytest.raises(InputError, match="s3t deactivate"):
        leakage(RunDir(digits_run))


def test_too_few_samples_are_refused(language: Path) -> None:
    with pytest.raises(InputError, match="at least 2"):
        leakage(RunDir(language), samples=1)


def gone(*ids: str) -> Gone:
    return Gone(b"key", frozenset(hashed(one, b"key") for one in ids))


def written(rows: LabelledSet) -> list[str]:
    """Texts of byte tokens, read back."""
    from s3t.model.built import byte_tokenizer

    tokenizer = byte_tokenizer()
    return [tokenizer.decode(row, skip_special_tokens=True) for row in rows.rows.values]


def test_what_may_stay_is_no_secret(text_run: Path) -> None:
    """Lines 0 and 2 are the same text of two persons: deleting one does not forget it."""
    audited = AuditedRun(RunDir(text_run))
    found = find_suspected_rows(audited, gone("t00", "t05", "t33", "elsewhere"), None, 0)
    assert sorted(written(found.members)) == ["private line 33", "private line 5"]
    assert (found.deleted, found.absent, found.known) == (4, 1, 1)
    assert "private line 4" in written(found.neighbours), "of the same person and slice"
    assert not {*written(found.neighbours)} & {*written(found.members)}
    assert found.persons, "each row is another person's, or nobody's"
    both = find_suspected_rows(audited, gone("t00", "t02", "t05"), None, 0)
    assert sorted(written(both.members)) == ["private line 5", "said twice", "said twice"]


def test_few_persons_are_told_of(text_run: Path) -> None:
    audited = AuditedRun(RunDir(text_run))
    found = find_suspected_rows(audited, gone("t04", "t05", "t06"), None, 0)
    assert len(found.members) == 3 and not found.persons


def test_many_persons_give_one_row_each(text_run: Path) -> None:
    audited = AuditedRun(RunDir(text_run))
    everybody = gone(*(f"t{number:02d}" for number in range(40)))
    found = find_suspected_rows(audited, everybody, None, 0)
    numbers = [int(text.split()[-1]) // 2 for text in written(found.members) if "line" in text]
    assert found.persons and len(found.members) == 24
    assert len([one for one in numbers if one < 16]) == len({one for one in numbers if one < 16})
    assert len(find_suspected_rows(audited, everybody, 10, 0).members) == 10
    drawn = [
        written(find_suspected_rows(audited, everybody, 10, seed).members) for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_strangers_are_in_no_training_data(text_run: Path) -> None:
    public = text_run.parent / "public.jsonl"
    config = RunDir(text_run).config()
    rows = [{"text": "public line 0"}, {"text": "private line 7"}, {"text": "heard nowhere"}]
    write_lines(public, rows)
    path = RunDir(text_run).config_path
    old = str(config.data.public.test.files)
    path.write_text(path.read_text(encoding="utf-8").replace(old, str(public)), encoding="utf-8")
    found = find_suspected_rows(AuditedRun(RunDir(text_run)), gone("t04", "t05"), None, 0)
    assert written(found.strangers) == ["public line 0", "heard nowhere"]


# --- what a model says


def language_model() -> Ensemble:
    base = tiny_base("gpt2", 3, language_model=True)
    members = [Member(at, at, random_adapter(base.targets, at, seed=at), 10) for at in range(3)]
    return Ensemble(base, members, 2.0, "mean-probabilities", "uniform")


def test_all_log_probabilities_are_those_of_the_losses_and_of_the_next_token() -> None:
    model, rows = language_model(), tiny_rows("gpt2", 6)
    assert rows.mask is not None
    found = model.token_log_probabilities(rows)
    assert found.shape == (*rows.values.shape, VOCABULARY)
    real = rows.mask.bool()
    assert not real.all() and bool(found[~real].isneginf().all())
    assert torch.allclose(found[real].exp().sum(1), torch.ones(int(real.sum())), atol=1e-5)
    chosen = -found[:, :-1].gather(2, rows.values[:, 1:, None]).squeeze(2)
    losses = chosen.where(real[:, 1:], torch.tensor(0.0))
    assert torch.allclose(losses, model.token_losses(rows), rtol=0, atol=1e-5)
    last = found[torch.arange(6), rows.mask.sum(1) - 1]
    assert torch.allclose(last, model.next_token(rows), rtol=0, atol=1e-5)


def test_a_language_model_is_asked_row_by_row() -> None:
    model, rows = language_model(), tiny_rows("gpt2", 6)
    assert rows.mask is not None
    found = answers_of(model, LabelledSet(rows, None), 3)
    means = model.token_losses(rows).sum(1) / (rows.mask.sum(1) - 1)
    assert found.losses == pytest.approx(means.numpy(), abs=1e-5)
    alone = [answers_of(model, LabelledSet(rows.rows(slice(at, at + 1)), None), 3) for at in (0, 5)]
    for at, one in zip((0, 5), alone, strict=True):
        for name, scores in found.scores.items():
            assert scores[at] == pytest.approx(one.scores[name][0], abs=1e-4)
    assert len(found.verbatim) == int((rows.mask.sum(1) >= 6).sum())


def test_labels_that_are_all_but_certain_are_told_apart() -> None:
    """In single precision 1 − 1e-9 is 1, and a loss of it 0."""

    class Sure:
        def probabilities(self, rows: Encoded) -> Tensor:
            return torch.tensor([[1.0, 1e-9], [1.0, 1e-12], [0.0, 1.0], [0.3, 0.7]])

    rows = LabelledSet(Encoded(torch.zeros(4, 1), None), torch.tensor([0, 0, 0, 0]))
    sure: Any = Sure()
    found = answers_of(sure, rows, 0).losses
    assert found[:2] == pytest.approx([1e-9, 1e-12], rel=1e-3)
    assert np.isfinite(found).all() and found[2] > 80
    assert found[3] == pytest.approx(-np.log(0.3), rel=1e-6)


def test_the_window_is_half_a_public_text() -> None:
    mask = torch.zeros(3, 200, dtype=torch.int64)
    for row, length in enumerate((4, 9, 180)):
        mask[row, :length] = 1
    rows = LabelledSet(Encoded(torch.zeros_like(mask), mask), None)
    assert window_of(rows) == 4
    assert window_of(LabelledSet(rows.rows.rows(slice(2, 3)), None)) == 50
    assert window_of(LabelledSet(rows.rows, torch.zeros(3))) == 0


def test_the_reference_is_the_base_with_the_public_head(digits_run: Path) -> None:
    audited = AuditedRun(RunDir(digits_run))
    with audited.run.ledger() as ledger:
        ids = [str(entry.sample_id) for entry in ledger.samples()][:3]
    suspected = find_suspected_rows(audited, gone(*ids), None, 0)
    assert (len(suspected.members), len(suspected.strangers), suspected.classes) == (3, 400, 10)
    rows, base = suspected.strangers.rows.rows(slice(0, 5)), audited.loaded.base
    head = read_public_head(audited.run.head_path, base.fingerprint)
    with torch.no_grad():
        features = base.features(base.start(rows), 0, None)
    expected = (features @ head["head.weight"].T + head["head.bias"]).softmax(1)
    known = snapshots.reference(audited, suspected)
    assert known is not None
    assert torch.allclose(known.probabilities(rows), expected, rtol=0, atol=1e-5)


# --- verdicts


def state(name: Any, scores: float, others: float) -> ModelLeakage:
    draw = np.random.default_rng(0)
    one = attack("loss", draw.normal(scores, 1, 60), draw.normal(others, 1, 400))
    return ModelLeakage(name, "", (one,), 0.0, 0.0)


def verdict_of(after: float, control: float) -> tuple[float, bool]:
    found = Leakage(
        "run", 1, 60, 60, 400, 0, 0.95, state("before", 3, 0), state("after", after, 0),
        state("control", control, 0), None, (),
    )  # fmt: skip
    (verdict,) = found.verdicts
    return verdict.expected, found.indistinguishable


def test_chance_is_half_unless_the_control_says_otherwise() -> None:
    assert verdict_of(0.0, 0.05) == (CHANCE, True)
    assert verdict_of(1.5, 0.05) == (CHANCE, False)
    expected, same = verdict_of(1.5, 1.5)
    assert expected > 0.8 and same, "strangers differ in kind: that is no leak"
    assert not verdict_of(0.0, 1.5)[1]


# --- the folder of models that have seen deleted samples


def test_a_failing_training_leaves_no_model(
    language: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*words: Any) -> None:
        assert [*(language / ".scratch").iterdir()], "it is trained where it is removed"
        raise RuntimeError("out of memory")

    monkeypatch.setattr(leakage_module.snapshots, "control", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        leakage(RunDir(language))
    assert not (language / ".scratch").exists()


# --- the command


def test_the_command(language: Path, s3t: Run) -> None:
    done = s3t("audit", language, "--leakage", "--leakage-samples", 8, "--json")
    found = json.loads(done.out)
    leak = found["leakage"]
    assert leak["members"] == 8 and leak["before"]["attacks"][0]["tpr_by_chance"] > 0
    plain = s3t("audit", language, "--json")
    assert done.code == plain.code, "leakage changes no exit code"
    assert "s3t: training a control" in done.err
