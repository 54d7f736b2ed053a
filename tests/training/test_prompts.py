"""Stages of prompts: bytes of the node alone, prefixes that survive, runs of every task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from s3t.audit.audit import audit
from s3t.config import Config, LoraConfig, PromptConfig, StageConfig, load_config
from s3t.errors import ConfigError, IntegrityError
from s3t.model.adapters.prompt import features, prompt_name, prompts_of, states
from s3t.model.base import Base
from s3t.model.determinism import rounds_alike
from s3t.model.head import classify, language_logits
from s3t.model.inputs.encoders import Encoded
from s3t.model.loading import load_model, save_model
from s3t.model.prototypes import Prototypes, clusters_of, pooled
from s3t.run import RunDir
from s3t.service import S3T
from s3t.serving.ensemble.ensemble import Ensemble, Member
from s3t.serving.ensemble.members import base_member
from s3t.serving.ensemble.mixture import Mixture
from s3t.training.node.assignment import (
    Assignment,
    CacheSettings,
    StageRows,
    StageSettings,
    TrainedNode,
)
from s3t.training.node.trainer import StageTrainer
from s3t.training.prepare.load import load_prepared
from s3t.training.prepare.recipe import blocks_of, recipe_of, stage_bytes
from s3t.training.prepare.replan import Replan
from s3t.training.retrain import from_scratch
from s3t.training.work.train import train
from s3t.training.work.worker_state import WorkerState
from tests.support.small_runs import Make, Trained, nodes
from tests.support.tiny import (
    CLASSES,
    labelled,
    node,
    random_head,
    shared_base,
    tiny_base,
    tiny_rows,
)

CASES = [
    pytest.param("vit", False, marks=pytest.mark.heavy),
    ("bert", False),
    pytest.param("gpt2", True, marks=pytest.mark.heavy),
    ("llama", True),
]
"""An encoder and a decoder; the other families of each kind are heavy."""
SIZES = (7, 12, 3, 5)
NONE = (0, 0)
"""The block of a stage of prompts."""

ROUGH = {"schedule": "cosine", "warmup": 0.25, "max_grad_norm": 0.1, "weight_decay": 0.1}
"""A recipe with everything in it that could tell lanes apart."""


def trainer_of(
    family: str,
    language_model: bool,
    *,
    cap_bytes: int = 2**30,
    recompute: bool = False,
    length: int = 16,
    **recipe: Any,
) -> StageTrainer:
    """40 private and 10 validation rows, three prompt tokens, two epochs of batches of four."""
    stage = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-2, "adapter": "prompt", **recipe}
    return StageTrainer(
        tiny_base(family, 3, language_model, targets=(), length=length),
        StageSettings(
            StageConfig.model_validate(stage),
            LoraConfig(),
            PromptConfig(tokens=3, init_scale=0.5),
            recompute,
        ),
        StageRows(
            labelled(family, 40, 1, language_model, length),
            labelled(family, 10, 2, language_model, length),
            0 if language_model else CLASSES,
        ),
        CacheSettings(cap_bytes),
    )


def lineage(trainer: StageTrainer, stages: int, seed: int) -> dict[str, Tensor]:
    """Prompts of so many stages before, and a parent's head."""
    generator = torch.Generator().manual_seed(seed)
    shape = (3, trainer.base.hidden_size)
    found = {prompt_name(s): torch.randn(shape, generator=generator) for s in range(1, stages + 1)}
    if stages and trainer.classes:
        found |= random_head(trainer.base.hidden_size, seed)
    return found


def group_of(trainer: StageTrainer, stages: int, sizes: tuple[int, ...]) -> list[Assignment]:
    generator = torch.Generator().manual_seed(5)
    rows = [torch.randperm(40, generator=generator)[:size].sort().values for size in sizes]
    return [
        Assignment(node(f"node {number}"), each, lineage(trainer, stages, number))
        for number, each in enumerate(rows)
    ]


def same(one: TrainedNode, other: TrainedNode) -> bool:
    return (
        one.key == other.key
        and one.score == other.score
        and torch.equal(one.said, other.said)
        and one.tensors.keys() == other.tensors.keys()
        and all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
    )


