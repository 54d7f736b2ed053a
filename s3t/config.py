"""The typed config: one YAML file plus dotted overrides, read once at the edge.

    YAML ─┐
          ├─► merged tree ─► Config (frozen, unknown keys refused) ─► plain arguments inside
    a.b=c ┘

Invariant: a Config that exists is possible in itself. What depends on the data or on the base
model (empty slices, missing columns, number of layers) is checked where those are known, and is
reported in the same form: all problems together, before anything is written.
"""

from __future__ import annotations

import copy
import difflib
import math
import os
import re
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from s3t.errors import ConfigError, named

__all__ = [
    "AdaptConfig",
    "AggregationConfig",
    "ColumnsConfig",
    "Config",
    "DataConfig",
    "LoraConfig",
    "ModelConfig",
    "PartitionConfig",
    "PublicConfig",
    "RiskConfig",
    "SequencesConfig",
    "SourceConfig",
    "StageConfig",
    "Task",
    "TrainingConfig",
    "anchored",
    "dump_config",
    "load_config",
]

Task = Literal["image-classification", "text-classification", "causal-lm"]
DIGITS_SPLITS = ("public", "private", "test")
_UNKNOWN = "extra_forbidden"
_PLAIN = {"model_type": "expected keys and values", "tuple_type": "expected a list"}
"""pydantic's words for kinds of errors, where they speak of Python."""
_ALTERNATIVE = re.compile(r"\W|^str$|^constrained-")
"""Parts of an error's place that name an alternative of a type, as ``tuple[str, ...]``: no key."""
MADE_BASES = ("make:vit", "make:bert", "make:roberta", "make:gpt2", "make:llama")

Positive = Annotated[int, Field(ge=1, strict=True)]  # strict: true is not 1
Natural = Annotated[int, Field(ge=0, strict=True)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        coerce_numbers_to_str=True,
        allow_inf_nan=False,
    )


class SourceConfig(_Section):
    """Where rows come from.

    ``format`` is one of ``digits`` (scikit-learn's 1,797 images, embedded), ``csv``, ``json``
    (JSON lines), ``parquet``, ``imagefolder`` and ``hub``. ``split`` takes Hugging Face split
    expressions such as ``train[:80%]``; ``digits`` has ``public``, ``private`` and ``test``.
    """

    format: Literal["digits", "csv", "json", "parquet", "imagefolder", "hub"]
    files: str | tuple[str, ...] | None = Field(None, description="path, glob or list (not hub)")
    name: str | None = Field(None, description="data set name on the hub, or a local data set")
    subset: str | None = Field(None, description="configuration name of a hub data set")
    split: str = "train"

    @model_validator(mode="after")
    def _complete(self) -> SourceConfig:
        if self.format == "hub" and not self.name:
            raise ValueError("format 'hub' needs name")
        if self.format in ("csv", "json", "parquet", "imagefolder") and not self.files:
            raise ValueError(f"format {self.format!r} needs files")
        if self.format == "digits" and self.split.partition("[")[0] not in DIGITS_SPLITS:
            raise ValueError(
                f"split {self.split!r} of digits does not exist: use public, private or test"
            )
        return self


class ColumnsConfig(_Section):
    """Names of the columns. ``id`` is optional: without it an id is a content digest."""

    text: str = "text"
    image: str = "image"
    label: str = "label"
    id: str | None = None


class PublicConfig(_Section):
    """Data that is never deletable: for adapting the base, choosing among prefixes, testing."""

    adapt: SourceConfig | None = None
    validation: SourceConfig
    test: SourceConfig


class DataConfig(_Section):
    """Private and public data, their columns, and how a row becomes a tensor."""

    private: SourceConfig
    public: PublicConfig
    columns: ColumnsConfig = ColumnsConfig()
    labels: tuple[str, ...] | None = Field(
        None, description="label names in order; without them the public data gives them"
    )
    max_length: Positive = Field(64, description="tokens per text, a multiple of 16")
    image_size: Positive | None = Field(None, description="pixels; by default the base's own")
    image_mean: tuple[float, ...] | None = None
    image_std: tuple[Annotated[float, Field(gt=0)], ...] | None = None

    @model_validator(mode="after")
    def _multiple(self) -> DataConfig:
        if self.max_length % 16:
            raise ValueError(f"max_length {self.max_length} is not a multiple of 16")
        if self.labels is not None and len(set(self.labels)) < len(self.labels):
            raise ValueError("labels holds a name twice")
        return self


