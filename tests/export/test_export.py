"""Exports: adapters that answer as the run does, names that stand for weights, dead ones gone."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from s3t.errors import DamagedNodeError, InputError, S3TError
from s3t.export import Exporter, ExportOptions, check_folder
from s3t.export.probe import read_probe
from s3t.model.inputs.encoders import Encoded
from s3t.run import RunDir
from s3t.run.files.exports import ExportFolder, ExportRecords
from s3t.service import S3T
from s3t.training.work.train import train
from tests.conftest import Run
from tests.support.deletions import emptied, shortened
from tests.support.small_runs import small_configs

Shown = dict[str, bytes]


def contents(folder: Path) -> Shown:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def stamps(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*")}


@pytest.fixture(
    params=[
        "vit",
        "llama",
        pytest.param("bert", marks=pytest.mark.heavy),
        pytest.param("gpt2", marks=pytest.mark.heavy),
    ]
)
def any_run(request: pytest.FixtureRequest) -> Path:
    names = {"bert": "small_run", "vit": "digits_run", "gpt2": "text_run", "llama": "language_run"}
    found = request.getfixturevalue(names[request.param])
    return found if isinstance(found, Path) else Path(found.root)


# ── the same answers ─────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_peft_answers_as_the_run_does(any_run: Path, tmp_path: Path) -> None:
    with S3T.load(any_run) as service:
        shortened(service, 0)
        done = service.export(tmp_path / "out")
        model = service.serving.model()
        _, nodes, plan = service._opened.catch_up()
        for one, node in zip(done.adapters, nodes, strict=True):
            probe = read_probe(tmp_path / "out" / one["name"])
            alone = model.ensemble([node], plan)
            assert alone is not None and node is not None
            rows = Encoded(probe["inputs"], probe.get("mask"))
            if service._opened.labels:
                served, told = alone.probabilities(rows), probe["logits"].softmax(dim=1)
            else:
                served, told = alone.next_token(rows), probe["logits"].log_softmax(dim=1)
            assert torch.allclose(served, told, atol=1e-5), "the probe is what is served"
            reached = {*range(model._blocks[node.stage - 1][0], model.base.depth)}
            assert layers_of(tmp_path / "out" / one["name"]) == reached, "nothing lower down"
            assert (one["prefix"], one["node"]) == (list(node.prefix), node.key)
        lengths = {len(one["prefix"]) for one in done.adapters}
        assert len(lengths) > 1, "prefixes of several lengths"
        merged = service.export(tmp_path / "merged", merge=True)
        assert merged.merge is not None and merged.merge.error == 0
    for folder in (tmp_path / "out", tmp_path / "merged"):
        checked = check_folder(folder)
        assert checked and all(one.holds for one in checked)
        assert max(one.difference for one in checked) < 1e-5


def layers_of(folder: Path) -> set[int]:
    """Numbers of the layers that an adapter's weights are of."""
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        names = [*file.keys()]
    return {int(re.findall(r"\.(\d+)\.", name)[0]) for name in names}


def test_another_adapter_fails_the_check(language_run: RunDir, tmp_path: Path, s3t: Run) -> None:
    out = tmp_path / "out"
    with S3T.load(language_run.root) as service:
        first, second = service.export(out).names
    shutil.copy(
        out / second / "adapter_model.safetensors", out / first / "adapter_model.safetensors"
    )
    holds = {one.name: one.holds for one in check_folder(out)}
    assert holds == {first: False, second: True}
    said = s3t("export", out, "--check")
    assert said.code == 4 and "NOT AS THE RUN" in said.out
    (out / first / "adapter_model.safetensors").write_bytes(b"no weights")
    said = s3t("export", out, "--check")
    assert said.code == 4 and first in said.err


# ── names ────────────────────────────────────────────────────────────────────────────────────


