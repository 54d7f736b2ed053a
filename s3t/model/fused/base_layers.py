"""The layers of one base that are run written out, and what is kept for them.

Invariant: a layer that is not here is run by its own code; a caller cannot tell which, but for
rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from torch import Tensor, nn

from s3t.model.adapters.lora import Bank
from s3t.model.fused.inference import InferenceLayer, JoinedLayer
from s3t.model.fused.layer import FusedLayer
from s3t.model.fused.matching import match_layer

__all__ = ["FusedLayers"]

_JOINED_BYTES = 2**20
"""Query, key and value weights up to this are kept joined as well, for passes of few rows; in
wider layers a call costs less than what it computes."""


class FusedLayers:
    """Layers of a base by number.

    Args:
        layers: each written out, or None where it keeps its own code.
    """

    def __init__(self, layers: Sequence[FusedLayer | None]) -> None:
        self._layers = tuple(layers)
        self._joined: dict[int, JoinedLayer] = {}

    @staticmethod
    def find(
        layers: Sequence[nn.Module],
        adapted: Callable[[int], Collection[str]],
        heads: int,
        hidden: Tensor,
        own: Callable[[int, Tensor], Tensor],
        mask: Tensor | None,
    ) -> FusedLayers:
        """Try all layers of a base.

        Args:
            layers: before their linear maps are wrapped.
            adapted: of a layer's number the paths of the maps that will be adapted.
            heads: attention heads.
            hidden: random hidden states [n, T, H] to try them with.
            own: of a number and hidden states the layer's own forward pass.
            mask: additive attention mask of the trial [n, 1, 1, T], or None.
        """

        def found(number: int, layer: nn.Module) -> FusedLayer | None:
            return match_layer(
                layer, number, adapted(number), heads, hidden, lambda x: own(number, x), mask
            )

        return FusedLayers([found(number, layer) for number, layer in enumerate(layers)])

    def __contains__(self, number: int) -> bool:
        return self._layers[number] is not None

    def run(
        self,
        number: int,
        hidden: Tensor,
        mask: Tensor | None,
        bank: Bank | None,
        at: Tensor | None,
    ) -> Tensor | None:
        """A layer on hidden states; None where its own code is to be run.

        Args:
            number: of the layer.
            hidden: [n, T, H].
            mask: additive attention mask [n, 1, 1, T], or None.
            bank: adapters in force.
            at: one position for each row, [n] int64, to compute no other; or None.

        Returns:
            [n, T, H], or [n, 1, H] with ``at``.
        """
        if bank is not None and number in bank.inference:
            return bank.inference[number](hidden, mask, at)
        layer = self._layers[number]
        if layer is not None and (at is not None or layer.takes(hidden.shape[1])):
            return layer(hidden, mask, bank, at)
        return None

    def for_inference(self, numbers: Collection[int], bank: Bank) -> dict[int, InferenceLayer]:
        """Those of some layers that have a form for passes of few rows, under a bank."""
        return {
            number: InferenceLayer(joined, bank)
            for number in numbers
            if (joined := self._join(number)) is not None
        }

    def drop_copies(self) -> None:
        """Forget joined weights: the base was moved to another device."""
        self._joined.clear()

    def unchanged(self) -> bool:
        """Whether all copies of the base's weights are still what they are copies of."""
        return all(layer.unchanged() for layer in self._layers if layer is not None) and all(
            copy.unchanged() for copy in self._joined.values()
        )

    def _join(self, number: int) -> JoinedLayer | None:
        """The weights of a layer, joined; None if it keeps its own code, or is too wide."""
        layer = self._layers[number]
        if layer is None or JoinedLayer.bytes_of(layer) > _JOINED_BYTES:
            return None
        if number not in self._joined:
            self._joined[number] = JoinedLayer(layer)
        return self._joined[number]
