"""Conversations become tokens of which exactly the answers are learnt, whatever the template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from s3t.config import Config
from s3t.data.conversations import Conversation, Turn
from s3t.errors import DataError, InputError
from s3t.model.built import byte_tokenizer
from s3t.model.inputs.chat import Chat, chat_of
from s3t.model.inputs.encoders import TextEncoder

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}</s>{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
THINKING = (  # what an earlier answer looks like changes with the turns after it
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' and not loop.last %}…"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>"
    "{% endif %}"
)
ONE = Conversation.of("Who?", "I am.")
TALK = Conversation(
    (
        Turn("system", "be short"),
        Turn("user", "a?"),
        Turn("assistant", "one"),
        Turn("user", "b?"),
        Turn("assistant", "two"),
    )
)


def chatml_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    return tokenizer


def spaced_tokenizer() -> PreTrainedTokenizerFast:
    """One that puts a space before each text of its own accord, as Llama's."""
    letters = ["<unk>", "<s>", "</s>", "▁", *"abcdefghijklmnopqrstuvwxyz?.AI"]
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def learnt(encoder: TextEncoder, one: Conversation) -> tuple[str, str]:
    """What is given and what is learnt of a row, in its tokenizer's own tokens."""
    rows = encoder.encode([one])
    assert rows.mask is not None and rows.targets is not None
    tokens = encoder.tokenizer.convert_ids_to_tokens(rows.values[0].tolist())
    marks = zip(tokens, rows.mask[0].tolist(), rows.targets[0].tolist(), strict=True)
    held = [(token, target) for token, real, target in marks if real]
    assert not rows.targets[rows.mask == 0].any()
    return tuple("".join(t for t, target in held if target == side) for side in (0, 1))  # type: ignore[return-value]


def encoder_of(
    tokenizer: Any, template: str | None, only: bool = True, n: int = 160
) -> TextEncoder:
    return TextEncoder(tokenizer, n, Chat(tokenizer, template, only))


# ── without a template ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("prompt", "completion", "learnt_"),
    [
        ("Who?", "I.", "ĠI.</s>"),
        ("Who? ", "I.", "I.</s>"),
        ("Who?\n", "I.", "I.</s>"),
        ("Who?", "\nI.", "ĊI.</s>"),
        ("Who?", "  I.", "ĠĠI.</s>"),
    ],
)
def test_one_space_stands_before_a_completion_that_brings_none(
    prompt: str, completion: str, learnt_: str
) -> None:
    given, answer = learnt(encoder_of(byte_tokenizer(), None), Conversation.of(prompt, completion))
    assert answer == learnt_
    assert given == "<s>" + prompt.replace(" ", "Ġ").replace("\n", "Ċ")


def test_a_tokenizer_that_brings_the_space_is_given_none() -> None:
    given, answer = learnt(encoder_of(spaced_tokenizer(), None), Conversation.of("who?", "I am."))
    assert (given, answer) == ("<s>▁who?", "▁I▁am.</s>")


@pytest.mark.parametrize("tokenizer", [byte_tokenizer(), spaced_tokenizer()])
def test_a_prompt_has_the_ids_that_stand_before_its_completion(tokenizer: Any) -> None:
    encoder = encoder_of(tokenizer, None)
    rows = encoder.encode([Conversation.of("who are you?", "I am.")])
    prompt = encoder.prompt("who are you?")
    assert rows.targets is not None
    assert rows.values[0, : len(prompt)].tolist() == prompt
    assert rows.targets[0].tolist().index(1) == len(prompt)


# ── with one ─────────────────────────────────────────────────────────────────────────────────


def test_all_turns_of_the_assistant_are_learnt_and_nothing_else() -> None:
    encoder = encoder_of(chatml_tokenizer(), CHATML)
    given, answer = learnt(encoder, TALK)
    assert answer == "one<|im_end|>Ċtwo<|im_end|>Ċ</s>", "with an end, which this template has not"
    assert given.startswith("<|im_start|>systemĊbeĠshort<|im_end|>Ċ<|im_start|>user")
    assert given.endswith("<|im_start|>userĊb?<|im_end|>Ċ<|im_start|>assistantĊ")


def test_marks_of_a_template_say_what_is_learnt() -> None:
    encoder = encoder_of(byte_tokenizer(), MARKED)
    assert learnt(encoder, TALK)[1] == "one</s>two</s>", "and no second end"


def test_all_is_learnt_if_asked_for() -> None:
    rows = encoder_of(byte_tokenizer(), MARKED, only=False).encode([TALK])
    assert rows.targets is None
    thinking = encoder_of(byte_tokenizer(), THINKING, only=False).encode([TALK])
    assert thinking.mask is not None and thinking.mask.any()


def test_questions_of_every_form_have_the_ids_of_training() -> None:
    encoder = encoder_of(chatml_tokenizer(), CHATML)
    rows = encoder.encode([ONE, TALK])
    assert rows.targets is not None
    asked = encoder.prompt("Who?")
    assert asked == encoder.prompt([{"role": "user", "content": "Who?"}])
    assert rows.values[0, : len(asked)].tolist() == asked
    assert rows.targets[0].tolist().index(1) == len(asked)
    talk = encoder.prompt(TALK.messages(4))
    assert rows.values[1, : len(talk)].tolist() == talk
    assert rows.targets[1, len(talk)] == 1


