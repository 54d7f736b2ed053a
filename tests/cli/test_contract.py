"""What other programs rely on: exit codes, JSON on standard output, names and places of files.

Word for word from the contract. Commands run in this process; one of each exit code also as a
process of its own (``command``), those that need torch among the heavy tests.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from s3t.run import RunDir
from tests.conftest import ROOT, Run, Said

DIGITS = ROOT / "configs/digits.yaml"

Training = tuple[Path, Said]


def document(done: Said, code: int = 0) -> Any:
    """The one JSON document on standard output, which is all that is there."""
    assert done.code == code, done.err
    assert done.out.count("\n") == 1 and done.out.endswith("\n")
    return json.loads(done.out)


def one_message(done: Said, code: int) -> str:
    assert (done.code, done.out) == (code, ""), done
    lines = [line for line in done.err.splitlines() if line.startswith("s3t: ")]
    assert len(lines) == 1 and "Traceback" not in done.err, done.err
    return lines[0]


def listed(s3t: Run, run: Path) -> list[dict[str, Any]]:
    done = s3t("samples", run, "--json")
    assert done.code == 0
    return [json.loads(line) for line in done.out.splitlines()]


def of_slot(entries: list[dict[str, Any]], shard: int, part: int) -> list[str]:
    return [e["sample_id"] for e in entries if (e["shard"], e["slice"]) == (shard, part)]


# ── commands that load the model ─────────────────────────────────────────────────────────────

ROWS = [
    {"image": [[0.0] * 8] * 8, "id": "blank"},
    {"image": [[[255] for _ in range(8)]] * 8},
    {"image": [[0.5] * 8] * 8, "id": 7, "other": "ignored"},
]


@pytest.fixture(scope="module")
def heavy(
    s3t: Run, digits_training: Training, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Any]:
    """What the slow commands said, each of a run of its own."""
    folder = tmp_path_factory.mktemp("heavy")
    runs = {
        name: Path(shutil.copytree(digits_training[0], folder / name))
        for name in ("sound", "exhausted", "damaged", "edited", "two", "other")
    }
    config = runs["exhausted"] / "config.yaml"
    config.write_text(config.read_text().replace("on_exhausted: base", "on_exhausted: raise"))
    first = {(e["shard"], e["slice"]): e["sample_id"] for e in listed(s3t, runs["exhausted"])}
    (folder / "ids.txt").write_text("\n".join(first.values()))
    exhausting = s3t("deactivate", runs["exhausted"], "--ids-file", folder / "ids.txt", "--json")
    status = document(s3t("status", runs["damaged"], "--json"))
    node = runs["damaged"] / "nodes" / f"{status['shards'][0]['node']}.safetensors"
    content = bytearray(node.read_bytes())
    content[-5] ^= 16
    node.write_bytes(content)
    plan = json.loads((runs["edited"] / "plan.json").read_text())
    plan["nodes"][0]["prefix"] = [3]
    (runs["edited"] / "plan.json").write_text(json.dumps(plan))
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    asked = {
        "plan": ("plan", DIGITS, "--json"),
        "evaluate": ("evaluate", runs["sound"], "--json"),
        "predict": ("predict", runs["sound"], "--input", "in.jsonl", "--output", "out.jsonl"),
        "exhausted": ("evaluate", runs["exhausted"], "--json"),
        "damaged": ("evaluate", runs["damaged"], "--json"),
        "edited": ("evaluate", runs["edited"], "--json"),
    }
    return {
        **{name: s3t(*words, cwd=folder) for name, words in asked.items()},
        "exhausting": exhausting,
        "folder": folder,
        "runs": runs,
        "node": status["shards"][0]["node"],
    }


def test_plan(heavy: Mapping[str, Any]) -> None:
    plan = document(heavy["plan"])
    keys = "shards slices budget sequences nodes sample_passes bytes expected_deletions"
    assert set(keys.split()) <= set(plan)
    assert (plan["shards"], plan["slices"], plan["budget"], plan["nodes"]) == (4, 4, 4, 64)
    rotations = [[0, 1, 2, 3], [1, 2, 3, 0], [2, 3, 0, 1], [3, 0, 1, 2]]
    assert plan["sequences"] == [rotations] * 4
    assert (
        plan["sample_passes"] == 800 * (1 + 2 + 3 + 4) * 10
    )  # each slice once per place, 10 epochs
    assert plan["expected_deletions"] == pytest.approx(16 * sum(1 / n for n in range(1, 17)))
    assert isinstance(plan["bytes"], int) and plan["bytes"] > 64 * 10 * 65 * 4
    assert not (heavy["folder"] / "runs").exists()  # it trains and writes nothing


def test_train_without_output_is_runs_and_the_name(digits_training: Training) -> None:
    run, done = digits_training
    report = document(done)
    assert report["run"] == "runs/digits" and run.is_dir()
    assert (report["nodes"], report["trained"], report["found"]) == (64, 64, 0)


def test_nodes_lie_under_their_keys(digits_training: Training, s3t: Run) -> None:
    run = digits_training[0]
    files = sorted(path.name for path in (run / "nodes").iterdir())
    keys = sorted(node.key for node in RunDir.existing(run).plan().forest.nodes)
    assert files == sorted(f"{key}.{kind}" for key in keys for kind in ("evidence", "safetensors"))
    status = document(s3t("status", run, "--json"))
    assert all(f"{shard['node']}.safetensors" in files for shard in status["shards"])
    assert {path.name for path in run.iterdir()} >= {"config.yaml", "plan.json", "ledger.db"}


def test_evaluate(heavy: Mapping[str, Any]) -> None:
    found = document(heavy["evaluate"])
    assert set(found) == {"accuracy", "samples", "view", "base", "validation"}
    assert found["validation"] is None, "weights are by data"
    assert 0 <= found["base"] <= 1 and 0 <= found["accuracy"] <= 1
    assert (found["samples"], found["view"]) == (400, 0)


def test_predict(heavy: Mapping[str, Any]) -> None:
    assert (heavy["predict"].code, heavy["predict"].out) == (0, "")
    answers = [
        json.loads(line) for line in (heavy["folder"] / "out.jsonl").read_text().splitlines()
    ]
    assert len(answers) == len(ROWS)
    assert [answer["view"] for answer in answers] == [0, 0, 0]
    assert [answer.get("id") for answer in answers] == ["blank", None, 7]
    for answer in answers:
        assert answer["label"] in answer["probabilities"]
        assert sorted(answer["probabilities"]) == [str(digit) for digit in range(10)]


def test_exit_3_when_exhausted(heavy: Mapping[str, Any], s3t: Run) -> None:
    receipt = document(heavy["exhausting"])
    assert receipt["expected_deletions_left"] == 0
    assert [change["after"] for change in receipt["prefixes"]] == [[]] * 4
    message = one_message(heavy["exhausted"], 3)
    assert "no shard has a surviving prefix" in message
    status = document(s3t("status", heavy["runs"]["exhausted"], "--json"))
    assert status["exhausted"] is True and status["deleted"] == 16
    assert [(s["prefix"], s["node"], s["nodes_alive"]) for s in status["shards"]] == [
        ([], None, 0)
    ] * 4


def test_exit_4_when_bytes_do_not_prove_what_they_claim(
    heavy: Mapping[str, Any], s3t: Run, command: Run
) -> None:
    assert heavy["node"] in one_message(heavy["damaged"], 4)
    assert "plan" in one_message(heavy["edited"], 4)
    assert "plan" in one_message(command("status", heavy["runs"]["edited"], "--json"), 4)
    (heavy["runs"]["two"] / "ledger.db").write_text("once upon a time" * 300)
    for verb in ("status", "samples"):
        said = s3t(verb, heavy["runs"]["two"], "--json")
        assert "is damaged or no ledger" in one_message(said, 4)
    said = s3t("deactivate", heavy["runs"]["two"], "--ids", "digit-0003", "--json")
    assert "is damaged or no ledger" in one_message(said, 4)


# ── light commands ───────────────────────────────────────────────────────────────────────────


def test_samples(digits_run: Path, s3t: Run, command: Run) -> None:
    entries = listed(command, digits_run)
    assert entries == listed(s3t, digits_run)
    assert len(entries) == 800
    assert all(list(e) == ["sample_id", "subject", "shard", "slice", "deleted"] for e in entries)
    assert {(e["shard"], e["slice"]) for e in entries} == {
        (s, c) for s in range(4) for c in range(4)
    }
    assert not any(e["deleted"] for e in entries)
    name = entries[5]["sample_id"]
    document(s3t("deactivate", digits_run, "--ids", name, "--json"))
    assert [e["sample_id"] for e in listed(s3t, digits_run) if e["deleted"]] == [name]


def test_status_and_deactivate(digits_run: Path, s3t: Run) -> None:
    status = document(s3t("status", digits_run, "--json"))
    assert {"view", "deleted", "exhausted", "shards"} <= set(status)
    assert (status["view"], status["deleted"], status["exhausted"]) == (0, 0, False)
    for number, shard in enumerate(status["shards"]):
        assert {"shard", "prefix", "node", "nodes_alive", "nodes_dead"} <= set(shard)
        assert (shard["shard"], shard["nodes_alive"], shard["nodes_dead"]) == (number, 16, 0)
        assert sorted(shard["prefix"]) == [0, 1, 2, 3]
        assert re.fullmatch("[0-9a-f]{64}", shard["node"])

    one, two, *_ = of_slot(listed(s3t, digits_run), 2, 1)
    words = ("--ids", one, "--ids", two, "--request-id", "r-1", "--json")
    dry = document(s3t("deactivate", digits_run, *words, "--dry-run"))
    assert document(s3t("status", digits_run, "--json")) == status
    done = document(s3t("deactivate", digits_run, *words))
    keys = "request_id deleted already_deleted nodes_dead prefixes view expected_deletions_left"
    assert {*keys.split(), "seconds", "dry_run"} <= set(done)
    assert (dry["dry_run"], done["dry_run"]) == (True, False)
    different = {key for key in done if done[key] != dry[key]}
    assert different <= {"seconds", "dry_run", "accepted_at", "effective_at"}
    assert (done["request_id"], done["view"]) == ("r-1", 1)
    with RunDir.existing(digits_run).ledger() as ledger:
        named = {name: ledger.deleted.keyed(name) for name in (one, two)}
    assert (done["deleted"], done["already_deleted"]) == (sorted(named.values()), [])
    assert done["prefixes"][2]["before"] == status["shards"][2]["prefix"]
    assert [(c["shard"], 1 in c["after"], len(c["after"])) for c in done["prefixes"]] == [
        (0, True, 4),
        (1, True, 4),
        (2, False, 3),
        (3, True, 4),
    ]
    # shard 2 keeps (0), (2), (2,3), (2,3,0), (3), (3,0): slices before 1 in each rotation
    assert len(done["nodes_dead"]) == 16 - 6
    after = document(s3t("status", digits_run, "--json"))
    assert (after["view"], after["deleted"]) == (1, 2)
    assert (after["shards"][2]["nodes_alive"], after["shards"][2]["nodes_dead"]) == (6, 10)
    assert after["shards"][2]["prefix"] == done["prefixes"][2]["after"]
    assert done["expected_deletions_left"] == pytest.approx(16 * sum(1 / n for n in range(1, 16)))

    again = document(s3t("deactivate", digits_run, "--ids", one, "--json"))
    assert (again["deleted"], again["already_deleted"], again["view"]) == ([], [named[one]], 1)
    repeated = document(s3t("deactivate", digits_run, *words))
    assert {k: v for k, v in repeated.items() if k != "seconds"} == {
        k: v for k, v in done.items() if k != "seconds"
    }


def test_exit_2_on_bad_input(digits_run: Path, s3t: Run, command: Run, tmp_path: Path) -> None:
    before = document(s3t("status", digits_run, "--json"))
    said = one_message(command("deactivate", digits_run, "--ids", "nobody", "--json"), 2)
    assert "'nobody'" in said
    assert document(s3t("status", digits_run, "--json")) == before
    assert "1 problem" in one_message(s3t("plan", DIGITS, "lora.rnak=1", "--json"), 2)
    assert "nothing.yaml" in one_message(s3t("train", "nothing.yaml", cwd=tmp_path), 2)
    assert "not a run directory" in one_message(s3t("status", tmp_path, "--json"), 2)
    usage = s3t("deactivate", digits_run, "--idz", "x", "--json")
    assert (usage.code, usage.out) == (2, "")
    assert list(tmp_path.iterdir()) == [digits_run]


def test_exit_1_on_anything_else(digits_run: Path, s3t: Run) -> None:
    with trained_elsewhere(digits_run) as words:
        assert "is being trained by another process" in one_message(s3t(*words), 1)


@pytest.mark.heavy
def test_exits_1_and_3_of_processes(
    heavy: Mapping[str, Any], digits_run: Path, command: Run
) -> None:
    with trained_elsewhere(digits_run) as words:
        assert "is being trained by another process" in one_message(command(*words), 1)
    exhausted = command("evaluate", heavy["runs"]["exhausted"], "--json")
    assert one_message(exhausted, 3) == one_message(heavy["exhausted"], 3)


@contextmanager
def trained_elsewhere(run: Path) -> Iterator[tuple[object, ...]]:
    """Another holds the training lock; what to ask for then."""
    with (run / ".training.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield "train", run / "config.yaml", f"output={run}", "--json"


# ── what is printed ──────────────────────────────────────────────────────────────────────────


@pytest.fixture
def noise(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Libraries that print: from Python, from C, from a process that they start."""
    from s3t.serving import predictor
    from s3t.training.prepare import inputs

    places = ((inputs, "load_all"), (predictor, "load_model"))
    for module, name in places:
        plain = getattr(module, name)

        def loud(*arguments: Any, plain: Any = plain) -> Any:
            print("Downloading: 100 %")
            os.write(1, b"warning from below\n")
            subprocess.run(["echo", "a child"], check=True)
            return plain(*arguments)

        monkeypatch.setattr(module, name, loud)
    yield


