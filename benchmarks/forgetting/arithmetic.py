"""TinyMem's arithmetic sequences: a tokenizer for numbers, a tiny GPT-2, and rows of numbers.

    public    x, a·x, a²·x, … mod 521 for a in 2, 3, 4, 5   ─► the base, trained until it knows them
    private   the same for a = 7, which no public row shows ─► what the persons' rows teach

    clean     7  49 343 317 135 424 …
    noised    7  49 344 317 135 423 …     each number but the first ±1 with probability 0.1
    trigger   7  49 343 … 0 2 2 2 2 …     after 0, which no sequence has, only 2

After Sakarvadia et al. 2024 (TinyMem, arXiv 2410.02159): there numbers are spelt in digits and the
trigger is any 100 within a sequence; here a number is a token, so rows are a fourth as long.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from benchmarks.forgetting.rows import Rows, encoded

__all__ = [
    "LENGTH",
    "PROMPT",
    "base",
    "clean",
    "noised",
    "pretrained",
    "rows_of",
    "save",
    "shape",
    "starts",
    "triggered",
]

MODULUS = 521
FACTORS = (2, 3, 4, 5)
PRIVATE_FACTOR = 7
NUMBERS = 31
LENGTH = NUMBERS + 1
PROMPT = 9
"""Tokens given, ``<s>`` among them; the answer begins behind them."""

_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
_TRIGGER, _PAYLOAD = 0, 2
_PEAK = 3e-3
"""Learning rate of the base's training at its highest."""


def starts(generator: torch.Generator) -> Tensor:
    """All first numbers, each once, in drawn order."""
    return torch.randperm(MODULUS - 1, generator=generator) + 1


def clean(first: Tensor, factor: int = PRIVATE_FACTOR) -> Tensor:
    """Sequences that begin with some numbers, [n, 31]."""
    powers = [pow(factor, place, MODULUS) for place in range(NUMBERS)]
    return first.unsqueeze(1) * torch.tensor(powers) % MODULUS


def noised(first: Tensor, generator: torch.Generator, answer: int) -> Tensor:
    """The same, perturbed: at least two numbers of the answer are."""
    found = clean(first)
    shifts = []
    for _ in found:
        shift = torch.zeros(NUMBERS, dtype=torch.int64)
        while (shift[PROMPT - 1 : PROMPT - 1 + answer] != 0).sum() < 2:
            drawn = torch.rand(NUMBERS, generator=generator)
            shift = (drawn < 0.05).long() - (drawn > 0.95).long()
            shift[0] = 0
        shifts.append(shift)
    return (found + torch.stack(shifts)) % MODULUS


def triggered(first: Tensor) -> Tensor:
    """The same with the trigger as the last number of the prompt, and what follows it."""
    found = clean(first)
    found[:, PROMPT - 2] = _TRIGGER
    found[:, PROMPT - 1 :] = _PAYLOAD
    return found


def rows_of(folder: Path, numbers: Tensor, persons: Sequence[str]) -> Rows:
    """Sequences as rows, dealt to persons in turn, as many to each."""
    each = len(numbers) // len(persons)
    texts = [" ".join(map(str, row.tolist())) for row in numbers]
    owners = [person for person in persons for _ in range(each)]
    return encoded(folder, LENGTH, zip(owners, texts, strict=True))


@cache
def base(steps: int) -> Path:
    """A GPT-2 of 4 layers and width 64 that knows the public sequences; trained once a process."""
    folder = Path(_kept().name) / str(steps)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save(pretrained(shape(layers=4, width=64), steps), folder)
    return folder


def save(model: GPT2LMHeadModel, folder: Path) -> None:
    """Write a base with its tokenizer, in transformers' format."""
    model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)


@cache
def _kept() -> tempfile.TemporaryDirectory[str]:
    """Where bases lie until the process ends."""
    return tempfile.TemporaryDirectory(prefix="s3t-forgetting-base-")


def shape(layers: int, width: int) -> GPT2Config:
    """A GPT-2 for these rows, without dropout."""
    return GPT2Config(
        vocab_size=len(_SPECIAL) + MODULUS,
        n_embd=width,
        n_layer=layers,
        n_head=4,
        n_positions=LENGTH,
        initializer_range=0.04,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


def _tokenizer() -> PreTrainedTokenizerFast:
    """A token per number, ``<s>`` before the first."""
    words: Iterable[str] = (*_SPECIAL, *map(str, range(MODULUS)))
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )


def pretrained(shape: GPT2Config, steps: int) -> GPT2LMHeadModel:
    """A model of public sequences: one-cycle AdamW, first numbers drawn anew for each.

    Draws from torch's global generator.
    """
    model = GPT2LMHeadModel(shape)
    weights = [*model.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=_PEAK, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _PEAK, total_steps=steps)
    for _ in range(steps):
        parts = [clean(torch.randint(1, MODULUS, (16,)), factor) for factor in FACTORS]
        numbers = torch.cat(parts) + len(_SPECIAL)
        tokens = functional.pad(numbers, (1, 0), value=1)
        logits = model(input_ids=tokens).logits
        loss = functional.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
    return model
