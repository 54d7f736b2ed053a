"""``budget``, and ``plan`` along a horizon."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml

from tests.conftest import Run
from tests.support.tables import good, refused, table, tree

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "configs/digits.yaml"


# ── planning ─────────────────────────────────────────────────────────────────────────────────

ASKED = ("budget", "--samples", "800", "--layers", "4", "--deletions", "20")


def test_budget(s3t: Run, here: Path) -> None:
    before = tree(here)
    said = s3t(*ASKED)
    assert (said.code, said.err) == (0, "")
    told = json.loads(s3t(*ASKED, "--json").out)
    lines = said.out.splitlines()
    assert lines[0].startswith("800 samples, 4 layers, 20 deletions, nested: ")
    assert f"{told['candidates']:,} plans in {len(told['cells'])} cells" in lines[0]
    assert lines[1].startswith("curve power:1,1,0.3 (assumed; ")
    rows = [line.split() for line in lines[3:] if line[:6].strip().isdigit()]
    assert 1 < len(rows) <= 15
    assert [float(row[5].replace(",", "")) for row in rows] == sorted(
        float(row[5].replace(",", "")) for row in rows
    )
    (chosen,) = (row for row in rows if row[-1] == "◄")
    one = told["recommended"]
    assert chosen[:5] == [
        *map(str, (one["shards"], one["slices"], one["kind"], one["leaves"], one["nodes"]))
    ]
    assert told["reason"] in " ".join(lines)
    config = "\n".join(line[2:] for line in lines[lines.index("in a config:") + 1 :])
    assert f"{config}\n" == told["config"]
    assert tree(here) == before


def test_budget_with_all_options(s3t: Run, here: Path) -> None:
    (here / "curve.csv").write_text("samples,utility\n0,0.1\n50,0.7\n800,0.9\n")
    options = ["--curve", "curve.csv", "--max-passes", "5000", "--max-bytes", "50000"]
    options += ["--risk", "0.05", "--epochs", "2", "--min-slice", "20", "--stage-overhead", "3"]
    options += ["--bytes-per-layer", "700", "--picture", "deep/front.svg"]
    said = s3t(*ASKED, *options)
    assert (said.code, said.err) == (0, "")
    assert "curve measured, 3 points from curve.csv\n" in said.out
    assert (here / "deep/front.svg").read_bytes().startswith(b"<?xml")
    told = json.loads(s3t(*ASKED, *options, "--json").out)
    one = told["recommended"]
    assert one["passes"] <= 5000 and one["bytes"] <= 50_000 and one["exhausted"] <= 0.05
    assert told["question"]["least"] == 20 and told["question"]["overhead"] == 3
    assert s3t(*ASKED, "--picture", "front.png").code == 0
    assert (here / "front.png").read_bytes().startswith(b"\x89PNG")


def test_what_the_budget_recommends_can_be_planned(s3t: Run, here: Path) -> None:
    asked = ["--samples", "24", "--layers", "3", "--deletions", "1", "--curve", "linear"]
    asked += ["--isolation", "snapshot"]
    told = json.loads(s3t("budget", *asked, "--json").out)
    one = told["recommended"]
    assert (one["kind"], one["shards"], one["slices"], one["stages"]) == ("tree", 1, 3, "snapshot")
    config = table() | yaml.safe_load(told["config"])
    config["model"]["make"]["layers"] = 3
    (here / "good.yaml").write_text(yaml.safe_dump(config))
    plan = json.loads(s3t("plan", "good.yaml", "--horizon", 1, "--json").out)
    assert (plan["shards"], plan["slices"], plan["nodes"]) == (1, 3, one["nodes"])
    moments = plan["horizon"]["moments"]
    served = [moment["data_served"] for moment in moments]
    assert sum(served) / 2 == pytest.approx(one["utility"])  # linear: worth is the share served
    assert served[-1] == pytest.approx(one["utility_at_end"])
    assert moments[-1]["exhausted"] == one["exhausted"] == 0


def test_the_cheapest_plan_for_a_target_can_be_planned(s3t: Run, here: Path) -> None:
    asked = ["budget", "--samples", "24", "--layers", "3", "--deletions", "1", "--target", "0.9"]
    asked += ["--target-after", "0.6"]
    before = tree(here)
    said, told = s3t(*asked), json.loads(s3t(*asked, "--json").out)
    assert (said.code, said.err) == (0, "") and tree(here) == before
    one, lines = told["recommended"], said.out.splitlines()
    assert told["reached"] and lines[3].startswith(one["stages"]) and lines[3].endswith("  ◄")
    assert " ".join(told["reason"].split()) in " ".join(lines)
    assert told["offers"][0] == {k: v for k, v in one.items() if k != "sequences"}
    config = table() | yaml.safe_load(told["config"])
    config["model"]["make"]["layers"] = 3
    (here / "good.yaml").write_text(yaml.safe_dump(config))
    plan = json.loads(s3t("plan", "good.yaml", "--json").out)
    assert (plan["shards"], plan["slices"]) == (one["shards"], one["slices"])
    assert (plan["nodes"], plan["sequences"][0]) == (one["nodes"], one["sequences"])
    (only,) = json.loads(s3t(*asked, "--isolation", "layers", "--json").out)["offers"]
    assert only["stages"] == "layers" and only["cost"] >= one["cost"]


@pytest.mark.parametrize(
    ("words", "time"),
    [
        ([], [0.5, 1]),
        (["stage.isolation=layers"], [0.5, 1]),
        (["stage.isolation=snapshot"], [1, 1]),
        (["stage.isolation=residual", "stage.span=up"], [0.5, 1.1]),
        (["stage.isolation=residual", "stage.slices=current"], [1, 1.1]),
    ],
    ids=str,
)
def test_what_a_plan_costs(words: list[str], time: list[float], s3t: Run, here: Path) -> None:
    (here / "good.yaml").write_text(yaml.safe_dump(table()))
    plan = json.loads(s3t("plan", "good.yaml", *words, "--json").out)
    cost = 0.0
    for sizes, sequences in zip(plan["slice_sizes"], plan["sequences"], strict=True):
        for node in {tuple(one[:k]) for one in sequences for k in range(1, len(one) + 1)}:
            trained = node[-1:] if "stage.slices=current" in words else node
            cost += time[len(node) - 1] * sum(sizes[part] for part in trained)
    assert plan["cost"] == pytest.approx(cost / sum(map(sum, plan["slice_sizes"])))
    assert f"training cost: {plan['cost']:.2f} × one LoRA" in s3t("plan", "good.yaml", *words).out


BUDGETS: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "several problems": (
        ["--samples", "0", "--deletions", "-1", "--risk", "2", "--max-passes", "-1"],
        ["budget: 4 problems", "samples 0", "deletions -1", "risk 2", "max-passes -1"],
    ),
    "too few samples": (["--samples", "5"], ["samples 5 do not fill one slice of 8"]),
    "no layers": (["--layers", "0"], ["layers 0: at least 1"]),
    "no number": (["--samples", "many"], ["Invalid value for '--samples'"]),
    "too little training": (["--max-passes", "10"], ["no plan fits: the cheapest takes 667"]),
    "storage of unknown bytes": (["--max-bytes", "10"], ["max-bytes needs bytes-per-layer"]),
    "no such curve": (["--curve", "steep"], ["--curve steep is neither linear nor power:"]),
    "curve is a folder": (["--curve", "folder"], ["--curve folder is neither"]),
    "curve is binary": (["--curve", "binary.bin"], ["--curve binary.bin is neither"]),
    "curve of other columns": (["--curve", "private.csv"], ["curve private.csv holds ['key', "]),
    "curve that is no JSON": (["--curve", "not_json.jsonl"], ["curve not_json.jsonl is not JSON"]),
    "curve without numbers": (["--curve", "power:1"], ["expected power:TOP,GAP,EXPONENT"]),
    "targets that are no fractions": (
        ["--target", "1.2", "--target-after", "-1"],
        ["budget: 2 problems", "target 1.2: give a fraction", "target-after -1: give"],
    ),
    "a later target alone": (["--target-after", "0.9"], ["--target-after needs --target"]),
    "a picture of a target": (["--target", "0.9", "--picture", "a.png"], ["leave it or --target"]),
    "a target beyond the limits": (["--target", "0.9", "--max-passes", "9"], ["no plan fits"]),
    "no such isolation": (["--isolation", "head"], ["Invalid value for '--isolation'"]),
    "picture of another kind": (["--picture", "a.gif"], ["'gif'", "png, svg, pdf"]),
    "picture without a kind": (["--picture", "front"], ["a picture as ''"]),
    "picture where none can be": (["--picture", "private.csv/a.png"], ["--picture private.csv/a"]),
}


@pytest.mark.parametrize("case", BUDGETS)
def test_bad_budget(case: str, s3t: Run, here: Path) -> None:
    more, parts = BUDGETS[case]
    before = tree(here)
    refused(s3t(*ASKED, *more, "--json"), *parts)
    assert tree(here) == before


def test_a_picture_without_matplotlib(
    s3t: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    before = tree(here)
    refused(
        s3t(*ASKED, "--picture", "a.png"), "a picture needs matplotlib: pip install 's3t[plot]'"
    )
    assert tree(here) == before


def test_a_budget_that_nothing_lasts_says_so(s3t: Run) -> None:
    said = s3t("budget", "--samples", "300", "--layers", "4", "--deletions", "200")
    assert said.code == 0 and "No plan lasts: " in said.out


def test_a_budget_needs_no_torch(run_python: Callable[[str], str]) -> None:
    code = f"""