# ── a stage ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stages", [0, 2])
@pytest.mark.parametrize(("family", "language_model"), CASES)
def test_a_group_changes_no_byte(family: str, language_model: bool, stages: int) -> None:
    trainer = trainer_of(family, language_model, length=32, **ROUGH)
    group = group_of(trainer, stages, SIZES)
    alone = {one.key: trainer.train(NONE, [one])[0] for one in group}
    for members in (group[:2], group[::-1][:3], group):
        for trained in trainer.train(NONE, members):
            assert same(trained, alone[trained.key]), f"in a group of {len(members)}"
    assert trainer.agrees(NONE, group) == rounds_alike(torch.device("cpu"))


@pytest.mark.parametrize("other", [{"cap_bytes": 0}, {"recompute": True}])
@pytest.mark.parametrize(("family", "language_model"), CASES)
def test_neither_cache_nor_layers_run_again_change_a_byte(
    family: str, language_model: bool, other: dict[str, Any]
) -> None:
    plain = trainer_of(family, language_model, **ROUGH)
    group = group_of(plain, 1, SIZES[:3])
    changed = trainer_of(family, language_model, **ROUGH, **other)
    for one, two in zip(plain.train(NONE, group), changed.train(NONE, group), strict=True):
        assert same(one, two)


@pytest.mark.parametrize(("family", "language_model"), CASES)
def test_a_stage_trains_its_own_prompts_and_its_head(family: str, language_model: bool) -> None:
    trainer = trainer_of(family, language_model)
    (one,) = group_of(trainer, 2, (12,))
    before = {name: tensor.clone() for name, tensor in one.inherited.items()}
    found = trainer.train(NONE, [one])[0].tensors
    head = set() if language_model else {"head.weight", "head.bias"}
    assert found.keys() == {"prompt.003"} | head
    assert found["prompt.003"].shape == (3, trainer.base.hidden_size)
    for name in head:
        assert not torch.equal(found[name], before[name]), "E4: the head is the node's own"
    assert all(torch.equal(one.inherited[name], before[name]) for name in before)
    trainer.base.check_frozen(whole=True)


@torch.no_grad()
def loss_of(trainer: StageTrainer, tensors: dict[str, Tensor], index: Tensor) -> float:
    """The mean loss of some private rows, written down without lanes."""
    base, rows = trainer.base, trainer.private.rows.rows(index)
    prompts = prompts_of(tensors)
    assert prompts is not None
    entering = base.start(rows)
    if trainer.classes:
        head = {name: tensors[name][None] for name in ("head.weight", "head.bias")}
        logits = classify(features(base, entering, 0, rows.mask, prompts[None]), head)[0]
        assert trainer.private.labels is not None
        return float(torch.nn.functional.cross_entropy(logits, trainer.private.labels[index]))
    assert rows.mask is not None
    own = states(base, entering, 0, rows.mask, prompts[None])
    logs = language_logits(base, own)[:, :-1].log_softmax(dim=2)
    each = -logs.gather(2, rows.values[:, 1:, None]).squeeze(2)
    return float((each * rows.mask[:, 1:]).sum() / rows.mask[:, 1:].sum())


@pytest.mark.parametrize(("family", "language_model"), CASES)
def test_a_stage_learns(family: str, language_model: bool) -> None:
    trainer = trainer_of(family, language_model, epochs=30, learning_rate=0.1)
    (one,) = group_of(trainer, 1, (12,))
    before = loss_of(trainer, dict(one.inherited) | trainer.tensors.initial(NONE, one), one.rows)
    found = trainer.train(NONE, [one])[0].tensors
    after = loss_of(trainer, {**one.inherited, **found}, one.rows)
    assert after < (0.99 if language_model else 0.9) * before


def test_prompts_that_stand_still_are_an_error() -> None:
    trainer = trainer_of("vit", False, learning_rate=1e-30)
    with pytest.raises(IntegrityError, match="was not changed by its stage"):
        trainer.train(NONE, group_of(trainer, 0, (12,)))


