"""Wrong inputs, what s3t says to each, its exit code, and whether anything changed.

    python -m benchmarks.wrong_inputs [--output docs/wrong-inputs.md]

Each case starts from the same folder: a csv file with a config (``s3t init --example texts``), rows
to predict, and a small run that was trained on it. A case may change files; then it runs one
command. Everything in the folder is compared before and after, byte for byte, but for what SQLite
keeps beside an open database.
"""

from __future__ import annotations

import argparse
import gzip
import io
import logging
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout
from csv import DictReader
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from huggingface_hub import constants

from s3t import S3T, cli

__all__ = ["CASES", "Outcome", "outcomes", "table"]

Change = Callable[[Path], object]

RUN = Path("runs/customers")
QUICK = (
    "stage.epochs=1",
    "model.adapt.steps=5",
    "partition.slices=4",
    "sequences.explicit=[[1], [3], [2, 3]]",
)
"""Overrides that make of the example a run of seconds."""


@dataclass(frozen=True)
class Case:
    """One wrong input.

    Attributes:
        what: is wrong, in words.
        words: the command line after ``s3t``.
        code: the exit code to come.
        says: a part of the message to come.
        change: what is done to the folder first.
    """

    what: str
    words: str
    code: int
    says: str
    change: Change = lambda folder: None


@dataclass(frozen=True)
class Outcome:
    """What a case came to: the exit code, the message, and the files that changed."""

    case: Case
    code: int
    message: str
    changed: tuple[str, ...]

    @property
    def right(self) -> bool:
        """Whether it is the message and the code to come, and nothing changed."""
        told = self.case.says in self.message and "unexpected" not in self.message
        return self.code == self.case.code and told and not self.changed


def text(name: str, content: str | bytes) -> Change:
    """Writes a file."""
    raw = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / name).write_bytes(raw)


def line(name: str, number: int, old: str, new: str) -> Change:
    """Changes one line of a file, from 0."""

    def change(folder: Path) -> None:
        lines = (folder / name).read_bytes().split(b"\n")
        assert old.encode() in lines[number], lines[number]
        lines[number] = lines[number].replace(old.encode(), new.encode("latin-1"))
        (folder / name).write_bytes(b"\n".join(lines))

    return change


