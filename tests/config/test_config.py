"""The config: read once, every problem in one error, and written out so that it reads the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from s3t.config import Config, anchored, dump_config, load_config
from s3t.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "configs/digits.yaml"

SOURCE = {"format": "csv", "files": "rows.csv"}
SMALL: dict[str, Any] = {
    "task": "text-classification",
    "data": {"private": SOURCE, "public": {"validation": SOURCE, "test": SOURCE}},
    "model": {"base": "make:bert"},
}


def written(folder: Path, tree: Any) -> Path:
    path = folder / "some.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def problems(path: Path, *overrides: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    assert str(path) in str(caught.value)
    assert all(problem in str(caught.value) for problem in caught.value.problems)
    return caught.value.problems


# ── together ─────────────────────────────────────────────────────────────────────────────────


def test_every_problem_is_in_one_error() -> None:
    wrong = {
        "no equals sign": "override 'no equals sign' is not of the form key=value",
        "=1": "override '=1' is not of the form key=value",
        "a..b=1": "override 'a..b=1' is not of the form key=value",
        "seed=[1": "override 'seed=[1': the value is not YAML: while parsing a flow sequence",
        "task.name=1": "override 'task.name=1': 'task' is not a section",
        "lora.rnak=4": "unknown key 'lora.rnak': did you mean 'lora.rank'?",
        "zebra=1": "unknown key 'zebra': remove it",
        "lora.rank=0": "lora.rank: Input should be greater than or equal to 1 (got 0)",
        "lora.dropout=1.5": "lora.dropout: Input should be less than 1 (got 1.5)",
        "lora.alpha=.nan": "lora.alpha: Input should be a finite number (got nan)",
        "stage.epochs=ten": "stage.epochs: Input should be a valid integer, or expected a list "
        "(got 'ten')",
        "sequences.budget=99": "sequences.budget 99 is over the 24 permutations of 4 slices: "
        "lower it or add slices",
    }
    found = problems(DIGITS, *wrong)
    assert sorted(found) == sorted(wrong.values())


def test_more_epochs_than_stages_are_refused() -> None:
    (problem,) = problems(DIGITS, "stage.epochs=[3,2,2,1,1]")
    assert problem.startswith("stage.epochs has 5 numbers, and 4 slices give as many stages")


def test_problems_across_sections_come_with_those_of_single_keys() -> None:
    task = ("task=causal-lm", "aggregation.method=vote", "model.adapt=null", "stage.head=fresh")
    across = problems(DIGITS, "sequences.budget=25", *task)
    assert [problem.split(":")[0].split(" is over")[0] for problem in across] == [
        "sequences.budget 25",
        "model.base 'make",
        "aggregation.method 'vote' does not fit task causal-lm",
    ]
    more = problems(DIGITS, "sequences.budget=25", *task, "lora.rnak=1", "lora.rank=0")
    assert set(across) < set(more) and len(more) == 5


@pytest.mark.parametrize("task", ["text-classification", "causal-lm"])
def test_adapters_are_averaged_for_every_task(task: str, tmp_path: Path) -> None:
    model = {"base": "make:bert" if task == "text-classification" else "make:gpt2"}
    tree = {**SMALL, "task": task, "model": model, "aggregation": {"method": "mean-adapters"}}
    assert load_config(written(tmp_path, tree)).aggregation.method == "mean-adapters"
    tree["aggregation"]["method"] = "mean-adapter"
    (problem,) = problems(written(tmp_path, tree))
    assert problem.startswith("aggregation.method: Input should be 'mean-probabilities', ")
    assert "'mean-adapters'" in problem


def test_what_a_wrong_value_leaves_open_is_not_judged() -> None:
    # with slices unreadable nobody knows whether the budget fits
    assert problems(DIGITS, "sequences.budget=25", "partition.slices=four") == (
        "partition.slices: Input should be a valid integer (got 'four')",
    )


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("sequences.budget=25", "sequences.budget 25 is over the 24 permutations of 4 slices"),
        ("partition.slices=1 sequences.budget=2", "over the 1 permutations of 1 slices"),
        ("sequences.explicit=[[0]]", "sequences.explicit needs sequences.strategy=explicit"),
        ("sequences.strategy=explicit", "sequences.explicit is empty: list at least one"),
        (
            "sequences.strategy=explicit sequences.explicit=[[0],[1]]",
            "sequences.budget 4 is not the number of explicit sequences (2): leave it out",
        ),
        (
            "sequences.strategy=explicit sequences.budget=null sequences.explicit=[[0,4]]",
            "sequences.explicit[0] [0, 4] names slice 4: there are 4, numbered from 0",
        ),
        ("model.base=make:bert", "model.base 'make:bert' does not fit task 'image-classification'"),
        (
            "task=text-classification model.adapt=null",
            "model.base 'make:vit' does not fit task 'text-class",
        ),
        (
            "training.gradient_checkpointing=true lora.dropout=0.1",
            "training.gradient_checkpointing does not fit lora.dropout 0.1",
        ),
        ("data.public.adapt=null stage.head=fresh", "model.adapt needs data.public.adapt"),
        ("model.base=make:t5", "base 'make:t5' cannot be made: use one of ['make:vit', "),
        ("data.max_length=40", "max_length 40 is not a multiple of 16"),
        ("model.make.heads=7", "hidden 64 is not a multiple of heads 7"),
        ("data.labels=[a,a]", "labels holds a name twice"),
        ("data.private.split=dev", "split 'dev' of digits does not exist: use public, private or"),
        ("data.private.format=csv", "format 'csv' needs files"),
        ("data.private.format=hub", "format 'hub' needs name"),
        ("data.image_std=[0]", "data.image_std.0: Input should be greater than 0 (got 0)"),
        ("partition.shards=true", "partition.shards: Input should be a valid integer (got True)"),
        ("partition=3", "partition: expected keys and values (got 3)"),
        ("training.trackers=wandb", "training.trackers: expected a list (got 'wandb')"),
        ("training.workers=0", "training.workers: Input should be 'auto', or Input should be gr"),
        ("lora.targets=3", "lora.targets: Input should be 'auto', or expected a list (got 3)"),
        (
            "stage.isolation=none",
            "stage.isolation: Input should be 'nested', 'residual', ",
        ),
        ("stage.span=up", "span up is given, and isolation 'nested' has no use for it"),
        ("stage.orthogonality=0.5", "orthogonality 0.5 is given, and isolation 'nested' has no"),
        (
            "stage.isolation=snapshot stage.first_block=2",
            "first_block 2 is given, and isolation 'snapshot' has no blocks here",
        ),
        (
            "stage.adapter=prompt stage.isolation=snapshot",
            "adapter 'prompt' does not fit isolation=snapshot",
        ),
        (
            "partition.salt=",
            "partition.salt: expected text, in quotes where YAML reads it as true or false, null "
            "or a date (got None)",
        ),
        (
            "data.labels=[no,b]",
            "data.labels.0: expected text, in quotes where YAML reads it as true or false, null "
            "or a date (got False)",
        ),
        (
            'stage={"epochs":1,"epochs":5}',
            """override 'stage={"epochs":1,"epochs":5}': the value is not YAML: keys occur twice""",
        ),
        (
            "partition.risk.column=age",
            "partition.risk: give thresholds or quantiles, one of the two and not empty",
        ),
        (
            "partition.risk.column=age partition.risk.thresholds=[1] partition.risk.quantiles=[.5]",
            "partition.risk: give thresholds or quantiles, one of the two and not empty",
        ),
        (
            "partition.risk.column=age partition.risk.thresholds=[3,3] partition.risk.rates=[1,2]",
            "partition.risk: thresholds [3.0, 3.0] are not in ascending order; rates [1.0, 2.0] "
            "are not one for each of 3 tiers",
        ),
        (
            "partition.risk.column=age partition.risk.thresholds=[3] partition.risk.rates=[0,0]",
            "partition.risk: rates [0.0, 0.0] are all 0: leave them out",
        ),
        (
            "partition.risk.column=age partition.risk.thresholds=[3] partition.risk.slices=[1,2]",
            "partition: risk.slices [1, 2] add up to 3, but slices is 4",
        ),
        (
            "partition.risk.column=age partition.risk.thresholds=[3] partition.slices=1 "
            "sequences.budget=1",
            "partition: risk has 2 tiers for 1 slices: each tier needs a slice of its own",
        ),
        ("partition.risk.thresholds=[3]", "partition.risk.column is missing: add it"),
        (
            "partition.risk.column=age partition.risk.thresholds=[.inf]",
            "partition.risk.thresholds.0: Input should be a finite number (got inf)",
        ),
        (
            "partition.risk.column=age partition.risk.quantiles=[1]",
            "partition.risk.quantiles.0: Input should be less than 1 (got 1)",
        ),
        (
            "partition.risk.column=age partition.risk.quantiles=[.5] data.public.adapt=null "
            "model.adapt=null stage.head=fresh",
            "partition.risk.quantiles needs data.public.adapt",
        ),
        (
            "partition.risk.colum=age partition.risk.column=age partition.risk.thresholds=[3]",
            "unknown key 'partition.risk.colum': did you mean 'partition.risk.column'?",
        ),
        ("sequences.unit=nodes sequences.budget=null", "sequences: unit 'nodes' needs budget"),
        (
            "sequences.unit=sample-passes sequences.budget=9",
            "sequences: unit 'sample-passes' needs samples, the number to calculate with",
        ),
        ("sequences.unit=hours", "sequences.unit: "),
        ("sequences.horizon=0", "sequences.horizon: Input should be greater than 0 (got 0)"),
        ("sequences.utility=[0,1]", "sequences.utility has 2 values: give 5, for prefixes of 0"),
        ("sequences.utility=[0,1,2,1,3]", "sequences: utility [0.0, 1.0, 2.0, 1.0, 3.0] falls"),
        ("data.pubic=1", "unknown key 'data.pubic': did you mean 'data.public'?"),
        ("model.adapt.step=1", "unknown key 'model.adapt.step': did you mean 'model.adapt.steps'?"),
    ],
)
def test_each_problem_names_the_value_and_what_to_do(overrides: str, expected: str) -> None:
    (problem,) = problems(DIGITS, *overrides.split())
    assert expected in problem


def test_missing_sections_are_named(tmp_path: Path) -> None:
    path = written(tmp_path, {"task": "causal-lm"})
    assert problems(path) == ("data is missing: add it", "model is missing: add it")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", "is empty, expected keys and values"),
        (b"- 1\n- 2\n", "holds a list, expected keys and values"),
        (b"task: [", "is not YAML: while parsing a flow"),
        (b"task: a\ntask: b\n", "is not YAML: keys occur twice: 'task'"),
        (b"lora: {rank: 1, rank: 2}", "is not YAML: keys occur twice: 'rank'"),
        (
            b"seed: !!python/object/apply:os.getcwd []",
            "is not YAML: could not determine a construct",
        ),
        (b"\xff\xfe\x00", "cannot read it"),
        (b"1: 2\n", "1: Keys should be strings (got 1)"),
    ],
)
def test_files_that_are_no_config(tmp_path: Path, text: bytes, expected: str) -> None:
    path = tmp_path / "some.yaml"
    path.write_bytes(text)
    assert expected in problems(path)[-1]


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing.yaml"):
        (problem,) = problems(path)
        assert "cannot read it" in problem and "give the path of a YAML file" in problem


# ── overrides ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("text", ["007", "0x10", "1_0", "1:30", "1.10", "1e3", "2.50e+3", "0b1"])
def test_a_number_where_text_is_asked_for_is_what_is_written(tmp_path: Path, text: str) -> None:
    path = tmp_path / "some.yaml"
    path.write_text(DIGITS.read_text("utf-8") + f"name: {text}\n", "utf-8")
    more = [f"partition.salt={text}", f"data.labels=[{text}, b]", "stage.epochs=0x10"]
    config = load_config(path, more)
    assert (config.name, config.partition.salt, config.data.labels) == (text, text, (text, "b"))
    assert config.stage.epochs == 16
    path.write_text(dump_config(config), "utf-8")
    assert load_config(path) == config


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("seed=010", "seed: YAML reads 010 as 8"),
        ("partition.shards=02", "YAML reads 02 as 2"),
        ("store.lease=1:30", "YAML reads 1:30 as 90"),
        ("store.lease=1:30.5", "YAML reads 1:30.5 as 90.5"),
        ("store.lease=true", "store.lease: true is no number"),
        ("sequences.explicit=[[0, 1], [010, 2]]", "YAML reads 010 as 8"),
        ("partition.risk={column: a, thresholds: [false]}", "false is no number"),
        ("partition.risk={column: a, as_of: 0, thresholds: [3]}", "0 is no date"),
    ],
)
def test_no_value_becomes_another_in_silence(override: str, told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        load_config(DIGITS, [override])


def test_overrides_are_read_as_yaml() -> None:
    config = load_config(
        DIGITS,
        [
            "lora.rank=3",
            "stage.learning_rate=1e-4",
            "partition.salt=7",
            "lora.targets=[q_proj, v_proj]",
            "model.adapt=null",
            "data.private.split=private[:10%]",
            "training.workers=auto",
            "stage.epochs=1",
            "stage.epochs=2",
            "output=a=b",
        ],
    )
    assert (config.lora.rank, config.stage.learning_rate) == (3, 1e-4)
    assert config.partition.salt == "7"
    assert config.lora.targets == ("q_proj", "v_proj")
    assert config.model.adapt is None
    assert config.data.private.split == "private[:10%]"
    assert config.stage.epochs == 2  # the last one counts
    assert config.run_dir == Path("a=b")
    assert config.model.make.init_scale == 5  # what is not named stays


def test_an_override_can_open_a_section(tmp_path: Path) -> None:
    path = written(tmp_path, {**SMALL, "lora": None})
    config = load_config(path, ["lora.rank=2", "model.make.hidden=32"])
    assert (config.lora.rank, config.model.make.hidden) == (2, 32)


def test_name_and_run_directory(tmp_path: Path) -> None:
    path = written(tmp_path, SMALL)
    assert load_config(path).run_dir == Path("runs/some")
    assert load_config(path, ["name=other"]).run_dir == Path("runs/other")
    assert load_config(path, [f"output={tmp_path}/x"]).run_dir == tmp_path / "x"


def test_budget_defaults_to_the_slices_and_follows_explicit(tmp_path: Path) -> None:
    path = written(tmp_path, SMALL)
    assert load_config(path, ["partition.slices=3"]).budget == 3
    explicit = ["sequences.strategy=explicit", "sequences.explicit=[[0,1],[3]]"]
    assert load_config(path, explicit).budget == 2
    paid = ["sequences.unit=slice-passes", "sequences.budget=90"]
    assert load_config(path, paid).budget == 90, "over 4! but no number of sequences"
    assert load_config(path, [*explicit, *paid]).budget == 90


def test_a_config_cannot_be_changed() -> None:
    config = load_config(DIGITS)
    with pytest.raises(ValueError, match="frozen"):
        config.lora.rank = 4


# ── written out ──────────────────────────────────────────────────────────────────────────────


@settings(max_examples=60)
@given(
    shards=st.integers(1, 9),
    slices=st.integers(2, 4),
    rate=st.floats(1e-6, 10, allow_nan=False),
    salt=st.text(st.characters(codec="utf-8"), max_size=8),
    explicit=st.booleans(),
    risk=st.none() | st.tuples(st.floats(0, 9), st.none() | st.dates()),
    targets=st.sampled_from(["auto", ("query",), ("q_proj", "v_proj")]),
    labels=st.none() | st.lists(st.text("abc01~", min_size=1), unique=True, min_size=1),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    shards: int,
    slices: int,
    rate: float,
    salt: str,
    explicit: bool,
    risk: Any,
    targets: Any,
    labels: list[str] | None,
) -> None:
    sequences = {"strategy": "explicit", "explicit": [[1, 0], [0]]} if explicit else {"budget": 2}
    tiers = risk and {"column": "seen", "thresholds": [risk[0]], "as_of": risk[1], "rates": [0, 1]}
    config = Config.model_validate(
        {
            **SMALL,
            "data": {**SMALL["data"], "labels": labels},
            "partition": {"shards": shards, "slices": slices, "salt": salt, "risk": tiers},
            "sequences": sequences,
            "stage": {"learning_rate": rate},
            "lora": {"targets": targets},
        }
    )
    path = tmp_path_factory.getbasetemp() / "round.yaml"
    path.write_bytes(dump_config(config).encode())
    assert load_config(path) == config


def test_everything_is_written_out() -> None:
    text = dump_config(load_config(DIGITS))
    tree = yaml.safe_load(text)
    assert tree["stage"]["optimizer"] == "adamw" and tree["aggregation"]["on_exhausted"] == "raise"
    assert set(tree) == set(Config.model_fields)


def test_the_config_of_a_run_reads_again(digits_run: Path) -> None:
    path = digits_run / "config.yaml"
    config = load_config(path)
    assert config.name == "digits"
    assert dump_config(config) == path.read_text(encoding="utf-8")


def test_off_is_off_though_yaml_reads_it_as_false(tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text((ROOT / "configs" / "digits.yaml").read_text(encoding="utf-8"))
    assert load_config(path, ["training.trunk_cache=off"]).training.trunk_cache == "off"


# ── plain text, YAML that people write, paths ────────────────────────────────────────────────


def test_an_override_that_yaml_refuses_is_the_text_that_it_is(tmp_path: Path) -> None:
    path = written(tmp_path, SMALL)
    for text in ("*.csv", "@rows.csv", "%rows.csv", "a: b: c"):
        assert load_config(path, [f"data.private.files={text}"]).data.private.files == text
    (problem,) = problems(path, "data.private.files=[*.csv]")
    assert "is not YAML" in problem and "put quotes around text in it that begins with *" in problem


def test_an_override_changes_no_other_place_of_an_alias(tmp_path: Path) -> None:
    path = written(tmp_path, SMALL)
    assert "*id001" in path.read_text()
    data = load_config(path, ["data.private.files=b.csv"]).data
    assert (data.private.files, data.public.test.files) == ("b.csv", "rows.csv")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("task: a\ndata:\n\tprivate: 1\n", "(line 3, column 1): YAML is indented with blanks, not"),
        ("task: a\nname: *.csv\n", "(line 2, column 8): put quotes around text that begins with *"),
        ("task: a\nname: 'x\n", "(line 3, column 1)"),
    ],
)
def test_yaml_errors_name_file_and_line(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "some.yaml"
    path.write_text(text)
    (problem,) = problems(path)
    assert expected in problem and "<unicode string>" not in problem


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"public": None}, "data: public is missing: name its sources, or cut public rows from"),
        ({"public": {"validation": SOURCE}}, "data.public: test is missing: add a source, or"),
        ({"validation": "10%"}, "data: validation: data.public names a source for each part"),
        (
            {"public": {**SOURCE, "test": SOURCE}},
            "data.public: names one source (files, format) and",
        ),
        ({"public": SOURCE}, "data: validation and test are missing: give a part to cut"),
        ({"public": SOURCE, "validation": "10%"}, "data: test is missing: give a part to cut"),
        ({"public": SOURCE, "validation": 0.1, "test": 0.1, "adapt": 0.1}, "data: adapt is what"),
        ({"public": SOURCE, "validation": "60%", "test": "40%"}, "and leave none"),
        ({"cut_from": "private"}, "data: cut_from: private has no data.public"),
        ({"cut_from": "private", "public": None}, "data: validation and test are missing"),
        ({"test": "ten"}, "data.test: expected a part of the rows, such as 10% or 0.1"),
        ({"test": 10}, "data.test: Input should be less than 1"),
    ],
)
def test_parts_and_sources_fit_each_other(tmp_path: Path, data: Any, expected: str) -> None:
    tree = {**SMALL, "data": {**SMALL["data"], **data}}
    assert any(expected in problem for problem in problems(written(tmp_path, tree)))


def test_what_is_learnt_is_no_person(tmp_path: Path) -> None:
    path = written(tmp_path, SMALL)
    (problem,) = problems(path, "partition.subject=said", "data.columns.text=said")
    assert problem.startswith("partition.subject 'said' is data.columns.text, what is learnt: name")
    faces = ["partition.subject=who", "data.columns.label=who"]
    assert load_config(path, faces).partition.subject == "who", "as the class of a face is"


def test_parts_read_the_same_when_written_out(tmp_path: Path) -> None:
    for data in (
        {"public": SOURCE, "validation": "10%", "test": "12.5%"},
        {"public": None, "cut_from": "private", "validation": 0.1, "test": "12.5%", "adapt": "1%"},
    ):
        config = load_config(written(tmp_path, {**SMALL, "data": {**SMALL["data"], **data}}))
        assert (config.data.validation, config.data.test) == (0.1, 0.125) and config.data.adapts
        path = tmp_path / "again.yaml"
        path.write_text(dump_config(config))
        assert load_config(path).data == config.data


def test_relative_paths_are_beside_the_config_or_in_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "project").mkdir()
    path = written(tmp_path / "project", SMALL)
    monkeypatch.chdir(tmp_path)
    given_ = "rows.csv"
    assert load_config(path).data.private.files == given_, "which is nowhere"
    (tmp_path / "project/rows.csv").write_text("text,label\n")
    beside = str(tmp_path / "project/rows.csv")
    found = load_config(path, ["data.chat_template="])
    assert found.data.private.files == found.data.public.test.files == beside
    assert load_config(Path("project/some.yaml")).data.private.files == "project/rows.csv"
    assert load_config(path, ["data.private.files=*.csv"]).data.private.files == str(
        tmp_path / "project/*.csv"
    )
    (tmp_path / "rows.csv").write_text("text,label\n")
    found_problems = problems(path)
    assert len(found_problems) == 3
    assert f"is one file beside the config ({beside}) and another in the curr" in found_problems[0]
    assert (
        load_config(
            path,
            [
                f"data={{private: {{files: {beside}}}, public: {{files: {beside}}},"
                " validation: 10%, test: 10%}"
            ],
        ).data.private.files
        == beside
    )
    (tmp_path / "project/rows.csv").unlink()
    assert load_config(path).data.private.files == given_
    assert anchored(load_config(path)).data.private.files == str(tmp_path / "rows.csv")


def test_home_and_variables_are_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WHERE", str(tmp_path / "data"))
    monkeypatch.delenv("NOWHERE", raising=False)
    path = written(tmp_path, SMALL)
    found = load_config(path, ["data.private.files=[~/a.csv, '${WHERE}/b.csv']", "output=~/run"])
    assert found.data.private.files == (f"{tmp_path}/a.csv", f"{tmp_path}/data/b.csv")
    assert found.run_dir == tmp_path / "run"
    (problem,) = problems(path, "data.private.files=$NOWHERE/a.csv")
    assert problem == "data.private.files '$NOWHERE/a.csv': the variable $NOWHERE is not set"


def test_weights_that_a_config_does_not_name_stay_a_default(tmp_path: Path) -> None:
    path = written(tmp_path, SMALL)
    found = load_config(path, ["data.private.files=~/a.csv", "store.url=~/nodes"])
    assert not found.aggregation.model_fields_set and found.store.model_fields_set == {"url"}
