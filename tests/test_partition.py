"""Laws of the partition (invariant E3) and its empty slices."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3t.errors import DataError
from s3t.partition import partition, place
from s3t.plan.lineage import slice_digest
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


def test_places_are_the_same_in_another_process():
    code = (
        "from s3t.partition import place; from s3t.types import Sample;"
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
