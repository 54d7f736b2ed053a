"""Encoder layers written out, forward and backward: the one door is ``FusedLayers``.

    Base ──► base_layers ──► layer ──► linear      a layer in training; one of its linear maps
                  │  └─────► matching              which layers of a base can be run so, by trying
                  └────────► inference             a layer in answers to few rows

Why: a stage trains one block and needs, from all frozen layers above, the gradient of their input
alone. Written out, training the digits ViT is 1.27 times as fast (docs/figures.md).

What would remain without this folder: ``Base`` runs every layer by its own code, as it does for
decoders, long rows and sharded bases today, with the same adapters. Remove ``Base.fused`` and its
five uses, ``Bank.inference``, and the two places in ``serving/ensemble`` that fill it. Answers stay
the same within rounding; nodes of encoders get other bytes.
"""

from s3t.model.fused.base_layers import FusedLayers

__all__ = ["FusedLayers"]
