"""A process that comes late is told that the main one is through."""

from __future__ import annotations

from datetime import timedelta

import pytest
from torch.distributed import TCPStore

from s3t.training.work import agent_store


@pytest.fixture(autouse=True)
def forgotten() -> None:
    agent_store._store.cache_clear()


def test_who_comes_late_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for name, value in (
        ("TORCHELASTIC_USE_AGENT_STORE", "True"),
        ("TORCHELASTIC_RUN_ID", "none"),
        ("TORCHELASTIC_RESTART_COUNT", "0"),
        ("MASTER_ADDR", "127.0.0.1"),
        ("MASTER_PORT", str(agent.port)),
    ):
        monkeypatch.setenv(name, value)
    assert not agent_store.main_ended()
    agent_store.tell_ended()
    assert agent_store.main_ended()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert not agent_store.main_ended(), "an attempt before it is another one"


def test_without_an_agent_no_end_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    agent_store.tell_ended()
    assert not agent_store.main_ended()


def test_an_agent_out_of_reach_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    port = gone.port
    del gone
    monkeypatch.setattr(agent_store, "_PATIENCE", timedelta(seconds=1))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    assert not agent_store.main_ended()
