"""Everything is loaded once: base, sources of data and encoded rows, in every kind of training."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import s3t.data.samples
import s3t.model.loading
from s3t.config import Config
from s3t.errors import InputError, IntegrityError
from s3t.model.base import Base
from s3t.model.inputs.encoders import TextEncoder
from s3t.run import RunDir
from s3t.training.prepare.inputs import RunInputs
from s3t.training.prepare.load import load_prepared
from s3t.training.prepare.replan import Replan
from s3t.training.work.train import train
from tests.support.small_runs import (
    Make,
    Trained,
    forget,
    nodes,
    person_rows,
    small_configs,
    write_csv,
)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Small configs whose sources all hold other rows."""
    plain, public = small_configs(tmp_path), {}
    for persons, name in enumerate(("adapt", "validation", "test"), 4):
        write_csv(tmp_path / f"{name}.csv", person_rows(persons))
        public[name] = {"format": "csv", "files": str(tmp_path / f"{name}.csv")}

    def config(output: str = "run", **sections: Any) -> Config:
        made = plain(output, **sections).model_dump(mode="json", exclude_unset=True)
        return Config.model_validate(made | {"data": made["data"] | {"public": public}})

    return config


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts models loaded, bases built, sources read, and sets of rows encoded."""
    counts: Counter[str] = Counter()

    def count(owner: Any, name: str, label: Callable[..., str]) -> None:
        plain = getattr(owner, name)

        @functools.wraps(plain)
        def counted(*arguments: Any, **named: Any) -> Any:
            counts[label(*arguments)] += 1
            return plain(*arguments, **named)

        monkeypatch.setattr(owner, name, counted)

    count(s3t.model.loading, "_pretrained", lambda *_: "models")
    count(s3t.model.loading, "build_model", lambda *_: "models")
    count(Base, "__init__", lambda *_: "bases")
    count(s3t.data.samples, "read_columns", lambda config, source, where: where)
    count(TextEncoder, "encode", lambda self, rows, *_: f"rows {hash(tuple(rows))}")
    return counts


SOURCES = ("data.private", "data.public.validation", "data.public.test", "data.public.adapt")


def once(counts: Counter[str], encoded: int, bases: int = 1) -> bool:
    """Whether one model was loaded, each source read once, and ``encoded`` sets of rows once."""
    rows = [name for name in counts if name.startswith("rows")]
    expected = Counter({"models": 1, "bases": bases} | dict.fromkeys((*SOURCES, *rows), 1))
    return counts == expected and len(rows) == encoded


PUBLIC_HEAD = {"head": "public", "epochs": 1, "learning_rate": 1e-2}
ADAPT = {"adapt": {"steps": 2, "batch_size": 4}}


def test_a_fresh_training_loads_once(make: Make, loads: Counter[str]) -> None:
    train(make())
    assert once(loads, encoded=2), loads  # private and validation rows


def test_an_adapted_base_is_loaded_once_and_taken_apart_again(
    make: Make, loads: Counter[str]
) -> None:
    train(make(model=ADAPT, stage=PUBLIC_HEAD))
    assert once(loads, encoded=3, bases=2), loads  # its weights are others than those checked


def test_clusters_load_once(make: Make, loads: Counter[str]) -> None:
    clusters = {"shards": 2, "slices": 2, "salt": "walk", "subject": None, "clusters": {}}
    train(make(model=ADAPT, stage=PUBLIC_HEAD, partition=clusters))
    assert once(loads, encoded=3, bases=2), loads


def test_a_resumed_training_loads_once(make: Make, trained: Trained, loads: Counter[str]) -> None:
    config = trained(make(model=ADAPT, stage=PUBLIC_HEAD))
    run, before = RunDir(config.run_dir), nodes(config)
    run.store.path(run.plan().forest.stages()[-1][0].key).unlink()
    loads.clear()
    assert train(config).trained == 1
    assert once(loads, encoded=2), loads
    assert nodes(config) == before
    loads.clear()
    train(config)
    assert loads.keys() == {"data.public.validation", "data.public.test", "data.public.adapt"}, (
        "nothing is missing: the rows that nodes were scored on are read, and no base is loaded"
    )


@pytest.mark.parametrize("add", [False, True])
def test_a_repair_loads_once(
    make: Make,
    trained: Trained,
    tmp_path: Path,
    loads: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
    add: bool,
) -> None:
    from s3t.training.work import train as work

    config = trained(make())
    forget(config, "p03")
    more = [row | {"id": f"n{row['id']}", "who": f"n{row['who']}"} for row in person_rows(2)]
    write_csv(tmp_path / "more.csv", more)
    replan = Replan(add, (str(tmp_path / "more.csv"),) if add else ())
    loads.clear()
    with monkeypatch.context() as patched:
        # it reads the private files once more, to say which of them still hold deleted rows
        patched.setattr(work, "purge", lambda *_, **__: None)
        assert train(config, replan=replan).trained
    assert once(loads, encoded=2), loads


def test_a_base_that_was_written_to_is_not_trained_on(make: Make, trained: Trained) -> None:
    config = trained(make())
    run = RunDir(config.run_dir)
    inputs, device = RunInputs.of(run), torch.device("cpu")
    with torch.no_grad():
        next(iter(inputs.base.weights.tensors.values())).view(-1)[0] += 1
    with pytest.raises(IntegrityError, match="was written to"):
        load_prepared(run, device, inputs)
    other = RunInputs(make("other", seed=7))
    with pytest.raises(InputError, match="no longer the base"):
        load_prepared(run, device, other)


def test_deleted_rows_leave_the_inputs(make: Make, trained: Trained) -> None:
    config = trained(make())
    run = RunDir(config.run_dir)
    inputs = RunInputs.of(run)
    encoded = inputs.encoded(inputs.data.private.rows)
    forget(config, "p03")
    prepared = load_prepared(run, torch.device("cpu"), inputs)
    assert len(prepared.samples) == len(prepared.private) == len(encoded) - 3
    assert not any(sample.subject == "p03" for sample in prepared.samples)


def test_a_base_that_is_put_together_is_the_model_that_was_loaded(make: Make) -> None:
    from s3t.model.loading import load_model

    config = make()
    inputs, whole = RunInputs(config), load_model(config).model.eval()
    together = inputs.base.put_together()
    ids = torch.arange(8)[None] + 4
    assert torch.equal(together(input_ids=ids)[0], whole(input_ids=ids)[0])
    names = [name for name, _ in whole.named_parameters()]
    assert [name for name, _ in together.named_parameters()] == names