# ── members of an ensemble ───────────────────────────────────────────────────────────────────


def members_of(base: Base, stages: tuple[int, ...]) -> list[Member]:
    members = []
    for shard, count in enumerate(stages):
        generator = torch.Generator().manual_seed(shard)
        tensors = {
            prompt_name(stage): torch.randn((3, base.hidden_size), generator=generator)
            for stage in range(1, count + 1)
        }
        if base.lm_head is None:
            tensors |= random_head(base.hidden_size, shard)
        members.append(Member(shard, 0, tensors, 10 + shard))
    return members


def alone(base: Base, member: Member, rows: Encoded) -> Tensor:
    prompts = prompts_of(member.tensors)
    assert prompts is not None
    if base.lm_head is not None:
        own = states(base, base.start(rows), 0, rows.mask, prompts[None])
        return language_logits(base, own).softmax(dim=2)
    head = {name: member.tensors[name][None] for name in ("head.weight", "head.bias")}
    found = features(base, base.start(rows), 0, rows.mask, prompts[None])
    return classify(found, head)[0].softmax(dim=1)


STAGES = (2, 1, 3, 2, 1)
"""Prefixes of several lengths."""
POOLINGS = ("auto", "mean")


@pytest.mark.parametrize(
    ("family", "pooling", "count"),
    [
        *((family, pooling, 7) for family in ("vit", "bert", "llama") for pooling in POOLINGS),
        *(("bert", "auto", count) for count in (1, 300)),
        *(
            pytest.param(family, pooling, 300, marks=pytest.mark.heavy)
            for family in ("vit", "llama")
            for pooling in POOLINGS
        ),
    ],
)
def test_an_ensemble_is_the_mean_of_its_members(family: str, pooling: str, count: int) -> None:
    base = shared_base(family, pooling=pooling, targets=())
    rows, members = tiny_rows(family, count), members_of(base, STAGES)
    ensemble = Ensemble(base, members, 1.0, "mean-probabilities", "uniform")
    with torch.no_grad():
        mean = torch.stack([alone(base, member, rows) for member in members]).mean(dim=0)
    assert torch.allclose(ensemble.probabilities(rows), mean, atol=1e-5)


