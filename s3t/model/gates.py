"""Gates take the places of a transformer's layers, so that its own forward pass ends before them.

Invariant: a gate shows its layer's attributes, registers none of its parameters, and computes
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
    """Ends the backbone's forward pass, and carries the arguments of its first layer out of it."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.arguments = arguments


class Gate(nn.Module):
    """Takes a layer's place, shows the layer's attributes, and raises ``Entered`` when called."""

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
    """The arguments of all layers of an untouched model in one pass, and the last one's output."""

    def __init__(self) -> None:
        self.given: list[dict[str, Any]] = []
        self.last: Any = None

    @property
    def alike(self) -> bool:
        """Whether all layers were given the same arguments, hidden states left out.

        Some models give layers positions or masks of their own (Gemma 3: near and far). The
        differences are too small for a comparison of results in half precision.
        """
        return all(_alike(self.given[0], other) for other in self.given)


@contextmanager
def watched(layers: Sequence[nn.Module]) -> Iterator[Watched]:
    """Record the arguments of layers in a pass of the untouched model."""
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
    """The module that holds the list of layers, and the list's name there.

    Raises:
        InputError: there is no list of so many modules, or more than one.
    """
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