PLAN = "plan customers.yaml"
CASES: tuple[Case, ...] = (
    # keys and values of the config
    Case("a key that is none", f"{PLAN} partition.shard=3", 2, "did you mean"),
    Case("a key of another section", f"{PLAN} epochs=3", 2, "stage.epochs"),
    Case("a key as an option", f"{PLAN} --stage.epochs 3", 2, "write stage.epochs=VALUE"),
    Case("a key as an option of train", "train customers.yaml --stage.epochs 3", 2,
         "write stage.epochs=3"),
    Case("a word for a number", f"{PLAN} stage.epochs=three", 2, "stage.epochs"),
    Case("no epoch", f"{PLAN} stage.epochs=0", 2, "stage.epochs"),
    Case("no slice", f"{PLAN} partition.slices=0", 2, "partition.slices"),
    Case("less than no shard", f"{PLAN} partition.shards=-1", 2, "partition.shards"),
    Case("more slices than persons", f"{PLAN} partition.slices=1000", 2, "slices"),
    Case("no rank", f"{PLAN} lora.rank=0", 2, "lora.rank"),
    Case("a rank over the width", f"{PLAN} lora.rank=100000", 2, "lora.rank 100000"),
    Case("a learning rate of 100", f"{PLAN} stage.learning_rate=100", 0,
         "note: stage.learning_rate 100 is high"),
    Case("a learning rate that is none", f"{PLAN} stage.learning_rate=nan", 2, "learning_rate"),
    Case("texts of 100,000 tokens", f"{PLAN} data.max_length=100000", 2, "data.max_length 100000"),
    Case("a length that is no multiple of 16", f"{PLAN} data.max_length=50", 2, "multiple of 16"),
    Case("a base in a folder that is not", f"{PLAN} model.base=./nomodel", 2, "no such folder"),
    Case("data of the hub, no network", f"{PLAN} data.private.format=hub data.private.name=no/ne "
         "data.private.files=null", 2, "cannot be reached"),
    Case("a base in an empty folder", f"{PLAN} model.base=empty", 2, "model.base 'empty'",
         lambda folder: (folder / "empty").mkdir()),
    Case("a base of the hub, no network", f"{PLAN} model.base=nobody/none", 2,
         "cannot be reached"),
    Case("a made base that is none", f"{PLAN} model.base=make:gpt5", 2, "make:gpt2"),
    Case("a type that is none", f"{PLAN} model.dtype=float8", 2, "bfloat16"),
    Case("maps that the base has not", f"{PLAN} lora.targets=[nothing]", 2, "nothing"),
    Case("an isolation that is none", f"{PLAN} stage.isolation=nest", 2, "nested"),
    Case("weights that are none", f"{PLAN} aggregation.weights=best", 2, "public"),
    Case("a task that is none", f"{PLAN} task=chat", 2, "causal-lm"),
    Case("a seed below 0", f"{PLAN} seed=-1", 2, "seed"),
    Case("a list that is none", f"{PLAN} data.labels=[a,", 2, "data.labels"),
    Case("a strategy that is none", f"{PLAN} sequences.strategy=best", 2, "sequences.strategy"),
    Case("a pattern of no file", f"{PLAN} data.private.files=*.tsv", 2, "*.tsv"),
    Case("a file that is not", f"{PLAN} data.private.files=customer.csv", 2, "customer.csv"),
    Case("a folder for a file", f"{PLAN} data.private.files=runs", 2, "runs"),
    Case("a format that the file is not", f"{PLAN} data.private.format=jsonl", 2,
         "leave format out"),
    Case("a person for each row", f"{PLAN} partition.subject=message", 2, "message"),
    Case("a person column that is not", f"{PLAN} partition.subject=custommer", 2, "customer"),
    Case("a label column that is not", f"{PLAN} data.columns.label=nolabel", 2, "nolabel"),
    Case("a text column that is not", f"{PLAN} data.columns.text=notext", 2, "notext"),
    Case("an id column that repeats", f"{PLAN} data.columns.id=customer", 2, "c001"),
    Case("a label that is not listed", f"{PLAN} data.labels=[account,billing]", 2, "delivery"),
    # files of configs
    Case("no config", "plan nothing.yaml", 2, "nothing.yaml"),
    Case("a folder for a config", "plan runs", 2, "runs"),
    Case("data for a config", "plan customers.csv", 2, "customers.csv"),
    Case("a tab in YAML", "plan tab.yaml", 2, "tab.yaml", text("tab.yaml", "task: x\n\tdata: 1\n")),
    Case("a list for a config", "plan list.yaml", 2, "list.yaml", text("list.yaml", "- 1\n")),
    Case("an empty config", "plan empty.yaml", 2, "empty.yaml", text("empty.yaml", "")),
    Case("a key twice", "plan twice.yaml", 2, "twice", text("twice.yaml", "seed: 1\nseed: 2\n")),
    Case("a config in Latin-1", "plan latin.yaml", 2, "UTF-8",
         text("latin.yaml", "name: é\n".encode("latin-1"))),
    # files of data
    Case("Latin-1 in a csv file", PLAN, 2, "encoding",
         line("customers.csv", 1, "Hello", "H\xe9llo")),
    Case("a row with a cell too few", PLAN, 2, "customers.csv",
         lambda folder: (folder / "customers.csv").open("a").write("m9999,c001\n")),
    Case("an empty csv file", PLAN, 2, "customers.csv", text("customers.csv", "")),
    Case("a head without rows", PLAN, 2, "customers.csv",
         text("customers.csv", "id,customer,message,topic\n")),
    Case("an id twice", PLAN, 2, "m0001", line("customers.csv", 2, "m0002", "m0001")),
    Case("an empty label", PLAN, 2, "topic", line("customers.csv", 1, ",billing", ",")),
    Case("a NUL in an id", PLAN, 2, "NUL", line("customers.csv", 1, "m0001", "\0")),
    Case("a picture for a csv file", PLAN, 2, "customers.csv",
         text("customers.csv", b"\x89PNG\r\n\x1a\n" + bytes(range(256)))),
    Case("broken JSON lines", f"{PLAN} data.private.files=a.jsonl", 2, "in lines 1",
         text("a.jsonl", '{"id": 1,\n')),
    Case("numbers for JSON lines", f"{PLAN} data.private.files=a.jsonl", 2, "in lines 1, 2",
         text("a.jsonl", "1\n2\n")),
    Case("a gz that is none", f"{PLAN} data.private.files=a.csv.gz", 2, "a.csv.gz",
         text("a.csv.gz", "id,topic\n")),
    Case("a gz that is cut off", f"{PLAN} data.private.files=a.csv.gz", 2, "a.csv.gz",
         text("a.csv.gz", gzip.compress(b"id,customer,message,topic\n" * 99)[:-20])),
    Case("a parquet that is none", f"{PLAN} data.private.files=a.parquet", 2, "a.parquet",
         text("a.parquet", "id,topic\n")),
    Case("a suffix of no format", f"{PLAN} data.private.files=a.xlsx", 2, ".xlsx",
         text("a.xlsx", "id,topic\n")),
    # the first config
    Case("init of a file that is not", "init nothing.csv --yes", 2, "nothing.csv"),
    Case("init by a column that is not", "init customers.csv --label tpoic --yes --output a.yaml",
         2, "tpoic"),
    Case("init over a config that is there", "init customers.csv --yes", 2, "customers.yaml"),
    Case("an example that is none", "init --example poems", 2, "digits"),
    # training
    Case("another config for a run that is there", "train customers.yaml seed=7", 2, "seed"),
    Case("a planned share over 1", "budget --deletions 10 --target 2", 2, "target"),
    Case("a horizon below 0", f"{PLAN} --horizon -1", 2, "horizon"),
    Case("a picture of no format", f"{PLAN} --horizon 10 --picture a.bmp", 2, "bmp"),
    # deletions
    Case("an id that is not", "deactivate RUN --ids m000", 2, "m000"),
    Case("a person in other letters", "deactivate RUN --subjects MISSPELT", 2, "PERSON"),
    Case("a person that is not", "deactivate RUN --subjects nobody", 2, "nobody"),
    Case("a person misspelt", "deactivate RUN --subjects NEAR", 2, "PERSON"),
    Case("ids for persons", "deactivate RUN --subjects SAMPLE", 2, "--ids"),
    Case("a person for ids", "deactivate RUN --ids PERSON", 2, "--subjects"),
    Case("a public person", "deactivate RUN --subjects PUBLIC", 2, "public"),
    Case("nobody named", "deactivate RUN", 2, "--ids"),
    Case("a file of ids that is not", "deactivate RUN --ids-file gone.txt", 2, "gone.txt"),
    Case("a file of ids that is a picture", "deactivate RUN --ids-file a.png", 2, "a.png",
         text("a.png", b"\x89PNG\xff\xfe")),
    Case("an empty file of ids", "deactivate RUN --ids-file none.txt", 2, "none.txt",
         text("none.txt", "")),
    Case("a request id for other names", "deactivate RUN --ids SAMPLE --request-id first", 2,
         "first"),
    Case("a receipt that is not", "receipt RUN second", 2, "second"),
    # runs
    Case("a run that is not", "status runs/other", 2, "runs/other"),
    Case("a folder that is no run", "status runs", 2, "runs"),
    Case("a config for a run", "status customers.yaml", 2, "customers.yaml"),
    Case("a ledger that is none", "status RUN", 4, "ledger",
         text("runs/customers/ledger.db", "no database")),
    Case("a run without its config", "status RUN", 4, "config",
         lambda folder: (folder / "runs/customers/config.yaml").unlink()),
    Case("a forecast of no stream", "forecast RUN --trials 0", 2, "trials"),
    # answers
    Case("rows without the text", "predict RUN --input bad.csv", 2, "message",
         text("bad.csv", "body\nhello\n")),
    Case("broken JSON to predict", "predict RUN --input bad.jsonl", 2, "line 1",
         text("bad.jsonl", "{")),
    Case("a folder to predict", "predict RUN --input runs", 2, "runs"),
    Case("no row to predict", "predict RUN --input none.jsonl", 2, "none.jsonl",
         text("none.jsonl", "")),
    Case("a file to predict that is not", "predict RUN --input gone.csv", 2, "gone.csv"),
    Case("answers into a folder that is not", "predict RUN hello --output customers.csv/a.csv", 2,
         "customers.csv/a.csv"),
    Case("tokens of a classifier", "predict RUN hello --max-new-tokens 5", 2, "max-new-tokens"),
    # copies and clients
    Case("an export over other files", "export RUN runs", 2, "runs"),
    Case("an export that is cut, not merged", "export RUN out --rank 4", 2, "--merge"),
    Case("a role that is none", "token create RUN --role king", 2, "king"),
    Case("a token that is not", "token revoke RUN 12", 2, "12"),
    Case("a port that is none", "serve RUN --port 99999", 2, "port"),
    Case("a key that is none of a section", "serve RUN serve.prt=1", 2, "serve.port"),
    Case("an engine that is not there", "sync RUN http://127.0.0.1:9 --target vllm", 5,
         "127.0.0.1:9"),
    Case("a public key that is none", "audit RUN --public-key customers.csv", 2, "customers.csv"),
    Case("a command that is none", "forget RUN", 2, "forget"),
    Case("a command without its run", "deactivate", 2, "Missing argument"),
)  # fmt: skip