@pytest.mark.parametrize("family", ["vit", "bert"])
def test_the_base_is_one_more_member_without_prompts(family: str) -> None:
    base, rows = tiny_base(family, targets=()), tiny_rows(family, 7)
    members = members_of(base, (2, 1))
    own = base_member(base.depth, random_head(base.hidden_size, 9))
    plain = Ensemble(base, members, 1.0, "mean-probabilities", "uniform")
    mixture = Mixture("mean-probabilities", (0.5, 0.2), 0.3, None, 1, 0.0, 0.0)
    found = plain.weighted(mixture, own).probabilities(rows)
    by_base = Ensemble(base, [own], 1.0, "mean-probabilities", "uniform").probabilities(rows)
    with torch.no_grad():
        first, second = (alone(base, member, rows) for member in members)
    assert torch.allclose(found, 0.5 * first + 0.2 * second + 0.3 * by_base, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_language_ensemble_is_the_mean_of_its_members(family: str) -> None:
    base = shared_base(family, language_model=True, targets=())
    rows, members = tiny_rows(family, 6), members_of(base, STAGES)
    ensemble = Ensemble(base, members, 1.0, "mean-probabilities", "uniform")
    assert rows.mask is not None
    with torch.no_grad():
        mean = torch.stack([alone(base, member, rows) for member in members]).mean(dim=0)
    real, logs = rows.mask.bool(), ensemble.token_log_probabilities(rows)
    assert torch.allclose(logs[real].exp(), mean[real], atol=1e-5)
    last = mean[torch.arange(6), rows.mask.sum(dim=1) - 1]
    assert torch.allclose(ensemble.next_token(rows).exp(), last, atol=1e-5)
    next_ = mean[:, :-1].log().gather(2, rows.values[:, 1:, None]).squeeze(2) * rows.mask[:, 1:]
    losses = ensemble.token_losses(rows)
    assert torch.allclose(losses, -next_[:, : losses.shape[1]], atol=1e-4)


@pytest.mark.parametrize("layer", [0, 3])
@pytest.mark.parametrize("family", ["vit", "bert"])
def test_a_router_asks_the_member_of_the_nearest_prototype(family: str, layer: int) -> None:
    base, rows = shared_base(family, targets=()), tiny_rows(family, 40)
    members = members_of(base, STAGES)
    some = rows.rows(slice(5))
    entering = base.run(base.start(some), 0, layer, base.attention(some.mask))
    places = Prototypes(layer, pooled(base, entering, layer, some.mask), (1,) * 5)
    ensemble = Ensemble(base, members, 1.0, "route", "uniform", None, places)
    chosen = clusters_of(base, rows, places)
    assert len({*chosen}) > 2, "several members answer"
    with torch.no_grad():
        each = torch.stack([alone(base, member, rows) for member in members])
    expected = each[torch.tensor(chosen), torch.arange(40)]
    assert torch.allclose(ensemble.probabilities(rows), expected, atol=1e-5)


def test_a_member_that_lacks_the_prompts_of_a_stage_is_an_error() -> None:
    base = shared_base("vit", targets=())
    members = members_of(base, (2, 3))
    torn = {name: t for name, t in members[1].tensors.items() if name != "prompt.002"}
    for broken in (torn, random_head(base.hidden_size)):
        with pytest.raises(KeyError, match="prompt"):
            Ensemble(base, [members[0], Member(1, 0, broken, 1)], 1.0, "vote", "uniform")


# ── configs, recipes, plans ──────────────────────────────────────────────────────────────────

PROMPTS: dict[str, Any] = {
    "stage": {"adapter": "prompt", "epochs": 2, "learning_rate": 3e-2},
    "prompt": {"tokens": 2, "init_scale": 0.5},
}


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        (
            {"stage": {"adapter": "prompt"}, "aggregation": {"method": "mean-adapters"}},
            "'mean-adapters' does not fit stage.adapter=prompt",
        ),
        ({"prompt": {"tokens": 3}}, "set stage.adapter=prompt"),
    ],
)
def test_what_does_not_fit_is_said(make: Make, sections: dict[str, Any], said: str) -> None:
    problems = make(**sections).problems()
    assert len(problems) == 1 and said in problems[0]
    assert make(**PROMPTS).problems() == []


def test_a_base_without_room_is_refused_before_anything_is_written(
    make: Make, tmp_path: Path
) -> None:
    plain = make(task="causal-lm", model={"base": "make:llama"})
    folder = tmp_path / "base"
    save_model(load_model(plain), folder)  # of as many positions as a text has tokens
    made = plain.model
    config = make(task="causal-lm", **PROMPTS | {"prompt": {"tokens": 4}})
    with pytest.raises(ConfigError, match="8 prompt tokens"):
        train(config.model_copy(update={"model": made.model_copy(update={"base": str(folder)})}))
    assert not config.run_dir.exists()


def test_slices_are_not_bounded_by_layers(make: Make) -> None:
    shape = {"shards": 1, "slices": 3, "salt": "walk", "subject": "who"}
    config = make(partition=shape, sequences={"budget": 1}, **PROMPTS)
    assert blocks_of(config, 2) == ((0, 0),) * 3
    assert train(config).trained == 3


def test_the_recipe_names_prompts_where_they_are_used_alone(make: Make) -> None:
    base, encoder = shared_base("bert"), load_model(make()).encoder

    def recipe(config: Config) -> dict[str, Any]:
        return recipe_of(config, base, encoder, ["a", "b"], None)

    plain, prompted = recipe(make()), recipe(make(**PROMPTS))
    assert "prompt" not in plain and plain["stage"]["adapter"] == "lora"
    assert prompted["prompt"] == PROMPTS["prompt"] and "lora" not in prompted
    assert recipe(make(**PROMPTS, lora={"rank": 5})) == prompted, "LoRA has no part in it"