class MakeConfig(_Section):
    """Shape of a small base that is made here (``model.base: make:…``)."""

    hidden: Positive = 64
    layers: Positive = 4
    heads: Positive = 4
    intermediate: Positive | None = Field(None, description="default 4 × hidden")
    patch: Positive = Field(2, description="pixels per patch side (ViT)")
    channels: Positive = Field(1, description="image channels (ViT)")
    init_scale: Annotated[float, Field(gt=0)] = Field(
        1.0, description="multiplies the initial weight matrices"
    )

    @model_validator(mode="after")
    def _divides(self) -> MakeConfig:
        if self.hidden % self.heads:
            raise ValueError(f"hidden {self.hidden} is not a multiple of heads {self.heads}")
        return self


class AdaptConfig(_Section):
    """Training of the whole base on the public ``adapt`` data, before any private sample."""

    steps: Positive = 300
    batch_size: Positive = 64
    learning_rate: Annotated[float, Field(gt=0)] = 1.5e-3
    rotations: bool = Field(
        False, description="images: show each only turned by 90, 180, 270°, as 3 × labels classes"
    )
    shift: Natural = Field(0, description="images: move each by up to so many pixels")


class ModelConfig(_Section):
    """The frozen base: hub name, local path, or ``make:vit|bert|roberta|gpt2|llama``."""

    base: str
    revision: str | None = None
    make: MakeConfig = MakeConfig()
    adapt: AdaptConfig | None = None
    pooling: Literal["auto", "first", "mean", "last"] = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"

    @model_validator(mode="after")
    def _known(self) -> ModelConfig:
        if self.base.startswith("make:") and self.base not in MADE_BASES:
            raise ValueError(f"base {self.base!r} cannot be made: use one of {list(MADE_BASES)}")
        return self


class RiskConfig(_Section):
    """Risk tiers: each owns some slices of every shard, so that like risks lie together.

    The value of a row is the number in ``column`` or, with ``as_of``, the age in days of the date
    there. Its tier is the number of thresholds that the value reaches; 0 is the lowest.
    """

    column: str
    as_of: date | None = Field(None, description="the column holds dates: their age on this day")
    thresholds: tuple[float, ...] | None = Field(None, description="least value of tier 1, 2, …")
    quantiles: tuple[Annotated[float, Field(gt=0, lt=1)], ...] | None = Field(
        None, description="or the thresholds are these quantiles of data.public.adapt's column"
    )
    rates: tuple[Annotated[float, Field(ge=0)], ...] | None = Field(
        None, description="by tier, how often one of its slices is hit, relative to the others"
    )
    slices: tuple[Positive, ...] | None = Field(
        None, description="by tier, its slices in each shard; default: as even as possible"
    )

    @property
    def tiers(self) -> int:
        """Number of tiers, one more than thresholds."""
        return len(self.thresholds or self.quantiles or ()) + 1

    @model_validator(mode="after")
    def _fits(self) -> RiskConfig:
        found = []
        clear = bool(self.thresholds) != bool(self.quantiles)
        if not clear:
            found.append("give thresholds or quantiles, one of the two and not empty")
        for name, cuts in (("thresholds", self.thresholds), ("quantiles", self.quantiles)):
            if any(low >= high for low, high in pairwise(cuts or ())):
                found.append(f"{name} {list(cuts or ())} are not in ascending order")
        for name, given in (("rates", self.rates), ("slices", self.slices)):
            if given is not None and clear and len(given) != self.tiers:
                found.append(f"{name} {list(given)} are not one for each of {self.tiers} tiers")
        if self.rates is not None and not any(self.rates):
            found.append(f"rates {list(self.rates)} are all 0: leave them out")
        if found:
            raise ValueError("; ".join(found))
        return self


class PartitionConfig(_Section):
    """m shards of L slices; a sample's place is a keyed hash of its subject or content."""

    shards: Positive = 4
    slices: Positive = 4
    salt: str = "s3t"
    subject: str | None = Field(None, description="column that names the person of a row")
    risk: RiskConfig | None = Field(None, description="without it all slices are one tier")

    @model_validator(mode="after")
    def _holds_tiers(self) -> PartitionConfig:
        risk = self.risk
        if risk is not None and risk.slices is not None and sum(risk.slices) != self.slices:
            raise ValueError(
                f"risk.slices {list(risk.slices)} add up to {sum(risk.slices)}, "
                f"but slices is {self.slices}"
            )
        if risk is not None and risk.tiers > self.slices:
            raise ValueError(
                f"risk has {risk.tiers} tiers for {self.slices} slices: each tier needs a slice "
                "of its own, so give fewer tiers or more slices"
            )
        return self


