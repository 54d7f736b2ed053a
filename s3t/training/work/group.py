"""How the processes of a group get their nodes: the leader schedules, the others follow it.

    leader    unit ─► tell it ─► which of it may I train? ─► train ─► publish ─► next unit …
    follower          hear it ─► which of it may I train? ─► train ─────────────► hear …

A deletion may reach them at different moments, so they train the nodes that all of them may.

Invariant: every process of a group trains the same nodes in the same order, or all of them end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from s3t.errors import S3TError
from s3t.run import RunDir
from s3t.training.node.process_group import DistributedGroup
from s3t.training.prepare.inputs import RunInputs
from s3t.training.prepare.load import load_prepared
from s3t.training.work.worker_state import WorkerState
from s3t.training.work.workers import OnStep
from s3t.types import NodeKey

__all__ = ["GroupLeader", "follow", "with_one_voice"]


class GroupLeader:
    """Trains units in this process and those that follow it.

    Args:
        group: which they are.
        device: what this one trains on.
    """

    def __init__(self, group: DistributedGroup, device: torch.device) -> None:
        self._group, self._device = group, device
        self._state: WorkerState | None = None
        self._broken = False

    def open(self, run: RunDir, inputs: RunInputs, on_step: OnStep) -> int:
        """Load the run here and in all that follow."""
        self._on_step = on_step
        with self._broken_by_errors():
            self._group.tell(("open", str(run.root.resolve())))
            self._state = _state(run, inputs, self._group, self._device)
            return self._state.stack_size()

    def train(self, unit: Sequence[NodeKey]) -> None:
        """Train the unit, all together."""
        assert self._state is not None
        with self._broken_by_errors():
            self._group.tell(("train", unit))
            _train(self._state, self._group, unit, self._on_step)

    def close(self) -> None:
        """End the others, and prove that the base is what it was, bytes and all.

        After an error they end by themselves, since this process does.
        """
        if self._broken:
            return
        self._group.tell(("close",))
        _close(self._state, self._group)

    @contextmanager
    def _broken_by_errors(self) -> Iterator[None]:
        self._broken = True
        yield
        self._broken = False


def follow(group: DistributedGroup, device: torch.device) -> None:
    """Train what the leader says, until it closes the group."""
    state: WorkerState | None = None
    while True:
        match group.hear():
            case ("open", root):
                run = RunDir.existing(root)
                state = _state(run, RunInputs.of(run), group, device)
            case ("train", unit):
                assert state is not None
                _train(state, group, unit, lambda steps: None)
            case _:
                return _close(state, group)


@contextmanager
def with_one_voice(group: DistributedGroup) -> Iterator[None]:
    """Leave it to the first process that meets an error to say it; the others end quietly."""
    try:
        yield
    except S3TError as error:
        if group.is_first_to_say():
            raise
        raise SystemExit(error.exit_code) from None


def _state(
    run: RunDir, inputs: RunInputs, group: DistributedGroup, device: torch.device
) -> WorkerState:
    with group.watched():
        return WorkerState(load_prepared(run, device, inputs, group), process_group=group)


def _train(
    state: WorkerState, group: DistributedGroup, unit: Sequence[NodeKey], on_step: OnStep
) -> None:
    may = [{*keys} for keys in group.gathered(state.trainable(unit))]
    if keys := [key for key in unit if all(key in each for each in may)]:
        with group.watched():
            state.train(keys, on_step)


def _close(state: WorkerState | None, group: DistributedGroup) -> None:
    if state is not None:
        with group.watched():
            state.prepared.base.check_frozen(whole=True)
    group.close()
