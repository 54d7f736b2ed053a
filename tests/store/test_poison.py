"""Node files that do not belong: no poisoned one is ever read."""

from __future__ import annotations

import pytest

from s3t.errors import IntegrityError
from s3t.run import RunDir
from tests.harness.damage.poison import KINDS, MARKER


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_no_poisoned_node_is_read(small_run: RunDir, name: str) -> None:
    node = small_run.plan().forest.nodes[0].key
    path = small_run.store.root / f"{node}.safetensors"
    KINDS[name](path)
    run = RunDir(small_run.root)
    if name.startswith("strangers"):
        assert run.store.strays() and run.store.read(node)
    else:
        with pytest.raises(IntegrityError, match=node):
            run.store.read(node)
    assert not list(small_run.root.rglob(MARKER))
