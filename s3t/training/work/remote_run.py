"""What machines that share no folder get to know of a run: over the store, beside the nodes.

    main process     RUN ──► URL/run/{base/…, base_head.safetensors, prototypes.safetensors,
                             ledger.json, deletions/…, training.json, plans/…, config.yaml},
                             then plan.json
    other machines   URL/run/… ──join───► RUN of their own, marked ``joined``: all but the ledger
                               ──attach─► RUN of their own, complete, if the ledger is a database

Nothing private is sent: the plan holds digests of slices, the hits are numbers of slices, and who
is gone is told by keyed hashes; the config goes without a password. Each machine that trains reads
the data itself, from where its own config says; one that serves needs none.

Invariant: what arrives is believed only as far as it proves itself, when the run is opened: the
plan by its digest, the base by its fingerprint, head and prototypes by their proofs, the data by
the digests of the slices.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from s3t.config import Config, anchored, dump_config, load_config
from s3t.errors import InputError, IntegrityError
from s3t.ledger import without_password
from s3t.plan import Plan
from s3t.run import RunDir
from s3t.store import Depot, open_depot, write_durably

__all__ = ["attach", "finished", "join", "joined", "publish", "refuse_other_store"]

_PLAN, _HEAD, _BASE = "run/plan.json", "run/base_head.safetensors", "run/base"
_PROTOTYPES = "run/prototypes.safetensors"
_CONFIG = "run/config.yaml"


def refuse_other_store(config: Config) -> None:
    """Refuse a store that belongs to another ledger, before anything is written.

    Raises:
        InputError: it does.
    """
    run = RunDir(config.run_dir, anchored(config).store)
    if run.store.depot is None:
        return
    if run.prepared:
        with run.ledger() as ledger:
            run.notices().prove(ledger)
    elif config.ledger is None:  # else it may hold the run's ledger already
        run.notices().refuse_owned()


def publish(run: RunDir) -> None:
    """Put a prepared run where other machines can join it.

    Raises:
        InputError, IntegrityError, UnavailableError: see ``Notices.tell``.
    """
    depot = run.store.depot
    if depot is None:
        return
    found = run.trained_plan()
    plan, kept = found.to_json().encode(), _got(depot, _PLAN)
    with run.ledger() as ledger:
        run.notices().tell(ledger, again=True)
        run.notices().tell_plan(found.digest, ledger.plans.newest().plan_view)
    if kept is None:
        if run.base_path.is_dir():
            for path in sorted(run.base_path.iterdir()):
                depot.put(f"{_BASE}/{path.name}", path.read_bytes())
        for name, path in _kept(run).items():
            if path.is_file():
                depot.put(name, path.read_bytes())
    run.plans.publish(run.plan())
    run.plans.publish(found)
    depot.put(_CONFIG, dump_config(_public(run.config())).encode())
    if kept != plan:
        depot.put(_PLAN, plan)


def joined(run: RunDir) -> bool:
    """Whether a machine's own directory holds the run that is published now."""
    depot = run.store.depot
    kept = None if depot is None else _got(depot, _PLAN)
    return run.joined and run.prepared and run.plan_path.read_bytes() == kept


def finished(config: Config) -> bool:
    """Whether a published run has every node that no deletion has hit."""
    run = RunDir(config.run_dir, anchored(config).store)
    assert run.store.depot is not None
    text, told = _got(run.store.depot, _PLAN), run.notices().told()
    if text is None or told is None:
        return False
    plan, there = Plan.from_json(text.decode(errors="replace")), run.store.keys()
    return plan.digest == told[0] and all(
        node.key in there or node.is_hit(told[1]) for node in plan.forest
    )


