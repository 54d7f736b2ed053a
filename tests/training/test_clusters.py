"""Shards by likeness: prototypes of public data alone, places that depend on nobody else, and a
run of clusters through its life."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from safetensors.torch import load_file, save_file

from s3t.audit.audit import audit
from s3t.config import Config, load_config
from s3t.data.partition import partition, slot_of
from s3t.errors import ConfigError, DataError, InputError, IntegrityError
from s3t.model import prototypes as clusters
from s3t.model.inputs.encoders import Encoded
from s3t.model.prototypes import (
    Prototypes,
    clusters_of,
    find_prototypes,
    leading,
    read_prototypes,
    write_prototypes,
)
from s3t.run import RunDir
from s3t.run.purge import purge
from s3t.service import S3T
from s3t.training.prepare.checks import check_run
from s3t.training.prepare.load import load_prepared
from s3t.training.prepare.preview import preview
from s3t.training.prepare.replan import Replan
from s3t.training.rank import MACHINE, MACHINES
from s3t.training.retrain import from_scratch
from s3t.training.work.train import train
from s3t.types import Digest, Sample, SampleId, Subject, digest
from tests.support.small_runs import (
    Make,
    Trained,
    forget,
    nodes,
    person_rows,
    small_configs,
    write_csv,
)
from tests.support.tiny import tiny_base, tiny_rows

CLUSTERS = {"partition": {"clusters": {"layer": 1}}}
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes configs of small runs whose shards are clusters."""
    plain = small_configs(tmp_path)

    def config(*words: str, **sections: Any) -> Config:
        shape = CLUSTERS["partition"] | sections.pop("partition", {})
        return plain(*words, partition=shape, **sections)

    return config


def asked(make: Make, shards: int, **clusters: Any) -> Config:
    return make(partition={"shards": shards, "clusters": clusters})


def places(config: Config) -> dict[str, tuple[int, int]]:
    with RunDir(config.run_dir).ledger() as ledger:
        return {entry.sample_id: (entry.shard, entry.slice) for entry in ledger.samples()}


# ── prototypes and features ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("family", ["vit", "bert", "llama"])
def test_a_row_lies_where_it_lies_whoever_else_is_there(family: str, make: Make) -> None:
    base, rows = tiny_base(family), tiny_rows(family, 70)
    prototypes = find_prototypes(asked(make, 4), base, tiny_rows(family, 60, seed=3))
    whole = clusters_of(base, rows, prototypes)
    assert len(set(whole)) > 1
    for gone in (0, 23, 46, 69):
        kept = torch.tensor([row for row in range(70) if row != gone])
        assert clusters_of(base, rows.rows(kept), prototypes) == [whole[row] for row in kept]
    turned = torch.arange(69, -1, -1)
    assert clusters_of(base, rows.rows(turned), prototypes) == whole[::-1]
    assert clusters_of(base, rows.rows(torch.tensor([5])), prototypes) == [whole[5]]


@pytest.mark.parametrize("family", ["vit", "bert"])
def test_prototypes_are_of_unit_length_and_the_rows_order_and_copies_do_not_count(
    family: str, make: Make
) -> None:
    base, public, config = tiny_base(family), tiny_rows(family, 50), asked(make, 5)
    found = find_prototypes(config, base, public)
    assert len(found) == 5 and sum(found.rows) == 50
    assert torch.allclose(found.centres.norm(dim=1), torch.ones(5))
    order = torch.cat([torch.arange(49, -1, -1), torch.arange(9)])
    assert find_prototypes(config, base, public.rows(order)).digest == found.digest
    assert find_prototypes(asked(make, 5, layer=1), base, public).digest != found.digest


def test_clusters_nearer_than_the_distance_become_one(make: Make) -> None:
    base, public = tiny_base("vit"), tiny_rows("vit", 50)
    found = find_prototypes(asked(make, 6), base, public)
    apart = torch.cdist(found.centres, found.centres)
    least = float(apart[apart > 0.001].min())
    assert find_prototypes(asked(make, 6, distance=least * 0.99), base, public).rows == found.rows
    fewer = find_prototypes(asked(make, 6, distance=least * 1.01), base, public)
    assert len(fewer) < 6 and sum(fewer.rows) == 50
    assert len(find_prototypes(asked(make, 6, distance=2.1), base, public)) == 1


