"""Conversations: turns with a role and a content, as values.

    prompt, completion          ─┐
    messages: [{role, content}] ─┴► Conversation ─► digest: roles and contents

Invariant: a conversation to learn from has a turn of the assistant, and nothing was left out. A
message with another role than the three, or with more than a role and a content, is refused (E8).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from s3t.data.files import TWICE, once

__all__ = ["ASSISTANT", "ROLES", "Conversation", "Turn", "conversation_of", "is_text"]

ASSISTANT = "assistant"
ROLES = ("system", "user", ASSISTANT)

# JSON can spell half of a surrogate pair, which has no bytes in UTF-8, hence no digest.
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Turn:
    """One message: its role and its content."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in order."""

    turns: tuple[Turn, ...]

    @classmethod
    def of(cls, prompt: str, completion: str) -> Conversation:
        """A conversation of two turns: the user's prompt and the assistant's completion."""
        return cls((Turn("user", prompt), Turn(ASSISTANT, completion)))

    def messages(self, turns: int | None = None) -> list[dict[str, str]]:
        """The first ``turns`` turns, default all, as ``{role, content}`` for a chat template."""
        return [{"role": turn.role, "content": turn.content} for turn in self.turns[:turns]]


def conversation_of(value: Any, asking: bool = False) -> Conversation:
    """Read a conversation from a list of ``{role, content}``, or from the same as JSON text.

    Args:
        value: the cell of the column.
        asking: True if the model is to answer it, so it must not end with an answer; False if it
            is learnt from, so it must hold one.

    Raises:
        ValueError: what is wrong, as the rest of a sentence that begins with "messages".
    """
    if isinstance(value, str):
        try:
            value = json.loads(value, object_pairs_hook=once)
        except (ValueError, RecursionError) as error:
            twice = f" ({error})" if str(error).startswith(TWICE) else ""
            what = f"are not a list of {{role, content}}, nor that as JSON{twice}"
            raise ValueError(what) from None
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise ValueError("are not a list of {role, content}, nor that as JSON")
    if not value:
        raise ValueError("are empty")
    turns = tuple(_turn(message) for message in value)
    if turns[0].role == ASSISTANT:
        raise ValueError(f"begin with the {ASSISTANT}, who has nothing to answer")
    if asking and turns[-1].role == ASSISTANT:
        raise ValueError(f"end with the {ASSISTANT}: end with what is to be answered")
    if not asking and all(turn.role != ASSISTANT for turn in turns):
        raise ValueError(f"have no turn of the {ASSISTANT}, so there is nothing to learn")
    return Conversation(turns)


def is_text(value: Any) -> bool:
    """Whether a value is text that can be encoded in UTF-8."""
    return isinstance(value, str) and not _SURROGATE.search(value)


def _turn(message: Any) -> Turn:
    if not isinstance(message, Mapping):
        raise ValueError("hold something else than {role, content}")
    held = {key: value for key, value in message.items() if value is not None}
    if more := sorted({*map(str, held)} - {"role", "content"}):
        raise ValueError(f"hold {more[0]!r}, and only role and content are understood")
    role, content = held.get("role"), held.get("content")
    if role not in ROLES:
        raise ValueError(f"have the role {role!r}, expected {', '.join(ROLES)}")
    if content is not None and not is_text(content):
        raise ValueError("hold a content that is not valid text")
    if not content or not content.strip():
        raise ValueError(f"hold an empty content of the {role}")
    return Turn(role, content)
