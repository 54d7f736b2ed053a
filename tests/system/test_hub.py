"""Where the hub cannot be reached, its cache is asked at once, and the reason is told."""

from __future__ import annotations

from collections.abc import Iterator

import datasets.config
import huggingface_hub.utils
import pytest
from huggingface_hub import constants

from s3t.system import hub


class Client:
    def head(self, url: str, timeout: float) -> None:
        raise ConnectionError(f"no way to {url} in {timeout:g} s")


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.utils, "get_session", Client)
    hub._unreachable.cache_clear()
    yield
    hub._unreachable.cache_clear()


def test_its_clients_look_in_the_cache_alone(unreachable: None) -> None:
    with hub.hub_in_reach() as reason:
        assert "cannot be reached (no way to https://" in reason and "in 5 s" in reason
        assert constants.HF_HUB_OFFLINE and datasets.config.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE and not datasets.config.HF_HUB_OFFLINE


def test_who_is_offline_on_purpose_asks_nothing(
    unreachable: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with hub.hub_in_reach() as reason:
        assert reason == ""
