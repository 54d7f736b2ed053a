"""Texts continued with kept keys and values are those of whole texts, run again for each token."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

from s3t import S3T
from s3t.errors import InputError, UnavailableError
from s3t.model.base import Base
from s3t.model.inputs.encoders import Encoded
from s3t.model.prototypes import Prototypes
from s3t.serving.ensemble.ensemble import Ensemble, Member
from s3t.serving.generation.completion import TextGenerator, _warped
from s3t.serving.generation.kv_steps import find_kv_steps
from s3t.types import Draw
from tests.serving.test_routing import prototypes_near
from tests.support.tiny import (
    DECODERS,
    VOCABULARY,
    from_config,
    random_adapter,
    tiny_base,
    tiny_model,
)

DEPTH = 4
LENGTH = 40
LOWEST = (2, 0, 3, 0, DEPTH)
"""Lowest adapted layers of five shards; the last has no adapter at all."""

TOLERANCE = 1e-4
"""Of log probabilities in float32, as for any two ways to compute them."""

BY_DEFAULT_TWO = [
    name if name in ("gpt2", "qwen2") else pytest.param(name, marks=pytest.mark.heavy)
    for name in DECODERS
]
"""Positions that are learned, and that are turned into keys which heads share."""

METHODS = ("mean-probabilities", "mean-logits", "vote", "mean-adapters")


def gather(
    base: Base, method: str = "mean-probabilities", prototypes: Prototypes | None = None
) -> Ensemble:
    members = [
        Member(shard, lowest, random_adapter(base.targets, lowest, seed=shard), 10 + shard)
        for shard, lowest in enumerate(LOWEST)
    ]
    return Ensemble(base, members, 2.0, method, "data", None, prototypes)


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    """Token ids of different lengths, one of them twice."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [7, 3, 19, 7, 12, 1][:count]
    return [torch.randint(3, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


def padded(rows: Sequence[Sequence[int]]) -> Encoded:
    values = torch.zeros((len(rows), max(map(len, rows))), dtype=torch.int64)
    mask = values.clone()
    for number, row in enumerate(rows):
        values[number, : len(row)] = torch.tensor(row)
        mask[number, : len(row)] = 1
    return Encoded(values, mask)


def begun(ensemble: Ensemble, rows: Sequence[Sequence[int]], room: int) -> Any:
    steps, lengths = find_kv_steps(ensemble._base), torch.tensor([len(row) for row in rows])
    return ensemble.decoding(steps, padded(rows), lengths, room)


def far(ensemble: Ensemble, rows: list[list[int]], steps: int = 9) -> float:
    """The greatest difference along some steps, in which two rows end."""
    generator = torch.Generator().manual_seed(4)
    asked = torch.tensor([len(row) for row in rows])
    decoding, worst = begun(ensemble, rows, steps), 0.0
    assert decoding is not None
    for step in range(steps):
        expected = ensemble.next_token(padded(rows), asked)
        assert decoding.logs.shape == expected.shape
        worst = max(worst, float((decoding.logs - expected).abs().nan_to_num().max()))
        if step in (3, 5) and len(rows) > 2:
            stays = [row for row in range(len(rows)) if row != step - 3]
            rows, asked = [rows[row] for row in stays], asked[stays]
            decoding.keep(stays)
        tokens = torch.randint(3, VOCABULARY, (len(rows),), generator=generator).tolist()
        rows = [[*row, token] for row, token in zip(rows, tokens, strict=True)]
        decoding.feed(tokens)
    return worst


# ── the same distribution ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("family", BY_DEFAULT_TWO)
def test_each_token_is_that_of_the_whole_text(family: str) -> None:
    ensemble = gather(tiny_base(family, DEPTH, language_model=True, length=LENGTH))
    assert far(ensemble, prompts(6)) < TOLERANCE
    assert far(ensemble, prompts(1)) < TOLERANCE


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", [pytest.param("gpt2", marks=pytest.mark.heavy), "llama"])
def test_it_holds_however_members_are_combined(family: str, method: str) -> None:
    ensemble = gather(tiny_base(family, DEPTH, language_model=True, length=LENGTH), method)
    assert far(ensemble, prompts(4)) < TOLERANCE


@pytest.mark.parametrize("family", [pytest.param("gpt2", marks=pytest.mark.heavy), "llama"])
def test_a_text_goes_on_in_the_member_that_its_prompt_leads_to(family: str) -> None:
    base = tiny_base(family, DEPTH, language_model=True, length=LENGTH)
    rows = [row for seed in range(3) for row in prompts(4, seed)]
    near = prototypes_near(base, padded(rows), layer=2, count=len(LOWEST))
    ensemble = gather(base, "route", prototypes=near)
    asked = torch.tensor([len(row) for row in rows])
    assert len(set(ensemble.routes(padded(rows), asked).tolist())) > 2  # type: ignore[union-attr]
    assert far(ensemble, rows) < TOLERANCE


def test_prompts_in_several_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    ensemble = gather(tiny_base("llama", DEPTH, language_model=True, length=LENGTH))
    monkeypatch.setattr(Ensemble, "_budget", lambda self: 1)
    monkeypatch.setattr("s3t.serving.generation.kv_decoding._LOGITS_BYTES", 1)
    assert far(ensemble, prompts(5)) < TOLERANCE


def test_weights_merged_for_many_rows_agree_as_well() -> None:
    ensemble = gather(tiny_base("qwen2", DEPTH, language_model=True, length=LENGTH))
    rows = [row for seed in range(9) for row in prompts(4, seed)]
    assert len(rows) >= 32, "as many rows as the base is wide"
    assert far(ensemble, rows, steps=2) < TOLERANCE


def test_half_precision() -> None:
    model = tiny_model("llama", DEPTH, language_model=True).to(torch.bfloat16)
    base = Base(model, language_model=True, length=LENGTH)
    assert find_kv_steps(base) is not None
    ensemble = gather(base)
    rows = prompts(3)
    decoding = begun(ensemble, rows, 4)
    assert decoding is not None
    for _ in range(4):
        expected = ensemble.next_token(padded(rows)).exp()
        assert float((decoding.logs.exp() - expected).abs().max()) < 0.05
        tokens = expected.argmax(dim=1).tolist()
        rows = [[*row, token] for row, token in zip(rows, tokens, strict=True)]
        decoding.feed(tokens)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
def test_on_a_gpu(family: str) -> None:
    base = tiny_base(family, DEPTH, language_model=True, length=LENGTH).to(torch.device("cuda"))
    assert far(gather(base), prompts(5)) < 1e-3


# ── what is kept ─────────────────────────────────────────────────────────────────────────────


def test_the_trunk_is_kept_once() -> None:
    base = tiny_base("qwen2", DEPTH, language_model=True, length=LENGTH)
    ensemble, rows = gather(base), prompts(5)
    decoding = begun(ensemble, rows, 6)
    assert decoding is not None
    # layer 0, 1: two members and the trunk; 2: three and it; 3: four and it
    sets, width, tokens = 3 + 3 + 4 + 5, 32 // 4 * 2, 19 + 6
    assert decoding.nbytes == 2 * len(rows) * tokens * sets * width * 4
    decoding.feed([3] * 5)
    decoding.keep([1, 4])
    assert decoding.nbytes == 2 * 2 * tokens * sets * width * 4


def test_rows_at_once_are_those_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    ensemble = gather(tiny_base("gpt2", DEPTH, language_model=True, length=LENGTH))
    steps = find_kv_steps(ensemble._base)
    decoding = begun(ensemble, prompts(1), 5)
    assert decoding is not None
    monkeypatch.setattr("s3t.serving.ensemble.ensemble._KEPT_BYTES", 3 * decoding.nbytes)
    assert ensemble.rows_at_once(steps, 7 + 5) == 3
    assert ensemble.rows_at_once(steps, 7 + 6) == 2
    assert ensemble.rows_at_once(steps, 10**6) == 1


def _deaf(layer: Any) -> None:
    """A layer that takes a cache, and does not read it."""
    own = layer.forward
    layer.forward = lambda hidden, past_key_values=None, **more: own(hidden, **more)


def _strict(layer: Any) -> None:
    """A layer that wants a cache of its own kind."""
    own = layer.forward

    def forward(hidden: Tensor, past_key_values: Any = None, **more: Any) -> Any:
        if past_key_values is not None:
            past_key_values.pages  # noqa: B018
        return own(hidden, **more)

    layer.forward = forward


@pytest.mark.parametrize("change", [_deaf, _strict])
def test_layers_that_do_not_take_what_is_kept_are_run_whole(change: Any) -> None:
    model = tiny_model("llama", DEPTH, language_model=True)
    change(model.model.layers[1])
    base = Base(model, language_model=True, length=LENGTH)
    assert find_kv_steps(base) is None
    ensemble = gather(base)
    assert ensemble.rows_at_once(find_kv_steps(base), 10) is None
    assert begun(ensemble, prompts(2), 3) is None


def test_positions_that_depend_on_the_length_of_the_text() -> None:
    """Long texts turn all their keys otherwise than short ones: what is kept would be wrong."""
    scaling = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [8.0] * 4,
        "original_max_position_embeddings": 20,
        "factor": 2.0,
    }
    config = hf.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=40, initializer_range=0.3,
        rope_parameters=scaling,
    )  # fmt: skip
    model = from_config(config, language_model=True)
    assert find_kv_steps(Base(model, language_model=True, length=LENGTH)) is None
    short = from_config(config, language_model=True)
    assert find_kv_steps(Base(short, language_model=True, length=16)) is not None