def test_bytes_of_a_node_are_its_prompts_and_its_head(make: Make, trained: Trained) -> None:
    config = trained(make(**PROMPTS))
    run = RunDir(config.run_dir)
    plan, sizes = run.plan(), set()
    for each in plan.forest.nodes:
        tensors = run.store.read(each.key)[1]
        assert {name for name in tensors if not name.startswith("head.")} == {
            prompt_name(each.stage)
        }
        sizes.add(sum(tensor.nbytes for tensor in tensors.values()))
    assert sizes == {*plan.stage_bytes} == {4 * (2 * 16 + 2 * 16 + 2)}
    base = load_prepared(run, torch.device("cpu")).base
    assert stage_bytes(config, base, 2) == plan.stage_bytes
    child = next(each for each in plan.forest.nodes if each.stage == 2)
    inherited = WorkerState(load_prepared(run, torch.device("cpu")))._inherited(child)
    assert inherited.keys() == {"prompt.001", "head.weight", "head.bias"}


# ── runs ─────────────────────────────────────────────────────────────────────────────────────


def digits(folder: Path) -> Config:
    """The committed config at its smallest."""
    path = Path(__file__).resolve().parents[2] / "configs" / "digits_prompts.yaml"
    small = ["model.make.hidden=16", "model.make.heads=2", "model.adapt.steps=5"]
    small += ["stage.epochs=1", "training.workers=1", "partition.shards=2", "partition.slices=3"]
    small += [
        "stage.head=fresh",
        "model.make.layers=2",
        "sequences.budget=2",
        "data.private.split=private[:90]",
    ]
    small += [f"data.public.{name}.split=public[:64]" for name in ("adapt", "validation", "test")]
    return load_config(path, [f"output={folder / 'digits'}", *small])


def texts(folder: Path, make: Make) -> Config:
    return make("texts", **PROMPTS)


def language(folder: Path, make: Make) -> Config:
    return make("language", task="causal-lm", model={"base": "make:llama"}, **PROMPTS)


RUNS: dict[str, Callable[[Path, Make], Config]] = {
    "digits": lambda folder, make: digits(folder),
    "texts": texts,
    "language": language,
}


def clustered(folder: Path, make: Make) -> Config:
    """LMEraser: a prompt and a head for each cluster, which a deletion trains again."""
    shape = {"shards": 2, "slices": 1, "salt": "walk", "subject": None, "clusters": {}}
    return make(
        "clustered", partition=shape, sequences={"strategy": "cyclic"},
        aggregation={"method": "route", "on_exhausted": "base"}, **PROMPTS,
    )  # fmt: skip


def test_a_deletion_in_a_cluster_trains_that_cluster_anew(make: Make, tmp_path: Path) -> None:
    config = clustered(tmp_path, make)
    assert train(config).trained == 2
    run, whole = RunDir(config.run_dir), nodes(config)
    with run.ledger() as ledger:
        first = next(iter(ledger.samples()))
    with S3T.load(run.root) as service:
        service.deactivate([first.sample_id])
        assert len(service.predict([{"text": "person 4 says 5"}])) == 1
        assert [bool(prefix) for prefix in prefixes(service)] == [s != first.shard for s in (0, 1)]
    assert train(run.here(), replan=Replan()).trained == 1
    assert len(whole.keys() & nodes(config).keys()) == 1
    assert from_scratch(run, tmp_path / "scratch").equal
    assert audit(run.root).holds


def asked(service: S3T) -> list[Any]:
    """What a run answers with, whatever its task."""
    if service.config.task == "image-classification":
        return list(service.predict([[[0.5] * 8] * 8] * 3))
    if service.config.task == "text-classification":
        return list(service.predict([{"text": "person 4 says 5"}, {"text": "person 7 says 1"}]))
    whole = service.generate(["person 4"], max_new_tokens=3)
    pieces = service.stream("person 4", max_new_tokens=3)
    assert "".join(piece.text for piece in pieces) == whole[0].completion
    return list(whole)


def prefixes(service: S3T) -> list[tuple[int, ...]]:
    return [shard.prefix for shard in service.status().shards]


