"""transformers' pipelines over a run, whose answers come from the current view at each call.

    pipe(texts) ─► transformers: tokens, batches ─► ServedModel ─► S3T's views ─► its postprocessing
                                                       └─ a deletion before takes effect here

``ServedModel`` has what a pipeline needs of a model and no more: no parameters, nothing to move or
to save. ``transformers.pipeline(task, model=served, tokenizer=…)`` takes it as well, with a warning
that its class is not known.

Invariant (E6): nothing of an answer is kept here, so each forward pass, and each text as a whole,
comes from one view. With nothing left to serve, ExhaustedError comes out of the pipeline.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    BatchFeature,
    GenerationConfig,
    ImageClassificationPipeline,
    Pipeline,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    TextClassificationPipeline,
    TextGenerationPipeline,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from s3t.config import Config
from s3t.errors import InputError
from s3t.model.inputs.encoders import Encoded, TextEncoder
from s3t.serving.live import Serving
from s3t.types import Draw

__all__ = ["Pipeline", "RunImageProcessor", "ServedModel", "pipeline_of"]

_DRAWN = {"max_new_tokens", "max_length", "do_sample", "temperature", "top_k", "top_p"}
_KNOWN = {
    *_DRAWN,
    *("pad_token_id", "bos_token_id", "eos_token_id", "num_return_sequences", "seed"),
    *("use_cache", "transformers_version", "tokenizer"),
}


def pipeline_of(
    serving: Serving, config: Config, labels: Sequence[str], **options: Any
) -> Pipeline:
    """A pipeline of a run's task.

    Args:
        serving: of the run.
        config: of the run.
        labels: its classes.
        options: of the pipeline, such as ``batch_size`` or ``top_k``.

    Raises:
        InputError, IntegrityError: the run cannot be loaded.
    """
    model, task = ServedModel(serving, config, labels), config.task
    options = {"device": model.device, **options, "model": model}
    if config.of_images:
        options = {"image_processor": RunImageProcessor(serving), **options}
        return _ImageClassification(task=task, **options)  # type: ignore[no-untyped-call]
    options = {"tokenizer": model.tokenizer, **options}
    name = "text-generation" if config.generates else task
    made = _TextGeneration if config.generates else _TextClassification
    return made(task=name, **options)


class ServedModel:
    """A run in the place of a transformers model.

    Args:
        serving: of the run.
        config: of the run.
        labels: its classes; empty for a language model.
    """

    input_modalities = output_modalities = "text"

    def __init__(self, serving: Serving, config: Config, labels: Sequence[str]) -> None:
        self._pairs = config.data.columns.text_pair is not None
        self._serving, self._encoder = serving, serving.model().encoder
        names = dict(enumerate(labels))
        kind: Any = "single_label_classification" if labels else None
        self.config = PreTrainedConfig(
            id2label=names or None,
            label2id={label: number for number, label in names.items()} or None,
            problem_type=kind,
        )
        self.generation_config = GenerationConfig(do_sample=False, max_new_tokens=32)
        self.device, self.dtype = serving.model().base.device, torch.float32

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """A tokenizer of its own, since pipelines change theirs, with the run's chat template."""
        found, chat = deepcopy(self._texts.tokenizer), self._texts.chat
        if chat is not None and chat.template is not None:
            found.chat_template = chat.template
        return found

    def to(self, *_: Any, **__: Any) -> ServedModel:
        """Does nothing: the model stays on the device where the run is served."""
        return self

    def eval(self) -> ServedModel:
        """Does nothing: nothing here is ever trained."""
        return self

    def can_generate(self) -> bool:
        """Whether the run is a language model."""
        return not self.config.problem_type

    def save_pretrained(self, *_: Any, **__: Any) -> None:
        """Refused: a copy would not follow deletions.

        Raises:
            InputError: always.
        """
        raise InputError(
            "a pipeline over a run is not saved: use s3t export, which deletions reach"
        )

    def __call__(self, **inputs: Any) -> SequenceClassifierOutput:
        """As ``forward``."""
        return self.forward(**inputs)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """Classify rows.

        Args:
            input_ids, attention_mask: texts [n, T], padded on either side; longer ones are cut to
                the run's length.
            pixel_values: images [n, channels, size, size], normalised.
            token_type_ids: the base is not told them, in training neither; all zero unless the
                run is of pairs.

        Returns:
            ``logits`` [n, C]: log probabilities.

        Raises:
            ExhaustedError: no shard has a prefix left, and the config names no fallback.
            InputError: a pair for a run of single texts, or a language model.
        """
        if self.can_generate():
            raise InputError("this run is a language model: use generate")
        if token_type_ids is not None and not self._pairs and bool((token_type_ids != 0).any()):
            raise InputError("the run was trained on single texts: pairs are not understood")
        if pixel_values is not None:
            rows = Encoded(pixel_values.cpu(), None)
        else:
            ids = self._rows(input_ids, attention_mask)
            rows = self._texts.pad([self._texts.cut(tokens) for tokens in ids])
        chances = self._serving.answer(lambda ensemble, _: ensemble.probabilities(rows))
        return SequenceClassifierOutput(logits=chances.log())

    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        **options: Any,
    ) -> Tensor:
        """Continue texts, as ``S3T.generate``.

        Args:
            input_ids, attention_mask: prompts [n, T], padded on either side.
            generation_config: instead of the run's own; or options by name: ``max_new_tokens`` or
                ``max_length``, ``do_sample``, ``temperature``, ``top_k``, ``top_p``,
                ``num_return_sequences``, ``seed`` (else drawn from torch's generator).

        Returns:
            the prompts as given and what was added, [n · sequences, T + added].

        Raises:
            ExhaustedError, InputError: as ``S3T.generate``; also for an option that is not known.
        """
        if input_ids is None:
            raise InputError("a prompt needs at least one token")
        given = {} if generation_config is None else generation_config.to_diff_dict()
        given |= {name: value for name, value in options.items() if value is not None}
        tokens = [self._opened(ids) for ids in self._rows(input_ids, attention_mask)]
        if "max_length" in given and "max_new_tokens" not in given:
            given["max_new_tokens"] = given["max_length"] - max(len(ids) for ids in tokens)
        given = self.generation_config.to_diff_dict() | given
        closing: int | None = self._texts.tokenizer.eos_token_id
        draw, times = _draw(given, closing), int(given.get("num_return_sequences", 1))
        tokens = [ids for ids in tokens for _ in range(times)]
        self._serving.model().check_room(tokens, draw)
        found = self._serving.completions(tokens, draw)
        added = torch.full((len(found), draw.max_new_tokens), int(given.get("pad_token_id") or 0))
        for row, one in zip(added, found, strict=True):
            row[: len(one.tokens)] = torch.tensor(one.tokens)
            if len(one.tokens) < len(row) and closing is not None:
                row[len(one.tokens)] = closing
        most = max(len(one.tokens) for one in found)
        return torch.cat([input_ids.cpu().repeat_interleave(times, 0), added[:, : most + 1]], dim=1)

    def _rows(self, input_ids: Tensor | None, mask: Tensor | None) -> list[list[int]]:
        """Token ids without their padding."""
        if input_ids is None:
            raise InputError("input_ids or pixel_values are expected")
        real = torch.ones_like(input_ids) if mask is None else mask
        return [
            ids[kept.bool()].tolist() for ids, kept in zip(input_ids.cpu(), real.cpu(), strict=True)
        ]

    def _opened(self, ids: list[int]) -> list[int]:
        """A prompt without the special token with which the tokenizer closes texts."""
        tokenizer = self._texts.tokenizer
        closing = tokenizer("a", verbose=False)["input_ids"][-1]
        special = closing in set(tokenizer.all_special_ids)
        return ids[:-1] if special and len(ids) > 1 and ids[-1] == closing else ids

    @property
    def _texts(self) -> TextEncoder:
        assert isinstance(self._encoder, TextEncoder)
        return self._encoder


