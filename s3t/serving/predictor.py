"""The model side of a run: the loaded base, the tensors of living nodes, and their ensembles.

Invariant: a node's tensors are read through the store, which proves them, and are dropped from
memory with the first view in which the node is dead. Stacked tensors belong to the ensemble of a
view: the next ensemble takes over what has not changed, and the rest goes when the last answer from
the old ensemble is done.
"""

from __future__ import annotations

import logging
import math
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from s3t.config import Config
from s3t.data import load_public
from s3t.data.files import one_line
from s3t.data.given import value_of
from s3t.data.rows import LabelledRows
from s3t.errors import DataError, InputError, IntegrityError
from s3t.model.adapters.lineage import composed
from s3t.model.base import Base
from s3t.model.head import read_public_head
from s3t.model.inputs.encoders import Encoded, ImageEncoder, TextEncoder
from s3t.model.loading import build_base, load_model
from s3t.plan import Plan
from s3t.plan.trie import Node
from s3t.run import RunDir
from s3t.serving.checks import check_draw, check_text, image_array, text_pair
from s3t.serving.ensemble.ensemble import Ensemble, Member
from s3t.serving.ensemble.members import base_member
from s3t.serving.ensemble.mixture import Mixture
from s3t.serving.generation.completion import TextGenerator
from s3t.serving.generation.kv_steps import find_kv_steps
from s3t.training.prepare.clusters import prototypes_of, recipe_digest
from s3t.training.prepare.recipe import recipe_of
from s3t.types import Draw, NodeKey

__all__ = ["Evaluation", "Prediction", "Predictor", "Tally"]

_log = logging.getLogger(__name__)
_PART = 128
"""Test rows of one part of an evaluation: a deletion waits for one part."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One classified row: the likeliest label, all probabilities by label, and the view."""

    label: str
    probabilities: dict[str, float]
    view: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How the run does on the public test data.

    Attributes:
        metric: ``accuracy`` (0–1) or ``perplexity`` (per token).
        value: the figure.
        samples: test rows.
        view: the view that answered.
        base: the same figure of the base alone; None without a head that could answer.
        ensemble: where adapters are merged, the same figure of the mean of the shards' answers.
        validation: fitted weights of the shards that serve, in their order, and of the base, with
            the likelihood of the public validation rows; None while weights are not fitted.
    """

    metric: str
    value: float
    samples: int
    view: int
    base: float | None = None
    validation: Mixture | None = None
    ensemble: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, the figure under its own name."""
        return {
            self.metric: self.value,
            "samples": self.samples,
            "view": self.view,
            "base": self.base,
            **({} if self.ensemble is None else {"ensemble": self.ensemble}),
            "validation": None if self.validation is None else self.validation.to_dict(),
        }


@dataclass(frozen=True, slots=True)
class Tally:
    """What some test rows add to an evaluation.

    Attributes:
        served: right answers of a classifier; sum of the tokens' losses of a language model, nats.
        unmerged: where adapters are merged, the same of the mean of the shards' answers.
    """

    served: float
    unmerged: float | None = None