@pytest.mark.slow
@pytest.mark.parametrize(
    "which",
    [*(pytest.param(one, marks=pytest.mark.heavy) for one in ("digits", "texts")), "language"],
)
def test_a_run_from_its_training_to_its_purge(which: str, make: Make, tmp_path: Path) -> None:
    config = RUNS[which](tmp_path, make)
    train(config)
    run, whole = RunDir(config.run_dir), nodes(config)
    with run.ledger() as ledger:
        first = next(iter(ledger.samples())).sample_id
    with S3T.load(run.root) as service:
        answers, before = asked(service), prefixes(service)
        assert service.deactivate([first]).nodes_dead
        after = prefixes(service)
        assert len(asked(service)) == len(answers)
        service.evaluate()
    assert sorted(map(len, after)) == [config.partition.slices - 1, *map(len, before[1:])]
    found = audit(run.root, retrain=1)
    assert {claim.name for claim in found.claims if claim.status == "pending"} <= {"E7"}
    assert not [claim for claim in found.claims if claim.status == "broken"]
    assert "prompts of" in found["E9"].checked
    report = train(run.config(), replan=Replan())
    assert report.trained == len(dead_of(whole, config)), "the dead alone are trained again"
    assert nodes(config).keys() == {f"{key}.safetensors" for key in keys_of(config)}
    compared = from_scratch(run, tmp_path / "scratch")
    assert compared.equal and compared.same == len(whole), "E3"
    assert audit(run.root).holds
    with S3T.load(run.root) as service:
        assert [*map(len, prefixes(service))] == [*map(len, before)]


def keys_of(config: Config) -> set[str]:
    return {str(each.key) for each in RunDir(config.run_dir).plan().forest}


def dead_of(whole: Mapping[str, bytes], config: Config) -> set[str]:
    """Nodes that were there before a repair, and are no longer."""
    return whole.keys() - nodes(config).keys()


def test_neither_a_kill_nor_how_work_is_spread_changes_a_byte(
    make: Make, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = trained(make("one", **PROMPTS)), make("two", **PROMPTS)
    publish, left = WorkerState._publish, [3]

    def killed(self: WorkerState, trained: TrainedNode) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        publish(self, trained)

    monkeypatch.setattr(WorkerState, "_publish", killed)
    with pytest.raises(KeyboardInterrupt):
        train(two)
    monkeypatch.undo()
    assert len(nodes(two)) == 3
    assert (train(two).found, nodes(two)) == (3, nodes(one))
    spread = {"workers": 1, "group_bytes": 1, "trunk_cache": "off"}
    three = trained(make("three", **PROMPTS, training=spread))
    assert nodes(three) == nodes(one)


@pytest.mark.heavy
def test_two_workers_change_no_byte(make: Make, trained: Trained) -> None:
    one, two = trained(make("one", **PROMPTS)), make("two", **PROMPTS, training={"workers": 2})
    train(two)
    assert nodes(two) == nodes(one)


# ── the audit ────────────────────────────────────────────────────────────────────────────────


ODD: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "no prompt of its stage 1": lambda held: held | {"prompt.002": held["prompt.001"] + 1},
    "lacks the prompts": lambda held: {n: t for n, t in held.items() if n.startswith("head.")},
    "at zero": lambda held: held | {"prompt.001": torch.zeros(2, 16)},
    "where the recipe has 2 tokens": lambda held: held | {"prompt.001": torch.ones(3, 16)},
    "lora_A": lambda held: held | {"layers.000.query.lora_A": torch.ones(2, 2)},
}
"""What may be wrong with a node, by what is said then."""


@pytest.mark.slow
def test_the_audit_finds_what_is_no_prompt_of_the_stage(make: Make, trained: Trained) -> None:
    config = trained(make(sequences={"budget": 1}, **PROMPTS))
    run = RunDir(config.run_dir)
    assert audit(run.root).holds
    one = next(each for each in run.plan().forest if each.stage == 1)
    meta, tensors = run.store.read(one.key)
    for said, change in ODD.items():
        run.store.remove([one.key])
        run.store.write(meta, change(dict(tensors)))
        claim = audit(run.root)["E9"]
        assert claim.status == "broken"
        assert any(said in problem for problem in claim.problems), claim.problems
