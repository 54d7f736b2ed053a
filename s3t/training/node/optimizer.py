"""The trainable weights of G nodes, and the optimizers that step them together.

    theta [G, P]   one row a lane; every leaf begins at a multiple of 64 bytes
      │  A of layer 3 │ pad │ B of layer 3 │ pad │ … │ head.weight │ pad │ head.bias │ pad │
      └─ leaves are views; their gradients are copied to ``gradient`` [G, P] and stepped together,
         after it was summed over the process group

Invariant: a lane's row after any number of steps is the same bytes whatever the other rows are and
however many there are. Hence plain element-wise products and sums only, no fused multiply-add (it
would round differently in vector registers and in scalar tails), and reductions row by row. A
learning rate belongs to a lane, because lanes have different numbers of steps: torch's own
optimizers take one for a whole tensor.

To add an optimizer: write its step, name it in ``OPTIMIZERS`` and in ``StageConfig.optimizer``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from s3t.config import StageConfig
from s3t.model.determinism import root_
from s3t.training.node.process_group import InTurn, ProcessGroup

__all__ = ["OPTIMIZERS", "SCHEDULES", "StackedOptimizer", "StepRule", "learning_rate"]

_ALIGN = 16
"""float32 numbers of 64 bytes."""

_BETAS = (0.9, 0.999)
_EPSILON = 1e-8
_MOMENTUM = 0.9
_NOTHING = 1e-8
"""A gradient below this is none: there is nothing left to learn."""


@dataclass(frozen=True, slots=True)
class StepRule:
    """How an optimizer steps.

    Attributes:
        states: how many tensors [G, P] it keeps from step to step, zero at first.
        update: what is taken off the weights, [G, P], from the gradient [G, P], the states, the
            number of the step, from 1, and the learning rates [G, 1]; it writes to the states.
    """

    states: int
    update: Callable[[Tensor, Sequence[Tensor], int, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class _Span:
    start: int
    stop: int
    shape: tuple[int, ...]


class StackedOptimizer:
    """Weights, gradients and optimizer states of G lanes of equal shape.

    Args:
        initial: one mapping of float32 tensors per lane, all with the same names and shapes.
        recipe: optimizer, weight decay and clipping.
        device: where they are trained.
        process_group: the processes that compute parts of the gradient; by default this one.
    """

    def __init__(
        self,
        initial: Sequence[Mapping[str, Tensor]],
        recipe: StageConfig,
        device: torch.device,
        process_group: ProcessGroup | None = None,
    ) -> None:
        self.recipe, self._process_group = recipe, process_group or InTurn()
        self._spans, width = _layout(initial[0])
        self.theta = torch.zeros(len(initial), width, device=device)
        for row, tensors in enumerate(initial):
            for name, span in self._spans.items():
                self.theta[row, span.start : span.stop] = tensors[name].reshape(-1).to(device)
        self.gradient = self.theta
        self._rule = OPTIMIZERS[recipe.optimizer]
        self._states = [torch.zeros_like(self.theta) for _ in range(self._rule.states)]
        self._step = 0
        self._parts: list[Tensor] = []
        self._added: set[int] = set()
        self.leaves: dict[str, Tensor] = {}
        self._bind()

    def __len__(self) -> int:
        return len(self.theta)

    def take(self, row: int) -> dict[str, Tensor]:
        """A copy of one lane's weights, on the CPU."""
        return {
            name: self.theta[row, span.start : span.stop].reshape(span.shape).detach().cpu().clone()
            for name, span in self._spans.items()
        }

    def idle(self, row: int) -> frozenset[str]:
        """Names of one lane's weights that had next to no gradient in the last steps."""
        felt = self._states[0][row].abs()  # the gradient's running mean, in every rule
        return frozenset(
            name
            for name, span in self._spans.items()
            if float(felt[span.start : span.stop].max()) < _NOTHING
        )

    def keep(self, count: int) -> None:
        """Go on with the first ``count`` lanes; the others are done."""
        self.theta = self.theta[:count].clone()
        self._states = [state[:count].clone() for state in self._states]
        self._bind()

    def add(self, loss: Tensor) -> None:
        """Take the gradient of ``loss``, a scalar of the leaves, into the next step."""
        gradients = torch.autograd.grad(loss, tuple(self.leaves.values()))
        self.add_gradients(dict(zip(self.leaves, gradients, strict=True)), range(len(self)))

    def add_gradients(
        self, gradients: Mapping[str, Tensor], rows: Sequence[int], part: int = 0
    ) -> None:
        """Take gradients of some lanes into the next step: of one pass, or of each of several
        that are one step together.

        Args:
            gradients: [len(rows), …] of each leaf, by name.
            rows: numbers of the lanes.
            part: number of the batch part that they are of, among those of this process.
        """
        fresh, whole = part not in self._added, len(rows) == len(self)
        self._added.add(part)
        with torch.no_grad():
            if fresh and not whole:
                self._parts[part].zero_()
            chosen: slice | list[int] = slice(None) if whole else [*rows]
            for name, span in self._spans.items():
                found = gradients[name].flatten(1)
                held = self._parts[part][:, span.start : span.stop]
                if fresh and whole:
                    held.copy_(found)
                else:
                    held[chosen] += found

    def step(self, rates: Tensor) -> None:
        """One optimizer step down the gradient that all ranks have added since the last.

        Args:
            rates: learning rate of each lane, [G].
        """
        self._step += 1
        self._added.clear()
        self.gradient = self._process_group.summed(self._parts)
        with torch.no_grad():
            if self.recipe.max_grad_norm is not None:
                self._clip(self.recipe.max_grad_norm)
            rates = rates.reshape(-1, 1).to(self.theta.device)  # [G, 1]
            update = self._rule.update(self.gradient, self._states, self._step, rates)
            if self.recipe.weight_decay:  # decoupled from the gradient
                self.theta.mul_(1 - rates * self.recipe.weight_decay)
            self.theta.sub_(update)

    def _bind(self) -> None:
        self._parts = [torch.zeros_like(self.theta) for _ in self._process_group.parts]
        self.leaves = {}
        for name, span in self._spans.items():
            columns = slice(span.start, span.stop)
            leaf = self.theta[:, columns].unflatten(1, span.shape).detach()
            self.leaves[name] = leaf.requires_grad_()

    def _clip(self, limit: float) -> None:
        for row in self.gradient:  # row by row: the order of a sum must not depend on G
            norm = math.sqrt(float(row.square().sum()))
            row.mul_(min(1.0, limit / (norm + 1e-6)))


