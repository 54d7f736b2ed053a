"""From what a run serves at a view to adapters: each shard's lineage, or the average of all.

Invariant: every node is read through the store, which proves it; what an engine would refuse is
refused here, before anything is written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from s3t.config import Config
from s3t.errors import InputError
from s3t.export.adapter import Adapter, BaseName, make_adapter
from s3t.export.merging import merge_members
from s3t.export.options import Merge, Wanted
from s3t.plan import Plan
from s3t.plan.trie import Node
from s3t.run.opened import OpenRun
from s3t.serving.ensemble.ensemble import Ensemble, Member
from s3t.serving.predictor import Answering
from s3t.types import NodeKey

__all__ = ["Assembly"]


class Assembly:
    """Makes adapters of one run.

    Args:
        opened: the run.
        model: gives the model of the run, loaded when first needed.
        tag: what the names of the run's adapters have in common.
    """

    def __init__(self, opened: OpenRun, model: Callable[[], Answering], tag: str) -> None:
        self._config, self._model, self._tag = opened.config, model, tag
        self._is_alive = opened.is_alive
        self.called = _called(opened.run.base_path, opened.config)

    def adapters(
        self, nodes: Sequence[Node | None], plan: Plan, view: int, wanted: Wanted
    ) -> tuple[list[Adapter], Merge | None]:
        """The adapters of a view, by shard, or the merged one and what it loses.

        Args:
            nodes: what each shard serves, of ``plan``.
            plan: the one in force.
            view: of the ledger.
            wanted: what is asked for.

        Raises:
            InputError: the engine cannot serve them, or the merged one loses too much.
            DamagedNodeError: a node that should serve.
        """
        serving = [node for node in nodes if node is not None]
        if not serving:
            return [], None
        config, engine = self._config, wanted.engine()
        if config.stage.adapter != "lora":
            raise InputError(
                f"stage.adapter={config.stage.adapter} trains no LoRA: only LoRA can be exported"
            )
        model = self._model()
        model.keep_only(self._is_alive)  # what died since the last view leaves the memory too
        members = model.members(nodes, plan)
        merge = None
        if wanted.merge:
            adapter, merge = self._merged(members, serving, plan, view, nodes, wanted)
            adapters = [adapter]
        else:
            pairs = zip(members, serving, strict=True)
            adapters = [self._of_shard(member, node, plan) for member, node in pairs]
            if engine is not None:
                for adapter in adapters:
                    engine.check(adapter.config, config.task)
        return adapters, merge

    def _of_shard(self, member: Member, node: Node, plan: Plan) -> Adapter:
        keys = [one.key for one in plan.forest.lineage(node.key)]
        return self._adapter(member, self._config.lora.rank, keys, node.prefix, plan)

    def _adapter(
        self,
        member: Member,
        rank: int,
        keys: Sequence[NodeKey],
        prefix: tuple[int, ...] | None,
        plan: Plan,
    ) -> Adapter:
        return make_adapter(
            base=self._model().base,
            called=self.called,
            tag=self._tag,
            member=member,
            rank=rank,
            scale=self._config.lora.scale,
            nodes=keys,
            prefix=prefix,
            labels=plan.recipe["labels"],
            digits=max(3, len(str(plan.shards - 1))),
        )

    def _merged(
        self,
        members: Sequence[Member],
        serving: Sequence[Node],
        plan: Plan,
        view: int,
        nodes: Sequence[Node | None],
        wanted: Wanted,
    ) -> tuple[Adapter, Merge]:
        config, model, engine = self._config, self._model(), wanted.engine()
        weights, targets = config.aggregation.weights, model.base.targets
        found = merge_members(members, weights, targets, wanted.rank)
        if engine is not None and engine.ranks:
            found = merge_members(members, weights, targets, wanted.rank, engine.rank(found.rank))
        keys = [one.key for node in serving for one in plan.forest.lineage(node.key)]
        adapter = self._adapter(found.member, found.rank, keys, None, plan)
        if engine is not None:
            engine.check(adapter.config, config.task)  # before the time that comparing takes
        ensemble = model.ensemble(nodes, plan)
        assert ensemble is not None  # there are members
        before = model.evaluation(ensemble, view)
        one = Ensemble(
            model.base, [found.member], config.lora.scale, "mean-probabilities", "uniform"
        )
        after = model.evaluation(one, view)
        worse = before.value - after.value
        loss = worse if before.metric == "accuracy" else after.value / before.value - 1
        merge = Merge(
            rank=found.rank,
            error=found.error,
            metric=before.metric,
            ensemble=before.value,
            merged=after.value,
            loss=loss,
            samples=before.samples,
        )
        if wanted.max_loss is not None and not loss <= wanted.max_loss:
            raise InputError(
                f"the merged adapter has {before.metric} {after.value:.4f} where the ensemble has "
                f"{before.value:.4f}, a loss of {loss:.4f}: more than --max-loss "
                f"{wanted.max_loss}, so it was not written"
            )
        return adapter, merge


def _called(kept: Path, config: Config) -> BaseName:
    """How others find the base of a run: where it was made or adapted, in the run itself."""
    if kept.is_dir():
        return BaseName(str(kept.resolve()), None)
    local = Path(config.model.base)
    if local.exists():
        return BaseName(str(local.resolve()), None)
    return BaseName(config.model.base, config.model.revision)