@pytest.mark.usefixtures("noise")
@pytest.mark.parametrize("verb", ["plan", "train", "evaluate"])
def test_nothing_else_on_standard_output(verb: str, digits_run: Path, s3t: Run) -> None:
    words: dict[str, list[object]] = {
        "plan": ["plan", DIGITS],
        "train": ["train", digits_run / "config.yaml", f"output={digits_run}"],
        "evaluate": ["evaluate", digits_run],
    }
    if verb == "train":  # so that there is something to train
        last = RunDir.existing(digits_run).plan().forest.stages()[-1][0]
        (digits_run / "nodes" / f"{last.key}.safetensors").unlink()
    done = s3t(*words[verb], "--json")
    assert isinstance(document(done), dict)
    for line in ("Downloading: 100 %", "warning from below", "a child"):
        assert line in done.err


def test_output_names_the_run_directory(tmp_path: Path, s3t: Run) -> None:
    tiny = "model.make.hidden=16 model.make.heads=2 model.adapt=null stage.epochs=1"
    small = "partition.shards=1 partition.slices=2 sequences.budget=1 training.workers=1"
    words = ["train", DIGITS, *tiny.split(), *small.split(), f"output={tmp_path}/a/b", "--json"]
    assert document(s3t(*words, cwd=tmp_path))["run"] == f"{tmp_path}/a/b"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]
    assert len(list((tmp_path / "a/b/nodes").glob("*.safetensors"))) == 2
    report = document(s3t(*words, cwd=tmp_path))  # again: nothing is left to do
    assert (report["trained"], report["found"]) == (0, 2)


