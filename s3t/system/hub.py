"""Whether the hub of models and data sets can be reached, asked once before anything is loaded.

Its clients ask five times for each file, and say nothing for a minute where there is no network.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

__all__ = ["hub_in_reach"]

_PATIENCE = 5.0
"""Seconds in which the hub is to answer at all."""

_REMEMBERED = 60
"""Seconds for which its answer counts: a notebook may find a network again."""


@contextmanager
def hub_in_reach() -> Iterator[str]:
    """Load what the hub names in the block; without a network from its cache alone, at once.

    Yields:
        A sentence that says why the hub cannot be reached; empty if it can.
    """
    reason = _unreachable(int(time.monotonic() // _REMEMBERED))
    if not reason:
        yield ""
        return
    import datasets.config
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield f"{reason}, and it is not in the hub's cache here"
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


@lru_cache(maxsize=1)
def _unreachable(minute: int) -> str:
    """Why it cannot be reached; asked once for all that is loaded in a minute."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    if constants.HF_HUB_OFFLINE:
        return ""  # then its clients look in the cache alone, and say so
    try:
        get_session().head(constants.ENDPOINT, timeout=_PATIENCE)
    except Exception as error:  # of the client that this version of huggingface_hub has
        return f"the hub {constants.ENDPOINT} cannot be reached ({error})"
    return ""
