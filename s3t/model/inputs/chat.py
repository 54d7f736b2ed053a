"""From a conversation to token ids, and which of them are to be learnt.

    without a template    ids of the prompt │ ids of the completion │ eos
                          0  0  0  0  0  0  │ 1  1  1  1  1  1  1  1│ 1      targets

    with a template       <|user|> Who? <|end|> <|bot|>│ I. <|end|>│ <|user|> …
                          rendered before the answer ──┘           │
                          rendered after it ───────────────────────┘   beginnings of the whole

Without a template the completion is tokenized on its own, and one space goes before it unless the
tokenizer puts one there by itself, the prompt ends with white space, or the completion begins with
it. With one, what is learnt are the stretches that its ``{% generation %}`` marks, or those between
the two renderings.

Invariants: the ids that ``prompt`` gives for a question are those that stand before its answer in
training, token by token; a template for which that does not hold is refused. What a row becomes
depends on the row, the tokenizer and the template alone: a template that asks for the date is told
the same day for ever (E2).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from s3t.config import Config
from s3t.data.conversations import ASSISTANT, Conversation
from s3t.data.files import one_line
from s3t.errors import InputError
from s3t.types import digest

__all__ = ["Chat", "Spoken", "chat_of"]

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_DAY = (
    "{% macro strftime_now(form) %}"
    "{{ {'%d %b %Y': '26 Jul 2024', '%d %B %Y': '26 July 2024'}.get(form, '2024-07-26') }}"
    "{% endmacro %}"
)
"""Goes before a template that asks for the date; the day is the one Llama 3's own falls back to."""

_CLOSING = 4
"""Tokens at the end of a conversation among which a template's end token is looked for: line breaks
may follow it."""


@dataclass(frozen=True, slots=True)
class Spoken:
    """A conversation as token ids, and 1 for each that is to be learnt."""

    ids: list[int]
    targets: list[int]