def learning_rate(recipe: StageConfig, total: int) -> Callable[[int], float]:
    """Learning rate as a function of the step, from 0, for a lane of ``total`` steps.

    Linear warm-up over ``warmup`` of the steps, then constant, linear to 0, or half a cosine to 0.
    """
    peak, warm = recipe.learning_rate, round(recipe.warmup * total)
    fall = SCHEDULES[recipe.schedule]

    def at(step: int) -> float:
        if step < warm:
            return peak * (step + 1) / warm
        return fall(peak, (step - warm) / max(1, total - warm))

    return at


SCHEDULES: Mapping[str, Callable[[float, float], float]] = {
    "constant": lambda peak, done: peak,
    "linear": lambda peak, done: peak * (1 - done),
    "cosine": lambda peak, done: peak * (1 + math.cos(math.pi * done)) / 2,
}
"""Learning rate after the warm-up, from its peak and the part of the steps that is done."""


def _adamw(gradient: Tensor, states: Sequence[Tensor], step: int, rates: Tensor) -> Tensor:
    """AdamW (Loshchilov & Hutter, arXiv 1711.05101, algorithm 2)."""
    (first, second), (one, two) = states, _BETAS
    first.mul_(one).add_(gradient * (1 - one))
    second.mul_(two).add_(gradient.square().mul_(1 - two))
    root = root_(second / (1 - two**step)).add_(_EPSILON)
    return (first / root).mul_(rates / (1 - one**step))


def _sgd(gradient: Tensor, states: Sequence[Tensor], step: int, rates: Tensor) -> Tensor:
    """Gradient descent with momentum 0.9."""
    (velocity,) = states
    velocity.mul_(_MOMENTUM).add_(gradient)
    return velocity * rates


OPTIMIZERS: Mapping[str, StepRule] = {"adamw": StepRule(2, _adamw), "sgd": StepRule(1, _sgd)}
"""The optimizers that ``stage.optimizer`` names."""


def _layout(tensors: Mapping[str, Tensor]) -> tuple[dict[str, _Span], int]:
    spans, at = {}, 0
    for name in sorted(tensors):
        shape = tuple(tensors[name].shape)
        spans[name] = _Span(at, at + math.prod(shape), shape)
        at = -(-spans[name].stop // _ALIGN) * _ALIGN
    return spans, at
