"""The walk over the tree: stage by stage, every missing node that is alive, dealt to who is there.

    stage 1   [n n n n n n]  rank 0: units ─► its workers      barrier
              [n n n n n n]  rank 1: units ─► its workers         │
    stage 2   …                                                   ▼

Invariants: a node is trained when its key is missing from the store, so a killed walk goes on
where it was; a node whose lineage holds a deleted sample is never trained; neither the number of
processes nor of workers changes a byte.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, tqdm

from s3t.config import Config
from s3t.errors import S3TError
from s3t.plan import Plan
from s3t.plan.trie import Node
from s3t.run import RunDir
from s3t.training.pool import Inline, Pool, Workers, worker_count
from s3t.training.preparation import prepare
from s3t.training.workshop import one_thread, steps_of
from s3t.types import NodeKey

__all__ = ["Report", "train"]

_PATIENCE = timedelta(days=7)
"""A stage may be long; the other processes wait for it."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a training did.

    Attributes:
        run: the run directory.
        nodes: nodes of the plan.
        trained: nodes trained now.
        found: nodes that were there already.
        skipped: nodes left out because a deletion has hit them.
        seconds: wall time.
        processes, workers: how the work was spread.
    """

    run: str
    nodes: int
    trained: int
    found: int
    skipped: int
    seconds: float
    processes: int
    workers: int

    def sentence(self) -> str:
        """The report in one line."""
        return (
            f"{self.run}: {self.trained} nodes trained, {self.found} found, {self.skipped} left "
            f"out for deletions, {self.seconds:.1f} s, {self.processes} × {self.workers} workers"
        )


def train(config: Config) -> Report:
    """Train every node of a config's plan that is missing; the main job.

    Under ``accelerate launch`` all processes call it. Killed at any moment and called again, it
    goes on without training a finished node twice, and ends with the same bytes.

    Raises:
        S3TError: see ``prepare``; or a stage diverged, or a worker died.
    """
    started = time.monotonic()
    accelerator = _accelerator(config)
    with ExitStack() as stack:
        stack.enter_context(one_thread(accelerator.device))
        if accelerator.is_main_process:
            stack.enter_context(RunDir(config.run_dir).training_lock())
        pool = _pool(config, accelerator)
        stack.callback(pool.close)
        run = _prepared(config, accelerator)
        counts = _Walk(config, accelerator, run, pool).go()
    return Report(
        run=str(run.root),
        seconds=round(time.monotonic() - started, 3),
        processes=accelerator.num_processes,
        workers=pool.size,
        **counts,
    )


class _Walk:
    def __init__(self, config: Config, accelerator: Accelerator, run: RunDir, pool: Pool) -> None:
        self.config, self.accelerator, self.run, self.pool = config, accelerator, run, pool
        self.plan: Plan = run.plan()
        self._logged = 0

    def go(self) -> dict[str, int]:
        """All stages; returns the counts of the report."""
        todo, skipped = self._shared(self._missing)
        found = len(self.plan.forest) - len(todo) - skipped
        counts = {"nodes": len(self.plan.forest), "trained": len(todo), "found": found}
        if todo:
            self.accelerator.init_trackers(self.config.name)
            group = self.pool.open(self.run)
            with self._progress(todo) as bar:
                for stage in self.plan.forest.stages():
                    self._stage(stage, group, bar)
            self.accelerator.end_training()
        return counts | {"skipped": skipped}

    def _stage(self, stage: Sequence[Node], group: int, bar: Any) -> None:
        missing, _ = self._shared(lambda: self._missing(stage))
        bar.set_description(f"stage {stage[0].stage}, {len(missing)} nodes")
        ranked = sorted(missing, key=lambda key: (-self.plan.forest[key].samples, key))
        mine = ranked[self.accelerator.process_index :: self.accelerator.num_processes]
        self.pool.train(_units(mine, self.pool.size, group), bar.update)
        self.accelerator.wait_for_everyone()
        self._log(missing)

    def _missing(self, nodes: Sequence[Node] | None = None) -> tuple[list[NodeKey], int]:
        """Keys to train, in the tree's order, and how many a deletion has ruled out."""
        hits = self.run.hits()
        there = self.run.store.keys()
        missing, skipped = [], 0
        for node in self.plan.forest.nodes if nodes is None else nodes:
            if any((node.shard, part) in hits for part in node.prefix):
                skipped += 1
            elif node.key not in there:
                missing.append(node.key)
        return missing, skipped

    def _shared(self, decide: Any) -> Any:
        """What the main process decides, in every process: the store changes under their eyes."""
        values = [decide() if self.accelerator.is_main_process else None]
        if self.accelerator.num_processes > 1:
            broadcast_object_list(values)
        return values[0]

    @contextmanager
    def _progress(self, todo: Sequence[NodeKey]) -> Iterator[Any]:
        recipe = self.config.stage
        steps = [steps_of(self.plan.forest[key], recipe.batch_size, recipe.epochs) for key in todo]
        share = sum(steps) // self.accelerator.num_processes
        with tqdm(total=share, unit="step", disable=_silent(), dynamic_ncols=True) as bar:
            yield bar

    def _log(self, keys: Sequence[NodeKey]) -> None:
        """Public validation scores to the trackers: nothing of a private sample is in them."""
        if not self.accelerator.is_main_process or not self.config.training.trackers:
            return
        for key in keys:
            if self.run.store.has(key):
                meta = self.run.store.meta(key)
                values = {"validation": meta.score, "shard": meta.shard, "stage": len(meta.prefix)}
                self.accelerator.log(values, step=self._logged)
                self._logged += 1