class Chat:
    """Tokenizes the conversations of a run.

    Args:
        tokenizer: of the base.
        template: a chat template in Jinja; None to join prompt and completion.
        completion_only: whether answers alone are learnt, or all.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, template: str | None, completion_only: bool
    ) -> None:
        self.tokenizer, self.template = tokenizer, template
        self.completion_only = completion_only
        dated = template is not None and "strftime_now" in template
        self._template = f"{_DAY}{template}" if dated else template
        self._marks = template is not None and _GENERATION.search(template) is not None
        self._eos: int | None = tokenizer.eos_token_id
        first = tokenizer.convert_ids_to_tokens(self._ids(["a"])[0][:1])
        self._spaces = bool(first) and first[0][:1] in ("▁", "Ġ")  # of its own accord

    def spoken(
        self, conversations: Sequence[Conversation]
    ) -> tuple[list[Spoken], dict[str, list[int]]]:
        """Tokens of conversations, and the numbers of those that have none, by the reason."""
        bad: dict[str, list[int]] = {}
        if self.template is None:
            return self._joined(conversations, bad), bad
        if self._marks and self.completion_only:
            return self._marked(conversations, bad), bad
        return self._rendered(conversations, bad), bad

    def prompt(self, conversation: Conversation) -> list[int]:
        """Token ids of a conversation that is to be answered.

        Raises:
            ValueError: it cannot be rendered, or needs a template.
        """
        if self.template is not None:
            return self._ids([self._render(conversation, None, ask=True)])[0]
        if [turn.role for turn in conversation.turns] != ["user"]:
            raise ValueError(
                "without data.chat_template a prompt is one text, or one message of the user"
            )
        return self._opened([conversation.turns[0].content])[0]

    def fingerprint(self) -> dict[str, Any]:
        """What of this shapes a node's bytes."""
        named = {name: str(token) for name, token in self.tokenizer.special_tokens_map.items()}
        return {
            "template": None if self.template is None else digest(self.template),
            "completion_only": self.completion_only,
            "special": named,
        }

    # ── without a template ───────────────────────────────────────────────────────────────────

    def _joined(
        self, conversations: Sequence[Conversation], bad: dict[str, list[int]]
    ) -> list[Spoken]:
        pairs = []
        for number, one in enumerate(conversations):
            if [turn.role for turn in one.turns] == ["user", ASSISTANT]:
                pairs.append((one.turns[0].content, one.turns[1].content))
            else:
                bad.setdefault("more than one question needs data.chat_template", []).append(number)
        opened = self._opened([prompt for prompt, _ in pairs])
        answers = self._ids([self._apart(*pair) + pair[1] for pair in pairs])
        end = [] if self._eos is None else [self._eos]
        return [
            self._learnt(before + after + end, [(len(before), None)])
            for before, after in zip(opened, answers, strict=True)
        ]

    def _apart(self, prompt: str, completion: str) -> str:
        """What stands between a prompt and its completion."""
        return "" if self._spaces or prompt[-1].isspace() or completion[0].isspace() else " "

    def _opened(self, prompts: Sequence[str]) -> list[list[int]]:
        """Ids of texts that are to go on: without a closing special token."""
        special = set(self.tokenizer.all_special_ids)
        found = self._ids(prompts, special=True)
        return [ids[:-1] if len(ids) > 1 and ids[-1] in special else ids for ids in found]

    # ── with a template ──────────────────────────────────────────────────────────────────────

    def _rendered(
        self, conversations: Sequence[Conversation], bad: dict[str, list[int]]
    ) -> list[Spoken]:
        """What is learnt lies between the renderings before and after each answer."""
        texts: list[str] = []
        spans: list[tuple[int, slice]] = []
        for number, one in enumerate(conversations):
            begun = len(texts)
            try:
                texts.append(self._render(one, None))
                for at, turn in enumerate(one.turns) if self.completion_only else ():
                    if turn.role == ASSISTANT:
                        texts.append(self._render(one, at, ask=True))
                        texts.append(self._render(one, at + 1))
            except ValueError as error:
                del texts[begun:]
                bad.setdefault(str(error), []).append(number)
            else:
                spans.append((number, slice(begun, len(texts))))
        found, ids = [], self._ids(texts)
        for number, span in spans:
            whole, *parts = ids[span]
            if any(part != whole[: len(part)] for part in parts):
                bad.setdefault(_TORN, []).append(number)
                continue
            lengths = [len(part) for part in parts]
            stretches = [*zip(lengths[::2], lengths[1::2], strict=True)]
            found.append(self._closed(conversations[number], whole, stretches))
        return found

    def _marked(
        self, conversations: Sequence[Conversation], bad: dict[str, list[int]]
    ) -> list[Spoken]:
        """What is learnt is what the template marks."""
        found = []
        for number, one in enumerate(conversations):
            try:
                out: Any = self.tokenizer.apply_chat_template(
                    one.messages(),
                    chat_template=self._template,
                    return_dict=True,
                    return_assistant_tokens_mask=True,
                )
            except Exception as error:  # of the template's code, whatever it raises
                bad.setdefault(_refused(error), []).append(number)
                continue
            spoken = self._closed(one, list(out["input_ids"]), [])
            marks = list(out["assistant_masks"])
            found.append(Spoken(spoken.ids, marks + spoken.targets[len(marks) :]))
        return found

    def _closed(
        self, one: Conversation, ids: list[int], stretches: Sequence[tuple[int, int]]
    ) -> Spoken:
        """The ids with an end where the template puts none behind the last answer."""
        ends = self._eos is None or self._eos in ids[-_CLOSING:]
        if ends or one.turns[-1].role != ASSISTANT:
            return self._learnt(ids, stretches)
        assert self._eos is not None
        return self._learnt([*ids, self._eos], [*stretches, (len(ids), None)])

    def _render(self, one: Conversation, turns: int | None, ask: bool = False) -> str:
        """The first turns as text, with ``ask`` up to where the assistant begins to speak."""
        try:
            text = self.tokenizer.apply_chat_template(
                one.messages(turns),
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=ask,
            )
        except Exception as error:  # of the template's code, whatever it raises
            raise ValueError(_refused(error)) from None
        return str(text)

    # ── both ─────────────────────────────────────────────────────────────────────────────────

    def _learnt(self, ids: list[int], stretches: Sequence[tuple[int, int | None]]) -> Spoken:
        if not self.completion_only:
            return Spoken(ids, [1] * len(ids))
        targets = [0] * len(ids)
        for start, stop in stretches:
            count = len(range(*slice(start, stop).indices(len(ids))))
            targets[start:stop] = [1] * count
        return Spoken(ids, targets)

    def _ids(self, texts: Sequence[str], special: bool = False) -> list[list[int]]:
        found: list[list[int]] = []
        for start in range(0, len(texts), 10_000):
            part = list(texts[start : start + 10_000])
            found += self.tokenizer(part, add_special_tokens=special, verbose=False)["input_ids"]
        return found


_TORN = (
    "the chat template writes what comes before an answer in another way once the answer is there, "
    "or tokens run across its beginning (choose a template with {% generation %} marks, or "
    "data.completion_only=false)"
)


def chat_of(config: Config, tokenizer: PreTrainedTokenizerBase) -> Chat | None:
    """How the config's rows of instructions become tokens; None if it has none.

    Raises:
        InputError: a chat template that is not there, or is not Jinja.
    """
    if not config.data.columns.instructs:
        return None
    chat = Chat(tokenizer, _template(config, tokenizer), config.data.learns_completions)
    if chat.template is not None:
        try:
            tokenizer.apply_chat_template(
                [{"role": "user", "content": "a"}], chat_template=chat.template, tokenize=False
            )
        except TemplateSyntaxError as error:
            raise InputError(
                f"data.chat_template {config.data.chat_template!r} is not a chat template "
                f"({one_line(error)})"
            ) from None
        except Exception:  # what it says of one message is told with the rows
            pass
    return chat


def _template(config: Config, tokenizer: PreTrainedTokenizerBase) -> str | None:
    named = config.data.chat_template
    if named is None:
        return None
    if named == "base":
        own = tokenizer.chat_template
        found = own.get("default") if isinstance(own, dict) else own
        if not found:
            raise InputError(
                f"data.chat_template=base: the tokenizer of {config.model.base!r} has no chat "
                "template: give the path of a Jinja file, or leave it out to join prompt and "
                "completion"
            )
        return str(found)
    if "{" in named:  # the template itself
        return named
    try:
        return Path(named).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"data.chat_template {named!r} cannot be read ({one_line(error)}): give 'base', or "
            "the path of a Jinja file"
        ) from None


def _refused(error: Exception) -> str:
    return f"the chat template refuses it ({one_line(error)})"
