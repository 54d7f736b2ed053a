"""One stage of several nodes at once: a block of layers is trained, everything else stands still.

    trunk cache ─► block lo…hi−1 (LoRA of each lane, trained) ─► layers above (LoRA of each
    (frozen, no LoRA)                    lane's parents, frozen) ─► head of each lane (trained)

With ``isolation: nested`` the block reaches to the top, and its upper layers start from the
parent's adapter; with ``residual`` all adapters of the stages before stand frozen beside it.

Invariants: a node's bytes depend on its key alone (E2), not on its group; every trained tensor has
changed and no frozen one (E9), checked here after each stage; a weight that is not finite is an
error, never a node.

Nodes are stacked where that changes no bit (``stacking``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from s3t.errors import IntegrityError, S3TError
from s3t.model.adapters.prompt import beside, prompts_of
from s3t.model.base import Base
from s3t.store import tensors_digest
from s3t.training.node.assignment import (
    Assignment,
    CacheSettings,
    StageRows,
    StageSettings,
    TrainedNode,
)
from s3t.training.node.lanes import LaneTensors
from s3t.training.node.objective import SCORE_ROWS, Gained, Objective, Pass
from s3t.training.node.optimizer import StackedOptimizer, learning_rate
from s3t.training.node.process_group import InTurn, ProcessGroup
from s3t.training.node.rows import Batches
from s3t.training.node.stacking import Stacking
from s3t.training.node.trunk_cache import TrunkCache
from s3t.types import BatchPart, NodeKey, digest

__all__ = ["StageSteps", "StageTrainer"]


class StageTrainer:
    """Trains stacks of nodes over one base.

    Args:
        base: the frozen base.
        settings: how.
        rows: on what.
        cache: where hidden states are kept.
        process_group: the processes among which batches are divided; by default this process takes
            in turn the parts that ``stage.processes`` would take.
    """

    def __init__(
        self,
        base: Base,
        settings: StageSettings,
        rows: StageRows,
        cache: CacheSettings | None = None,
        process_group: ProcessGroup | None = None,
    ) -> None:
        self.base, self.settings, self.rows = base, settings, rows
        self.lora, self.recipe, self.prompt = settings.lora, settings.stage, settings.prompt
        self.private, self.validation, self.classes = rows.private, rows.validation, rows.classes
        self.process_group = process_group or InTurn(self.recipe.processes)
        self.stacking = Stacking(base, self.process_group)
        self.tensors = LaneTensors(base, settings, rows.classes)
        if self.recipe.sharded:
            base.run_plainly()
        cache, group = cache or CacheSettings(), self.process_group
        trunk = TrunkCache(base, rows.private.rows, cache.cap_bytes, cache.shared, group)
        self.on_private = Objective(base, rows.classes, rows.private, trunk)
        trunk = TrunkCache(base, rows.validation.rows, cache.cap_bytes, process_group=group)
        self.on_public = Objective(base, rows.classes, rows.validation, trunk)

    def train(
        self,
        block: tuple[int, int],
        group: Sequence[Assignment],
        on_step: Callable[[int], None] = lambda steps: None,
    ) -> list[TrainedNode]:
        """Train the group's nodes together; results in the order of the group.

        Args:
            block: layers lo … hi−1 that are trained.
            group: nodes of one stage.
            on_step: told after each step how many nodes stepped.

        Raises:
            S3TError: a weight or a score became infinite or not a number.
            IntegrityError: a frozen tensor changed, a trained one did not, or the ranks disagree.
        """
        ranked = sorted(group, key=lambda assignment: (-len(assignment.rows), assignment.key))
        initial = [self.tensors.initial(block, assignment) for assignment in ranked]
        finals, idle = self._trained(block, ranked, initial, on_step)
        for each in zip(ranked, initial, finals, idle, strict=True):
            self._check(*each)
        self.base.check_frozen()
        trained = {one.key: one for one in self.scored(block, ranked, finals)}
        for key, one in trained.items():
            held = tensors_digest({**one.tensors, "": one.said})
            self.process_group.agree(digest([held, one.score]), f"node {key}")
        return [trained[assignment.key] for assignment in group]

    def agrees(self, block: tuple[int, int], group: Sequence[Assignment]) -> bool:
        """Whether these nodes have the same gradients stacked and alone, to the last bit.

        Every shape that their stage uses is tried (short last batches, lengths of texts, parts of
        batches, fewer nodes at the end), from weights that are drawn; every gradient of every node
        is compared.
        """
        ranked = sorted(group, key=lambda assignment: (-len(assignment.rows), assignment.key))
        run = StageSteps(self, block, ranked, [self.tensors.moved(block, one) for one in ranked])
        shapes = set()
        for step in range(max(run.steps)):
            run.keep(step)
            for number, part in enumerate(self.process_group.parts):
                for taken in run.passes(step, part):
                    shape = run.shape(taken)
                    if shape not in shapes and len(taken.lanes) > 1:
                        run.gradients(number, part, taken)
                        shapes.add(shape)
        return all(self.stacking.agreed(shape) for shape in shapes)

    def step_of(
        self, block: tuple[int, int], name: str, rows: Tensor, inherited: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Tensors of a made-up node after one step from weights that are drawn: a probe.

        Args:
            block: layers lo … hi−1 that are trained.
            name: what it is drawn from.
            rows, inherited: as in ``Assignment``.
        """
        one = Assignment(NodeKey(digest(name)), rows, inherited)
        run = StageSteps(self, block, [one], [self.tensors.moved(block, one)])
        for number, part in enumerate(self.process_group.parts):
            for taken in run.passes(0, part):
                run.optimizer.add_gradients(run.gradients(number, part, taken), taken.lanes, number)
        run.optimizer.step(torch.tensor([run.rates[0](0)]))
        gradient = run.optimizer.gradient.flatten().cpu()
        return {**run.optimizer.take(0), "gradient": gradient}

    def _trained(
        self,
        block: tuple[int, int],
        ranked: Sequence[Assignment],
        initial: Sequence[Mapping[str, Tensor]],
        on_step: Callable[[int], None],
    ) -> tuple[list[dict[str, Tensor]], list[frozenset[str]]]:
        """The nodes' tensors after their last step, and names of those that had no gradient."""
        run = StageSteps(self, block, ranked, initial)
        finals: list[dict[str, Tensor]] = [{} for _ in ranked]
        idle: list[frozenset[str]] = [frozenset() for _ in ranked]
        for step in range(max(run.steps)):
            going = run.keep(step)
            for number, part in enumerate(self.process_group.parts):
                for taken in run.passes(step, part):
                    run.optimizer.add_gradients(
                        run.gradients(number, part, taken), taken.lanes, number
                    )
            run.optimizer.step(torch.tensor([rate(step) for rate in run.rates[:going]]))
            for row in range(going):
                if run.steps[row] == step + 1:
                    finals[row], idle[row] = run.optimizer.take(row), run.optimizer.idle(row)
            on_step(going)
        return finals, idle

    @property
    def one_by_one(self) -> list[Hashable]:
        """Shapes at which nodes are computed one by one, see ``Stacking``."""
        return self.stacking.one_by_one

    def batches(self, assignment: Assignment) -> Batches:
        """The batches of a node, from the first step."""
        recipe, rows = self.recipe, assignment.rows
        lengths = self.private.lengths(rows) if recipe.group_by_length else None
        together = recipe.gradient_accumulation
        epochs = recipe.epochs_of(assignment.stage)
        return Batches(assignment.key, rows, recipe.batch_size, epochs, together, lengths)

    def scored(
        self,
        block: tuple[int, int],
        ranked: Sequence[Assignment],
        finals: Sequence[dict[str, Tensor]],
    ) -> list[TrainedNode]:
        """Nodes with these tensors, with their scores on the validation rows, to six digits, and
        what they say of them.

        Raises:
            S3TError: a score or a log probability is infinite or not a number.
        """
        found = self._gained(block, ranked, finals)
        *each, counted = found.scores.tolist()
        scores = [float(f"{one / max(counted, 1.0):.6g}") for one in each]
        said = found.said.unflatten(1, (-1, self.classes)) if self.classes else found.said
        nodes = [
            TrainedNode(assignment.key, *rest)
            for assignment, *rest in zip(ranked, finals, scores, said, strict=True)
        ]
        for node in nodes:
            if not (math.isfinite(node.score) and bool(node.said.isfinite().all())):
                raise _diverged(node.key, "its validation score")
        return nodes

    def _gained(
        self,
        block: tuple[int, int],
        ranked: Sequence[Assignment],
        finals: Sequence[Mapping[str, Tensor]],
    ) -> Gained:
        """What nodes gain on the validation rows: stacked, if that gives what each gives alone."""

        def gained(nodes: slice) -> Gained:
            some = finals[nodes]
            leaves = {name: torch.stack([t[name] for t in some]) for name in some[0]}
            leaves = {name: tensor.to(self.base.device) for name, tensor in leaves.items()}
            upper = self.tensors.upper(block, ranked[nodes])
            bank = self.tensors.bank(block, leaves, upper, ())
            return self.on_public.gained(block[0], bank, leaves, self.process_group)

        def alone() -> Gained:
            each = [gained(slice(at, at + 1)) for at in range(len(ranked))]
            scores = torch.cat([*(one.scores[:1] for one in each), each[0].scores[1:]])
            return Gained(scores, torch.cat([one.said for one in each]))

        frozen = frozenset(tensor.shape for tensor in ranked[0].inherited.values())
        shape = ("scores", frozen, len(ranked))
        found: list[Gained] = []

        def same() -> bool:
            found.append(alone())
            return found[0].equals(gained(slice(None)))

        prompts = prompts_of({**ranked[0].inherited, **finals[0]})
        tokens = self.base.tokens(self.validation.rows) + (0 if prompts is None else len(prompts))
        if len(ranked) == 1 or self.stacking.allows(shape, same, SCORE_ROWS * tokens):
            return found[0] if found else gained(slice(None))
        return found[0] if found else alone()

    def _check(
        self,
        assignment: Assignment,
        before: Mapping[str, Tensor],
        after: Mapping[str, Tensor],
        idle: frozenset[str],
    ) -> None:
        """Refuse weights that are not finite, or stood still though they had a gradient.

        Without one there was nothing left to learn, as where the loss is zero. And the first step
        cannot move A: its gradient is a product with B, which starts at zero.
        """
        if not all(bool(torch.isfinite(tensor).all()) for tensor in after.values()):
            raise _diverged(assignment.key, "a weight")
        still = [
            name for name in after if torch.equal(before[name], after[name]) and name not in idle
        ]
        if still:
            raise IntegrityError(
                f"node {assignment.key}: {still[0]} was not changed by its stage; raise "
                "stage.learning_rate, or report this as a bug"
            )