class Predictor:
    """Answers rows and prompts with the nodes of a run.

    Args:
        run: its directory.
        config: the one that it was trained with.
        plan: its first plan.

    Raises:
        InputError: the base cannot be loaded.
        IntegrityError: base, config or public head are not those that the run was trained with.
    """

    def __init__(self, run: RunDir, config: Config, plan: Plan) -> None:
        self._run, self._config, self._plan = run, config, plan
        loaded = load_model(config, run.base_path if run.base_path.is_dir() else None)
        self._encoder = loaded.encoder
        self._base: Base = build_base(config, loaded)
        if self._base.fingerprint != plan.base:
            raise IntegrityError(
                f"the base has fingerprint {self._base.fingerprint}, the run was trained on "
                f"{plan.base}: restore {run.base_path} or model.base"
            )
        self._labels: tuple[str, ...] = tuple(plan.recipe["labels"])
        self._prototypes = prototypes_of(run, config, self._base)
        self._check_recipe()
        head = self._public_head()
        if torch.cuda.is_available():
            self._base.to(torch.device("cuda"))
        self._alone: Member | None = None
        self._base_value: float | None = None
        if head is not None:
            held = {name: tensor.to(self._base.device) for name, tensor in head.items()}
            self._alone = base_member(self._base.depth, held)
        self._blocks = [tuple(block) for block in plan.recipe["blocks"]]
        self._tensors: dict[NodeKey, dict[str, Tensor]] = {}
        self._added: dict[NodeKey, dict[str, Tensor]] = {}
        self._latest: weakref.ref[Ensemble] | None = None
        self._lock = threading.Lock()

    # ── views ────────────────────────────────────────────────────────────────────────────────

    def ensemble(self, nodes: Sequence[Node | None], plan: Plan) -> Ensemble | None:
        """The ensemble of the shards' active nodes; None if there is none and no fallback.

        Nothing that has served before is read or stacked again.

        Args:
            nodes: by shard, of ``plan``.
            plan: the one in force; base and recipe are those of the run in all of its plans.

        Raises:
            DamagedNodeError: a block of a lineage.
        """
        members = [self._member(node, plan) for node in nodes if node is not None]
        if not members and self._config.aggregation.falls_back:
            assert self._alone is not None  # it was loaded for this
            members = [self._alone]
        if not members:
            return None
        lora, how = self._config.lora, self._config.aggregation
        before = None if self._latest is None else self._latest()
        places = self._prototypes
        found = Ensemble(
            self._base, members, lora.scale, how.method, how.weights, before, places, how.tokens
        )
        self._latest = weakref.ref(found)
        return found

    def weighted(self, ensemble: Ensemble, mixture: Mixture) -> Ensemble:
        """An ensemble of shards with fitted weights, and with the base if that has one.

        Args:
            ensemble: of the shards alone, as ``ensemble`` gave it for the nodes of the weights.
            mixture: fitted on its members, by shard.

        Raises:
            IntegrityError: it names the base, which has no head here.
        """
        if mixture.base and self._alone is None:
            raise IntegrityError("weights name the base, which has no public head")
        return ensemble.weighted(mixture, self._alone)

    def base_ensemble(self) -> Ensemble:
        """The base alone; only where ``has_head``."""
        assert self._alone is not None
        return Ensemble(self._base, [self._alone], 1.0, "mean-probabilities", "uniform")

    @property
    def alone(self) -> Member | None:
        """The base as a member; None without a public head of a classifier."""
        return self._alone

    @property
    def has_head(self) -> bool:
        """Whether the base can answer alone: it is a language model, or has a public head."""
        return self._alone is not None

    @property
    def base(self) -> Base:
        """The frozen base."""
        return self._base

    @property
    def encoder(self) -> TextEncoder | ImageEncoder:
        """From rows to what the base takes."""
        return self._encoder

    def members(self, nodes: Sequence[Node | None], plan: Plan) -> list[Member]:
        """The shards' active nodes with the tensors of their lineages, proved; by shard.

        Raises:
            DamagedNodeError: a block of a lineage.
        """
        return [self._member(node, plan) for node in nodes if node is not None]

    def keep_only(self, alive: Callable[[NodeKey], bool]) -> None:
        """Drop the tensors of nodes that are no longer alive."""
        with self._lock:
            self._tensors = {key: value for key, value in self._tensors.items() if alive(key)}
            self._added = {key: value for key, value in self._added.items() if alive(key)}

    def _member(self, node: Node, plan: Plan) -> Member:
        isolation = self._config.stage.isolation
        lineage = plan.forest.lineage(node.key)
        tensors = composed(isolation, lineage, lambda one: self._read(one.key))
        if isolation == "residual":  # sums are made once, so that the next view finds the same
            with self._lock:
                tensors = self._added.setdefault(node.key, tensors)
        seen = sum(plan.sizes[node.shard][part] for part in node.prefix)
        return Member(node.shard, self._blocks[node.stage - 1][0], tensors, seen)

    def _read(self, key: NodeKey) -> dict[str, Tensor]:
        with self._lock:
            if key not in self._tensors:
                tensors = self._run.store.read(key)[1]
                self._tensors[key] = {n: t.to(self._base.device) for n, t in tensors.items()}
            return self._tensors[key]

    def _public_head(self) -> dict[str, Tensor] | None:
        """The head by which the base answers alone, empty for a language model; None without one.

        Raises:
            IntegrityError: it cannot be used, and ``on_exhausted`` needs it.
        """
        if not self._labels:
            return {}
        path, needed = self._run.head_path, self._config.aggregation.on_exhausted == "base"
        if not (needed or path.is_file()):
            return None
        try:
            return read_public_head(path, self._plan.base)
        except IntegrityError as error:
            if needed:
                raise
            _log.error("the base gets no weight: %s", error)
            return None

    def _check_recipe(self) -> None:
        """The config must be that of the nodes; where and by which software they were trained
        may be another."""
        head = self._plan.recipe.get("head")
        places = recipe_digest(self._prototypes)
        config, labels = self._config, self._labels
        recipe = recipe_of(config, self._base, self._encoder, labels, head, places)
        changed = [
            name
            for name in sorted(recipe)
            if name != "engine" and recipe[name] != self._plan.recipe.get(name)
        ]
        if changed:
            raise IntegrityError(
                f"{self._run.config_path} is not what the run was trained with (another "
                f"{', '.join(changed)}): restore it, or run s3t train with the config of then"
            )

    # ── questions ────────────────────────────────────────────────────────────────────────────

    def encode(self, batch: Sequence[Any]) -> Encoded:
        """Rows of ``predict`` as tensors.

        Raises:
            InputError: naming the row that cannot be read.
        """
        if not self._labels:
            raise InputError("this run is a language model: use generate, or s3t predict")
        text = isinstance(self._encoder, TextEncoder)
        columns = self._config.data.columns
        column = columns.text if text else columns.image
        if text and columns.text_pair is not None:
            names = (columns.text, columns.text_pair)
            return self._encoder.encode(
                [text_pair(row, number, *names) for number, row in enumerate(batch)]
            )
        values = [value_of(row, number, column) for number, row in enumerate(batch)]
        if not values:
            return self._encoder.encode([])
        if text:
            for number, value in enumerate(values):
                check_text(value, f"row {number}")
            return self._encoder.encode(values)
        images = []
        for number, value in enumerate(values):
            try:
                images.append(self._encoder.encode([image_array(value)]).values)
            except Exception as error:  # PIL raises errors of many kinds on damaged files
                reasons = error.problems if isinstance(error, DataError) else [one_line(error)]
                raise InputError(f"row {number}: {'; '.join(reasons)}") from None
        return Encoded(torch.cat(images), None)

    def predictions(self, ensemble: Ensemble, rows: Encoded, view: int) -> list[Prediction]:
        """Classify encoded rows."""
        if not len(rows):
            return []
        found = []
        chances = ensemble.probabilities(rows)
        for at, row in zip(chances.argmax(dim=1).tolist(), chances.tolist(), strict=True):
            values = dict(zip(self._labels, (round(value, 6) for value in row), strict=True))
            found.append(Prediction(self._labels[at], values, view))
        return found

    def prompts(self, prompts: Sequence[Any], draw: Draw) -> list[list[int]]:
        """Token ids of prompts, without the closing token.

        Raises:
            InputError: a prompt that is empty, or too long for the tokens asked for.
        """
        if self._labels or not isinstance(self._encoder, TextEncoder):
            raise InputError(f"a run of task {self._config.task} does not generate: use predict")
        tokens, columns = [], self._config.data.columns
        for number, row in enumerate(prompts):
            asked = value_of(row, number, columns.messages or columns.prompt or columns.text)
            if isinstance(asked, str) or self._encoder.chat is None:
                check_text(asked, f"prompt {number}")
            try:
                ids = self._encoder.prompt(asked)
            except DataError as error:
                raise InputError(f"prompt {number}: {'; '.join(error.problems)}") from None
            tokens.append(ids)
        self.check_room(tokens, draw)
        return tokens

    def check_room(self, tokens: Sequence[Sequence[int]], draw: Draw) -> None:
        """Refuse a draw that cannot be, and prompts that leave it no room.

        Raises:
            InputError: naming the prompt.
        """
        check_draw(draw)
        longest = self._config.data.max_length
        room = longest - draw.max_new_tokens
        for number, ids in enumerate(tokens):
            if not ids or len(ids) > room:
                raise InputError(
                    f"prompt {number} has {len(ids)} tokens: 1 to {room} leave room for "
                    f"max_new_tokens {draw.max_new_tokens} in data.max_length {longest}"
                )

    @cached_property
    def text_generator(self) -> TextGenerator:
        """Continues texts; only of a language model."""
        assert isinstance(self._encoder, TextEncoder)
        # tried before a view is pinned: a deletion does not wait for it
        return TextGenerator(self._encoder, find_kv_steps(self._base))

    def base_value(self) -> float | None:
        """The metric of the base alone on the public test rows; None without a head."""
        if self._alone is None:
            return None
        if self._base_value is None:
            base = self.base_ensemble()
            self._base_value = self.evaluation(base, 0).value
        return self._base_value

    def evaluation(self, ensemble: Ensemble, view: int) -> Evaluation:
        """The metric on the public test rows; where adapters are merged also the ensemble's."""
        tallies = [self.tally(part, ensemble) for part in self.test_parts]
        return self.evaluation_of(tallies, view)

    @cached_property
    def test_parts(self) -> tuple[slice, ...]:
        """The public test rows in parts that each take little time, in order."""
        return tuple(slice(at, at + _PART) for at in range(0, len(self._test[0]), _PART))

    def tally(self, part: slice, ensemble: Ensemble) -> Tally:
        """What some of the public test rows add to an evaluation."""
        merges = self._config.aggregation.method == "mean-adapters" and ensemble.shards
        unmerged = self._tallied(part, ensemble.unmerged()) if merges else None
        return Tally(self._tallied(part, ensemble), unmerged)

    def evaluation_of(self, tallies: Sequence[Tally], view: int) -> Evaluation:
        """The evaluation of all test rows.

        Args:
            tallies: of all parts.
            view: the one that answered them all.
        """
        rows, labels = self._test
        terms = len(rows) if labels is not None else int(rows.scored[:, 1:].sum())

        def value(each: Sequence[float]) -> float:
            mean = math.fsum(each) / terms
            return mean if labels is not None else math.exp(mean)

        apart = [one.unmerged for one in tallies if one.unmerged is not None]
        return Evaluation(
            "perplexity" if labels is None else "accuracy",
            value([one.served for one in tallies]),
            len(rows),
            view,
            ensemble=value(apart) if apart else None,
        )

    def _tallied(self, part: slice, ensemble: Ensemble) -> float:
        """Right answers, or the sum of the tokens' losses."""
        rows, labels = self._test
        some = rows.rows(part)
        if labels is None:
            return float(ensemble.token_losses(some).double().sum())
        return float((ensemble.probabilities(some).argmax(dim=1) == labels[part]).sum())

    @cached_property
    def _test(self) -> tuple[Encoded, Tensor | None]:
        rows: LabelledRows = load_public(self._config, "test", self._labels)
        labels = None if rows.labels is None else torch.tensor(rows.labels)
        return self._encoder.encode(rows.inputs), labels