def test_encoders_have_no_steps() -> None:
    assert find_kv_steps(tiny_base("bert")) is None
    assert find_kv_steps(tiny_base("vit")) is None


# ── whole runs ───────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def texts(text_run: Path) -> Iterator[S3T]:
    with S3T.load(text_run) as service:
        yield service


def served(service: S3T) -> Ensemble:
    view = service.serving._views.current
    assert view is not None and view.ensemble is not None
    return view.ensemble


PROMPTS = ("private line 7", "x", "said", "public line 11 aa")


@pytest.mark.parametrize("draw", [{}, {"temperature": 1.0, "seed": 3}], ids=["greedy", "drawn"])
def test_the_tokens_are_those_of_whole_texts(texts: S3T, draw: Any, monkeypatch: Any) -> None:
    whole = partial(texts.generate, PROMPTS, max_new_tokens=12, **draw)
    pieces = partial(texts.stream, PROMPTS[0], max_new_tokens=12, **draw)
    found, streamed = whole(), [piece.text for piece in pieces()]
    monkeypatch.setattr(texts.serving.model().text_generator, "_steps", None)
    assert (whole(), [piece.text for piece in pieces()]) == (found, streamed)


@pytest.mark.parametrize("draw", [{}, {"temperature": 2.0, "seed": 3}], ids=["greedy", "drawn"])
def test_a_text_goes_on_after_what_was_told(texts: S3T, draw: Any) -> None:
    pieces = list(texts.stream("private line", max_new_tokens=9, **draw))
    tokens = [piece.token for piece in pieces if piece.token is not None]
    (whole,) = texts.generate(["private line"], max_new_tokens=9, **draw)
    assert tokens == list(whole.tokens)
    if not draw:
        rest = texts.stream("private line", max_new_tokens=6, begun=tokens[:3])
        assert [piece.text for piece in rest] == [piece.text for piece in pieces[3:]]
    with pytest.raises(InputError, match="prompt 0 has 26 tokens"):
        texts.stream("private line", max_new_tokens=9, begun=[3] * 13)


