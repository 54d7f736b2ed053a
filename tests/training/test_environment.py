"""Environments: arithmetic pinned before torch, keys that name it, runs that outlive a machine.

Other machines are emulated by the switches with which libraries choose their kernels. Each is a
process of its own, since switches are read once.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from s3t.audit.audit import audit
from s3t.config import Config, load_config
from s3t.errors import ConfigError, IntegrityError, S3TError
from s3t.model.loading import load_model, save_model
from s3t.run import RunDir
from s3t.service import S3T
from s3t.store import tensors_digest
from s3t.system.pinned import arithmetic_here, pinned_environment, switches
from s3t.training.environment import environment_of
from s3t.training.prepare.load import load_prepared
from s3t.training.prepare.preview import preview
from s3t.training.prepare.replan import Replan
from s3t.training.retrain import from_scratch, retrain
from s3t.training.work.train import train
from s3t.training.work.worker_state import WorkerState
from s3t.types import digest
from tests.support.small_runs import (
    Make,
    Trained,
    forget,
    nodes,
    person_rows,
    saved,
    small_configs,
    stamps,
    write_csv,
)
from tests.support.tiny import CLASSES, tiny_base

ROOT = Path(__file__).resolve().parents[2]
COMPATIBLE = {"MKL_CBWR": "COMPATIBLE"}
EMULATED = (COMPATIBLE, {"ATEN_CPU_CAPABILITY": "avx2"})
"""Processors whose products round by the place of a row, or that compute in other vectors."""

needs_mkl = pytest.mark.skipif(
    not torch.backends.mkl.is_available(), reason="this torch has no MKL, whose switch emulates"
)


def python(code: str, *words: str, **environment: str) -> str:
    """What code prints in a process of its own, in another environment."""
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=ROOT,
        env={**_plain(), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def s3t(*words: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "s3t", *words],
        cwd=ROOT,
        env={**_plain(), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _plain() -> dict[str, str]:
    """This process's environment without the switches that pinning has set."""
    return {name: value for name, value in os.environ.items() if name not in switches()}


# ── pinning ──────────────────────────────────────────────────────────────────────────────────


def test_the_tests_themselves_are_pinned() -> None:
    assert arithmetic_here() == "native" and os.environ["MKL_CBWR"]


def test_importing_it_loads_nothing_and_what_the_user_has_set_stays() -> None:
    show = "; print(pin('native'), os.environ['MKL_CBWR'], 'torch' in sys.modules)"
    code = "import os, sys; from s3t.system.pinned import pin" + show
    assert python(code) == "True AUTO,STRICT False"
    assert python(code, **COMPATIBLE) == "True COMPATIBLE False"
    assert python(code, MKL_CBWR="AVX2") == "True AVX2,STRICT False", "its branch, made strict"
    late = "import sys; sys.modules['torch'] = sys; from s3t.system.pinned import pin; "
    assert python(late + "print(pin('native'))") == "False", "torch has read its switches"


def test_a_process_is_pinned_once_and_portable_overrides_every_switch() -> None:
    code = (
        "import json, os; from s3t.system.pinned import *\n"
        "first = pin('portable'); print(json.dumps([first, pin('native'), switches()]))"
    )
    said = json.loads(
        python(code, MKL_CBWR="AVX2", DNNL_VERBOSE="0", ONEDNN_DEFAULT_FPMATH_MODE="BF16")
    )
    assert said == [
        True,
        False,
        {
            "ATEN_CPU_CAPABILITY": "default",
            "MKL_CBWR": "COMPATIBLE",
            "ONEDNN_MAX_CPU_ISA": "SSE41",
        },
    ]


def test_switches_are_known_by_their_families() -> None:
    named = {
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "DNNL_MAX_CPU_ISA": "AVX2",
        "MKL_NUM_THREADS": "4",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.cpu.hwcaps=-AVX2",
        "PATH": "/bin",
    }
    assert switches(named) == {
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "DNNL_MAX_CPU_ISA": "AVX2",
        "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2",
    }