import sys
from s3t import cli
sys.argv = ["s3t", *{ASKED}, "--json"]
assert cli.main() == 0
print(sorted({{"torch", "transformers", "matplotlib"}} & set(sys.modules)))
"""
    assert run_python(code).splitlines()[-1] == "[]"


def test_plan_along_a_horizon(s3t: Run) -> None:
    plain = json.loads(s3t("plan", DIGITS, "--json").out)
    told = json.loads(s3t("plan", DIGITS, "--horizon", "20", "--json").out)
    along = told.pop("horizon")
    assert told == plain, "nothing else changes"
    assert (along["requests"], along["trials"]) == (20, None)
    assert [moment["requests"] for moment in along["moments"]] == [0, 3, 6, 9, 11, 14, 17, 20]
    assert along["sample_passes"] == along["cyclic_sample_passes"] == 80_000
    for moment in along["moments"]:
        assert {**moment["cyclic"]} == {k: v for k, v in moment.items() if k != "cyclic"}
    last = along["moments"][-1]
    assert last["exhausted"] == pytest.approx(3.868e-4, rel=1e-3)
    assert (
        last["slices_served"]
        == pytest.approx(4 * last["data_served"])
        == pytest.approx(1.018, 1e-3)
    )


def svg_text(path: Path) -> str:
    """What a picture says: matplotlib keeps each text as a comment beside its glyphs."""
    return " ".join(re.findall(r"<!-- (.*?) -->", path.read_text()))


def test_plan_along_a_horizon_for_people(s3t: Run, here: Path) -> None:
    tree_of_less = ["sequences={strategy: tree, unit: slice-passes, budget: 24}"]
    asked = ("--horizon", "2", "--picture", "along.svg")
    lines = s3t("plan", DIGITS, *tree_of_less, *asked).out.splitlines()
    assert "cyclic plan" in svg_text(here / "along.svg")
    assert "--horizon as well" in s3t("plan", DIGITS, "--picture", "along.svg").err
    at = lines.index("deletions  slices   data  exhausted │ slices   data  exhausted")
    rows = [line.replace("│", " ").split() for line in lines[at + 1 : at + 4]]
    assert [row[0] for row in rows] == ["0", "1", "2"]
    assert rows[0][1:] == ["4.00", "100.0%", "0"] * 2
    assert lines[at + 4].endswith("; exact")
    assert lines[at + 5].endswith("60% of the 80,000 of cyclic")


def test_a_horizon_follows_the_rates_of_tiers(s3t: Run, here: Path) -> None:
    rows = ["key,text,label,age", *(f"{line},{n % 4}" for n, line in enumerate(good()))]
    (here / "aged.csv").write_text("\n".join(rows) + "\n")
    config = table("aged.csv")
    risk = {"column": "age", "thresholds": [2], "rates": [0, 3]}
    config["partition"]["risk"] = risk
    (here / "good.yaml").write_text(yaml.safe_dump(config))
    told = json.loads(s3t("plan", "good.yaml", "--horizon", "50", "--json").out)
    last = told["horizon"]["moments"][-1]
    assert (last["slices_served"], last["exhausted"]) == (pytest.approx(1), 0)


@pytest.mark.parametrize("horizon", ["-1", "1.5", "soon"])
def test_what_is_no_horizon(horizon: str, s3t: Run) -> None:
    refused(s3t("plan", DIGITS, "--horizon", horizon), "Invalid value for '--horizon'")
