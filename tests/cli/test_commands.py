"""The command line on bad input: one message, the exit code of its class, nothing changed."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from io import StringIO
from pathlib import Path

import pytest
import yaml

from s3t.cli.parsing import split_launch
from s3t.errors import InputError
from s3t.run import RunDir
from s3t.training.work.train import train
from tests.conftest import Run
from tests.support.small_runs import person_rows, small_configs, write_csv
from tests.support.tables import refused, table, tree

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "configs/digits.yaml"


# ── runs ─────────────────────────────────────────────────────────────────────────────────────

VERBS = ("samples", "status", "forecast", "deactivate", "evaluate", "predict")


def words(verb: str, run: Path, here: Path) -> list[object]:
    """A command that works on a sound run."""
    more: dict[str, list[object]] = {
        "deactivate": ["--ids", "digit-0003", "--json"],
        "predict": ["--input", here / "one.jsonl", "--output", here / "out.jsonl"],
    }
    return [verb, run, *more.get(verb, ["--json"])]


@pytest.fixture
def one(here: Path) -> Path:
    """Input of ``predict`` that is fine: two blank images."""
    row = json.dumps({"image": [[0.0] * 8] * 8, "id": "blank"})
    (here / "one.jsonl").write_text(f"{row}\n{row}\n")
    return here


@pytest.mark.parametrize("path", ["nothing", "folder", "private.csv"])
def test_not_a_run(path: str, one: Path, s3t: Run) -> None:
    before = tree(one)
    for verb in VERBS:
        said = s3t(*words(verb, Path(path), one))
        refused(said, f"{path} is not a run directory (no plan.json)", "s3t train CONFIG")
        assert tree(one) == before, verb


def flip(path: Path, at: int) -> None:
    """Change one bit of a file; a negative place counts from its end."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def edit_plan(run: Path) -> None:
    plan = json.loads((run / "plan.json").read_text())
    plan["epochs"] += 1
    (run / "plan.json").write_text(json.dumps(plan))


def edit_config(run: Path) -> None:
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("alpha: 16.0", "alpha: 1.0"))


def execute(run: Path, statement: str) -> None:
    with closing(sqlite3.connect(run / "ledger.db")) as connection, connection:
        connection.execute(statement)


