"""How the processes of a group get their nodes: one walks over the tree, the others follow it.

    leader    take ─► tell unit ─► which of it may I train? ─► train ─► publish ─► done ─► …
    follower           hear unit ─► which of it may I train? ─► train ─────────────────► hear …

A deletion may reach them at different moments, so what they train is what all of them still may.

Invariant: every rank of a group trains the same nodes in the same order, or all of them end.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from s3t.errors import S3TError
from s3t.run import RunDir
from s3t.training.node.process_group import Group
from s3t.training.prepare.prepare import open_material
from s3t.training.work.worker_state import Workshop
from s3t.training.work.workers import OnStep, Source
from s3t.types import NodeKey

__all__ = ["Together", "follow", "with_one_voice"]


class Together:
    """The pool of a leader: this process and those that follow it.

    Args:
        group: which they are.
        device: what this one trains on.
    """

    size = 1

    def __init__(self, group: Group, device: torch.device) -> None:
        self._group, self._device = group, device
        self._workshop: Workshop | None = None
        self._torn = False

    def open(self, run: RunDir) -> int:
        """Load the run here and in all that follow."""
        with self._unless_torn():
            self._group.tell({"run": str(run.root.resolve())})
            self._workshop = _workshop(run, self._group, self._device)
            return self._workshop.group_size()

    def train(self, source: Source, on_step: OnStep) -> None:
        """Train one unit after another."""
        assert self._workshop is not None
        while (unit := source.take(0, 1)) is not None:
            if unit:
                with self._unless_torn():
                    self._group.tell({"train": list(unit)})
                    _train(self._workshop, self._group, unit, on_step)
                source.done(unit)
            else:
                time.sleep(source.pause)

    def close(self) -> None:
        """Send the others home, and prove that the base is what it was, bytes and all.

        After an error they end by themselves, since this process does.
        """
        if self._torn:
            return
        self._group.tell({})
        _close(self._workshop, self._group)

    @contextmanager
    def _unless_torn(self) -> Iterator[None]:
        self._torn = True
        yield
        self._torn = False


def follow(group: Group, device: torch.device) -> None:
    """Train what the leader says, until it has no more."""
    workshop: Workshop | None = None
    while word := group.hear():
        if "run" in word:
            workshop = _workshop(RunDir.existing(word["run"]), group, device)
        else:
            assert workshop is not None
            _train(workshop, group, word["train"], lambda steps: None)
    _close(workshop, group)


@contextmanager
def with_one_voice(group: Group) -> Iterator[None]:
    """Leave it to the first process that meets an error to say it; the others end quietly."""
    try:
        yield
    except S3TError as error:
        if group.is_first_to_say():
            raise
        raise SystemExit(error.exit_code) from None


def _workshop(run: RunDir, group: Group, device: torch.device) -> Workshop:
    with group.watched():
        return Workshop(open_material(run, device, group), peers=group)


def _train(workshop: Workshop, group: Group, unit: Sequence[NodeKey], on_step: OnStep) -> None:
    may = [{*keys} for keys in group.gathered(workshop.trainable(unit))]
    if keys := [key for key in unit if all(key in each for each in may)]:
        with group.watched():
            workshop.train(keys, on_step)


def _close(workshop: Workshop | None, group: Group) -> None:
    if workshop is not None:
        with group.watched():
            workshop.material.base.check_frozen(whole=True)
    group.close()
