"""The config as text: what is read back is what was given, whatever names the columns have."""

from __future__ import annotations

from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st

from s3t.run.init.text import config_text

VALUES = st.recursive(
    st.text() | st.integers() | st.floats(allow_nan=False) | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)
SECTIONS = st.dictionaries(st.sampled_from(["base", "labels", "cut_from", "adapt"]), VALUES)
TREES = st.dictionaries(st.sampled_from(["task", "data", "model", "stage"]), SECTIONS | VALUES)


@given(TREES)
def test_it_is_read_back_as_it_was(tree: dict[str, Any]) -> None:
    assert (yaml.safe_load(config_text(tree, ["# head", ""])) or {}) == tree


def test_lines_are_short_and_keys_have_comments() -> None:
    tree = {"data": {"cut_from": "private", "columns": {"text": "x" * 60, "label": "y" * 60}}}
    lines = config_text(tree, []).splitlines()
    assert lines[:3] == ["", "# What is learnt. Private rows can be forgotten.", "data:"]
    assert any(line.startswith("  # These parts of the private rows") for line in lines)
    assert max(map(len, lines)) <= 100