class SequencesConfig(_Section):
    """Which sequences of slices each shard trains, and what may be spent on them (budget B).

    ``unit`` says what the budget of a shard counts: ``sequences``; ``nodes``; ``slice-passes`` (one
    slice through one stage); ``sample-passes`` (samples × epochs, of ``samples`` as stated here,
    since the private data must not shape the tree); ``bytes`` of weights.
    """

    strategy: Literal[
        "tree",
        "greedy",
        "cyclic",
        "iterated",
        "even",
        "matching",
        "conditional",
        "random",
        "explicit",
    ] = "tree"
    budget: Positive | None = Field(None, description="B, per shard; default: one per slice")
    unit: Literal["sequences", "nodes", "slice-passes", "sample-passes", "bytes"] = "sequences"
    samples: Positive | None = Field(None, description="private samples, for unit sample-passes")
    horizon: Annotated[float, Field(gt=0)] = Field(
        1.0, description="deletion requests per slice over which protection counts"
    )
    utility: tuple[float, ...] | None = Field(
        None, description="worth of a prefix of 0, 1, … slices; default: the share of data"
    )
    explicit: tuple[tuple[Natural, ...], ...] | None = Field(
        None, description="slice numbers from 0, the same lists for every shard"
    )

    @model_validator(mode="after")
    def _counts(self) -> SequencesConfig:
        if self.unit != "sequences" and self.budget is None:
            raise ValueError(f"unit {self.unit!r} needs budget")
        if self.unit == "sample-passes" and self.samples is None:
            raise ValueError("unit 'sample-passes' needs samples, the number to reckon with")
        if self.utility and any(low > high for low, high in pairwise(self.utility)):
            raise ValueError(f"utility {list(self.utility)} falls: more data is not worth less")
        return self


class LoraConfig(_Section):
    """Low-rank adapters; ``targets: auto`` is the query and value projections."""

    rank: Positive = 8
    alpha: Annotated[float, Field(gt=0)] = 16.0
    targets: Literal["auto"] | tuple[str, ...] = "auto"
    dropout: Fraction = 0.0


class StageConfig(_Section):
    """Recipe of one stage, the same for all.

    ``isolation: layers`` is S3T (stage i trains block i from the top); ``snapshot`` is SISA with
    LoRA (every node carries the whole adapter, continued from its parent's).
    """

    isolation: Literal["layers", "snapshot"] = "layers"
    epochs: Positive = 10
    batch_size: Positive = 8
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: Fraction = Field(0.0, description="share of the steps")
    max_grad_norm: Annotated[float, Field(gt=0)] | None = None
    slices: Literal["cumulative", "current"] = "cumulative"
    head: Literal["fresh", "public"] = Field(
        "fresh", description="stage 1 starts from a random head, or from one of public data"
    )


class AggregationConfig(_Section):
    """How the shards' answers become one, and what answers when no shard is left."""

    method: Literal["mean-probabilities", "mean-logits", "vote"] = "mean-probabilities"
    weights: Literal["uniform", "data"] = "uniform"
    on_exhausted: Literal["raise", "base"] = "raise"


class TrainingConfig(_Section):
    """How the work is spread. Nothing here changes a node's bytes."""

    workers: Literal["auto"] | Positive = "auto"
    group_bytes: Positive = Field(
        2 * 2**20, description="hidden states of one stacked step, about the size of a CPU cache"
    )
    trunk_cache_mb: Natural = Field(
        4096, description="above this the frozen layers below a block run anew at each step"
    )
    trackers: tuple[str, ...] = Field((), description="accelerate trackers; public metrics only")


