"""What may have been meant by names that a run does not hold."""

from __future__ import annotations

import pytest

from s3t.cli.parsing import near_names
from s3t.errors import UnknownSampleError
from s3t.ledger import SampleEntry
from s3t.types import SampleId, Subject

HELD = [
    SampleEntry(SampleId(f"row-{n}"), Subject(who), 0, 0, deleted=False)
    for n, who in enumerate(("anna@example.org", "ben@example.org", "carol"))
]


@pytest.mark.parametrize(
    ("ids", "subjects", "said"),
    [
        ([], ["ana@example.org"], "did you mean 'anna@example.org'"),
        ([], ["CAROL"], "did you mean 'carol'"),
        ([], ["row-1"], "'row-1' is a sample id: name it by --ids"),
        (["carol"], [], "'carol' is a person: name it by --subjects"),
        (["row_1"], [], "'row-1'"),
    ],
)
def test_it_is_told(ids: list[str], subjects: list[str], said: str) -> None:
    (told,) = near_names(UnknownSampleError(ids, subjects, "run"), HELD)
    assert said in told


def test_where_nothing_is_near_nothing_is_told() -> None:
    assert list(near_names(UnknownSampleError(["x"], ["zebra"], "run"), HELD)) == []