DAMAGES: dict[str, tuple[Callable[[Path], object], Sequence[str], Sequence[str]]] = {
    "plan edited": (
        edit_plan,
        VERBS[1:],
        ["the plan is not what was written", "restore plan.json"],
    ),
    "plan cut short": (
        lambda run: (run / "plan.json").write_text("{"),
        VERBS[1:],
        ["this is no plan", "restore plan.json"],
    ),
    "ledger is no database": (
        lambda run: (run / "ledger.db").write_bytes(b"not a ledger" * 1000),
        VERBS,
        ["ledger.db is damaged or no ledger (file is not a database)", "restore it from a copy"],
    ),
    "ledger is empty": (
        lambda run: (run / "ledger.db").write_bytes(b""),
        VERBS,
        ["ledger.db is a database but no ledger"],
    ),
    "ledger is missing": (
        lambda run: (run / "ledger.db").unlink(),
        VERBS,
        ["ledger.db is missing, so it is unknown what was deleted", "restore it"],
    ),
    "ledger without a table": (
        lambda run: execute(run, "DROP TABLE run"),
        VERBS,
        ["no such table: run", "restore it from a copy"],
    ),
    "ledger of a newer s3t": (
        lambda run: execute(run, "UPDATE schema_version SET version = 99"),
        VERBS,
        ["schema 99", "upgrade s3t"],
    ),
    "base changed": (
        lambda run: flip(run / "base/model.safetensors", -1),
        ("evaluate", "predict"),
        ["the base has fingerprint", "restore"],
    ),
    "config edited": (
        edit_config,
        ("evaluate", "predict"),
        ["config.yaml is not what the run was trained with (another lora)", "restore it"],
    ),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damage(case: str, digits_run: Path, one: Path, s3t: Run) -> None:
    damage, verbs, parts = DAMAGES[case]
    damage(digits_run)
    before = tree(digits_run), tree(one)
    for verb in verbs:
        refused(s3t(*words(verb, digits_run, one)), *parts, code=4)
        assert (tree(digits_run), tree(one)) == before, verb


DEACTIVATIONS: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "nothing named": ([], ["nothing to delete: give at least one sample id or subject"]),
    "an empty id": (["--ids", ""], ["unknown sample ids ''"]),
    "unknown id": (
        ["--ids", "digit-0003", "--ids", "nobody"],
        ["unknown sample ids 'nobody': nothing was deleted", "s3t samples "],
    ),
    "ids with a comma": (
        ["--ids", "digit-0003,digit-0004", "--subjects", "a,b"],
        ["unknown sample ids 'digit-0003,digit-0004' and subjects 'a,b'"],
    ),
    "an id with blanks": (["--ids", " digit-0003"], ["unknown sample ids ' digit-0003'"]),
    "an id like markup": (["--ids", "[/bold]"], ["unknown sample ids '[/bold]'"]),
    "an id like an option": (
        ["--ids", "-v", "--ids", "--json"],
        ["unknown sample ids '--json', '-v'"],
    ),
    "an id with NUL in a file": (["--ids-file", "nul.txt"], ["is not text in UTF-8"]),
    "a line with blanks": (["--ids-file", "blanks.txt"], ["unknown sample ids ' ', 'digit-0003 '"]),
    "a line that is no JSON string": (
        ["--subjects-file", "quote.txt"],
        ["quote.txt, line 2 begins with a quote and is no JSON string"],
    ),
    "a file in UTF-16": (["--ids-file", "wide.txt"], ["wide.txt cannot be read", "in UTF-8"]),
    "unknown subject": (["--subjects", "ann"], ["unknown subjects 'ann': nothing was deleted"]),
    "unknown ids and subjects": (
        ["--ids", "x", "--subjects", "y"],
        ["unknown sample ids 'x' and subjects 'y'"],
    ),
    "id that is not text": (["--ids", "\udcff"], ["is not text in UTF-8"]),
    "request id that is not text": (
        ["--ids", "digit-0003", "--request-id", "\udcff"],
        ["is not text in UTF-8"],
    ),
    "ids file missing": (["--ids-file", "nothing.txt"], ["nothing.txt cannot be read"]),
    "ids file is a directory": (["--ids-file", "folder"], ["folder cannot be read"]),
    "ids file is binary": (["--ids-file", "binary.bin"], ["binary.bin cannot be read"]),
    "ids file is empty": (["--ids-file", "empty.txt"], ["nothing to delete"]),
    "ids file of unknown ids": (
        ["--ids-file", "private.csv"],
        ["unknown sample ids '0,line 0,a', '1,line 1,b'", "and 15 more"],
    ),
    "unknown option": (["--idz", "digit-0003"], ["No such option: --idz"]),
}


@pytest.mark.parametrize("case", DEACTIVATIONS)
def test_bad_deactivation(case: str, digits_run: Path, here: Path, s3t: Run) -> None:
    more, parts = DEACTIVATIONS[case]
    (here / "empty.txt").write_text("\n\r\n")
    (here / "nul.txt").write_bytes(b"a\0b\n")
    (here / "blanks.txt").write_text("digit-0003 \n \n")
    (here / "quote.txt").write_text('p1\n"p2\n')
    (here / "wide.txt").write_text("digit-0003\n", encoding="utf-16")
    before = tree(digits_run), tree(here)
    refused(s3t("deactivate", digits_run, *more, "--json"), *parts)
    assert (tree(digits_run), tree(here)) == before


def test_request_id_of_another_deletion(digits_run: Path, s3t: Run) -> None:
    first = s3t("deactivate", digits_run, "--ids", "digit-0003", "--request-id", "r", "--json")
    assert first.code == 0
    before = tree(digits_run)
    said = s3t("deactivate", digits_run, "--ids", "digit-0004", "--request-id", "r", "--json")
    refused(said, "request id 'r' stands for another deletion: nothing was deleted")
    assert tree(digits_run) == before


