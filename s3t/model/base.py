"""The frozen base, taken apart at its layers so that a pass can start and stop between any two.

    rows ─ start ─► hidden ─ run(lo, hi) ─► hidden ─ finish ─► features ─ pool ─► one vector a row
           (embeddings)     (layers lo…hi−1)         (last norm)

How: the backbone's ModuleList is replaced by gates. The first gate stops the backbone's own forward
and hands over what the layers would have been given; the layers are then called from here, by their
integer index (E9). No model family is named: what is put together is compared with the untouched
model (``whole``) when it is loaded, and an architecture that does not agree is refused.

Its fingerprint is of its weights and of all in its config that its forward pass may read.

Invariant: the base's parameters are never written to; ``check_frozen`` proves it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from s3t.errors import InputError, IntegrityError
from s3t.model.adapters.lora import (
    Bank,
    Target,
    adapted,
    bank_in_force,
    find_targets,
    merge,
    unwrap_targets,
    wrap_targets,
)
from s3t.model.determinism import even
from s3t.model.fused.inference import JoinedLayer, ServedLayer
from s3t.model.fused.layer import FusedLayer
from s3t.model.fused.matching import fused
from s3t.model.gates import Gate, find_layers, watched
from s3t.model.inputs.encoders import Encoded
from s3t.model.quantized import has_quantized
from s3t.model.reference import PROBE_ROWS, Whole, function_of
from s3t.model.sharded import Gathered, local, spread
from s3t.store import tensors_digest
from s3t.types import Digest, digest

__all__ = ["Base"]

_JOINED_BYTES = 2**20
"""Query, key and value weights up to this are kept joined as well, for passes of few rows; in
wider layers a call costs less than what it computes."""


class Base:
    """A frozen transformer, split at its layers.

    Args:
        model: a headless model, or one with a language-model head if ``language_model``.
        language_model: whether rows are answered by the base's own language-model head.
        pooling: ``first``, ``mean`` or ``last`` token as the features of a row, or ``auto``.
        length: tokens per text; None for images.
        targets: last names of the linear maps to adapt, () for none; None for query and value.

    Raises:
        InputError: an architecture that cannot be taken apart exactly.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        language_model: bool,
        pooling: str = "auto",
        length: int | None = None,
        targets: tuple[str, ...] | None = None,
    ) -> None:
        model.eval()
        self.model = model.requires_grad_(False)
        self.state: Mapping[str, Tensor] = model.state_dict(keep_vars=True)
        self._weights = tensors_digest(self.state)
        self.fingerprint: Digest = digest([self._weights, function_of(model.config)])
        self._whole = whole = Whole(model, language_model, length)
        self.backbone, self.lm_head = whole.backbone, whole.head
        owner, name = find_layers(self.backbone, getattr(model.config, "num_hidden_layers", 0))
        self._place: tuple[nn.Module, str, nn.Module] = owner, name, getattr(owner, name)
        self.layers: list[nn.Module] = list(getattr(owner, name))
        self._contexts: dict[int, dict[str, Any]] = {}
        self._joined: dict[int, JoinedLayer] = {}
        self._image_tokens = 0
        self.passed_together: dict[Hashable, bool] = {}
        """Shapes whose rows were seen to come out of the lower layers together as they do alone."""
        with torch.no_grad():
            probe = whole.probe(length)
            with watched(self.layers) as seen:
                expected = whole.answer(probe)
            self.causal = length is not None and whole.is_causal(probe)
            setattr(owner, name, nn.ModuleList(Gate(layer) for layer in self.layers))
            whole.check_alike(seen)
            through = self._through(probe)
            self.norm = whole.norm(self.layers, probe, through, expected, seen.last)
        self._widths = [_widths_of(layer) for layer in self.layers]
        self.targets: list[Target] = self._find_targets(targets)
        self._fused: list[FusedLayer | None] = self._find_fused(probe)
        wrap_targets(self.layers, self.targets)
        automatic = "first" if not self.causal else "last"
        self.pooling = automatic if pooling == "auto" else pooling
        self.merges = not has_quantized(self.layers)
        self._versions = self._written()

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
    def depth(self) -> int:
        """Number of layers N."""
        return len(self.layers)

    @property
    def hidden_size(self) -> int:
        """Width H of the hidden states."""
        return int(self.model.config.hidden_size)

    @property
    def length(self) -> int | None:
        """Tokens of a text; None for images."""
        return self._whole.length

    @property
    def positioned(self) -> bool:
        """Whether layers are told where a token stands, so that more tokens need more positions."""
        context = self.context(self._whole.length or self._image_tokens)
        return any(_is_real(value) for value in context.values())

    def to(self, device: torch.device) -> Base:
        """Move the base, in place; returns it."""
        nn.Module.to(self.model, device)  # past transformers', which refuses quantized models
        for layer in self.layers:
            layer.to(device)
        self.state = {name: tensor.to(device) for name, tensor in self.state.items()}
        self._contexts.clear()
        self._joined.clear()
        self._versions = self._written()
        return self

    def spread(self, mesh: DeviceMesh) -> Base:
        """Move the base to the mesh's device, its layers divided among the mesh's processes.

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
        divided = spread(self.layers, self.state, mesh)
        self.state = {
            name: tensor if tensor is not self.state[name] else tensor.to(mesh.device_type)
            for name, tensor in divided.items()
        }
        self._contexts.clear()
        self._versions = self._written()
        if tensors_digest(Gathered(self.state)) != self._weights:
            raise IntegrityError("the base's divided layers are not the base: report this bug")
        return self

    def put_together(self) -> PreTrainedModel:
        """Give the model back as it was before it was taken apart; this base is of no use then."""
        unwrap_targets(self.layers, self.targets)
        owner, name, layers = self._place
        setattr(owner, name, layers)
        self._fused, self._joined, self._contexts = [], {}, {}
        return self.model

    def run_plainly(self) -> None:
        """Run every layer by its own code, and keep no copy of a weight, from now on."""
        self._fused = [None] * self.depth
        self.merges = False

    def tokens(self, rows: Encoded) -> int:
        """Tokens T of a row."""
        return self.image_tokens if rows.mask is None else rows.values.shape[1]

    @property
    def image_tokens(self) -> int:
        """Tokens of an image."""
        if not self._image_tokens:
            with torch.no_grad():
                self._image_tokens = self.start(self._whole.probe(None)).shape[1]
        return self._image_tokens

    def rounds_evenly(self, positions: int) -> bool:
        """Whether its layers round a row alike whatever is computed beside it.

        So many positions have to leave no layer's element-wise functions a tail, which is rounded
        otherwise; layers that are written out never have one. On a CPU the numbers have to be
        float32: MKL's strict mode is about its own products, and those of bfloat16 run in oneDNN.
        """
        of_mkl = self.dtype == torch.float32 or self.device.type != "cpu"
        return of_mkl and all(
            written is not None or even(positions * width)
            for written, widths in zip(self._fused, self._widths, strict=True)
            for width in widths
        )

    def start(self, rows: Encoded) -> Tensor:
        """Hidden states that enter layer 0, [n, T, H]."""
        hidden: Tensor = self.entered(**self._whole.inputs(rows))["hidden_states"]
        return hidden

    def entered(self, **inputs: Any) -> dict[str, Any]:
        """What the first layer is given when the backbone is given ``inputs``, by name."""
        return self._whole.entered(**inputs)

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
        if self._whole.length is not None and length > self._whole.length and not self.positioned:
            length = self._whole.length
        if length not in self._contexts:
            # kept for training too, so never as tensors of inference mode
            with torch.inference_mode(False), torch.no_grad():
                probe = self._whole.probe(None if self._whole.length is None else length)
                arguments = self.entered(**self._whole.inputs(probe))
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
        at = self._position(hidden, mask)
        if self._fused[last] is None or at is None or lo > last:
            return self.pool(self.finish(self.run(hidden, lo, self.depth, attention)), mask)
        hidden = self.run(hidden, lo, last, attention)
        return self.finish(self._layer(last, hidden, attention, at))[:, 0]

    def served(self, number: int, bank: Bank) -> ServedLayer | None:
        """A layer under a bank for passes of few rows; None if it cannot be run so, or is wide."""
        layer = self._fused[number]
        if layer is None or JoinedLayer.bytes_of(layer) > _JOINED_BYTES:
            return None
        if number not in self._joined:
            self._joined[number] = JoinedLayer(layer)
        return ServedLayer(self._joined[number], bank)

    def merged(self, target: Target, a: Tensor, b: Tensor, scale: float) -> Tensor:
        """The target's weight with each lane's adapter added (see ``lora.merge``)."""
        return merge(self.layers, target, a, b, scale)

    def finish(self, hidden: Tensor) -> Tensor:
        """Hidden states after the last layer, through the last norm if there is one."""
        return hidden if self.norm is None else self.norm(hidden)

    def pool(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """One vector per row, [n, H]; ``mask`` is the padding mask [n, T], None for images."""
        if self.pooling == "first":
            return features[:, 0]
        if mask is None:
            return features[:, -1] if self.pooling == "last" else features.mean(dim=1)
        if self.pooling == "last":
            rows = torch.arange(len(features), device=features.device)
            return features[rows, mask.sum(dim=1) - 1]
        weight = mask.to(features.dtype).unsqueeze(2)
        return (features * weight).sum(dim=1) / weight.sum(dim=1)

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
        if self._written() != self._versions or any(
            tensor.requires_grad or tensor.grad is not None for tensor in self.state.values()
        ):
            raise IntegrityError("a frozen parameter of the base was written to: report this bug")
        if not whole:
            return
        if tensors_digest(Gathered(self.state)) != self._weights:
            raise IntegrityError("the base's bytes differ from when it was loaded: report this bug")
        turned = all(layer.unchanged() for layer in self._fused if layer is not None)
        if not turned or not all(copy.unchanged() for copy in self._joined.values()):
            raise IntegrityError("a copy of the base's weights was written to: report this bug")

    # ── taking it apart ──────────────────────────────────────────────────────────────────────

    def _layer(
        self, number: int, hidden: Tensor, attention: Tensor | None, at: Tensor | None = None
    ) -> Tensor:
        """A layer with the bank in force, at one position of each row if ``at`` is given."""
        bank, written = bank_in_force(), self._fused[number]
        if bank is not None and number in bank.served:
            return bank.served[number](hidden, attention, at)
        if written is not None and (at is not None or written.takes(hidden.shape[1])):
            return written(hidden, attention, bank, at)
        return self._unwritten(number, hidden, attention)

    def _unwritten(self, number: int, hidden: Tensor, attention: Tensor | None) -> Tensor:
        """A layer by its own code, run again in the backward pass if the bank says so."""
        bank = bank_in_force()
        if bank is None or not bank.recompute or not torch.is_grad_enabled():
            return self.own(number, hidden, attention)

        def run(hidden: Tensor) -> Tensor:
            with adapted(bank):  # the backward pass has no bank in force
                return self.own(number, hidden, attention)

        again: Tensor = checkpoint(run, hidden, use_reentrant=False, preserve_rng_state=False)
        return again

    def _position(self, hidden: Tensor, mask: Tensor | None) -> Tensor | None:
        """The position of each row that is pooled, [n]; None if it takes several."""
        if self.pooling == "mean":
            return None
        if self.pooling == "first":
            return torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)
        if mask is None:
            return torch.full((len(hidden),), hidden.shape[1] - 1, device=hidden.device)
        return mask.sum(dim=1) - 1

    def _find_fused(self, probe: Encoded) -> list[FusedLayer | None]:
        """Layers that can be run written out, all their adapted maps included."""
        if self.causal:
            return [None] * self.depth
        with torch.no_grad():
            hidden = self.start(probe)
        mask = self.attention(probe.mask)
        heads = int(getattr(self.model.config, "num_attention_heads", 1))
        found: list[FusedLayer | None] = []
        for number, layer in enumerate(self.layers):
            wanted = {target.path for target in self.targets if target.layer == number}
            own = partial(self.own, number, attention=mask)
            found.append(fused(layer, number, wanted, heads, hidden, own, mask))
        return found

    def _written(self) -> list[int]:
        return [local(tensor)._version for tensor in self.state.values()]

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
            raise self._whole.refused() from None
        return hidden

    def _find_targets(self, names: tuple[str, ...] | None) -> list[Target]:
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
