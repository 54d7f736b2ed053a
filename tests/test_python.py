"""The library as a user has it: train, plan, audit and repair of data in memory; what it shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from s3t import S3T, load_config
from s3t.errors import ConfigError, InputError
from s3t.run import RunDir
from tests.support.small_runs import nodes, person_rows, small_configs

pytestmark = pytest.mark.slow


def sections(private: Any, public: Any, output: Path) -> dict[str, Any]:
    """The small run's config with rows in place of files."""
    tree = small_configs(output.parent)().model_dump(mode="json", exclude_unset=True)
    tree["data"] |= {"private": private, "public": {"adapt": public, "validation": public}}
    tree["data"]["public"]["test"] = public
    return {**tree, "output": str(output)}


@pytest.mark.heavy
def test_rows_in_memory_give_the_same_nodes_and_leave_no_copy(
    tmp_path: Path, small_run: RunDir
) -> None:
    rows, public = person_rows(), pd.DataFrame(person_rows(8))
    asked = sections(pd.DataFrame(rows), public, tmp_path / "memory")
    planned = S3T.plan(asked)
    assert not (tmp_path / "memory").exists(), "a plan writes nothing"
    report = S3T.train(asked, "stage.epochs=2", name="memory")
    assert (report.nodes, report.trained) == (planned["nodes"], planned["nodes"])
    run = RunDir(report.run)
    assert nodes(run.config()) == nodes(small_run.config()), "wherever the rows come from"
    assert run.config().data.private.format == "rows"
    secret = b"person 12 says 85"  # of a person whose rows are not public
    held = [path for path in run.root.rglob("*") if path.is_file() and path.suffix != ".db"]
    assert held and not any(secret in path.read_bytes() for path in held)
    with S3T.load(report.run) as model:
        (one,) = model.predict("person 3 says 24")
        frame = pd.DataFrame([{"text": "person 3 says 24", "age": 1}] * 2)
        assert model.predict(frame) == [one, one] == model.predict(frame.to_dict("records"))
        assert model.predict({"text": "person 3 says 24"}) == [one]
        with pytest.raises(InputError, match="row 0 has no 'text'"):
            model.predict(pd.DataFrame([{"body": "x"}]))
        receipt = model.deactivate(subjects=["p05"])
        assert "3 samples deleted" in repr(receipt) and "s050" not in repr(receipt)
        assert [entry.sample_id for entry in model.samples(deleted=True)] == [*receipt.deleted]
        assert len(list(model.samples("p06"))) == 3
        assert "45 of 48 samples left" in repr(model)
        html = model._repr_html_()
        assert html.count("×</td>") == 1 and "<script" not in html
        assert f"{model.forecast()}.".capitalize() in html and "at 90 %" in html
        model.purge()
    blind = S3T.audit(report.run, retrain=1)
    assert not blind.holds and "given as Python objects" in str(blind)
    left = [row for row in rows if row["who"] != "p05"]
    judged = S3T.audit(report.run, retrain=1, data=left)
    assert [one for one in judged.claims if one.status not in ("holds", "not tried")] == []
    with pytest.raises(InputError, match=r"S3T\.repair\(run, data=rows\)"):
        S3T.repair(report.run)
    assert S3T.repair(report.run, data=left)["trained"] > 0
    more = [*left, {**left[0], "id": "new", "who": "p99"}]
    assert S3T.add(report.run, data=more)["added"] == 1
    with S3T.load(report.run) as model:
        assert [one.sample_id for one in model.samples("p99")] == ["new"]
        assert model.add(data=more)["added"] == 0


def test_a_config_comes_as_a_file_a_mapping_or_keywords(tmp_path: Path) -> None:
    config = small_configs(tmp_path)()
    tree = config.model_dump(mode="json", exclude_unset=True)
    assert load_config(tree, "stage.epochs=7").stage.epochs == 7
    assert S3T.plan(config) == S3T.plan(tree) == S3T.plan(**tree)
    with pytest.raises(InputError, match="a checked Config takes no overrides"):
        S3T.plan(config, "stage.epochs=7")
    with pytest.raises(InputError, match="stage: a config file takes overrides"):
        S3T.plan(tmp_path / "c.yaml", stage={"epochs": 7})
    with pytest.raises(ConfigError, match="the config"):
        S3T.train(task="causal-lm")


def test_one_text_is_one_prompt(language_run: RunDir) -> None:
    with S3T.load(language_run.root) as model:
        (one,) = model.generate("person 3", max_new_tokens=2)
        assert model.generate(["person 3"], max_new_tokens=2) == [one]
        assert model.generate(pd.DataFrame({"text": ["person 3"]}), max_new_tokens=2) == [one]
