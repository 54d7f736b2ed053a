"""The reference: the model as transformers made it, with which a base's parts are compared.

    rows ─► inputs ─► backbone ─► layers ─► norm ─► head      the answer that the parts must give
                          └─ gates ─► Entered                 or what the first layer is given

``Base`` is compared with this on random rows with padding when it is loaded. Nothing is looked up
by the name of a model family.

Invariant: a model whose parts do not give its answer is refused, never approximated.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from s3t.errors import InputError
from s3t.model.gates import Entered, Watched
from s3t.model.inputs.encoders import Encoded

__all__ = ["PROBE_ROWS", "ReferenceModel", "function_of"]

PROBE_ROWS = 3
"""Random rows with which a model is tried."""


_NAMES = {
    *("_name_or_path", "_commit_hash", "architectures", "model_type", "transformers_version"),
    *("dtype", "torch_dtype", "id2label", "label2id", "num_labels", "problem_type"),
    *("finetuning_task", "task_specific_params", "tokenizer_class", "use_cache", "return_dict"),
    *("output_attentions", "output_hidden_states"),
}
"""Entries of a config that no forward pass here reads: names, and what else is to be returned. The
type of the weights is part of their own digest."""


def function_of(config: PreTrainedConfig) -> Any:
    """The entries of a config that may change what the model computes, as JSON values.

    Entries with their default value are left out, so that a later transformers with more entries
    finds the same function. The implementation of attention is always in it.
    """
    found = {name: value for name, value in config.to_diff_dict().items() if name not in _NAMES}
    found["attention"] = getattr(config, "_attn_implementation", None)
    return json.loads(json.dumps(found, default=str, sort_keys=True))


class ReferenceModel:
    """A model as transformers runs it; after its layers are taken out, its embeddings alone.

    Args:
        model: a headless model, or one with a language-model head if ``language_model``.
        language_model: whether rows are answered by the model's own language-model head.
        length: tokens per text; None for images.

    Raises:
        InputError: it does not take texts of this length.
    """

    def __init__(self, model: PreTrainedModel, language_model: bool, length: int | None) -> None:
        self.model, self.length = model, length
        self.backbone: nn.Module = model.base_model
        self.head: nn.Module | None = model.get_output_embeddings() if language_model else None
        self._check_window()

    def inputs(self, rows: Encoded) -> dict[str, Any]:
        """The backbone's arguments for rows."""
        if rows.mask is None:
            return {"pixel_values": rows.values.to(self.model.dtype)}
        found: dict[str, Any] = {"input_ids": rows.values, "attention_mask": rows.mask}
        if "use_cache" in inspect.signature(self.backbone.forward).parameters:
            found["use_cache"] = False
        return found

    def entered(self, **inputs: Any) -> dict[str, Any]:
        """What the first layer is given when the backbone is given ``inputs``, by name.

        Raises:
            InputError: the backbone does not come to its layers.
        """
        try:
            self.backbone(**inputs)
        except Entered as entered:
            return entered.arguments
        raise InputError(f"{type(self.model).__name__} does not run its layers: use another base")

    def probe(self, length: int | None) -> Encoded:
        """Three random rows of the shape that the model takes, always the same; texts with padding.

        Args:
            length: tokens per text; None for images.
        """
        generator = torch.Generator().manual_seed(0)
        config = self.model.config
        if length is None:
            size = config.image_size
            sides = (size, size) if isinstance(size, int) else tuple(size)
            shape = (PROBE_ROWS, config.num_channels, *sides)
            return Encoded(torch.randn(shape, generator=generator), None).to(self.model.device)
        shape = (PROBE_ROWS, length)
        values = torch.randint(0, config.vocab_size, shape, generator=generator)
        mask = torch.ones(shape, dtype=torch.int64)
        for row in range(1, PROBE_ROWS):
            mask[row, length - row * length // 4 :] = 0
        return Encoded(values, mask).to(self.model.device)

    def answer(self, rows: Encoded) -> Tensor:
        """What the untouched model answers: logits [n, T, V], or last hidden states [n, T, H]."""
        inputs = self.inputs(rows)
        if self.head is not None:
            logits: Tensor = self.model(**inputs).logits
            return logits
        hidden: Tensor = self.backbone(**inputs)[0]
        return hidden

    def is_causal(self, rows: Encoded) -> bool:
        """Whether the first position does not see the last; found by changing the last token."""
        other = rows.values.clone()
        other[:, -1] = (other[:, -1] + 1) % self.model.config.vocab_size
        full = torch.ones_like(other)
        before = self.answer(Encoded(rows.values, full))
        after = self.answer(Encoded(other, full))
        return torch.equal(before[:, 0], after[:, 0])

    def norm(
        self,
        layers: Sequence[nn.Module],
        rows: Encoded,
        hidden: Tensor,
        expected: Tensor,
        last: Tensor,
    ) -> nn.Module | None:
        """The norm after the layers, if any: the one with which the parts give the model's answer.

        Hidden states of layers that were called one by one may differ by rounding. Those of the
        model's own last layer are exact, so from there on the comparison is tight, in half
        precision too: a head that caps or scales its logits is not taken for a plain one.

        Args:
            layers: the model's.
            rows: with which both were tried, [n, T].
            hidden: what the layers give, called one by one, [n, T, H].
            expected: what the untouched model answers.
            last: what its own last layer gave, [n, T, H].

        Raises:
            InputError: no norm of the backbone fits, nor none at all.
        """
        real = slice(None) if rows.mask is None else rows.mask.bool()
        answer, scale = expected[real], float(expected[real].abs().max())
        rounding = (1e-4, 1e-4) if self.model.dtype == torch.float32 else (5e-2, 2e-3)
        for norm in [None, *self._norms_outside(layers)]:
            try:
                ends = [end if norm is None else norm(end) for end in (hidden, last)]
            except RuntimeError:  # a norm of another width
                continue
            found = [end if self.head is None else self.head(end) for end in ends]
            if all(
                end.shape == expected.shape
                and torch.allclose(end[real], answer, rtol=0, atol=scale * error)
                for end, error in zip(found, rounding, strict=True)
            ):
                return norm
        raise self.refused()

    def _norms_outside(self, layers: Sequence[nn.Module]) -> list[nn.Module]:
        """The backbone's norms that are in none of the layers."""
        inner = {id(m) for layer in layers for m in layer.modules()}
        return [
            module
            for module in self.backbone.modules()
            if "norm" in type(module).__name__.lower() and id(module) not in inner
        ]

    def check_alike(self, seen: Watched) -> None:
        """Refuse a model whose layers were given different things beside hidden states.

        Raises:
            InputError: they were.
        """
        if not seen.alike:
            raise self.refused()

    def refused(self) -> InputError:
        """The error of a model that cannot be taken apart."""
        return InputError(
            f"{type(self.model).__name__} cannot be run layer by layer with the result of the "
            "whole: use a base whose layers stand in one list and take the same arguments"
        )

    def _check_window(self) -> None:
        config, length = self.model.config, self.length
        window = getattr(config, "sliding_window", None)
        if window and length and length > window:
            raise InputError(
                f"data.max_length {length} is over the base's sliding window of {window} "
                "tokens: lower it"
            )
        limit = getattr(config, "max_position_embeddings", None)
        if limit and length and length > limit:
            raise InputError(
                f"data.max_length {length} is over the base's {limit} positions: lower it"
            )