def join(config: Config) -> None:
    """Make a directory of this machine's own in which a published run can be trained.

    Raises:
        InputError: something else lies there.
        IntegrityError: the plan is not what was published.
    """
    run = RunDir(config.run_dir)
    depot = open_depot(anchored(config).store.url or "")
    plan = _got(depot, _PLAN)
    if plan is None:
        raise IntegrityError(f"{depot.where(_PLAN)} is gone: run s3t train again on machine rank 0")
    Plan.from_json(plan.decode(errors="replace"))
    if not run.joined and run.root.exists() and any(run.root.iterdir()):
        raise InputError(
            f"{run.root} holds files that are not this run's: give an empty directory on this "
            "machine with output=DIR, or the very directory of machine rank 0"
        )
    write_durably(run.joined_path, f"{depot.url}\n".encode())
    write_durably(run.config_path, dump_config(anchored(config)).encode())
    if joined(RunDir(config.run_dir)):
        return
    run.plan_path.unlink(missing_ok=True)
    _fetch_base(run, depot)
    _fetch_kept(run, depot)
    write_durably(run.plan_path, plan)


def attach(root: Path, url: str, overrides: Sequence[str] = ()) -> RunDir:
    """Make a run directory on this machine, of a run whose ledger is a database; all or nothing.

    It can do all that the one can where the run was trained.

    Args:
        root: the directory, empty or not there.
        url: the run's ``store.url``.
        overrides: of its config, such as ``ledger=URL`` where that is another one from here.

    Raises:
        InputError: something lies there; no run is kept at the URL, or not such a one.
        UnavailableError: the ledger cannot be reached.
        IntegrityError: what is kept there is damaged, or the ledger is.
    """
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise InputError(f"{root} holds something already: give a directory that is empty or new")
    depot = open_depot(url if "://" in url else os.path.abspath(url))
    config = _got(depot, _CONFIG)
    if config is None or _got(depot, _PLAN) is None:
        raise InputError(
            f"no run is kept at {depot.url} that could be attached: give the store.url of one that "
            "was trained with ledger=postgresql+psycopg://…"
        )
    root.parent.mkdir(parents=True, exist_ok=True)
    temporary = root.with_name(f".{root.name}.{os.getpid()}.tmp")
    try:
        _attach(RunDir(temporary), root, depot, config, overrides)
        temporary.rename(root)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return RunDir.existing(root)


def _attach(run: RunDir, root: Path, depot: Depot, config: bytes, overrides: Sequence[str]) -> None:
    """Fill a directory that will be ``root``, and prove that the run can be opened there."""
    write_durably(run.config_path, config)
    resolved = load_config(run.config_path, overrides)
    kept: dict[str, object] = {"url": depot.url}
    if not any(override.startswith("store.cache=") for override in overrides):
        kept["cache"] = None  # a folder of the other machine
    store = resolved.store.model_copy(update=kept)
    resolved = resolved.model_copy(update={"output": str(root.absolute()), "store": store})
    if resolved.ledger is None:
        raise InputError(
            f"the ledger of the run at {depot.url} is a file of the machine that trained it, so no "
            "other one can delete or serve: train it with ledger=postgresql+psycopg://…"
        )
    write_durably(run.config_path, dump_config(resolved).encode())
    _fetch_base(run, depot)
    _fetch_kept(run, depot)
    plan = _got(depot, _PLAN)
    assert plan is not None
    write_durably(run.plan_path, plan)
    run.plans.settle(run.plan(), None)
    with run.ledger() as ledger:
        run.notices().prove(ledger)


def _public(config: Config) -> Config:
    """The config as other machines may read it."""
    ledger = None if config.ledger is None else without_password(config.ledger)
    return config.model_copy(update={"ledger": ledger})


def _fetch_base(run: RunDir, depot: Depot) -> None:
    temporary = run.root / f".base.{os.getpid()}.tmp"
    shutil.rmtree(run.base_path, ignore_errors=True)
    names = depot.names(_BASE)
    if not names:
        return  # it was loaded as it is, and is here too
    for name in names:
        write_durably(temporary / Path(name).name, depot.get(f"{_BASE}/{name}"))
    temporary.rename(run.base_path)


def _kept(run: RunDir) -> dict[str, Path]:
    """What else may have been made of public data: where it is published, and where it lies."""
    return {_HEAD: run.head_path, _PROTOTYPES: run.prototypes_path}


def _fetch_kept(run: RunDir, depot: Depot) -> None:
    for name, path in _kept(run).items():
        found = _got(depot, name)
        if found is not None:
            write_durably(path, found)


def _got(depot: Depot, name: str) -> bytes | None:
    try:
        return depot.get(name)
    except FileNotFoundError:
        return None
