"""Gates: where a transformer's layers stood, so that its own forward pass ends before them.

Invariant: a gate shows the layer's attributes, registers none of its parameters, and computes
nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from s3t.errors import InputError

__all__ = ["Entered", "Gate", "Watched", "find_layers", "watched"]


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


class Watched:
    """What the layers of an untouched model were given in its pass, and what came of the last."""

    def __init__(self) -> None:
        self.given: list[dict[str, Any]] = []
        self.last: Any = None

    @property
    def alike(self) -> bool:
        """Whether all layers were given the same beside hidden states.

        Positions or masks of a layer's own, such as Gemma 3's for near and far, make differences
        so small that a comparison of results in half precision would not see them.
        """
        return all(_alike(self.given[0], other) for other in self.given)


@contextmanager
def watched(layers: Sequence[nn.Module]) -> Iterator[Watched]:
    """Watch a pass through layers that stand where they always stood."""
    seen = Watched()

    def enter(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = inspect.signature(layer.forward).bind(*args, **kwargs).arguments
        seen.given.append({**given, **given.get("kwargs", {})})

    def leave(layer: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        seen.last = out[0] if isinstance(out, tuple) else out

    hooks = [layer.register_forward_pre_hook(enter, with_kwargs=True) for layer in layers]
    hooks.append(layers[-1].register_forward_hook(leave))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _alike(one: Any, other: Any) -> bool:
    """Whether two layers' arguments are the same numbers, hidden states left out."""
    if isinstance(one, dict) and isinstance(other, dict):
        shared = (one.keys() & other.keys()) - {"hidden_states", "kwargs"}
        return all(_alike(one[name], other[name]) for name in shared)
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_alike, one, other))
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return True


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
