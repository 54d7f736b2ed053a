"""Gates: where a transformer's layers stood, so that its own forward pass ends before them.

Invariant: a gate shows the layer's attributes, registers none of its parameters, and computes
nothing.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from s3t.errors import InputError

__all__ = ["Entered", "Gate", "find_layers"]


class Entered(Exception):
    """Carries what the first layer is given out of the backbone's forward."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.arguments = arguments


class Gate(nn.Module):
    """Stands where a layer stood, shows the layer's attributes, and stops the pass."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.__dict__["_layer"] = layer  # past nn.Module, so that it is not registered here
        self.__dict__["_signature"] = inspect.signature(layer.forward)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_layer"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        arguments = dict(self.__dict__["_signature"].bind(*args, **kwargs).arguments)
        arguments |= arguments.pop("kwargs", {})
        raise Entered(arguments)


def find_layers(backbone: nn.Module, depth: int) -> tuple[nn.Module, str]:
    """The module that holds the layers, and the name under which it does."""
    found = [
        (owner, name)
        for owner in backbone.modules()
        for name, child in owner.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == depth
    ]
    if len(found) != 1:
        raise InputError(
            f"{type(backbone).__name__} has {len(found)} lists of {depth} layers, expected one: "
            "use a base whose layers stand in one ModuleList"
        )
    return found[0]