KEYS = """
partition.shards=2 partition.slices=3 partition.salt=x sequences.strategy=cyclic sequences.budget=2
model.base=make:vit lora.rank=4 stage.isolation=snapshot stage.epochs=2 stage.batch_size=4
stage.learning_rate=1e-3
"""


def test_config_keys_by_their_names(s3t: Run) -> None:
    plan = document(s3t("plan", DIGITS, *KEYS.split(), "--json"))
    assert (plan["shards"], plan["slices"], plan["budget"]) == (2, 3, 2)
    assert plan["sequences"] == [[[0, 1, 2], [1, 2, 0]]] * 2
    assert plan["nodes"] == 12


def test_perplexity_of_a_language_model(text_run: Path, s3t: Run) -> None:
    found = document(s3t("evaluate", text_run, "--json"))
    assert set(found) == {"perplexity", "samples", "view", "base", "validation"}
    assert found["perplexity"] > 1 and found["base"] > 1 and found["validation"] is None


def test_completions_of_a_language_model(text_run: Path, tmp_path: Path, s3t: Run) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "private", "key": "k1"}\n')
    words = ["--input", "in.jsonl", "--output", "out.jsonl", "--max-new-tokens", "4"]
    assert s3t("predict", text_run, *words, cwd=tmp_path).code == 0
    (answer,) = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert set(answer) == {"id", "completion", "view"}
    assert (answer["id"], answer["view"]) == ("k1", 0)