def test_a_template_that_rewrites_earlier_turns_is_refused_by_row() -> None:
    encoder = encoder_of(byte_tokenizer(), THINKING)
    encoder.encode([ONE])
    with pytest.raises(DataError, match=r"rows 12, 14: the chat template writes what comes before"):
        encoder.encode([ONE, TALK, ONE, TALK], numbers=[11, 12, 13, 14])


def test_a_template_across_whose_boundary_tokens_run_is_refused() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([": I"])
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    template += "{% if add_generation_prompt %}assistant: {% endif %}"
    with pytest.raises(DataError, match="row 1: the chat template"):
        encoder_of(tokenizer, template).encode([ONE])


def test_a_template_that_refuses_a_row_is_told_with_it() -> None:
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    encoder = encoder_of(byte_tokenizer(), template + CHATML)
    with pytest.raises(DataError, match=r"row 2: the chat template refuses it \(.*no system"):
        encoder.encode([ONE, TALK])


def test_a_template_that_asks_for_the_date_is_told_the_same_day() -> None:
    template = "{{ strftime_now('%d %b %Y') }}{{ strftime_now('%Y') }}" + CHATML
    text = encoder_of(chatml_tokenizer(), template)
    assert text.decode(text.prompt("a")).startswith("26 Jul 20242024-07-26")


# ── problems ─────────────────────────────────────────────────────────────────────────────────


def test_a_row_of_whose_answer_nothing_is_left_is_a_problem_with_the_length_needed() -> None:
    encoder = encoder_of(byte_tokenizer(), None, n=16)
    kept = encoder.encode([Conversation.of("a" * 14, "bcd"), ONE])
    assert kept.truncated == 1
    assert kept.targets is not None and kept.targets.sum(dim=1).tolist() == [1, 7]
    rows = [ONE, Conversation.of("a" * 20, "b"), Conversation.of("a" * 40, "b")]
    with pytest.raises(DataError, match=r"rows 8, 9: data.max_length 16 .* in 2 of 3.* to 48"):
        encoder.encode(rows, numbers=[7, 8, 9])
    assert encoder_of(byte_tokenizer(), None, False, 16).encode(rows).truncated == 2


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (3, "not a list"),
        ("", "text is expected"),
        ([], "empty"),
        ([{"role": "assistant", "content": "x"}], "begin with the assistant"),
        (TALK.messages(), "end with the assistant"),
        ([{"role": "user", "content": "x", "name": "y"}], "hold 'name'"),
    ],
)
def test_what_is_no_question_is_refused(asked: Any, why: str) -> None:
    with pytest.raises(DataError, match=why):
        encoder_of(chatml_tokenizer(), CHATML).prompt(asked)


def test_messages_need_a_template() -> None:
    encoder = encoder_of(byte_tokenizer(), None)
    assert encoder.prompt([{"role": "user", "content": "a"}]) == encoder.prompt("a")
    with pytest.raises(DataError, match=r"without data.chat_template a prompt is one text"):
        encoder.prompt(TALK.messages(4))
    with pytest.raises(DataError, match=r"row 1: more than one question needs data.chat_template"):
        encoder.encode([TALK])
    with pytest.raises(DataError, match="conversations are expected, got str"):
        encoder.encode(["text"])


# ── what the config names ────────────────────────────────────────────────────────────────────


def config_of(**data: Any) -> Config:
    public = {"format": "json", "files": "public.jsonl"}
    tree = {"private": public, "public": {"validation": public, "test": public}, **data}
    base = {"task": "causal-lm", "model": {"base": "make:gpt2"}}
    return Config.model_validate({**base, "data": tree})


def test_a_template_comes_from_base_file_or_config(tmp_path: Path) -> None:
    columns, tokenizer = {"messages": "m"}, chatml_tokenizer()
    path = tmp_path / "chat.jinja"
    path.write_text(MARKED)
    found = [
        chat_of(config_of(columns=columns, chat_template=named), tokenizer)
        for named in ("base", str(path), CHATML)
    ]
    assert [one.template for one in found if one] == [CHATML, MARKED, CHATML]
    prints = [TextEncoder(tokenizer, 16, one).fingerprint() for one in (*found, None)]
    assert prints[0] == prints[2] != prints[1]
    assert "chat" not in prints[3], "runs of texts keep their keys"
    assert chat_of(config_of(), tokenizer) is None


def test_templates_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    columns = {"messages": "m"}
    for named, why in (
        ("base", "has no chat template"),
        (str(tmp_path / "none.jinja"), "cannot be read"),
        ("{% for m in messages %}", "is not a chat template"),
    ):
        with pytest.raises(InputError, match=why):
            chat_of(config_of(columns=columns, chat_template=named), byte_tokenizer())


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ({"columns": {"messages": "m"}}, "needs chat_template"),
        ({"chat_template": "base"}, "chat_template needs columns.prompt"),
        ({"completion_only": True}, "completion_only needs columns.prompt"),
        ({"columns": {"prompt": "p"}}, "go together"),
    ],
)
def test_configs_that_say_half_of_it_are_refused(data: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        config_of(**data)


def test_instructions_are_for_language_models() -> None:
    config = config_of(columns={"prompt": "p", "completion": "c"})
    assert config.data.learns_completions and not config.problems()
    other = config.model_copy(update={"task": "text-classification"})
    assert any("do not fit task 'text-classification'" in problem for problem in other.problems())