def test_of_many_public_rows_a_bounded_number_counts(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, public = tiny_base("vit"), tiny_rows("vit", 80)
    monkeypatch.setattr(clusters, "_MOST_ROWS", 30)
    found = find_prototypes(asked(make, 3), base, public)
    assert sum(found.rows) == 30
    turned = find_prototypes(asked(make, 3), base, public.rows(torch.arange(79, -1, -1)))
    assert turned.digest == found.digest
    other = asked(make, 3).model_copy(update={"seed": 1})
    assert find_prototypes(other, base, public).digest != found.digest, "others are drawn"


def test_instructions_lie_by_their_prompts() -> None:
    values = torch.arange(12).view(2, 6)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    targets = torch.tensor([[0, 0, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    found = leading(Encoded(values, mask, targets=targets))
    assert found is not None
    assert found.tolist() == [[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]], "no prompt: all of it"
    assert leading(Encoded(values, mask)) is mask
    assert leading(Encoded(torch.zeros(2, 1, 8, 8), None)) is None


def test_what_cannot_be_clustered_is_said(make: Make) -> None:
    base, public = tiny_base("vit"), tiny_rows("vit", 4)
    with pytest.raises(InputError, match=r"layer 9 is over the 3 layers"):
        find_prototypes(asked(make, 2, layer=9), base, public)
    with pytest.raises(DataError, match="has 4 different rows for 5 clusters"):
        find_prototypes(asked(make, 5), base, public.rows(torch.tensor([0, 1, 2, 3, 3, 3])))


def test_prototypes_that_were_kept_are_the_very_same_or_refused(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    own = Prototypes(2, torch.randn(3, 8, generator=generator), (5, 6, 7))
    path, base = tmp_path / "prototypes.safetensors", Digest("base")
    write_prototypes(path, own, base)
    found = read_prototypes(path, base)
    assert torch.equal(found.centres, own.centres) and found.digest == own.digest
    assert (found.layer, found.rows) == (2, (5, 6, 7))
    with pytest.raises(IntegrityError, match="damaged, or belong to another base"):
        read_prototypes(path, Digest("other"))
    for spoilt in (b"", path.read_bytes()[:-4] + b"abcd"):
        path.write_bytes(spoilt)
        with pytest.raises(IntegrityError, match="restore them"):
            read_prototypes(path, base)


# ── places ───────────────────────────────────────────────────────────────────────────────────


def sample(name: str, cluster: int | None, subject: str | None = None) -> Sample:
    who = None if subject is None else Subject(subject)
    return Sample(SampleId(name), who, digest(name), 0, cluster)


def test_the_cluster_is_the_shard_and_the_hash_tells_the_slice() -> None:
    found = [slot_of(sample("one", shard), 5, 4, "salt") for shard in range(5)]
    assert [at[0] for at in found] == [0, 1, 2, 3, 4]
    assert len({at[1] for at in found}) == 1, "of one content in one slice of each"
    spread = {slot_of(sample(f"s{number}", 2), 5, 4, "salt")[1] for number in range(50)}
    assert spread == {0, 1, 2, 3}
    rows = [slot_of(sample(f"s{number}", 1, "who"), 5, 4, "salt") for number in range(9)]
    assert len(set(rows)) == 1
    tiered = [
        slot_of(replace(sample(f"s{n}", 1), tier=1), 5, 4, "salt", (3, 1))[1] for n in range(9)
    ]
    assert set(tiered) == {3}


def test_empty_slices_are_told_with_the_sizes_of_the_clusters() -> None:
    samples = [sample(f"s{number}", int(number == 0)) for number in range(40)]
    with pytest.raises(DataError, match=r"so many samples each: 0: 39, 1: 1; use fewer slices"):
        partition(samples, 2, 2, "salt")


def test_a_config_says_what_clusters_need(make: Make) -> None:
    tree = make().model_dump(mode="json")
    tree["data"]["public"]["adapt"] = None
    with pytest.raises(ValueError, match=r"partition.clusters needs data.public.adapt"):
        problems_of(tree)
    tree = make(aggregation={"method": "route"}).model_dump(mode="json")
    tree["partition"]["clusters"] = None
    with pytest.raises(ValueError, match=r"'route' asks the shard"):
        problems_of(tree)


def problems_of(tree: dict[str, Any]) -> None:
    found = Config.model_validate(tree).problems()
    if found:
        raise ValueError("; ".join(found))


# ── a run ────────────────────────────────────────────────────────────────────────────────────


def test_no_private_row_has_a_part_in_prototypes_or_in_anothers_place(
    make: Make, tmp_path: Path
) -> None:
    config = make()
    whole = check_run(config)
    assert whole.prototypes is not None
    before = {one.id: at for one, at in whole.partition.slots()}
    for name in ("s000", "s031", "s152"):
        less = check_run(config, {name})
        assert less.prototypes is not None
        assert less.prototypes.digest == whole.prototypes.digest
        after = {one.id: at for one, at in less.partition.slots()}
        assert after == {key: at for key, at in before.items() if key != name}
    write_csv(tmp_path / "other.csv", [row | {"text": row["text"][::-1]} for row in person_rows()])
    other = check_run(make(private="other.csv"))
    assert other.prototypes is not None and other.prototypes.digest == whole.prototypes.digest


def test_a_plan_shows_the_clusters_and_may_have_fewer(make: Make) -> None:
    found = preview(make(), 4)
    sizes = [sum(row) for row in found["slice_sizes"]]
    assert [note for note in found["notes"] if note.startswith("cluster ")] == [
        f"cluster {shard}: {size} samples, nearest to what {rows} public rows are like"
        for shard, (size, rows) in enumerate(zip(sizes, shown(found), strict=True))
    ]
    one = preview(make(partition={"clusters": {"distance": 2.1}}))
    assert one["shards"] == 1 and any("1 clusters" in note for note in one["notes"])


def shown(found: dict[str, Any]) -> list[int]:
    notes = [note for note in found["notes"] if note.startswith("cluster ")]
    return [int(note.split("what ")[1].split()[0]) for note in notes]


def test_clusters_of_an_adapted_base_are_of_what_is_trained_on(
    make: Make, trained: Trained
) -> None:
    model = {"adapt": {"steps": 2, "batch_size": 8}}
    config = trained(make(model=make().model.model_dump(mode="json") | model))
    run = RunDir(config.run_dir)
    own = read_prototypes(run.prototypes_path, run.plan().base)
    assert run.plan().recipe["prototypes"] == own.digest
    checked = check_run(config)
    assert checked.base.fingerprint == run.plan().base and checked.prototypes is not None
    assert checked.prototypes.digest == own.digest
    compared = from_scratch(run, config.run_dir.parent / "scratch")
    assert compared.equal


@pytest.mark.parametrize("distance", [None, pytest.param(2.1, marks=pytest.mark.heavy)])
def test_a_repaired_run_of_clusters_is_one_that_never_saw_the_person(
    make: Make, trained: Trained, tmp_path: Path, distance: float | None
) -> None:
    shape = {"partition": {"clusters": {"layer": 1, "distance": distance}}}
    write_csv(tmp_path / "kept.csv", [row for row in person_rows() if row["who"] != "p03"])
    one = trained(make("one", **shape))
    never = trained(make("never", private="kept.csv", **shape))
    before = places(one)
    assert before.items() >= places(never).items()
    forget(one, "p03")
    train(one, replan=Replan())
    assert nodes(one) == nodes(never), "byte for byte"
    kept = [RunDir(config.run_dir).prototypes_path.read_bytes() for config in (one, never)]
    assert kept[0] == kept[1]
    judged = audit(one.run_dir, retrain=1)
    assert {claim.name: claim.status for claim in judged.claims}["E3"] == "not tried"
    purge(RunDir(one.run_dir))
    judged = audit(one.run_dir, retrain=1, from_scratch=True)
    assert judged.holds, [claim.problems for claim in judged.claims]
    assert "clusters of 45 samples computed" in judged["E3"].checked
    assert "made again the same" in judged["E5"].checked


def test_a_person_of_several_clusters_is_forgotten_in_all_of_them(
    make: Make, trained: Trained
) -> None:
    config = trained(make())
    slots: dict[str, set[tuple[int, int]]] = defaultdict(set)
    for name, at in places(config).items():
        slots[f"p{name[1:3]}"].add(at)
    who, both = next((who, found) for who, found in slots.items() if len(found) == 2)
    assert len({part for _, part in both}) == 1, "of one number, by the hash of the person"
    with S3T.load(config.run_dir) as service:
        service.deactivate(subjects=[who])
        hit = {
            (shard, part)
            for shard, found in enumerate(service.status().shards)
            for part in found.slices_hit
        }
        assert hit == both
    assert audit(config.run_dir)["E6"].status == "holds", "counters of both slots"


def test_new_samples_get_their_clusters_and_the_old_ones_stay(
    make: Make, trained: Trained, tmp_path: Path
) -> None:
    config = trained(make())
    before = places(config)
    rows = [row for row in person_rows(20) if row["id"] not in before]
    write_csv(tmp_path / "more.csv", rows)
    files = (str(tmp_path / "more.csv"),)
    report = train(RunDir(config.run_dir).config(), replan=Replan(True, files))
    assert report.added == len(rows) == 12
    after = places(config)
    assert before.items() <= after.items() and len(after) == 60
    write_csv(tmp_path / "all.csv", person_rows(20))
    fresh = trained(make("fresh", private="all.csv"))
    assert places(fresh) == after and nodes(fresh).items() <= nodes(config).items()
    assert audit(config.run_dir, retrain=1)["E5"].status == "holds"


def test_a_killed_run_goes_on_and_one_without_its_prototypes_does_not(
    make: Make, trained: Trained
) -> None:
    config = trained(make())
    whole, run = nodes(config), RunDir(config.run_dir)
    for name in sorted(whole)[::2]:
        (run.store.root / name).unlink()
    assert train(config).trained == 4 and nodes(config) == whole
    (run.root / "plan.json").unlink()  # killed before the run was prepared
    run.ledger_path.unlink()
    assert train(config).found == 8
    held = run.prototypes_path.read_bytes()
    run.prototypes_path.unlink()
    (run.store.root / min(whole)).unlink()
    with pytest.raises(IntegrityError, match="no sample can be placed or routed without them"):
        train(config)
    with S3T.load(run.root) as service, pytest.raises(IntegrityError, match="restore them"):
        service.predict([{"text": "who"}])
    assert audit(run.root)["E5"].status == "broken"
    run.prototypes_path.write_bytes(held)
    assert audit(run.root)["E5"].status == "holds"


def test_an_audit_finds_other_prototypes_and_a_sample_in_another_shard(
    make: Make, trained: Trained
) -> None:
    config = trained(make())
    run = RunDir(config.run_dir)
    own = read_prototypes(run.prototypes_path, run.plan().base)
    turned = Prototypes(own.layer, own.centres.flip(0).contiguous(), own.rows[::-1])
    write_prototypes(run.prototypes_path, turned, run.plan().base)
    judged = audit(run.root)["E5"]
    assert judged.status == "broken" and "prototypes is" in judged.problems[0]
    judged = audit(run.root, retrain=1)
    assert any("not what the public data gives" in one for one in judged["E5"].problems)
    assert "48 samples do not lie in the shard" in judged["E3"].problems[0]
    tensors = load_file(run.prototypes_path)
    tensors["prototypes"][0] += 1
    save_file(tensors, run.prototypes_path)
    assert audit(run.root)["E5"].status == "broken"
    with S3T.load(run.root) as service, pytest.raises(IntegrityError, match="damaged"):
        service.predict([{"text": "who"}])


def test_a_forecast_counts_a_person_in_each_shard_and_says_so(make: Make, trained: Trained) -> None:
    config = trained(make())
    pairs = {(name[:3], at) for name, at in places(config).items()}
    with S3T.load(config.run_dir) as service:
        found = service.forecast()
    assert found.persons_left == len(pairs) > 16
    assert found.in_each_shard and found.to_dict()["in_each_shard"] is True


def test_another_machine_reckons_the_clusters_itself(
    make: Make, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    MemoryFileSystem.store.clear()
    url = "memory://clusters/run"
    first = trained(make("first", store={"url": url}))
    monkeypatch.setenv(MACHINE, "1")
    monkeypatch.setenv(MACHINES, "2")
    other = make("other", store={"url": url, "lease": 0.1})
    assert train(other).found == 8
    run, main = RunDir(other.run_dir), RunDir(first.run_dir)
    assert run.joined and not run.ledger_path.exists()
    assert run.prototypes_path.read_bytes() == main.prototypes_path.read_bytes()
    device = torch.device("cpu")
    here, there = load_prepared(run, device), load_prepared(main, device)
    for ours, theirs in zip(here.members, there.members, strict=True):
        assert all(torch.equal(one, two) for one, two in zip(ours, theirs, strict=True))
    MemoryFileSystem.store.clear()


def test_a_shard_without_samples_in_a_slice_is_refused_before_anything_is_written(
    make: Make, tmp_path: Path
) -> None:
    write_csv(tmp_path / "few.csv", person_rows(2, 1))
    config = make("few", private="few.csv")
    with pytest.raises(ConfigError, match="clusters have so many samples each"):
        train(config)
    assert not config.run_dir.exists()


@pytest.mark.slow
@pytest.mark.heavy
def test_images_are_clustered_too(tmp_path: Path) -> None:
    words = (
        f"output={tmp_path / 'run'}",
        "model.make.hidden=16",
        "model.make.heads=2",
        "model.adapt.steps=5",
        "stage.epochs=1",
        "training.workers=1",
        "partition.shards=2",
        "partition.slices=2",
        "sequences.budget=2",
        "partition.clusters={}",
        "aggregation.method=route",
    )
    config = load_config(ROOT / "configs/digits.yaml", words)
    train(config)
    with S3T.load(config.run_dir) as service:
        before = service.evaluate().value
        service.deactivate(["digit-0007"])
        assert 0 < service.evaluate().value <= 1 and 0 < before <= 1