def test_draws_are_cut_to_the_likeliest(texts: S3T) -> None:
    def drawn(**how: Any) -> set[str]:
        found = texts.generate(["x"] * 20, max_new_tokens=1, temperature=5.0, **how)
        return {one.completion for one in found}

    (greedy,) = texts.generate(["x"], max_new_tokens=1)
    assert len(drawn()) > 3
    assert drawn(top_k=1) == drawn(top_p=1e-9) == {greedy.completion}
    assert len(drawn(top_k=3)) <= 3
    chances = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.1, 0.2, 0.3, 0.4]])

    def cut(**how: Any) -> torch.Tensor:
        return _warped(chances.log(), Draw(temperature=1.0, **how)) > -torch.inf

    assert torch.equal(cut(top_p=0.75), torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1]]).bool())
    assert torch.equal(cut(top_k=2), chances >= chances.topk(2).values[:, -1:])
    with pytest.raises(InputError, match="top_p 0 over 0"):
        texts.generate(["x"], top_p=0)


def test_more_texts_than_are_kept_at_once(texts: S3T, monkeypatch: pytest.MonkeyPatch) -> None:
    found = texts.generate(PROMPTS, max_new_tokens=6)
    monkeypatch.setattr(Ensemble, "rows_at_once", lambda self, steps, tokens: 3)
    assert texts.generate(PROMPTS, max_new_tokens=6) == found
    assert texts.generate([], max_new_tokens=6) == []