_ABOUT = f"""# Wrong inputs

What `s3t` says to {len(CASES)} wrong inputs, and its exit code. No file changed in any case.
Made by `python -m benchmarks.wrong_inputs --output docs/wrong-inputs.md`; a check of
`make test-heavy` holds messages, codes and files."""


def outcomes(folder: Path) -> Iterator[Outcome]:
    """Run all cases, one after the other.

    Args:
        folder: empty; each case gets a copy of what is made here once.
    """
    start = folder / "start"
    start.mkdir()
    names = _prepare(start)
    for number, case in enumerate(CASES):
        place = folder / f"case{number}"
        shutil.copytree(start, place)
        case.change(place)
        before = _state(place)
        code, said = _run([_filled(word, names) for word in shlex.split(case.words)], place)
        after = _state(place)
        changed = {name for name in before | after if before.get(name) != after.get(name)}
        shutil.rmtree(place)
        filled = replace(case, words=_filled(case.words, names), says=_filled(case.says, names))
        said = said.replace(str(place), ".").replace("python -m benchmarks.s3t", "s3t")
        yield Outcome(filled, code, said, tuple(sorted(changed)))


def table(found: Sequence[Outcome]) -> str:
    """The outcomes as a Markdown table."""
    lines = [_ABOUT, "", "| wrong | command | exit code | message |", "|---|---|---|---|"]
    for one in found:
        told = [line for line in one.message.splitlines() if one.code or one.case.says in line]
        message = re.sub(r"\s+", " ", " ".join(told)).strip().replace("|", "\\|")
        lines.append(f"| {one.case.what} | `s3t {one.case.words}` | {one.code} | {message} |")
    return "\n".join(lines)