def test_nothing_is_written_twice_and_names_stand_for_weights(
    language_run: RunDir, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with S3T.load(language_run.root) as service:
        before = service.export(out)
        seen = contents(out), stamps(out)
        again = service.export(out)
        assert (again.written, again.names) == ((), before.names)
        assert (contents(out), stamps(out)) == seen
        assert {len(name) for name in before.names} == {len("s3t-12345678-shard-000-") + 16}
        shortened(service, 0)
        after = service.export(out)
        assert after.names[0] != before.names[0] and after.names[1] == before.names[1]
        assert (after.removed, after.written) == (before.names[:1], after.names[:1])
        assert after.replaced == ()
    with S3T.load(language_run.root) as service:
        elsewhere = service.export(tmp_path / "elsewhere")
    assert elsewhere.names == after.names
    assert contents(tmp_path / "elsewhere") == contents(out), "the same bytes"


def test_a_damaged_adapter_is_written_anew(language_run: RunDir, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with S3T.load(language_run.root) as service:
        first, second = service.export(out).names
        whole = contents(out)
        for damage in ("adapter_config.json", "adapter_model.safetensors"):
            (out / first / damage).write_bytes(b"{}")
            assert service.export(out).written == (first,)
            assert contents(out) == whole
        (out / second / "probe" / "probe.safetensors").unlink()
        assert service.export(out).written == (second,)
        (out / second / "more.safetensors").write_bytes(b"not ours")
        assert service.export(out).written == (second,)
        assert contents(out) == whole


def test_no_id_of_a_sample_leaves_the_run(language_run: RunDir, tmp_path: Path) -> None:
    with S3T.load(language_run.root) as service:
        ids = [str(one.sample_id) for one in service.ledger.samples()]
        service.export(tmp_path / "out")
        service.export(tmp_path / "out", merge=True)
    told = b"".join(contents(tmp_path / "out").values())
    told += (language_run.root / "exports.json").read_bytes()
    assert ids and not any(one.encode() in told for one in ids)


# ── forgetting comes first ───────────────────────────────────────────────────────────────────


def test_a_shard_without_prefix_has_no_adapter(language_run: RunDir, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with S3T.load(language_run.root) as service:
        service.export(out)
        emptied(service, 1)
        done = service.export(out)
        assert done.without == (1,) and [one["shard"] for one in done.adapters] == [0]
        emptied(service, 0)
        done = service.export(out)
    assert (done.adapters, done.without, len(done.removed)) == ((), (0, 1), 1)
    assert list(out.iterdir()) == [out / "s3t-export.json"]
    assert check_folder(out) == []


def test_what_is_dead_goes_even_if_nothing_can_be_exported(
    language_run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with S3T.load(language_run.root) as service:
        first, second = service.export(out).names
        shortened(service, 0)
        node = service.status().shards[0].node
        assert node is not None
        language_run.store.path(node).write_bytes(b"damaged")
        service.serving.reload()
        with pytest.raises(DamagedNodeError):
            service.export(out)
    assert ExportFolder(out, first[4:12]).names() == [second]


def test_a_deletion_meanwhile_is_not_missed(
    language_run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, put, done = tmp_path / "out", ExportFolder.put, []
    with S3T.load(language_run.root) as service, S3T.load(language_run.root) as other:

        def and_delete(self: ExportFolder, name: str, files: dict[str, bytes]) -> None:
            put(self, name, files)
            if not done:
                done.append(name)
                shortened(other, 0)

        monkeypatch.setattr(ExportFolder, "put", and_delete)
        found = service.export(out)
        assert found.removed == tuple(done) and found.view == other.status().view
    assert not (out / done[0]).exists()
    assert ExportFolder(out, done[0][4:12]).names() == sorted(found.names)


# ── whose folder it is ───────────────────────────────────────────────────────────────────────


def test_folders_that_are_refused(language_run: RunDir, text_run: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    with S3T.load(text_run) as other:
        other.export(tmp_path / "other")
    before = contents(tmp_path)
    with S3T.load(language_run.root) as service:
        for folder, words in (
            (language_run.root / "adapters", "lies in the run"),
            (language_run.root, "lies in the run"),
            (tmp_path, "holds it"),
            (tmp_path / "full", "'thesis.txt'"),
            (tmp_path / "file", "is no folder"),
            (tmp_path / "other", "another run"),
        ):
            with pytest.raises(InputError, match=words):
                service.export(folder)
    assert contents(tmp_path) == before


def test_an_export_of_a_sealed_run_says_that_it_is_plain(tmp_path: Path) -> None:
    config = small_configs(tmp_path)(store={"encrypt": True, "keys": str(tmp_path / "ring" / "k")})
    train(config)
    with S3T.load(config.run_dir) as service:
        (note,) = service.export(tmp_path / "out").notes
    assert "plain files" in note and "backups of this folder" in note


def test_files_of_others_are_left_alone(language_run: RunDir, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with S3T.load(language_run.root) as service:
        (first, _) = service.export(out).names
        (out / "my-adapter").mkdir()
        (out / "my-adapter" / "adapter_config.json").write_text("{}")
        (out / ("s3t-ffffffff" + first[12:])).mkdir()  # of another run
        (out / f".{first}.99.abcd.tmp").mkdir()  # of a killed export of ours
        shortened(service, 0)
        done = service.export(out, prune=True)
        assert done.strays == ("my-adapter", "s3t-ffffffff" + first[12:])
        assert (out / "my-adapter" / "adapter_config.json").exists()
        assert not list(out.glob(".*.tmp")) and not (out / first).exists()


def test_a_link_under_our_name_is_not_followed(language_run: RunDir, tmp_path: Path) -> None:
    out, mine = tmp_path / "out", tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("mine")
    with S3T.load(language_run.root) as service:
        first, _ = service.export(out).names
        shutil.rmtree(out / first)
        (out / first).symlink_to(mine)
        shortened(service, 0)
        service.export(out)
    assert not (out / first).is_symlink() and (mine / "thesis.txt").exists()


# ── killed anywhere ──────────────────────────────────────────────────────────────────────────


class Killed(BaseException):
    pass


EACH_STEP = [
    pytest.param(step, marks=[] if step in (1, 9) else pytest.mark.heavy) for step in range(14)
]


@pytest.mark.parametrize("step", EACH_STEP)
def test_killed_anywhere_the_next_export_finishes_it(
    step: int, language_run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, count = tmp_path / "out", [0]
    with S3T.load(language_run.root) as service:
        service.export(out)
        shortened(service, 0)

        def dying(act: Callable[..., Any]) -> Callable[..., Any]:
            def or_die(*arguments: Any, **more: Any) -> Any:
                if count[0] == step:
                    raise Killed
                count[0] += 1
                return act(*arguments, **more)

            return or_die

        import s3t.run.files.exports as module

        with monkeypatch.context() as patched:
            for name in ("write_durably", "sync_folder", "remove_whole"):
                patched.setattr(module, name, dying(getattr(module, name)))
            patched.setattr(module.os, "rename", dying(module.os.rename))
            with pytest.raises(Killed):
                service.export(out)
        (one,) = ExportRecords(language_run.root).all()
        tag = next(iter(one.adapters))[4:12]
        lying = {*ExportFolder(out, tag).names()}
        assert lying <= {*one.adapters}, "a purge would know of all that lies there"
        done = service.export(out)
        service.export(tmp_path / "calm")
    assert contents(out) == contents(tmp_path / "calm"), "no half-written file either"
    assert ExportFolder(out, tag).names() == sorted(done.names)


def test_a_disk_that_is_full(
    language_run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with S3T.load(language_run.root) as service, monkeypatch.context() as patched:
        patched.setattr("s3t.run.files.exports.os.rename", full)
        with pytest.raises(S3TError, match="No space left"):
            service.export(tmp_path / "out")
    with S3T.load(language_run.root) as service:
        service.export(tmp_path / "out")
    assert all(one.holds for one in check_folder(tmp_path / "out"))


# ── merged ───────────────────────────────────────────────────────────────────────────────────


def test_merged_for_an_engine(language_run: RunDir, tmp_path: Path) -> None:
    with S3T.load(language_run.root) as service:
        exact = service.export(tmp_path / "exact", merge=True)
        (one,) = exact.adapters
        assert (one["rank"], one["shard"], len(one["nodes"])) == (4, None, 6)
        padded = service.export(tmp_path / "vllm", merge=True, target="vllm")
        assert (padded.adapters[0]["rank"], padded.engine_rank) == (8, 8)
        assert padded.merge is not None and padded.merge.error == 0
        cut = service.export(tmp_path / "cut", merge=True, rank=1)
        assert cut.merge is not None and 0 < cut.merge.error < 1 and cut.merge.rank == 1
        assert exact.merge is not None and exact.merge.metric == "perplexity"
        assert len({exact.names, padded.names, cut.names}) == 3
        emptied(service, 1)
        assert service.export(tmp_path / "exact", merge=True).removed == exact.names
    for folder in ("exact", "vllm", "cut"):
        assert all(one.holds for one in check_folder(tmp_path / folder))


def test_a_loss_that_is_not_accepted(language_run: RunDir, tmp_path: Path) -> None:
    with S3T.load(language_run.root) as service:
        with pytest.raises(InputError, match="more than --max-loss"):
            service.export(tmp_path / "out", merge=True, max_loss=-1.0)
        assert service.export(tmp_path / "out", merge=True, max_loss=1.0).merge is not None
        with pytest.raises(InputError, match="give --merge"):
            service.export(tmp_path / "out", rank=3)


def test_living_ones_that_are_served_no_more(language_run: RunDir, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with S3T.load(language_run.root) as service:
        shards = service.export(out)
        merged = service.export(out, merge=True)
        assert (merged.replaced, merged.removed) == (shards.names, ())
        told = json.loads((out / "s3t-export.json").read_bytes())
        assert [one["name"] for one in told["replaced"]] == [*shards.names]
        shortened(service, 0)
        again = service.export(out, merge=True)
        assert {*again.removed} == {shards.names[0], *merged.names}
        assert again.replaced == shards.names[1:]
        assert service.export(out, merge=True, prune=True).replaced == ()
    assert ExportFolder(out, shards.names[0][4:12]).names() == [*again.names]


# ── from the command line ────────────────────────────────────────────────────────────────────


def test_engines_are_asked_before_anything_is_written(
    text_run: Path, small_run: RunDir, tmp_path: Path, s3t: Run
) -> None:
    for run, words in ((text_run, "GPT-2"), (small_run.root, "head of its own")):
        said = s3t("export", run, tmp_path / "out", "--target", "vllm")
        assert said.code == 2 and words in said.err
        assert not (tmp_path / "out").exists()


def test_the_command(language_run: RunDir, tmp_path: Path, s3t: Run) -> None:
    out = tmp_path / "out"
    said = s3t("export", language_run.root, out, "--target", "sglang", "--check")
    assert said.code == 0 and said.out.count("as the run") == 2
    assert "--max-lora-rank 2" in said.out
    found = json.loads(s3t("export", language_run.root, out, "--check", "--json").out)
    assert [one["holds"] for one in found["checked"]] == [True, True] and found["written"] == []
    assert s3t("export", language_run.root).code == 2
    with S3T.load(language_run.root) as service:
        emptied(service, 0)
        emptied(service, 1)
    said = s3t("export", language_run.root, out)
    assert said.code == 3 and "shard 1 has no prefix left" in said.out
    assert s3t("export", tmp_path / "nothing", "--check").code == 2


def test_the_exporter_says_what_it_would_do(language_run: RunDir, tmp_path: Path) -> None:
    with S3T.load(language_run.root) as service:
        exporter = Exporter(service._opened, service.serving.model, tmp_path / "out")
        view, names, without = exporter.planned(ExportOptions())
        assert not (tmp_path / "out").exists()
        assert (view, without) == (service.status().view, ())
        assert service.export(tmp_path / "out").names == names


# ── other shapes of runs ─────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_shards_of_clusters_are_exported_though_a_router_serves_them(tmp_path: Path) -> None:
    config = small_configs(tmp_path)(
        partition={"clusters": {}, "salt": "c"}, aggregation={"method": "route"}
    )
    train(config)
    with S3T.load(config.run_dir) as service:
        shards = service.export(tmp_path / "out")
        merged = service.export(tmp_path / "merged", merge=True)
    assert len(shards.adapters) == config.partition.shards
    assert merged.merge is not None and merged.merge.samples > 0
    for folder in (tmp_path / "out", tmp_path / "merged"):
        assert all(one.holds for one in check_folder(folder))


@pytest.mark.slow
def test_prompts_are_no_adapters(tmp_path: Path) -> None:
    config = small_configs(tmp_path)(stage={"adapter": "prompt"}, prompt={"tokens": 2})
    train(config)
    with (
        S3T.load(config.run_dir) as service,
        pytest.raises(InputError, match="only LoRA can be exported"),
    ):
        service.export(tmp_path / "out")
    assert not (tmp_path / "out").exists(), "nothing was written"