def _units(keys: Sequence[NodeKey], workers: int, group: int) -> list[list[NodeKey]]:
    """Groups of nodes, alike in length, as even as they come and at least one per worker."""
    if not keys:
        return []
    share = -(-len(keys) // workers)
    count = workers * -(-share // group)
    return [unit for unit in (list(keys[at::count]) for at in range(count)) if unit]


def _accelerator(config: Config) -> Accelerator:
    trackers = list(config.training.trackers)
    patience = InitProcessGroupKwargs(timeout=_PATIENCE)
    try:
        return Accelerator(
            log_with=trackers or None,
            project_dir=str(config.run_dir / "tracking") if trackers else None,
            kwargs_handlers=[patience],
        )
    except (ValueError, ImportError) as error:
        raise S3TError(f"accelerate cannot start ({error}): see training.trackers") from None


def _pool(config: Config, accelerator: Accelerator) -> Pool:
    size = worker_count(config.training.workers, accelerator.device, accelerator.num_processes)
    return Inline(accelerator.device) if size == 1 else Workers(size)


def _prepared(config: Config, accelerator: Accelerator) -> RunDir:
    """The main process prepares; what goes wrong there is said once and ends all."""
    failure: list[str | None] = [None]
    run = RunDir(config.run_dir)
    if accelerator.is_main_process:
        try:
            silent = _silent() or config.model.adapt is None
            with tqdm(desc="adapting the base", unit="step", disable=silent) as bar:
                prepare(config, accelerator.device, lambda done, total: _advance(bar, done, total))
            run.store.sweep()
        except S3TError as error:
            if accelerator.num_processes == 1:
                raise
            failure = [str(error)]
            broadcast_object_list(failure)
            raise
    if accelerator.num_processes > 1:
        broadcast_object_list(failure)
        if failure[0] is not None and not accelerator.is_main_process:
            raise SystemExit(2)
    return run


def _silent() -> bool:
    """A bar on a terminal, nothing in a log file (accelerate's tqdm takes None for False)."""
    return not sys.stderr.isatty()


def _advance(bar: Any, done: int, total: int) -> None:
    bar.total = total
    bar.update(done - bar.n)