INPUTS: dict[str, tuple[str | bytes | None, Sequence[str]]] = {
    "file missing": (None, ["input.jsonl cannot be read"]),
    "file empty": ("\n", ["input.jsonl holds no rows", "give one row a line"]),
    "binary": (bytes(range(128, 256)), ["input.jsonl cannot be read"]),
    "not JSON": ('{"image": []}\nhello\n', ["input.jsonl, line 2 is not JSON"]),
    "not an object": ("[1, 2]\n", ["line 1 holds a list, expected an object"]),
    "wrong column": ('{"picture": [[0]]}', ["row 0 has no 'image': it has ['picture']"]),
    "empty image": ('{"image": []}', ["row 0: ", "integers from 0 to 255"]),
    "one row of pixels": ('{"image": [0, 1, 2]}', ["row 0: an image [height, width, channels]"]),
    "ragged image": ('{"image": [[0, 1], [2]]}', ["row 0: ", "inhomogeneous"]),
    "four dimensions": ('{"image": [[[[0]]]]}', ["row 0: an image [height, width, channels]"]),
    "pixels above 255": ('{"image": [[0, 256]]}', ["row 0: ", "from 0 to 255", "rescale"]),
    "pixels below 0": ('{"image": [[-1, 2]]}', ["row 0: ", "rescale"]),
    "fractions above 1": ('{"image": [[0.5, 16.0]]}', ["row 0: ", "fractions from 0 to 1"]),
    "NaN pixels": ('{"image": [[NaN, 0.5]]}', ["row 0: an image holds a value that is not finite"]),
    "words for pixels": ('{"image": [["a"]]}', ["row 0: "]),
    "nothing for an image": ('{"image": null}', ["row 0: "]),
    "image file missing": ('{"image": "nothing.png"}', ["row 0: FileNotFoundError", "nothing.png"]),
    "image file is none": ('{"image": "private.csv"}', ["row 0: UnidentifiedImageError"]),
    "second row is bad": (
        '{"image": [[0.5]]}\n{"image": [[7.5]]}\n',
        ["row 1: an image is integers from 0 to 255 or fractions"],
    ),
}


@pytest.mark.parametrize("case", INPUTS)
def test_bad_input(case: str, digits_run: Path, here: Path, s3t: Run) -> None:
    content, parts = INPUTS[case]
    if content is not None:
        raw = content if isinstance(content, bytes) else content.encode()
        (here / "input.jsonl").write_bytes(raw)
    before = tree(digits_run), tree(here)
    refused(s3t("predict", digits_run, "--input", "input.jsonl", "--output", "out.jsonl"), *parts)
    assert (tree(digits_run), tree(here)) == before


TEXTS: dict[str, tuple[str, Sequence[str], Sequence[str]]] = {
    "wrong column": ('{"words": "x"}', [], ["row 0 has no 'text': it has ['words']"]),
    "not a text": ('{"text": 7}', [], ["prompt 0: a text is expected, got 7"]),
    "empty text": ('{"text": " "}', [], ["prompt 0: a text is expected, got ' '"]),
    "half a character": ('{"text": "\\ud800"}', [], ["prompt 0: ", "is not valid Unicode"]),
    "too long": (
        json.dumps({"text": "x" * 40}),
        [],
        ["prompt 0 has 41 tokens: 1 to 28 leave room", "data.max_length 32"],
    ),
    "too many tokens asked for": ('{"text": "x"}', ["--max-new-tokens", "31"], ["1 to 1 leave"]),
    "no tokens asked for": ('{"text": "x"}', ["--max-new-tokens", "0"], ["max_new_tokens 0 must"]),
    "negative temperature": ('{"text": "x"}', ["--temperature", "-1"], ["temperature -1.0"]),
    "temperature is no number": ('{"text": "x"}', ["--temperature", "nan"], ["temperature nan"]),
}


@pytest.mark.parametrize("case", TEXTS)
def test_bad_prompt(case: str, text_run: Path, here: Path, s3t: Run) -> None:
    content, more, parts = TEXTS[case]
    (here / "input.jsonl").write_text(content)
    before = tree(text_run), tree(here)
    room = [] if "--max-new-tokens" in more else ["--max-new-tokens", "4"]
    said = s3t("predict", text_run, "--input", "input.jsonl", "--output", "out", *room, *more)
    refused(said, *parts)
    assert (tree(text_run), tree(here)) == before


@pytest.mark.parametrize("target", ["folder", "private.csv/out.jsonl"])
def test_output_of_predict_that_cannot_be_written(
    target: str, digits_run: Path, one: Path, s3t: Run
) -> None:
    before = tree(one)
    said = s3t("predict", digits_run, "--input", "one.jsonl", "--output", target)
    refused(said, f"--output {target} cannot be written")
    assert tree(one) == before


def test_public_data_that_is_gone(text_run: Path, s3t: Run) -> None:
    config = text_run / "config.yaml"
    config.write_text(config.read_text().replace("public.jsonl", "gone.jsonl"))
    refused(s3t("evaluate", text_run), "data.public.test", "gone.jsonl' does not exist")


def test_usage_errors(s3t: Run) -> None:
    for arguments in ([], ["plan"], ["forget"], ["predict", "run"], ["status", "a", "b"]):
        said = s3t(*arguments)
        assert said.code == 2 and "Traceback" not in said.err, (arguments, said)


