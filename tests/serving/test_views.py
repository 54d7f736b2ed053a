"""Views that come into force and go: who is waited for, and what was served too long."""

from __future__ import annotations

import threading
from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

import pytest

from s3t.serving.views import View, Views
from s3t.types import NodeKey


def view(version: int, *keys: str) -> View:
    nodes: Any = tuple(SimpleNamespace(key=NodeKey(key)) for key in keys)
    return View(version, nodes, None, {})


def put(views: Views, new: View, dead: Collection[str] = ()) -> None:
    views.put(new, lambda key: key not in dead)


def test_a_death_spoils_what_served_it() -> None:
    views = Views()
    put(views, view(3, "a", "b"))
    put(views, view(4, "c", "b"), dead={"a"})
    assert [views.spoilt(version) for version in (2, 3, 4)] == [True, True, False]


def test_so_does_one_that_comes_when_nothing_serves_it_any_more() -> None:
    """A repair has replaced a node; answers that came from it may still be on their way."""
    views = Views()
    put(views, view(1, "a"))
    put(views, view(2, "b"))  # a repair's: "a" lives, and nothing serves it
    assert not views.spoilt(1)
    put(views, view(3, "b"), dead={"a"})
    assert [views.spoilt(version) for version in (1, 2, 3)] == [True, False, False]


def test_what_is_forgotten_is_spoilt() -> None:
    views = Views()
    for version in range(200):
        put(views, view(version, "a"))
    assert views.spoilt(100) and not views.spoilt(190)


def test_nothing_in_force_spoils_all_before() -> None:
    views = Views()
    put(views, view(1, "a"))
    views.drop(2)
    assert views.current is None and views.pin() is None
    assert views.spoilt(1) and not views.spoilt(2)
    put(views, view(5, "a"))
    assert views.spoilt(4) and not views.spoilt(5)


def test_older_views_are_waited_for() -> None:
    views = Views()
    put(views, view(1, "a"))
    first, second = views.pin(), views.pin()
    put(views, view(2, "a"))
    third = views.pin()
    assert first is not None and second is not None and third is not None
    assert views.oldest(2) == 1 and not views.wait(2, 0.01)
    done = threading.Event()
    thread = threading.Thread(target=lambda: (views.wait(2), done.set()))
    thread.start()
    views.unpin(first)
    assert not done.wait(0.05)
    views.unpin(second)
    assert done.wait(5), "readers of the view in force are not waited for"
    thread.join()
    assert views.oldest(2) == 2


@pytest.mark.parametrize("readers", [0, 1])
def test_a_view_without_readers_is_left_at_once(readers: int) -> None:
    views = Views()
    put(views, view(1, "a"))
    for _ in range(readers):
        views.pin()
    views.drop(2)
    assert views.wait(2, 0.01) is (readers == 0)
