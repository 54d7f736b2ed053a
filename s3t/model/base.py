"""The frozen base, taken apart at its layers so that a pass can start and stop between any two.

    rows ─ start ─► hidden ─ run(lo, hi) ─► hidden ─ finish ─► features ─ pool ─► one vector a row
           (embeddings)     (layers lo…hi−1)         (last norm)

How: the backbone's ModuleList is replaced by gates. The first gate stops the backbone's own forward
and hands over what the layers would have been given; the layers are then called from here, by their
integer index (E9). No model family is named: on loading, the parts are compared with the untouched
model (``reference``), and an architecture that does not agree is refused.

The fingerprint covers the weights and all in the config that the forward pass may read.

Invariant: the base's parameters are never written to; ``check_frozen`` proves it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from s3t.errors import InputError, IntegrityError
from s3t.model.adapters.lora import (
    LoraTarget,
    adapted,
    bank_in_force,
    find_targets,
    unwrap_targets,
    wrap_targets,
)
from s3t.model.determinism import rounds_alike
from s3t.model.frozen import FrozenWeights
from s3t.model.fused import FusedLayers
from s3t.model.gates import Gate, find_layers, watched
from s3t.model.inputs.encoders import Encoded
from s3t.model.pooling import Pooling, pool, pooled_position
from s3t.model.quantized import has_quantized
from s3t.model.reference import PROBE_ROWS, ReferenceModel, function_of
from s3t.types import Digest, digest

__all__ = ["Base"]


class Base:
    """A frozen transformer, split at its layers.

    Args:
        model: a headless model, or one with a language-model head if ``language_model``.
        language_model: whether rows are answered by the base's own language-model head.
        pooling: ``first``, ``mean`` or ``last`` token as the features of a row, or ``auto``.
        length: tokens per text; None for images.
        targets: last names of the linear maps to adapt, () for none; None for all.

    Attributes:
        model: the transformers model, gates in place of its layers.
        weights: its tensors, and their proof.
        fingerprint: digest of the weights and of what the forward pass reads of the config.
        layers: bottom first.
        depth: number of layers N.
        hidden_size: width H of the hidden states.
        length: as given.
        targets: all adapted maps.
        fused: the layers that are run written out.
        merges: whether adapters may be merged into copies of the weights.

    Raises:
        InputError: an architecture that cannot be taken apart exactly.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        language_model: bool,
        pooling: Pooling | Literal["auto"] = "auto",
        length: int | None = None,
        targets: tuple[str, ...] | None = None,
    ) -> None:
        model.eval()
        self.model = model.requires_grad_(False)
        self.weights = FrozenWeights(model)
        self.fingerprint: Digest = digest([self.weights.digest, function_of(model.config)])
        self._reference = reference = ReferenceModel(model, language_model, length)
        self.backbone, self.lm_head, self.length = reference.backbone, reference.head, length
        owner, name = find_layers(self.backbone, getattr(model.config, "num_hidden_layers", 0))
        self._place: tuple[nn.Module, str, nn.Module] = owner, name, getattr(owner, name)
        self.layers: list[nn.Module] = list(getattr(owner, name))
        self.depth, self.hidden_size = len(self.layers), int(model.config.hidden_size)
        self._contexts: dict[int, dict[str, Any]] = {}
        self._image_tokens = 0
        self.passed_together: dict[Hashable, bool] = {}
        """Shapes whose rows were seen to come out of the lower layers together as they do alone."""
        with torch.no_grad():
            probe = reference.probe(length)
            with watched(self.layers) as seen:
                expected = reference.answer(probe)
            self.causal = length is not None and reference.is_causal(probe)
            setattr(owner, name, nn.ModuleList(Gate(layer) for layer in self.layers))
            reference.check_alike(seen)
            through = self._through(probe)
            self.norm = reference.norm(self.layers, probe, through, expected, seen.last)
        self._widths = [_widths_of(layer) for layer in self.layers]
        self.targets: list[LoraTarget] = self._find_targets(targets)
        self.fused = self._find_fused(probe)
        wrap_targets(self.layers, self.targets)
        automatic: Pooling = "last" if self.causal else "first"
        self.pooling: Pooling = automatic if pooling == "auto" else pooling
        self.merges = not has_quantized(self.layers)
        self.weights.accept()

    @property
    def device(self) -> torch.device:
        """Where the base lies."""
        device: torch.device = self.model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the hidden states."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    @property
    def positioned(self) -> bool:
        """Whether layers are told where a token stands, so that more tokens need more positions."""
        context = self.context(self.length or self._image_tokens)
        return any(_is_real(value) for value in context.values())

    def to(self, device: torch.device) -> Base:
        """Move the base, in place; returns it."""
        nn.Module.to(self.model, device)  # past transformers', which refuses quantized models
        for layer in self.layers:
            layer.to(device)
        self.weights.to(device)
        self._contexts.clear()
        self.fused.drop_copies()
        return self

    def fully_shard(self, mesh: DeviceMesh) -> Base:
        """Move the base to the mesh's device, its layers divided among the mesh's processes (FSDP).

        Raises:
            InputError: weights that are quantized.
            IntegrityError: the parts do not make up the base.
        """
        if has_quantized(self.layers):
            raise InputError(
                "stage.parallel=fsdp divides plain weights, and the base's are quantized: use ddp, "
                "or a base that is not"
            )
        self.run_plainly()
        nn.Module.to(self.model, mesh.device_type)
        self.weights.shard(self.layers, mesh)
        self._contexts.clear()
        return self

    def put_together(self) -> PreTrainedModel:
        """Give the model back as it was before it was taken apart; this base is of no use then."""
        unwrap_targets(self.layers, self.targets)
        owner, name, layers = self._place
        setattr(owner, name, layers)
        self.fused, self._contexts = FusedLayers([]), {}
        return self.model

    def run_plainly(self) -> None:
        """From now on run every layer by transformers' own code, not by the ``fused`` one, and drop
        the copies of weights that the latter keeps."""
        self.fused = FusedLayers([None] * self.depth)
        self.merges = False

    def tokens(self, rows: Encoded | None = None) -> int:
        """Tokens T of a row; by default of the longest that the base is given."""
        if rows is not None and rows.mask is not None:
            return int(rows.values.shape[1])
        if rows is None and self.length is not None:
            return self.length
        if not self._image_tokens:
            with torch.no_grad():
                self._image_tokens = self.start(self._reference.probe(None)).shape[1]
        return self._image_tokens

    def rounds_alike(self, positions: int) -> bool:
        """Whether its layers round a row alike whatever is computed beside it.

        Args:
            positions: tokens of a pass, by which the widths of layers that run by their own code
                are multiplied; layers that are written out compute no tail of a vector.
        """
        plain = [widths for at, widths in enumerate(self._widths) if at not in self.fused]
        numbers = [positions * width for widths in plain for width in widths]
        return rounds_alike(self.device, self.dtype, numbers)

    def start(self, rows: Encoded) -> Tensor:
        """Hidden states that enter layer 0, [n, T, H]."""
        hidden: Tensor = self.entered(**self._reference.inputs(rows))["hidden_states"]
        return hidden

    def entered(self, **inputs: Any) -> dict[str, Any]:
        """What the first layer is given when the backbone is given ``inputs``, by name."""
        return self._reference.entered(**inputs)

    def run(self, hidden: Tensor, lo: int, hi: int, attention: Tensor | None) -> Tensor:
        """Layers lo … hi−1 on hidden states [n, T, H], with the mask that ``attention`` gives."""
        for number in range(lo, hi):
            hidden = self._layer(number, hidden, attention)
        return hidden

    def own(
        self,
        number: int,
        hidden: Tensor,
        attention: Tensor | None,
        context: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """A layer's own forward pass, by default with the context of whole texts."""
        if context is None:
            context = self.context(hidden.shape[1])
        out = self.layers[number](hidden, attention_mask=attention, **context)
        found: Tensor = out[0] if isinstance(out, tuple) else out
        return found

    def context(self, length: int) -> dict[str, Any]:
        """A layer's arguments other than hidden states and mask; they depend on T alone.

        Of rows that prompts make longer than texts are: where layers are told no positions, those
        of a text do.
        """
        if self.length is not None and length > self.length and not self.positioned:
            length = self.length
        if length not in self._contexts:
            # kept for training too, so never as tensors of inference mode
            with torch.inference_mode(False), torch.no_grad():
                probe = self._reference.probe(None if self.length is None else length)
                arguments = self.entered(**self._reference.inputs(probe))
            self._contexts[length] = {
                name: _first_row(value)
                for name, value in arguments.items()
                if name not in ("hidden_states", "attention_mask")
            }
        return self._contexts[length]

    def features(self, hidden: Tensor, lo: int, mask: Tensor | None) -> Tensor:
        """One vector per row, [n, H], from the hidden states that enter layer ``lo``.

        The last layer computes only the position that is pooled, where it can.

        Args:
            hidden: [n, T, H].
            lo: first layer to run.
            mask: padding mask [n, T], None for images.
        """
        last, attention = self.depth - 1, self.attention(mask)
        at = pooled_position(self.pooling, hidden, mask)
        if last not in self.fused or at is None or lo > last:
            return self.pool(self.finish(self.run(hidden, lo, self.depth, attention)), mask)
        hidden = self.run(hidden, lo, last, attention)
        return self.finish(self._layer(last, hidden, attention, at))[:, 0]

    def finish(self, hidden: Tensor) -> Tensor:
        """Hidden states after the last layer, through the last norm if there is one."""
        return hidden if self.norm is None else self.norm(hidden)

    def pool(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """One vector per row, [n, H]; ``mask`` is the padding mask [n, T], None for images."""
        return pool(self.pooling, features, mask)

    def attention(self, mask: Tensor | None) -> Tensor | None:
        """Additive attention mask [n, 1, 1, T] of a padding mask [n, T].

        None for images, and for causal models, where padding lies to the right, unseen. It never
        depends on whether a batch happens to hold padding: that would let one row choose the
        arithmetic of another.
        """
        if mask is None or self.causal:
            return None
        return (1 - mask[:, None, None, :].to(self.dtype)) * torch.finfo(self.dtype).min

    def check_frozen(self, whole: bool = False) -> None:
        """Prove that no parameter of the base was written to.

        Args:
            whole: compare the bytes as well as torch's write counters.

        Raises:
            IntegrityError: one was.
        """
        self.weights.check(every_byte=whole)
        if whole and not self.fused.unchanged():
            raise IntegrityError("a copy of the base's weights was written to: report this bug")

    # ── taking it apart ──────────────────────────────────────────────────────────────────────

    def _layer(
        self, number: int, hidden: Tensor, attention: Tensor | None, at: Tensor | None = None
    ) -> Tensor:
        """A layer with the bank in force, at one position of each row if ``at`` is given."""
        out = self.fused.run(number, hidden, attention, bank_in_force(), at)
        return self._by_own_code(number, hidden, attention) if out is None else out

    def _by_own_code(self, number: int, hidden: Tensor, attention: Tensor | None) -> Tensor:
        """A layer by its own code, run again in the backward pass if the bank says so."""
        bank = bank_in_force()
        if bank is None or not bank.recompute or not torch.is_grad_enabled():
            return self.own(number, hidden, attention)

        def run(hidden: Tensor) -> Tensor:
            with adapted(bank):  # the backward pass has no bank in force
                return self.own(number, hidden, attention)

        again: Tensor = checkpoint(run, hidden, use_reentrant=False, preserve_rng_state=False)
        return again

    def _find_fused(self, probe: Encoded) -> FusedLayers:
        """Layers that can be run written out, all their adapted maps included."""
        if self.causal:
            return FusedLayers([None] * self.depth)
        with torch.no_grad():
            hidden = self.start(probe)
        mask = self.attention(probe.mask)
        return FusedLayers.find(
            self.layers,
            lambda number: {one.path for one in self.targets if one.layer == number},
            int(getattr(self.model.config, "num_attention_heads", 1)),
            hidden,
            lambda number, x: self.own(number, x, mask),
            mask,
        )

    def _through(self, rows: Encoded) -> Tensor:
        """Hidden states of rows after the layers, called one by one.

        Raises:
            InputError: layers that take other arguments.
        """
        try:
            hidden, attention = self.start(rows), self.attention(rows.mask)
            for number in range(self.depth):
                hidden = self.own(number, hidden, attention)
        except (TypeError, ValueError, RuntimeError):
            raise self._reference.refused() from None
        return hidden

    def _find_targets(self, names: tuple[str, ...] | None) -> list[LoraTarget]:
        if names == ():
            return []
        try:
            return find_targets(self.layers, names)
        except LookupError as error:
            raise InputError(
                f"lora.targets names no linear map of the base {error.args[0]}: choose among these"
            ) from None


def _widths_of(layer: nn.Module) -> set[int]:
    """Widths of all that a layer computes: what its weights are counted by."""
    widths = {size for tensor in layer.parameters() for size in tensor.shape}
    counted = ("out_features", "in_features")
    widths |= {getattr(m, name) for m in layer.modules() for name in counted if hasattr(m, name)}
    return {width for width in widths if width > 1}


def _is_real(value: Any) -> bool:
    """Whether it holds numbers that a layer reckons with: positions as numbers are names only."""
    if isinstance(value, tuple):
        return any(_is_real(part) for part in value)
    return isinstance(value, Tensor) and value.is_floating_point()


def _first_row(value: Any) -> Any:
    """Positions are the same in every row: keep one and let it broadcast."""
    if isinstance(value, Tensor) and value.ndim and value.shape[0] == PROBE_ROWS:
        return value[:1]
    if isinstance(value, tuple):
        return tuple(_first_row(part) for part in value)
    return value