class Config(_Section):
    """All of a run's configuration."""

    name: str = "run"
    output: str | None = Field(None, description="run directory; default runs/<name>")
    task: Task
    seed: Natural = 0
    data: DataConfig
    model: ModelConfig
    partition: PartitionConfig = PartitionConfig()
    sequences: SequencesConfig = SequencesConfig()
    lora: LoraConfig = LoraConfig()
    stage: StageConfig = StageConfig()
    aggregation: AggregationConfig = AggregationConfig()
    training: TrainingConfig = TrainingConfig()

    @property
    def run_dir(self) -> Path:
        """Where the run lies."""
        return Path(self.output) if self.output else Path("runs") / self.name

    @property
    def budget(self) -> int:
        """B, what each shard may spend, in ``sequences.unit``."""
        if self.sequences.explicit is not None and self.sequences.unit == "sequences":
            return len(self.sequences.explicit)
        return self.sequences.budget or self.partition.slices

    def problems(self, spoilt: Collection[str] = ()) -> list[str]:
        """What is impossible across sections, one sentence each.

        Args:
            spoilt: sections that hold nothing to judge by, since values of theirs were wrong.
        """
        found = []
        if not {"sequences", "partition"} & {*spoilt}:
            found += self._sequence_problems()
        if not {"data", "partition"} & {*spoilt}:
            found += self._risk_problems()
        if not {"task", "data", "model", "aggregation"} & {*spoilt}:
            found += self._task_problems()
        return found

    def _risk_problems(self) -> list[str]:
        risk = self.partition.risk
        if risk is None or not risk.quantiles or self.data.public.adapt is not None:
            return []
        return [
            "partition.risk.quantiles needs data.public.adapt, of whose rows they are: "
            "name that source, or give partition.risk.thresholds"
        ]

    def _sequence_problems(self) -> list[str]:
        found, slices = [], self.partition.slices
        explicit, budget = self.sequences.explicit, self.sequences.budget
        counted, utility = self.sequences.unit == "sequences", self.sequences.utility
        if utility is not None and len(utility) != slices + 1:
            found.append(
                f"sequences.utility has {len(utility)} values: give {slices + 1}, for prefixes of "
                f"0 to {slices} slices"
            )
        if self.sequences.strategy == "explicit":
            if not explicit:
                found.append("sequences.explicit is empty: list at least one sequence")
            elif counted and budget is not None and budget != len(explicit):
                found.append(
                    f"sequences.budget {budget} is not the number of explicit sequences "
                    f"({len(explicit)}): leave it out"
                )
        elif explicit is not None:
            found.append("sequences.explicit needs sequences.strategy=explicit")
        elif counted and slices <= 20 and self.budget > math.factorial(slices):
            found.append(
                f"sequences.budget {self.budget} is over the {math.factorial(slices)} "
                f"permutations of {slices} slices: lower it or add slices"
            )
        for number, sequence in enumerate(explicit or ()):
            if len(set(sequence)) < len(sequence) or not sequence:
                found.append(
                    f"sequences.explicit[{number}] {list(sequence)} is empty or repeats a slice"
                )
            elif max(sequence) >= slices:
                found.append(
                    f"sequences.explicit[{number}] {list(sequence)} names slice {max(sequence)}: "
                    f"there are {slices}, numbered from 0"
                )
        if explicit and len(set(explicit)) < len(explicit):
            found.append("sequences.explicit holds the same sequence twice")
        return found

    def _task_problems(self) -> list[str]:
        found = []
        base, image = self.model.base, self.task == "image-classification"
        if base.startswith("make:") and image != (base == "make:vit"):
            found.append(f"model.base {base!r} does not fit task {self.task!r}")
        if self.task == "causal-lm" and base in ("make:bert", "make:roberta"):
            found.append(f"model.base {base!r} is an encoder: task causal-lm needs a decoder")
        if self.stage.head == "public" and self.task == "causal-lm":
            found.append("stage.head=public does not fit task causal-lm: its head is the base's")
        elif self.stage.head == "public" and self.data.public.adapt is None:
            found.append("stage.head=public needs data.public.adapt, on which it is trained")
        if self.model.adapt and self.data.public.adapt is None:
            found.append("model.adapt needs data.public.adapt")
        if (
            self.model.adapt
            and (self.model.adapt.rotations or self.model.adapt.shift)
            and not image
        ):
            found.append("model.adapt.rotations and .shift need task image-classification")
        if self.task == "causal-lm" and self.aggregation.method == "vote":
            found.append("aggregation.method 'vote' does not fit task causal-lm")
        if (
            self.aggregation.on_exhausted == "base"
            and self.task != "causal-lm"
            and self.data.public.adapt is None
        ):
            found.append(
                "aggregation.on_exhausted=base needs data.public.adapt, "
                "on which the fallback's head is trained"
            )
        return found


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply ``a.b=value`` overrides, and validate the whole.

    Args:
        path: the YAML file.
        overrides: ``dotted.key=value``; the value is read as YAML.

    Raises:
        ConfigError: with every problem found.
    """
    path = Path(path)
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        problem = f"cannot read it ({error}): give the path of a YAML file"
        raise ConfigError([problem], str(path)) from None
    except yaml.YAMLError as error:
        raise ConfigError([f"is not YAML: {' '.join(str(error).split())}"], str(path)) from None
    if not isinstance(tree, dict):
        raise ConfigError([f"holds a {type(tree).__name__}, expected keys and values"], str(path))
    tree.setdefault("name", path.stem)
    problems: list[str] = []
    for override in overrides:
        _apply(tree, override, problems)
    config = _validated(tree, problems)
    if problems or config is None:
        raise ConfigError(problems, str(path))
    return config


def anchored(config: Config) -> Config:
    """The same config with local paths made absolute, so that it means the same from anywhere."""
    tree = config.model_dump()
    sources = [tree["data"]["private"], *tree["data"]["public"].values()]
    for source in filter(None, sources):
        files = source["files"]
        if files:
            several = [files] if isinstance(files, str) else files
            absolute = [_absolute(file) for file in several]
            source["files"] = absolute[0] if isinstance(files, str) else absolute
        if source["name"] and Path(source["name"]).exists():
            source["name"] = _absolute(source["name"])
    if Path(config.model.base).exists():
        tree["model"]["base"] = _absolute(config.model.base)
    return Config.model_validate(tree)


def _absolute(path: str) -> str:
    return path if "://" in path else os.path.abspath(path)


def dump_config(config: Config) -> str:
    """The resolved config as YAML, with every default written out."""
    # in ASCII, since PyYAML reads back some of the other characters as line breaks
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


class _Loader(yaml.SafeLoader):
    """YAML where a key that occurs twice is an error; PyYAML drops the first without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"keys occur twice: {named(twice)}", node.start_mark
            )
        return super().construct_mapping(node, deep)