def _prepare(folder: Path) -> dict[str, str]:
    """Make the example, and train it; returns what the words in capitals stand for."""
    code, said = _run(["init", "--example", "texts"], folder)
    assert code == 0, said
    (folder / "texts.yaml").rename(folder / "customers.yaml")
    code, said = _run(["train", "customers.yaml", *QUICK, "--quiet"], folder)
    assert code == 0, said
    with S3T.load(folder / RUN) as run:
        rows = list(run.samples())
        persons = sorted({str(row.subject) for row in rows})
        run.deactivate(subjects=persons[:1], request_id="first")
    private = {row.sample_id for row in rows}
    with (folder / "customers.csv").open(encoding="utf-8") as file:
        public = next(row["customer"] for row in DictReader(file) if row["id"] not in private)
    sample = next(row.sample_id for row in rows if row.subject == persons[1])
    return {
        "RUN": str(RUN),
        "PUBLIC": public,
        "PERSON": persons[1],
        "MISSPELT": persons[1].upper(),
        "NEAR": persons[1] + "x",
        "SAMPLE": sample,
    }


def _filled(words: str, names: Mapping[str, str]) -> str:
    return re.sub(r"[A-Z]{3,}", lambda found: names.get(found[0], found[0]), words)


def _run(words: Sequence[str], folder: Path) -> tuple[int, str]:
    """Run a command line in this process; returns its exit code and all that it said."""
    said = io.StringIO()
    before = sys.argv, dict(os.environ), logging.root.handlers[:]
    hub = constants.ENDPOINT, constants.HF_HUB_OFFLINE
    sys.argv, logging.root.handlers[:] = ["s3t", *words], []
    constants.ENDPOINT, constants.HF_HUB_OFFLINE = "http://127.0.0.1:9", False  # none is there
    try:
        with chdir(folder), redirect_stdout(said), redirect_stderr(said):
            code = cli.main()
    finally:
        sys.argv, environment, logging.root.handlers[:] = before
        constants.ENDPOINT, constants.HF_HUB_OFFLINE = hub
        os.environ.clear()
        os.environ.update(environment)
    return code, said.getvalue()


def _state(folder: Path) -> dict[str, str]:
    """The digest of each file, but for what SQLite keeps beside an open database, and locks."""
    return {
        str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(("-wal", "-shm", "-lock", ".lock"))
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The command line of this benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="write the table to this file")
    asked = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for one in outcomes(Path(folder)):
            found.append(one)
            state = "right" if one.right else "WRONG"
            print(f"{state} {one.code} {one.case.what}: {one.message.strip()} {[*one.changed]}")
    if asked.output is not None:
        asked.output.write_text(table(found) + "\n", encoding="utf-8")
    wrong = [one for one in found if not one.right]
    print(f"{len(found)} wrong inputs, {len(found) - len(wrong)} right")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
