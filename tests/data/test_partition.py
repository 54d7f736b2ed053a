"""Laws of the partition (invariant E3) and its empty slices."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3t.config import PartitionConfig
from s3t.data.partition import partition, place, slice_digest, slice_rates, tier_slices
from s3t.errors import DataError
from s3t.types import Digest, Place, Sample, SampleId, Subject, digest

SUBJECTS = st.none() | st.text(st.characters(codec="utf-8"), min_size=1, max_size=6)
SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 5))


def sample(number: int, subject: str | None = None) -> Sample:
    return Sample(
        SampleId(f"s{number}"), Subject(subject) if subject else None, digest(["row", number])
    )


@st.composite
def populations(draw: st.DrawFn) -> list[Sample]:
    """Enough samples to fill two slices, and some more with subjects."""
    subjects = draw(st.lists(SUBJECTS, max_size=12))
    return [sample(n) for n in range(40)] + [sample(40 + n, s) for n, s in enumerate(subjects)]


@given(populations(), st.data())
def test_a_place_does_not_depend_on_other_samples(samples: list[Sample], data: st.DataObject):
    kept = samples[:40] + data.draw(
        st.lists(st.sampled_from(samples[40:]), unique=True) if samples[40:] else st.just([])
    )
    whole = dict(partition(samples, 1, 2, "salt").places())
    part = dict(partition(data.draw(st.permutations(kept)), 1, 2, "salt").places())
    assert all(whole[one] == at for one, at in part.items())


@given(SUBJECTS.filter(bool), SHAPES, st.text(st.characters(codec="utf-8"), max_size=5))
def test_a_subject_has_one_place(subject: str, shape: tuple[int, int], salt: str):
    places = {place(sample(number, subject), *shape, salt) for number in range(10)}
    assert len(places) == 1
    (only,) = places
    assert 0 <= only.shard < shape[0] and 0 <= only.slice < shape[1]


def test_exact_copies_have_one_place_whatever_their_ids():
    copies = [Sample(SampleId(name), None, Digest("c" * 64)) for name in "abc"]
    assert len({place(copy, 8, 8, "s3t") for copy in copies}) == 1


def test_subject_and_content_are_different_keys():
    same = [
        (
            Sample(SampleId("a"), Subject(str(n)), Digest("x")),
            Sample(SampleId("a"), None, Digest(str(n))),
        )
        for n in range(50)
    ]
    assert any(place(one, 16, 16, "s3t") != place(other, 16, 16, "s3t") for one, other in same)


def test_known_places():
    assert place(sample(0), 4, 4, "s3t") == Place(2, 3)
    assert place(sample(0, "ann"), 4, 4, "s3t") == Place(2, 2)
    assert place(sample(0, "ann"), 4, 4, "other") == Place(3, 0)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((4, 4, "s3t"), "d43ac1bf9ccedfdae7f511a0b9b87ac1c0e8245a4a706f2f74751f05181875a0"),
        ((3, 5, ""), "fed1cf1fc4ce269fefcb30434534ee879ee73542e5b421c753fa9d4ea68ff078"),
        ((7, 2, "é"), "1ccfe26047b26262cf2cfda314c20026fdfe683f267d9e5fb6394be77a3f38f3"),
    ],
)
def test_places_without_tiers_are_those_of_the_first_version(
    shape: tuple[int, int, str], expected: str
):
    samples = [sample(n, f"person {n}" if n % 2 else None) for n in range(200)]
    one_tier = tier_slices(PartitionConfig(slices=shape[1]))
    for tiers in (None, one_tier):
        places = [place(one, *shape, tiers) for one in samples]
        assert digest([[at.shard, at.slice] for at in places]) == expected


def test_places_are_the_same_in_another_process():
    code = (
        "from s3t.data.partition import place; from s3t.types import Sample;"
        "print([place(Sample('i', f'p{n}', 'c'), 4, 5, 'x') for n in range(20)])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = [
        place(Sample(SampleId("i"), Subject(f"p{n}"), Digest("c")), 4, 5, "x") for n in range(20)
    ]
    assert told.stdout.strip() == str(here)


@pytest.mark.parametrize("subjects", [True, False])
def test_places_are_roughly_uniform(subjects: bool):
    samples = [sample(n, f"person {n}" if subjects else None) for n in range(16_000)]
    sizes = [size for row in partition(samples, 4, 4, "s3t").sizes() for size in row]
    chi_square = sum((size - 1000) ** 2 / 1000 for size in sizes)
    assert chi_square < 37.7  # 15 degrees of freedom, p = 0.001


def test_members_are_sorted_and_digested():
    samples = [sample(n) for n in range(60)]
    result = partition(reversed(samples), 2, 3, "s3t")
    assert (result.shards, result.slices) == (2, 3)
    assert sum(map(sum, result.sizes())) == 60
    for row, digests in zip(result.members, result.digests(), strict=True):
        for members, found in zip(row, digests, strict=True):
            assert list(members) == sorted(members, key=lambda one: one.id)
            assert found == slice_digest(members)
    assert {one for one, _ in result.places()} == set(samples)
    assert all(place(one, 2, 3, "s3t") == at for one, at in result.places())
    assert result == partition(samples, 2, 3, "s3t")


def test_every_empty_slice_is_named_with_advice():
    samples = [sample(n, "ann") for n in range(9)]
    taken = place(samples[0], 2, 2, "s3t")
    with pytest.raises(DataError) as caught:
        partition(samples, 2, 2, "s3t")
    assert len(caught.value.problems) == 3
    for shard in range(2):
        for slice_ in range(2):
            named = f"shard {shard} slice {slice_} " in str(caught.value)
            assert named == (Place(shard, slice_) != taken)
    assert "9 samples (1 subjects" in caught.value.problems[0]
    for advice in ("fewer shards or slices", "partition.salt", "more data"):
        assert advice in caught.value.problems[0]


def test_many_empty_slices_are_summarised():
    with pytest.raises(DataError, match=r"64 of 64 slices .* and 54 more") as caught:
        partition([], 8, 8, "s3t")
    assert len(caught.value.problems) == 1


def test_an_id_that_occurs_twice_is_refused():
    with pytest.raises(DataError, match="ids occur twice: 's3'"):
        partition([*(sample(n) for n in range(9)), sample(3)], 1, 1, "s3t")


# ── risk tiers ───────────────────────────────────────────────────────────────────────────────


def shape_of(parts: int, /, **risk: Any) -> PartitionConfig:
    tree = {"slices": parts, "risk": {"column": "age", **risk} if risk else None}
    return PartitionConfig.model_validate(tree)


@pytest.mark.parametrize(
    ("shape", "tiers", "rates"),
    [
        (shape_of(4), (4,), None),
        (shape_of(4, thresholds=[1]), (2, 2), None),
        (shape_of(5, thresholds=[1], rates=[2, 2]), (3, 2), None),
        (shape_of(5, quantiles=[0.3, 0.6], rates=[1, 2, 0]), (2, 2, 1), (1, 1, 2, 2, 0)),
        (shape_of(5, thresholds=[1], slices=[1, 4], rates=[0.5, 3]), (1, 4), (0.5, 3, 3, 3, 3)),
    ],
)
def test_each_tier_owns_slices_and_gives_them_its_rate(
    shape: PartitionConfig, tiers: tuple[int, ...], rates: tuple[float, ...] | None
):
    assert tier_slices(shape) == tiers
    assert slice_rates(shape) == rates


def test_a_tier_is_dealt_across_all_shards_and_stays_in_its_slices():
    samples = [replace(sample(n), tier=n % 3) for n in range(3_000)]
    sizes = partition(samples, 4, 6, "s3t", (1, 3, 2)).sizes()
    columns = [[row[slice_] for row in sizes] for slice_ in range(6)]
    for first, count in ((0, 1), (1, 3), (4, 2)):
        dealt = [size for column in columns[first : first + count] for size in column]
        assert sum(dealt) == 1000
        assert min(dealt) > 0.6 * 1000 / len(dealt)


@given(populations(), st.lists(st.integers(1, 3), min_size=1, max_size=3), st.data())
def test_with_tiers_too_no_place_depends_on_other_samples(
    samples: list[Sample], tiers: list[int], data: st.DataObject
):
    tier: dict[str, int] = {}
    for one in samples:  # a person is of one tier
        tier.setdefault(one.subject or one.id, data.draw(st.integers(0, len(tiers) - 1)))
    samples = [replace(one, tier=tier[one.subject or one.id]) for one in samples]
    kept = data.draw(st.lists(st.sampled_from(samples), unique=True))
    shape = (2, sum(tiers), "salt", tiers)
    whole = dict(partition(samples, *shape, allow_empty=True).places())
    part = dict(partition(kept, *shape, allow_empty=True).places())
    assert all(whole[one] == at for one, at in part.items())
    owner = [number for number, count in enumerate(tiers) for _ in range(count)]
    assert all(owner[at.slice] == one.tier for one, at in whole.items())
    places = {(one.subject, at) for one, at in whole.items() if one.subject}
    assert len(places) == len({subject for subject, _ in places})


def test_an_empty_slice_names_its_tier():
    samples = [sample(n) for n in range(50)]
    with pytest.raises(DataError) as caught:
        partition(samples, 1, 3, "s3t", (2, 1))
    (problem,) = caught.value.problems
    assert problem.startswith("shard 0 slice 2 (tier 1) got none of the 50 samples")
    assert problem.endswith("or other thresholds or slices in partition.risk")


def test_a_tier_shapes_no_digest():
    assert slice_digest([sample(1)]) == slice_digest([replace(sample(1), tier=1)])