def test_what_is_kept_goes_with_the_text(texts: S3T) -> None:
    texts.generate(PROMPTS, max_new_tokens=6)
    ensemble = served(texts)
    assert len(ensemble.texts) == 0
    pieces = texts.stream("private line", max_new_tokens=6)
    next(pieces)
    (kept,) = ensemble.texts.values()
    held = weakref.ref(kept)
    del kept, pieces
    assert held() is None and len(ensemble.texts) == 0


def test_a_deletion_takes_what_is_kept_of_a_text_that_waits(texts: S3T) -> None:
    """Keys and values of dead weights must not wait for the client to ask for its next token."""
    pieces = texts.stream("private line", max_new_tokens=8)
    view = next(pieces).view
    ensemble = served(texts)
    (kept,) = ensemble.texts.values()
    tensors = [one for pair in kept._cache._kept if pair is not None for one in pair]
    stacked = [one for maps in ensemble._stack._maps for one in maps.values()]
    gone = [weakref.ref(one) for one in (ensemble, kept, kept._cache, *tensors, *stacked)]
    del ensemble, kept, tensors, stacked
    gc.disable()
    try:
        texts.deactivate(["t05"])
        assert not [one for one in gone if one() is not None]
    finally:
        gc.enable()
    rest = list(pieces)
    assert view == 0 and rest and {piece.view for piece in rest} == {1}


def test_the_next_token_drops_what_an_older_view_kept(texts: S3T) -> None:
    """Even while something else still reads that view."""
    pieces = texts.stream("private line", max_new_tokens=8)
    next(pieces)
    before = served(texts)
    texts.deactivate(["t05"])
    assert len(before.texts) == 1
    next(pieces)
    assert served(texts) is not before
    assert (len(before.texts), len(served(texts).texts)) == (0, 1)