class RunImageProcessor:
    """The run's own encoding of images in the place of a transformers image processor."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def __call__(self, images: Any, return_tensors: str = "pt") -> BatchFeature:
        """One image as [1, channels, size, size].

        Args:
            images: a PIL image, or an array as ``S3T.predict`` takes it.
        """
        rows = self._serving.model().encode([images])
        return BatchFeature({"pixel_values": rows.values}, tensor_type=return_tensors)


def _draw(given: dict[str, Any], closing: int | None) -> Draw:
    """Options of ``generate`` as a draw.

    Args:
        given: by name.
        closing: the token at which texts end.

    Raises:
        InputError: one that is not known here.
    """
    strange = sorted(set(given) - _KNOWN)
    if given.get("eos_token_id", closing) not in (closing, [closing]):
        strange.append("another eos_token_id")
    if strange:
        raise InputError(
            f"generate does not know {', '.join(strange)}: it takes {', '.join(sorted(_DRAWN))}, "
            "num_return_sequences and seed"
        )
    sampled = bool(given.get("do_sample"))
    seed = given.get("seed")
    return Draw(
        int(given["max_new_tokens"]),
        float(given.get("temperature", 1.0)) if sampled else 0.0,
        int(torch.randint(2**62, ()) if seed is None and sampled else seed or 0),
        int(given.get("top_k", 0)) if sampled else 0,
        float(given.get("top_p", 1.0)) if sampled else 1.0,
    )


class _Known:
    """A pipeline that knows its model."""

    def check_model_type(self, supported_models: Any) -> None:
        """A run is none of the classes that transformers lists."""


class _TextClassification(_Known, TextClassificationPipeline):
    pass


class _TextGeneration(_Known, TextGenerationPipeline):
    pass


class _ImageClassification(_Known, ImageClassificationPipeline):
    def preprocess(  # type: ignore[override]  # transformers' own classes differ from each other
        self, image: Any, timeout: Any = None
    ) -> Any:
        """Arrays as ``S3T.predict`` takes them, and all that transformers reads."""
        processor: Any = self.image_processor
        if isinstance(image, np.ndarray):
            return processor(images=image)
        return super().preprocess(image, timeout=timeout)  # type: ignore[no-untyped-call]