def test_a_training_is_asked_for_before_torch_is_loaded() -> None:
    """So a script without torch is pinned itself, and pays for no process of its own."""
    code = """
import sys, types
from s3t.system.pinned import arithmetic_here
found = types.SimpleNamespace(train=lambda config: (arithmetic_here(), config.training.arithmetic))
sys.modules["s3t.training.work.train"] = found
from s3t import S3T
print(*S3T.train("configs/digits.yaml", "training.arithmetic=portable"), "torch" in sys.modules)
"""
    assert python(code) == "portable portable False"


def test_retraining_is_pinned_as_the_training_was(
    make: Make, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(
        "s3t.training.retrain.call_pinned",
        lambda arithmetic, function, *_: asked.append((arithmetic, function.__name__)),
    )
    run = RunDir(trained(make()).run_dir)
    retrain(run, [], tmp_path / "again")
    from_scratch(run, tmp_path / "scratch", {"arithmetic": "portable"})
    assert asked == [("native", "_retrain"), ("portable", "_from_scratch")]


@pytest.mark.heavy
def test_who_has_loaded_torch_gets_the_same_bytes_from_a_process_that_has_not(
    make: Make, trained: Trained, tmp_path: Path
) -> None:
    """A notebook: training and audits; errors are what they would be here."""
    config = trained(make())
    other = make("other")
    path = saved(other, tmp_path)
    code = f"""
import json, torch
from s3t.audit.audit import audit
from s3t.config import load_config
from s3t.errors import ConfigError
from s3t.system.pinned import arithmetic_here, call_pinned
from s3t.training.work.train import train

config = load_config({path!r})
report = train(config)
judged = audit(config.run_dir, retrain=1, from_scratch=True)
try:
    call_pinned("native", load_config, {path!r}, ["stage.epochs=none"])
except ConfigError as error:
    said = error.problems
print(json.dumps([arithmetic_here(), report.trained, judged.holds, judged["E3"].status, said]))
"""
    here, trained, holds, scratch, said = json.loads(python(code).splitlines()[-1])
    assert (here, trained, holds, scratch) == (None, 8, True, "holds")
    assert any("stage.epochs" in one for one in said)
    assert nodes(other) == nodes(config)


# ── what names an environment ────────────────────────────────────────────────────────────────


def named(config: Config) -> dict[str, Any]:
    return environment_of(config, tiny_base("bert"), CLASSES, torch.device("cpu"))


def test_an_environment_is_named_by_what_the_engine_computes(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from s3t.training import environment

    config, base = make(), tiny_base("bert")

    def fresh() -> dict[str, Any]:
        environment._probes.clear()
        return environment_of(config, base, CLASSES, torch.device("cpu"))

    before = fresh()
    assert before == fresh(), "the same again"
    gelu = torch.nn.functional.gelu

    def other(x: torch.Tensor, **named: Any) -> torch.Tensor:
        """An activation that one library rounds otherwise, for one number in a thousand."""
        found = gelu(x, **named).clone()
        flat = found.view(-1)[::1000]
        flat.copy_(torch.nextafter(flat, torch.tensor(9.0)))
        return found

    monkeypatch.setattr("torch.nn.functional.gelu", other)
    changed = fresh()
    assert changed["probe"] != before["probe"]
    assert changed | {"probe": ""} == before | {"probe": ""}, "no name tells it, the probe does"


def test_numbers_flushed_to_zero_are_another_environment(make: Make) -> None:
    from s3t.training import environment

    before = named(make())
    environment._probes.clear()
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush")
    try:
        assert named(make())["probe"] != before["probe"]
    finally:
        torch.set_flush_denormal(False)
        environment._probes.clear()


@pytest.mark.heavy
@needs_mkl
@pytest.mark.parametrize("environment", EMULATED, ids=lambda one: "=".join(*one.items()))
def test_under_another_switch_nodes_have_other_keys(
    make: Make, trained: Trained, tmp_path: Path, environment: dict[str, str]
) -> None:
    """And what there is stays, so that nothing is trained again."""
    config = trained(make())
    before, times = nodes(config), stamps(config)
    gone = sorted(before)[:3]
    for name in gone:
        (config.run_dir / "nodes" / name).unlink()
    s3t("train", saved(config, tmp_path), **environment)
    after = nodes(config)
    assert len(after) >= len(before) and not {*gone} & {*after}, "under keys of their own"
    kept = {name: at for name, at in times.items() if name not in gone}
    assert kept.items() <= stamps(config).items()
    plan = RunDir(config.run_dir).plan()
    assert len(plan.environments) == 2
    assert {node.environment for node in plan.forest} == {*plan.environments}
    with S3T.load(config.run_dir) as model:
        found = model.status().environments
        assert sum(one.nodes for one in found) == len(plan.forest)
    assert {one.environment for one in found} == {*plan.environments}


REPAIR = """
import json, sys
from s3t.system.pinned import pin; pin("native")
from s3t.audit.audit import audit
from s3t.run import RunDir
from s3t.training.prepare.replan import Replan
from s3t.training.work.train import train
report = train(RunDir(sys.argv[1]).here(), replan=Replan())
judged = None
if sys.argv[2:]:
    judged = audit(sys.argv[1], retrain="all", from_scratch=True)
    judged = judged.holds, judged["E2"].checked, judged["E3"].checked
print(json.dumps([report.nodes, report.trained, report.found, judged]))
"""


@pytest.mark.heavy
@needs_mkl
def test_a_run_outlives_the_machine_that_it_was_trained_on(make: Make, trained: Trained) -> None:
    """Begun here, repaired elsewhere, repaired here again; audited on both."""
    config = trained(make(partition={"shards": 2, "slices": 2, "salt": "walk", "subject": "who"}))
    run, root = RunDir(config.run_dir), str(config.run_dir)
    judged_there = None
    for subject, elsewhere in (("p03", ["there"]), ("p05", []), ("p07", ["there", "and judged"])):
        forget(config, subject)
        with S3T.load(root) as model:
            alive = sum(one.nodes_alive for one in model.status().shards)
        before = stamps(config)
        if elsewhere:
            said = json.loads(python(REPAIR, root, *elsewhere[1:], **COMPATIBLE))
            (*counts, judged_there) = said
        else:
            report = train(run.here(), replan=Replan())
            counts = [report.nodes, report.trained, report.found]
        assert counts == [counts[0], counts[0] - alive, alive]
        after = stamps(config)
        survivors = {name for name in before if name in after}
        assert len(survivors) == alive
        assert all(before[name] == after[name] for name in survivors), "nothing is trained again"
        assert audit(root).holds
    of = Counter(node.environment for node in run.plan().forest)
    assert len(of) == 2, "nodes of both"
    here = next(iter(run.plan().environments))
    judged = audit(root, retrain="all", from_scratch=True)
    assert judged.holds, [claim.problems for claim in judged.claims]
    text = f"{of[here]} of {len(run.plan().forest)} can be compared here"
    assert text in judged["E2"].checked and text in judged["E3"].checked
    holds, *checked = judged_there
    assert holds and all("not comparable here" in one for one in checked)


AGAIN = """
import json, sys
from pathlib import Path
from s3t.system.pinned import pin; pin("native")
from s3t.audit.audit import audit
from s3t.config import load_config
from s3t.run import RunDir
from s3t.training.retrain import retrain
from s3t.training.work.train import train

config = load_config(sys.argv[1])
train(config)
run, folder = RunDir(config.run_dir), Path(sys.argv[2])
over = [node.key for node in run.plan().forest if node.parent is not None]

def judged(name):
    claim = audit(run.root, from_scratch=True)["E3"]
    again = retrain(run, over, folder / name)
    return [*again.values()], claim.status, claim.checked, [*claim.problems]

sound = judged("again")
meta, tensors = run.store.read(over[0])  # other weights, all digests in the file made again
run.store.write(meta, {name: tensor + 0.5 for name, tensor in tensors.items()})
print(json.dumps([sound, judged("once more")]))
"""


@pytest.mark.heavy
@needs_mkl
def test_a_node_over_a_parent_of_another_environment_is_compared_and_judged(
    make: Make, trained: Trained, tmp_path: Path
) -> None:
    """And one that is damaged on its way is found."""
    config = trained(make())
    run = RunDir(config.run_dir)
    for node in run.plan().forest:
        if node.parent is not None:
            run.store.path(node.key).unlink()
    found = python(AGAIN, saved(config, tmp_path), str(tmp_path), **COMPATIBLE)
    sound, damaged = json.loads(found)
    over = [node.key for node in run.plan().forest if node.parent is not None]
    assert sound[:2] == [[True] * len(over), "holds"]
    assert f"{len(over)} over nodes of another environment trained again" in sound[2]
    assert sorted(damaged[0]) == [False, *[True] * (len(over) - 1)]
    assert any("has other bytes in a run from scratch" in one for one in damaged[3])
    assert retrain(run, over, tmp_path / "here").keys().isdisjoint(over), "not comparable here"


@pytest.mark.parametrize(
    ("hidden", "heads"),
    [(10, 2), *(pytest.param(hidden, 3, marks=pytest.mark.heavy) for hidden in (30, 36))],
)
def test_odd_widths_lose_no_survivor(make: Make, tmp_path: Path, hidden: int, heads: int) -> None:
    """In groups of what they are, a rank and a batch of 3, and two lengths of texts."""
    shape = {"hidden": hidden, "heads": heads, "intermediate": hidden + 7, "layers": 2}
    config = make(
        model={"make": shape | {"init_scale": 5}},
        lora={"rank": 3},
        stage={"epochs": 1, "batch_size": 3, "learning_rate": 1e-2},
        sequences={"budget": 1},
    )
    train(config)
    forget(config, "p03")
    run = RunDir(config.run_dir)
    judged = audit(run.root, from_scratch=True)["E3"]
    assert judged.status == "holds" and not judged.problems
    compared = from_scratch(run, tmp_path / "alone", {"group_bytes": 1})
    assert compared.same and not compared.different


def test_a_process_of_another_environment_trains_no_node_of_the_plan(
    make: Make, trained: Trained
) -> None:
    """Another machine type beside the main process, say."""
    config = trained(make())
    run = RunDir(config.run_dir)
    victim = next(node for node in run.plan().forest if node.parent is not None)
    run.store.path(victim.key).unlink()
    prepared = replace(load_prepared(run, torch.device("cpu")), environment=digest("elsewhere"))
    with pytest.raises(S3TError, match="was planned for another environment than this process"):
        WorkerState(prepared).train([victim.key])
    assert not run.store.has(victim.key)


def test_plan_says_where_nodes_will_be_trained_one_by_one(make: Make) -> None:
    shape = {"hidden": 16, "heads": 2, "layers": 2, "init_scale": 5}
    data = make().data.model_dump(mode="json") | {"max_length": 16}

    def notes(inner: int) -> str:
        model = {"base": "make:gpt2", "make": shape | {"intermediate": inner}}
        config = make(model=model, data=data, stage={"batch_size": 1})
        return " ".join(preview(config)["notes"])

    assert "fill no vectors at 16 positions of a batch" in notes(37)
    assert "one by one" not in notes(48)


# ── portable ─────────────────────────────────────────────────────────────────────────────────

GOLDEN = {
    "bert": "0867880819ad1d464cabe3d391660a181c84d08636ef7d8257ad131276e39a01",
    "vit": "3684dc5cc1d9cbe6a58177d7b86e8067181b87c6cb90eb23759a3ec909b8a6f7",
}
"""Digests over all tensors of a small training with portable arithmetic: found on an Intel
processor with AVX-512, and on an AMD EPYC of Zen 3 and an Intel Haswell that were emulated. Another
torch, numpy or C library may give others."""

MADE_WITH = {"torch": "2.13.0", "numpy": "2.4.6", "libc": "glibc 2.36"}


DIGITS = (
    *("training.arithmetic=portable", "training.workers=1", "stage.epochs=1", "lora.rank=3"),
    *("model.adapt.steps=3", "model.make.hidden=16", "model.make.heads=2", "model.make.layers=2"),
    *("partition.shards=1", "partition.slices=2", "sequences.budget=2"),
    "data.private.split=private[:60]",
)


def golden(folder: Path, family: str) -> str:
    """Digest over the tensors of all nodes of a training with portable arithmetic."""
    if family == "bert":
        training = {"arithmetic": "portable", "workers": 1}
        config = small_configs(folder)("golden", training=training, lora={"rank": 3})
    else:
        config = load_config(ROOT / "configs/digits.yaml", [*DIGITS, f"output={folder / 'run'}"])
    train(config)
    run = RunDir(config.run_dir)
    tensors = {
        f"{'-'.join(map(str, (node.shard, *node.prefix)))}.{name}": tensor
        for node in run.plan().forest
        for name, tensor in run.store.read(node.key)[1].items()
    }
    return tensors_digest(tensors)


@pytest.mark.heavy
def test_portable_bytes_are_those_of_every_machine(tmp_path: Path) -> None:
    import platform

    here = {
        "torch": torch.__version__.partition("+")[0],
        "numpy": np.__version__,
        "libc": " ".join(platform.libc_ver()),
    }
    if here != MADE_WITH or platform.machine() != "x86_64":
        pytest.skip(f"the digests are of {MADE_WITH} on x86_64, here is {here}")
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    if "avx2" not in flags:
        pytest.skip("this processor has no AVX2")
    code = f"""
import json
from pathlib import Path
from s3t.system.pinned import pin; pin("portable")
from tests.training.test_environment import GOLDEN, golden
print(json.dumps({{family: golden(Path({str(tmp_path)!r}), family) for family in GOLDEN}}))
"""
    assert json.loads(python(code).splitlines()[-1]) == GOLDEN


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model": {"dtype": "bfloat16"}}, "'bfloat16' does not fit training.arithmetic=portable"),
        ({"model": {"base": "x", "quantization": "8bit"}}, "bitsandbytes chooses its kernels"),
    ],
)
def test_what_has_no_portable_arithmetic_is_refused(
    make: Make, overrides: dict[str, Any], message: str
) -> None:
    config = make(training={"arithmetic": "portable"})
    tree = config.model_dump(mode="json")
    for section, values in overrides.items():
        tree[section] |= values
    path = config.run_dir.parent / "c.yaml"
    path.write_text(json.dumps(tree), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_config(path)


def test_a_portable_process_is_started_with_its_switches_alone() -> None:
    found = pinned_environment("portable")
    assert switches(found) == {
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_CBWR": "COMPATIBLE",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
    }
    assert found["PATH"] == os.environ["PATH"]


# ── the base, the rows that nodes are scored on ──────────────────────────────────────────────


def test_other_validation_rows_mean_scoring_again_not_training(
    make: Make, trained: Trained, tmp_path: Path
) -> None:
    config = make()
    shutil.copy(tmp_path / "public.csv", tmp_path / "validation.csv")
    source = {"format": "csv", "files": str(tmp_path / "validation.csv")}
    data = config.data.model_dump(mode="json")
    data["public"]["validation"] = source
    config = trained(make(data=data))
    run, before, times = RunDir(config.run_dir), nodes(config), stamps(config)
    with run.ledger() as ledger:
        first = ledger.plans.nodes()
    write_csv(tmp_path / "validation.csv", person_rows(3))
    judged = audit(run.root)["E2"]
    assert judged.status == "pending" and "scored on other rows" in judged.problems[0]
    report = train(config)
    assert (report.trained, report.found) == (0, 8)
    assert nodes(config) == before and stamps(config) == times, "no file is written"
    with run.ledger() as ledger:
        second = ledger.plans.nodes()
    assert {one.rows for one in first.values()}.isdisjoint(one.rows for one in second.values())
    assert [one.weights for one in first.values()] == [one.weights for one in second.values()]
    for key, told in second.items():
        said = run.store.evidence(key, told.rows)
        assert said is not None and run.store.read_evidence(key).digest == told.evidence
        assert told.evidence != first[key].evidence, "made again with the score"
    assert audit(run.root, retrain="all").holds
    with S3T.load(run.root) as model:
        for shard in model.status().shards:
            assert shard.node is not None and shard.score == second[shard.node].score


def test_a_score_edited_in_its_file_is_found_and_not_gone_by(make: Make, trained: Trained) -> None:
    config = trained(make())
    run = RunDir(config.run_dir)
    with S3T.load(run.root) as model:
        before = model.status().shards
    victim = next(node for node in run.plan().forest if node.parent is None)
    meta, tensors = run.store.read(victim.key)
    run.store.write(replace(meta, score=0.999), tensors)
    judged = audit(run.root)["E2"]
    assert judged.status == "broken" and victim.key in judged.problems[0]
    assert "has the score 0.999 in its file" in judged.problems[0]
    with S3T.load(run.root) as model:
        assert model.status().shards == before, "the ledger's is gone by"


@pytest.fixture
def based(make: Make, trained: Trained, tmp_path: Path) -> tuple[Config, Path]:
    """A run over a base in a folder."""
    base = tmp_path / "base"
    save_model(load_model(make("made")), base)
    config = trained(make("based", model={"base": str(base)}))
    return config, base


def test_a_base_of_another_function_is_another_base(
    based: tuple[Config, Path], tmp_path: Path
) -> None:
    config, base = based
    path = base / "config.json"
    right = path.read_text(encoding="utf-8")
    path.write_text(json.dumps(json.loads(right) | {"_name_or_path": "moved"}), encoding="utf-8")
    assert audit(config.run_dir)["E9"].status == "holds", "names do not count"
    other = json.loads(right) | {"hidden_act": "relu", "layer_norm_eps": 1e-3}
    path.write_text(json.dumps(other), encoding="utf-8")
    assert audit(config.run_dir)["E9"].status == "broken"
    with S3T.load(config.run_dir) as model, pytest.raises(IntegrityError, match="the base has"):
        model.predict(["a question"])
    next(iter((config.run_dir / "nodes").glob("*.safetensors"))).unlink()
    with pytest.raises(Exception, match="is no longer the base"):
        train(config)
    path.write_text(right, encoding="utf-8")
    train(config)
    assert audit(config.run_dir).holds


@pytest.mark.parametrize("way", ["zeros", "cut", "other"])
def test_a_base_that_serves_lies_in_memory(based: tuple[Config, Path], way: str) -> None:
    config, base = based
    path = base / "model.safetensors"
    questions = ["person 3 says 24", "person 5 says 5"]
    with S3T.load(config.run_dir) as model:
        before = model.predict(questions)
        size = path.stat().st_size
        with path.open("r+b") as file:
            if way == "cut":
                file.truncate(4096)
            else:
                file.seek(size // 2)
                file.write(b"\0" * (size - size // 2) if way == "zeros" else b"\x3f" * 400)
        assert model.predict(questions) == before
    with (
        pytest.raises(Exception, match=r"the base has|cannot be loaded"),
        S3T.load(config.run_dir) as model,
    ):
        model.predict(questions)


# ── the engine under emulated machines ───────────────────────────────────────────────────────

TESTS = (
    "trainer::test_a_group_changes_no_byte[bert-False-layers]",
    "trainer::test_a_group_changes_no_byte[llama-True-residual]",
    "trainer::test_short_batches_of_texts_are_cut_and_change_no_byte_of_the_others[bert-False]",
    "trainer::test_agrees_finds_a_machine_where_groups_round_differently",
    "trainer::test_the_trunk_cache_changes_no_byte[llama-True]",
    "trainer::test_every_family_trains",
    "prompts::test_a_group_changes_no_byte[bert-False-2]",
    "process_group::test_a_group_of_nodes_changes_no_byte_of_parts[llama-True]",
    "trunk_cache::test_every_way_gives_the_same_bytes",
)
"""One of each promise that is kept by how the processor rounds, at every family's shapes. How nodes
build upon each other changes no kernel but by the ranks that add up, so two ways are enough."""


@pytest.mark.heavy
@needs_mkl
@pytest.mark.parametrize("environment", EMULATED, ids=lambda one: "=".join(*one.items()))
def test_the_engine_keeps_its_promises_there_too(environment: dict[str, str]) -> None:
    words = ["-q", "-p", "no:cacheprovider", "-m", "not heavy"]
    tests = [f"tests/training/test_{name.replace('::', '.py::')}" for name in TESTS]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, *tests],
        cwd=ROOT,
        env={**_plain(), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert done.stdout.count(".") > 20