def test_unexpected_error_is_one_line(
    digits_run: Path, s3t: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("s3t.service.S3T.status", fail)
    said = s3t("status", digits_run, "--json")
    assert (said.code, said.out) == (1, "")
    assert said.err.startswith("s3t: unexpected ZeroDivisionError: a bug (S3T_TRACEBACK=1")
    monkeypatch.setenv("S3T_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        s3t("status", digits_run, "--json")


# ── what is accepted ─────────────────────────────────────────────────────────────────────────


def test_images_of_another_size_are_resized(digits_run: Path, here: Path, s3t: Run) -> None:
    (here / "in.jsonl").write_text(json.dumps({"image": [[[0, 0, 0]] * 5] * 11, "id": 4}))
    said = s3t("predict", digits_run, "--input", "in.jsonl", "--output", "deep/er/out.jsonl")
    assert (said.code, said.out) == (0, "")
    (answer,) = [json.loads(line) for line in (here / "deep/er/out.jsonl").read_text().splitlines()]
    assert answer["id"] == 4


def test_lines_are_cut_at_newlines_alone(text_run: Path, here: Path, s3t: Run) -> None:
    (here / "in.jsonl").write_text('{"text": "a\u2028b"}\n', encoding="utf-8")
    room = ["--max-new-tokens", "2"]
    said = s3t("predict", text_run, "--input", "in.jsonl", "--output", "out.jsonl", *room)
    assert said.code == 0, said
    assert len((here / "out.jsonl").read_text(encoding="utf-8").split("\n")) == 2


ODD_NAMES = [
    *("a,b", "a", "b", " x", "x", "x ", "-v", "--json", "[/bold]"),
    *("c\nd", "e\r", '"f"', "g\u2028", "a\u0301"),
]


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose samples have odd ids, and persons of the same names."""
    folder = tmp_path_factory.mktemp("odd")
    make = small_configs(folder)
    rows = person_rows()
    for name, row in zip(ODD_NAMES, rows, strict=False):
        row["id"] = row["who"] = name
    write_csv(folder / "odd.csv", rows)
    config = make(private="odd.csv", partition={"shards": 1}, stage={"epochs": 1})
    train(config)
    return config.run_dir


APART = [
    ("a,b", " x", "-v", "[/bold]", "c\nd", '"f"', "g\u2028", "a\u0301"),
    ("a", "x", "--json", "e\r"),
    ("b", "x "),
]
"""All names, none beside another that it could be mistaken for."""


@pytest.mark.parametrize("names", APART)
@pytest.mark.parametrize("what", ["ids", "subjects"])
def test_a_name_is_what_the_data_say(
    names: tuple[str, ...], what: str, odd: Path, here: Path, s3t: Run
) -> None:
    assert sorted(ODD_NAMES) == sorted(name for apart in APART for name in apart)
    quoted = "".join(json.dumps(name) + "\r\n" for name in names)
    (here / "names.txt").write_text(quoted, encoding="utf-8-sig")
    plain = [name for name in names if not set('\n\r"') & set(name)]
    (here / "plain.txt").write_bytes("\ufeff{}\r\n\n".format("\r\n".join(plain)).encode())
    ways = [
        ([word for name in names for word in (f"--{what}", name)], names),
        ([f"--{what}-file", "names.txt"], names),
        ([f"--{what}-file", "plain.txt"], plain),
    ]
    for way, given in ways:
        with RunDir.existing(odd).ledger() as ledger:
            expected = sorted(ledger.deleted.keyed(name) for name in given)
        said = s3t("deactivate", odd, *way, "--dry-run", "--json")
        assert json.loads(said.out)["deleted"] == expected, way


def test_what_is_listed_can_be_read_back(odd: Path, here: Path, s3t: Run) -> None:
    lines = s3t("samples", odd).out.splitlines(keepends=True)
    listed = [line.partition("  ")[0] for line in lines[: len(ODD_NAMES)]]
    (here / "names.txt").write_text("\n".join(listed), encoding="utf-8")
    said = s3t("deactivate", odd, "--ids-file", "names.txt", "--dry-run", "--json")
    assert len(json.loads(said.out)["deleted"]) == len(ODD_NAMES)


def test_names_come_from_options_and_files(digits_run: Path, here: Path, s3t: Run) -> None:
    listed = [
        json.loads(line)["sample_id"]
        for line in s3t("samples", digits_run, "--json").out.splitlines()
    ]
    (here / "ids.txt").write_text(f"{listed[4]}\n\n{listed[5]}\r\n")
    more = ["--ids", listed[0], "--ids", listed[2], "--ids-file", "ids.txt"]
    said = s3t("deactivate", digits_run, *more, "--json")
    with RunDir.existing(digits_run).ledger() as ledger:
        expected = sorted(ledger.deleted.keyed(listed[number]) for number in (0, 2, 4, 5))
    assert json.loads(said.out)["deleted"] == expected


@pytest.mark.parametrize(
    ("given", "overrides", "launch"),
    [
        ("lora.rank=4 output=x", "lora.rank=4 output=x", ""),
        ("--num_processes 2 lora.rank=4", "lora.rank=4", "--num_processes 2"),
        ("--num_processes=2 output=x", "output=x", "--num_processes=2"),
        ("--multi_gpu output=x", "output=x", "--multi_gpu"),
        ("--cpu name=x --num_processes 2", "name=x", "--cpu --num_processes 2"),
        ("--config_file a=b.yaml seed=1", "seed=1", "--config_file a=b.yaml"),
        ("lora.rnak=4 --cpu", "lora.rnak=4", "--cpu"),
    ],
)
def test_launch_options_and_overrides(given: str, overrides: str, launch: str) -> None:
    assert split_launch(given.split()) == (overrides.split(), launch.split())


def test_rows_come_in_many_forms(
    small_run: RunDir, tmp_path: Path, s3t: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = "person 3 says 24", "person 4, who says 28"
    files = {
        "rows.jsonl": json.dumps({"id": "a", "text": one}) + "\n" + json.dumps({"text": other}),
        "rows.json": json.dumps([{"id": "a", "text": one}, {"text": other}]),
        "rows.csv": f'id;text\na;{one}\n;"{other}"\n',
        "rows.txt": f"{one}\n\n{other}\n",
    }
    expected = s3t("predict", small_run.root, one, other)
    answers = [json.loads(line) for line in expected.out.splitlines()]
    assert (expected.code, len(answers)) == (0, 2)
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
        said = s3t("predict", small_run.root, "--input", tmp_path / name, "--output", "-")
        found = [json.loads(line) for line in said.out.splitlines()]
        ids = [row.pop("id", None) for row in found]
        assert found == answers and ids[0] == (None if name == "rows.txt" else "a"), name
    monkeypatch.setattr("sys.stdin", StringIO(f"{json.dumps({'text': one})}\n{other}\n"))
    assert s3t("predict", small_run.root, "--input", "-").out == expected.out
    table = tmp_path / "answers.csv"
    assert s3t("predict", small_run.root, one, "--output", table).code == 0
    head, row = table.read_text().splitlines()
    best = answers[0]["probabilities"][answers[0]["label"]]
    assert (head, row) == ("label,view,probability", f"{answers[0]['label']},0,{best}")
    assert "give texts, or --input" in s3t("predict", small_run.root).err


@pytest.mark.parametrize("words", ["--stage.epochs 3", "--stage.epochs=3", "-stage.epochs 3"])
def test_a_key_is_no_option(words: str) -> None:
    with pytest.raises(InputError, match=r"is no option: write stage\.epochs=3"):
        split_launch(["--cpu", *words.split()])


def test_an_audit_of_what_awaits_a_purge_has_a_code_of_its_own(digits_run: Path, s3t: Run) -> None:
    s3t("deactivate", digits_run, "--ids", "digit-0003", "--request-id", "r")
    assert (
        "this request was done at 20"
        in s3t(*("deactivate", digits_run, "--ids", "digit-0003", "--request-id", "r")).out
    )
    said = s3t("audit", digits_run)
    assert said.code == 6 and "more (--json has all)" in said.out
    assert s3t("purge", digits_run).code == 0
    assert s3t("audit", digits_run).code == 0


# ── what people read ─────────────────────────────────────────────────────────────────────────


def test_plain_output(digits_run: Path, s3t: Run) -> None:
    plan = s3t("plan", DIGITS)
    assert "4 shards × 4 slices, budget 4: 64 nodes" in plan.out
    assert "expected deletions until exhaustion: 54.1" in plan.out
    said = s3t("deactivate", digits_run, "--ids", "digit-0003", "--request-id", "r", "--dry-run")
    assert said.out.startswith("request r: would delete 1 samples (0 were deleted before), view 1")
    said = s3t("deactivate", digits_run, "--ids", "digit-0003", "--request-id", "r")
    assert said.out.startswith("request r: deleted 1 samples (0 were deleted before), view 1")
    status = s3t("status", digits_run)
    assert status.out.startswith("view 1: 1 of 800 samples deleted")
    assert status.out.count(" ×") == 2  # one slice of the grid, one in the legend
    samples = s3t("samples", digits_run)
    assert [line for line in samples.out.splitlines() if line.endswith("deleted")] == [
        line for line in samples.out.splitlines() if line.startswith("digit-0003  ")
    ]


def test_forecast(digits_run: Path, s3t: Run) -> None:
    names = [line.split() for line in s3t("samples", digits_run).out.splitlines()]
    first = {place: name for name, place, *_ in names}
    for place in ("2:0", "2:1", "2:2", "2:3", "0:1"):
        assert s3t("deactivate", digits_run, "--ids", first.pop(place)).code == 0
    told = json.loads(s3t("forecast", digits_run, "--json").out)
    assert list(told) == [
        *("view", "persons_left", "first_slices_left", "first_slices_missing", "exhausted"),
        *("first_death", "exhaustion", "observed", "trials", "seed", "shards"),
    ]
    assert (told["view"], told["persons_left"], told["first_slices_left"]) == (5, 795, 11)
    assert (told["exhausted"], told["trials"], told["seed"]) == (False, None, None)
    for event in ("first_death", "exhaustion"):
        for found in told[event].values():
            assert list(found) == ["p5", "p50", "p95", "mean"]
            assert 0 < found["p5"] < found["p50"] < found["p95"]
    assert told["observed"]["persons"] == 4
    assert list(told["observed"]) == ["persons", "days", "per_day"]
    assert [list(shard) for shard in told["shards"]] == [
        ["shard", "first_slices", "persons_left", "median_requests"]
    ] * 4
    assert told["shards"][2]["first_slices"] == []
    assert told["shards"][2]["median_requests"] is None

    lines = s3t("forecast", digits_run).out.splitlines()
    assert lines[0] == "view 5: 795 persons left, 11 first slices left in 3 of 4 shards"
    row = [f"{told['exhaustion']['requests'][name]:.0f}" for name in ("p5", "p50", "p95")]
    assert lines[3].split()[:4] == ["exhausted", *row]
    assert "all are alike, and the figures exact" in lines[4]
    assert "as observed since the first request: 4 in " in lines[8]
    assert lines[-2].split()[2:] == ["dead"]
    assert lines[-4].split()[3:] == ["0", "2", "3"]

    options = [word for one in first.values() for word in ("--ids", one)]
    assert s3t("deactivate", digits_run, *options).code == 0
    said = s3t("forecast", digits_run)
    assert (said.code, said.err) == (0, "")
    state = "view 6: 784 persons left, 0 first slices left in 0 of 4 shards"
    assert said.out == f"{state}, EXHAUSTED: no shard serves\n"
    told = json.loads(s3t("forecast", digits_run, "--json").out)
    assert (told["exhausted"], told["exhaustion"], told["first_death"]) == (True, None, None)


def test_forecast_without_a_rate(text_run: Path, s3t: Run) -> None:
    picture = text_run / "left.svg"
    lines = s3t("forecast", text_run, "--picture", picture).out.splitlines()
    assert "<!-- the first shard dies -->" in picture.read_text()
    assert "no rate in time before two deletions" in lines
    assert not any(line.startswith("days") for line in lines)
    told = json.loads(s3t("forecast", text_run, "--json").out)
    assert told["observed"] is None and told["exhaustion"]["days"] is None


@pytest.mark.parametrize(
    ("words", "problem"), [(["--trials", "0"], "0 trials"), (["--seed", "-1"], "seed -1")]
)
def test_forecast_that_cannot_be_drawn(
    words: list[str], problem: str, text_run: Path, s3t: Run
) -> None:
    refused(s3t("forecast", text_run, *words, "--json"), f"{problem}: expected")


@pytest.mark.parametrize("verb", ["plan", "train"])
def test_problems_of_data_base_and_partition_come_together(verb: str, here: Path, s3t: Run) -> None:
    (here / "good.yaml").write_text(yaml.safe_dump(table()))
    before = tree(here)
    words = ("partition.slices=3", "stage.isolation=layers", "data.columns.id=nobody")
    refused(s3t(verb, "good.yaml", *words), "problems", "nobody", "partition.slices 3")
    assert tree(here) == before
