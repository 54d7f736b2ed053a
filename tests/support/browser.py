"""A real headless Chromium for tests of the page; they skip with a reason where there is none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
DESK = {"width": 1280, "height": 900}
PHONE = {"width": 360, "height": 740}


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser of Debian's or of whoever has put one on the PATH."""
    path = os.environ.get("S3T_CHROMIUM") or shutil.which("chromium")
    if path is None:
        pytest.skip("no chromium on the PATH: apt-get install chromium, or name it S3T_CHROMIUM")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Tab:
    """A tab, and what went wrong in it.

    Attributes:
        page: playwright's page.
        problems: errors of scripts, and lines of the console that say error or warning.
        asked: addresses that it loaded from.
    """

    page: Any
    problems: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def overflow(self) -> int:
        """By how many pixels the page is wider than the window."""
        found: int = self.page.evaluate("document.documentElement.scrollWidth - innerWidth")
        return found

    def grid(self) -> dict[str, str]:
        """What the cells of shards × slices show, by ``shard:slice``."""
        found: dict[str, str] = self.page.evaluate(
            "Object.fromEntries([...document.querySelectorAll('[data-slot]')]"
            ".map(one => [one.dataset.slot, one.dataset.state]))"
        )
        return found

    def tree(self) -> dict[str, str]:
        """States of the nodes that are drawn, by key."""
        found: dict[str, str] = self.page.evaluate(
            "Object.fromEntries([...document.querySelectorAll('#tree [data-key]')]"
            ".map(one => [one.dataset.key, one.dataset.state]))"
        )
        return found


@contextmanager
def tab(browser: Any, size: dict[str, int] = DESK, scheme: str = "light") -> Iterator[Tab]:
    """A tab of a profile of its own."""
    context = browser.new_context(viewport=size, color_scheme=scheme)
    context.set_default_timeout(8000)
    made = Tab(context.new_page())
    made.page.on("pageerror", lambda error: made.problems.append(str(error)))
    made.page.on(
        "console",
        lambda said: said.type in ("error", "warning") and made.problems.append(said.text),
    )
    made.page.on("request", lambda request: made.asked.append(request.url))
    try:
        yield made
    finally:
        context.close()


def expected_grid(picture: dict[str, Any]) -> dict[str, str]:
    """What the cells have to show of a picture."""
    hits = {tuple(slot) for slot in picture["hits"]}
    return {
        f"{shard}:{part}": (
            "hit" if (shard, part) in hits else "serving" if part in prefix else "intact"
        )
        for shard, prefix in enumerate(picture["serving"])
        for part in range(picture["slices"])
    }


def expected_tree(picture: dict[str, Any], shard: int) -> dict[str, str]:
    """Which nodes the tree of a shard has to show."""
    return {node["key"]: node["state"] for node in picture["nodes"] if node["shard"] == shard}