class StageSteps:
    """Nodes on their way through one stage, the one with most steps first.

    Attributes:
        steps, rates: number of steps, and learning rate by step, of each node.
        lanes: weights and optimizer states of those that are not done.
    """

    def __init__(
        self,
        trainer: StageTrainer,
        block: tuple[int, int],
        ranked: Sequence[Assignment],
        initial: Sequence[Mapping[str, Tensor]],
    ) -> None:
        recipe = trainer.recipe
        self._trainer, self._block = trainer, block
        trainer.on_private.trunk.prepare(block[0], torch.cat([a.rows for a in ranked]).unique())
        self._batches = [trainer.batches(assignment) for assignment in ranked]
        self.steps = [batches.steps for batches in self._batches]
        self.rates = [learning_rate(recipe, count) for count in self.steps]
        # each part draws as if it were alone
        self._generators = [trainer.tensors.generators(ranked) for _ in trainer.process_group.parts]
        self.optimizer = StackedOptimizer(
            initial, recipe, trainer.base.device, trainer.process_group
        )
        self._upper = trainer.tensors.upper(block, ranked)
        self._earlier = trainer.tensors.earlier(ranked)
        prompts = beside(self._upper.prompts, self.optimizer.leaves)
        self._prompts = 0 if prompts is None else prompts.shape[1]
        self._chosen: tuple[int, list[tuple[Tensor, Tensor]]] = -1, []
        self._moves = False

    def keep(self, step: int) -> int:
        """Leave behind the nodes that have no such step; returns how many have."""
        going = sum(count > step for count in self.steps)  # they fall: the ones done are at the end
        if going < len(self.optimizer):
            self.optimizer.keep(going)
            self._upper = self._upper.first(going)
            self._earlier = {name: a[:going] for name, a in self._earlier.items()}
        return going

    def passes(self, step: int, part: BatchPart) -> Iterator[Pass]:
        """The passes of a step; steps are asked for in order."""
        if self._chosen[0] != step:
            self._chosen = step, [b.at(step) for b in self._batches[: len(self.optimizer)]]
            # while a B is 0, as before the first step, products with it would agree in any case
            of_b = (leaf for name, leaf in self.optimizer.leaves.items() if name.endswith("lora_B"))
            self._moves = all(bool(leaf.any()) for leaf in of_b)
        count = self._trainer.recipe.gradient_accumulation
        return self._trainer.on_private.passes(self._chosen[1], count, part)

    def shape(self, taken: Pass) -> Hashable:
        """All that the shapes of a pass's products depend on; they are alike in all layers."""
        ranks = {a.shape[1] for a, _ in self._upper.pairs.values()}
        return (bool(self._upper.merged), max(ranks, default=0), self._prompts, *taken.shape)

    def gradients(self, number: int, part: BatchPart, taken: Pass) -> dict[str, Tensor]:
        """Gradients of the pass's nodes, [G, …] of each leaf: those that each has alone."""
        drawn = self._generators[number]
        if len(taken.lanes) == 1:
            return self._found(drawn, part, taken)
        before = [drawn[lane].get_state() for lane in taken.lanes] if drawn else []
        alone: dict[str, Tensor] = {}

        def each() -> dict[str, Tensor]:
            for lane, state in zip(taken.lanes, before, strict=False):
                drawn[lane].set_state(state)
            places = range(len(taken.lanes))
            found = [self._found(drawn, part, taken.only(at)) for at in places]
            return {name: torch.cat([one[name] for one in found]) for name in found[0]}

        def same() -> bool:
            stacked = self._found(drawn, part, taken)
            alone.update(each())
            return all(torch.equal(stacked[name], alone[name]) for name in stacked)

        tokens = taken.tokens or self._trainer.base.tokens(self._trainer.private.rows)
        positions = taken.rows.shape[1] * (tokens + self._prompts)
        if not self._moves or not self._trainer.stacking.allows(self.shape(taken), same, positions):
            return alone or each()
        return alone or self._found(drawn, part, taken)

    def _found(
        self, drawn: Sequence[torch.Generator], part: BatchPart, taken: Pass
    ) -> dict[str, Tensor]:
        lanes, leaves, upper = list(taken.lanes), self.optimizer.leaves, self._upper
        if len(lanes) < len(self.optimizer):
            leaves = {n: leaf.detach()[lanes].requires_grad_() for n, leaf in leaves.items()}
            upper = upper.only(lanes)
        generators = [drawn[lane] for lane in lanes] if drawn else ()
        bank = self._trainer.tensors.bank(self._block, leaves, upper, generators, part)
        loss = self._trainer.on_private.loss(self._block[0], bank, leaves, taken)
        if self._earlier:
            loss = loss + self._penalty(lanes, leaves)
        gradients = torch.autograd.grad(loss, tuple(leaves.values()))
        return dict(zip(leaves, gradients, strict=True))

    def _penalty(self, lanes: list[int], leaves: Mapping[str, Tensor]) -> Tensor:
        """A pass's part of the squared products of A with those of the stages before, summed over
        maps and lanes (O-LoRA, arXiv 2310.14152, equation 7)."""
        recipe = self._trainer.recipe
        passes = recipe.gradient_accumulation * recipe.processes  # a lane has so many in a step
        products = (
            torch.bmm(leaves[name], before[lanes].transpose(1, 2)).square().sum()
            for name, before in self._earlier.items()
            if name in leaves
        )
        return (
            recipe.orthogonality
            / passes
            * sum(products, torch.zeros(()).to(self._trainer.base.device))
        )


def _diverged(key: NodeKey, what: str) -> S3TError:
    return S3TError(
        f"node {key}: training diverged ({what} is not finite); nothing of it was kept. "
        "Lower stage.learning_rate or set stage.max_grad_norm"
    )