def _apply(tree: dict[str, Any], override: str, problems: list[str]) -> None:
    key, sep, text = override.partition("=")
    if not sep or not all(key.split(".")):
        problems.append(f"override {override!r} is not of the form key=value")
        return
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        problems.append(f"override {override!r}: the value is not YAML")
        return
    *parents, last = key.split(".")
    for parent in parents:
        child = tree.setdefault(parent, {})
        if not isinstance(child, dict):
            if child is not None:
                problems.append(f"override {override!r}: {parent!r} is not a section")
                return
            child = tree[parent] = {}
        tree = child
    tree[last] = value


def _validated(tree: dict[str, Any], problems: list[str]) -> Config | None:
    """The config, after noting every problem: of single keys, and across the sections that have
    no wrong value."""
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        entries = error.errors()
        problems.extend(dict.fromkeys(_sentences(entries)))
        wrong = {str(e["loc"][0]) for e in entries if e["loc"] and e["type"] != _UNKNOWN}
        try:
            rest = Config.model_validate(_without(tree, (entry["loc"] for entry in entries)))
        except ValidationError:
            return None
        problems.extend(rest.problems(wrong))
        return None
    problems.extend(config.problems())
    return config


def _without(tree: dict[str, Any], locs: Iterable[tuple[int | str, ...]]) -> dict[str, Any]:
    """A copy without the keys that are wrong."""
    tree = copy.deepcopy(tree)
    for loc in locs:
        section: dict[Any, Any] = tree
        key = loc[0] if loc else ""
        for part in loc[1:]:
            if not isinstance(section.get(key), dict):
                break
            section, key = section[key], part
        section.pop(key, None)
    return tree


def _sentences(entries: Iterable[ErrorDetails]) -> Iterator[str]:
    """One sentence per key; what each alternative of its type says is joined by "or"."""
    whole: dict[str, tuple[list[str], Any]] = {}
    for entry in entries:
        loc, kind, value = entry["loc"], entry["type"], entry["input"]
        key = ".".join(str(part) for part in loc if not _ALTERNATIVE.search(str(part))) or "config"
        if kind == _UNKNOWN:
            whole[f"unknown key {'.'.join(map(str, loc))!r}{_hint(loc)}"] = ([], {})
        elif kind == "missing":
            whole[f"{key} is missing: add it"] = ([], {})
        else:
            message = entry["msg"].removeprefix("Value error, ")
            whole.setdefault(key, ([], value))[0].append(_PLAIN.get(kind, message))
    for key, (messages, value) in whole.items():
        shown = "" if isinstance(value, dict) else f" (got {value!r})"
        yield f"{key}: {', or '.join(messages)}{shown}" if messages else key


def _hint(loc: tuple[int | str, ...]) -> str:
    close = difflib.get_close_matches(str(loc[-1]), _keys(loc[:-1]), n=1)
    if not close:
        return ": remove it"
    return f": did you mean {'.'.join([*map(str, loc[:-1]), close[0]])!r}?"


def _keys(loc: tuple[int | str, ...]) -> list[str]:
    """Field names of the section at ``loc``."""
    section: Any = Config
    for part in loc:
        field = section.model_fields.get(str(part)) if hasattr(section, "model_fields") else None
        if field is None:
            return []
        options = [field.annotation, *get_args(field.annotation)]
        section = next((o for o in options if hasattr(o, "model_fields")), None)
    return list(section.model_fields) if section is not None else []