def test_after_a_deletion_each_token_is_from_what_lives(
    texts: S3T, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []
    plain = TextGenerator._next

    def checked(self: TextGenerator, ensemble: Ensemble, text: Any, *how: Any) -> list[int]:
        rows = [list(row) for row in text.rows]
        tokens = plain(self, ensemble, text, *how)
        assert ensemble is served(texts)
        assert tokens == ensemble.next_token(padded(rows)).argmax(dim=1).tolist()
        begun.append(len(ensemble.texts))
        return tokens

    monkeypatch.setattr(TextGenerator, "_next", checked)
    pieces = texts.stream("private line", max_new_tokens=8)
    views = [next(pieces).view, next(pieces).view]
    texts.deactivate(["t05"])
    views += [piece.view for piece in pieces]
    assert views[:2] == [0, 0] and set(views[2:]) == {1}
    assert set(begun) == {1}


def test_a_strict_text_ends_with_an_error_once_it_is_hit(texts: S3T) -> None:
    whole = "".join(piece.text for piece in texts.stream("private line", max_new_tokens=8))
    pieces = texts.stream("private line", max_new_tokens=8, strict=True)
    assert whole.startswith("".join(next(pieces).text for _ in range(3)))
    texts.deactivate(["t05"])
    with pytest.raises(UnavailableError, match="drop what has come of it") as caught:
        next(pieces)
    assert caught.value.code == "text_hit" and not texts.serving.is_sound(0)
    with pytest.raises(StopIteration):
        next(pieces)
    again = list(texts.stream("private line", max_new_tokens=8, strict=True))
    assert {piece.view for piece in again} == {1}


def test_a_strict_text_is_hit_even_after_its_last_token(texts: S3T) -> None:
    pieces = texts.stream("private line", max_new_tokens=3, strict=True)
    for _ in range(3):
        next(pieces)
    texts.deactivate(["t05"])
    with pytest.raises(UnavailableError, match="drop what has come of it"):
        next(pieces)


def test_a_strict_text_goes_on_after_a_deletion_that_did_not_hit_it(texts: S3T) -> None:
    of = {one.sample_id: (one.shard, one.slice) for one in texts.ledger.samples()}
    same = [one for one in of if of[one] == of["t05"]]  # its slot is dead after the first of them
    texts.deactivate(same[:1])
    pieces = texts.stream("private line", max_new_tokens=8, strict=True)
    found = [next(pieces), next(pieces)]
    texts.deactivate(same[1:2])
    found += pieces
    assert found[0].view == 1 and found[-1].view == 2
    assert texts.serving.is_sound(1) and not texts.serving.is_sound(0)


def test_a_strict_text_does_not_go_on_from_tokens_of_unknown_origin(texts: S3T) -> None:
    with pytest.raises(InputError, match="strict and begun"):
        texts.stream("private line", begun=[3], strict=True)


def test_a_text_on_a_view_that_was_hit_leaves_nothing(
    texts: S3T, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts.generate(["x"], max_new_tokens=1)
    seen: list[weakref.ref[Ensemble]] = []
    plain = Ensemble.decoding

    def decoding(self: Ensemble, *arguments: Any) -> Any:
        seen.append(weakref.ref(self))
        if len(seen) == 1:
            deletion.start()
            wait_until(lambda: texts.serving._views.is_hit(0))
        return plain(self, *arguments)

    deletion = threading.Thread(target=texts.deactivate, args=(["t05"],))
    monkeypatch.setattr(Ensemble, "decoding", decoding)
    (found,) = texts.generate(["private line"], max_new_tokens=4)
    deletion.join(10)
    assert found.view == 1 and len(seen) == 2
    assert seen[0]() is None and seen[1]() is served(texts)


def test_streams_at_once_do_not_meet(texts: S3T) -> None:
    alone = {prompt: _streamed(texts, prompt) for prompt in PROMPTS}
    streams = {prompt: texts.stream(prompt, max_new_tokens=8) for prompt in PROMPTS}
    woven = dict.fromkeys(PROMPTS, "")
    for _ in range(8):
        for prompt, pieces in streams.items():
            woven[prompt] += next(pieces, _NOTHING).text
    assert woven == alone
    assert len(served(texts).texts) <= len(PROMPTS)
    found: dict[str, str] = {}
    threads = [
        threading.Thread(target=lambda p=prompt: found.update({p: _streamed(texts, p)}))
        for prompt in PROMPTS
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == alone


class _NOTHING:
    text = ""


def _streamed(service: S3T, prompt: str) -> str:
    return "".join(piece.text for piece in service.stream(prompt, max_new_tokens=8))


def wait_until(done: Any) -> None:
    pause = threading.Event()
    for _ in range(2000):
        if done():
            return
        pause.wait(0.005)
    raise AssertionError("it takes too long")
