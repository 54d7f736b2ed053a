"""Makes the adapters of what a run serves at a view: one a shard, or the average of all shards.

Invariant: every node is read through the store, which proves it; what an engine would refuse is
refused here, before anything is written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from s3t.config import Config
from s3t.errors import InputError
from s3t.export.adapter import Adapter, AdapterSource, BaseName, make_adapter
from s3t.export.merging import Merged, merge_members
from s3t.export.options import ExportOptions, Merge
from s3t.plan import Plan
from s3t.plan.trie import Node
from s3t.run.opened import OpenRun
from s3t.serving.ensemble.ensemble import Ensemble, Member
from s3t.serving.predictor import Predictor
from s3t.serving.weights import keys_of, recorded_mixture

__all__ = ["Assembly"]


class Assembly:
    """Makes adapters of one run.

    Args:
        opened: the run.
        model: gives the model of the run, loaded when first needed.
        tag: what the names of the run's adapters have in common.
    """

    def __init__(self, opened: OpenRun, model: Callable[[], Predictor], tag: str) -> None:
        self._opened, self._config, self._model, self._tag = opened, opened.config, model, tag
        self._is_alive = opened.is_alive
        self.base_name = _base_name(opened.run.base_path, opened.config)

    def adapters(
        self, nodes: Sequence[Node | None], plan: Plan, view: int, options: ExportOptions
    ) -> tuple[list[Adapter], Merge | None]:
        """The adapters of a view, by shard, or the merged one and what it loses.

        Args:
            nodes: what each shard serves, of ``plan``.
            plan: the one in force.
            view: of the ledger.
            options: what is asked for.

        Raises:
            InputError: the engine cannot serve them, or the merged one loses too much.
            DamagedNodeError: a node that should serve.
        """
        serving = [node for node in nodes if node is not None]
        if not serving:
            return [], None
        config, limits = self._config, options.limits()
        if config.stage.adapter != "lora":
            raise InputError(
                f"stage.adapter={config.stage.adapter} trains no LoRA: only LoRA can be exported"
            )
        model = self._model()
        model.keep_only(self._is_alive)  # what died since the last view leaves the memory too
        members = model.members(nodes, plan)
        merge = None
        if options.merge:
            adapter, merge = self._merged(members, nodes, plan, view, options)
            adapters = [adapter]
        else:
            pairs = zip(members, serving, strict=True)
            adapters = [self._of_shard(member, node, plan) for member, node in pairs]
            if limits is not None:
                for adapter in adapters:
                    limits.check(adapter.config, config.task)
        return adapters, merge

    def _of_shard(self, member: Member, node: Node, plan: Plan) -> Adapter:
        keys = [one.key for one in plan.forest.lineage(node.key)]
        scale = self._config.lora.scale
        return self._adapter(AdapterSource(member, member.rank, scale, keys, node.prefix), plan)

    def _adapter(self, source: AdapterSource, plan: Plan) -> Adapter:
        digits = max(3, len(str(plan.shards - 1)))
        labels = plan.recipe["labels"]
        return make_adapter(self._model().base, self.base_name, self._tag, source, labels, digits)

    def _merged(
        self,
        members: Sequence[Member],
        nodes: Sequence[Node | None],
        plan: Plan,
        view: int,
        options: ExportOptions,
    ) -> tuple[Adapter, Merge]:
        """The adapter that averages all members, and how it compares with their ensemble."""
        config, model, limits = self._config, self._model(), options.limits()
        targets, weights = model.base.targets, config.aggregation.weights
        merged = merge_members(members, weights, targets, options.rank)
        if limits is not None and limits.ranks:
            least = limits.rank(merged.rank)
            merged = merge_members(members, weights, targets, options.rank, least)
        serving = [node for node in nodes if node is not None]
        keys = [one.key for node in serving for one in plan.forest.lineage(node.key)]
        source = AdapterSource(merged.member, merged.rank, config.lora.scale, keys, None)
        adapter = self._adapter(source, plan)
        if limits is not None:
            limits.check(adapter.config, config.task)  # before the time that comparing takes
        ensemble = model.ensemble(nodes, plan)
        assert ensemble is not None  # there are members
        mixture = recorded_mixture(self._opened, keys_of(nodes), model.has_head)
        if mixture is not None:  # as answers are given
            ensemble = model.weighted(ensemble, mixture)
        return adapter, self._compared(ensemble, merged, view, options.max_loss)

    def _compared(
        self, ensemble: Ensemble, merged: Merged, view: int, max_loss: float | None
    ) -> Merge:
        """The ensemble and the merged adapter on the public test rows.

        Raises:
            InputError: the merged one does worse by more than ``max_loss``.
        """
        model, scale = self._model(), self._config.lora.scale
        before = model.evaluation(ensemble, view)
        one = Ensemble(model.base, [merged.member], scale, "mean-probabilities", "uniform")
        after = model.evaluation(one, view)
        worse = before.value - after.value
        loss = worse if before.metric == "accuracy" else after.value / before.value - 1
        if max_loss is not None and not loss <= max_loss:
            raise InputError(
                f"the merged adapter has {before.metric} {after.value:.4f} where the ensemble has "
                f"{before.value:.4f}, a loss of {loss:.4f}: more than --max-loss "
                f"{max_loss}, so it was not written"
            )
        return Merge(
            rank=merged.rank,
            error=merged.error,
            metric=before.metric,
            ensemble=before.value,
            merged=after.value,
            loss=loss,
            samples=before.samples,
        )


def _base_name(kept: Path, config: Config) -> BaseName:
    """How others find the base of a run: where it was made or adapted, in the run itself."""
    if kept.is_dir():
        return BaseName(str(kept.resolve()), None)
    local = Path(config.model.base)
    if local.exists():
        return BaseName(str(local.resolve()), None)
    return BaseName(config.model.base, config.model.revision)
