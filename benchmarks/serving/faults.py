"""What breaks, and what predictions and deletions make of it: three replicas on one PostgreSQL.

    python -m benchmarks.serving.faults [--output DIR] [--quick]

Clients ask each replica all the time; a privacy tool deletes a sample every half second, at one
replica or, if that cannot, at another, under the same request id. Into that, one after another:
kill -9 of a replica, and of PostgreSQL; PostgreSQL away for longer than a lease; one replica cut
off from it; one replica whose clocks are an hour and days off; a full disk under PostgreSQL;
damaged nodes on disk. Then the same full disk under one replica on SQLite.

Afterwards every deletion that was acknowledged has to be in the ledger, no answer may have come
from a view that an acknowledged deletion had left behind, and the audit may find nothing broken.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.environment import quantile, table
from benchmarks.reports import Report, main
from benchmarks.serving import OUTPUT
from benchmarks.serving.cluster import Acks, Client, Serving, delete, train
from s3t.audit.audit import audit
from s3t.errors import InputError
from s3t.ledger import Ledger
from s3t.run import RunDir
from s3t.types import NodeKey
from tests.harness.postgres import Proxy, Server

LEASE = 3.0
"""Seconds: shorter than the default, so that waiting for it does not take all day."""
FAST = (
    "stage.epochs=1",
    "model.adapt.steps=20",
    "aggregation.on_exhausted=base",
    f"serve.lease={LEASE}",
)
IMAGE = json.dumps({"rows": [[[0] * 8] * 8]}).encode()
DISK = 640 * 2**20


class Tool(threading.Thread):
    """The privacy tool: a deletion every half second, whatever happens."""

    def __init__(self, ports: Callable[[], Sequence[int]], samples: list[str], acks: Acks) -> None:
        super().__init__(daemon=True)
        self._ports, self._samples, self._acks = ports, samples, acks
        self._ending = threading.Event()
        self.tries: Counter[str] = Counter()
        self.seconds: list[float] = []
        self.unanswered: list[str] = []

    def run(self) -> None:
        """Delete until ``stop``."""
        turn = 0
        while not self._ending.wait(0.5) and self._samples:
            ports, turn = [*self._ports()], turn + 1
            sample, started = self._samples.pop(), time.monotonic()
            first = turn % len(ports)
            ack, tries = delete([*ports[first:], *ports[:first]], sample, self._acks)
            self.tries.update(tries)
            self.seconds.append(time.monotonic() - started)
            if ack is None:
                self.unanswered.append(sample)

    def snapshot(self) -> tuple[list[float], Counter[str]]:
        """Seconds of each deletion since the last one, and what tries that failed got."""
        found, self.seconds = self.seconds, []
        tries, self.tries = self.tries, Counter()
        return found, tries

    def stop(self) -> None:
        """End it."""
        self._ending.set()
        self.join(90)


@dataclass
class Fault:
    """What happened while something was broken."""

    name: str
    seconds: float
    answers: Counter[str]
    stale: int
    silence: float
    deletions: list[float]
    tries: Counter[str]

    def row(self) -> tuple[str, ...]:
        """As a row of the table."""
        slowest = f"{max(self.deletions):.2f}" if self.deletions else "–"
        middle = f"{quantile(self.deletions, 0.5):.2f}" if self.deletions else "–"
        others = {key: count for key, count in self.answers.items() if key != "answered"}
        return (
            self.name,
            f"{self.seconds:.0f}",
            str(self.answers["answered"]),
            ", ".join(f"{count} {key}" for key, count in sorted(others.items())) or "none",
            f"{self.silence:.2f}",
            str(self.stale),
            f"{len(self.deletions)}: {middle}, {slowest}",
            ", ".join(f"{count} {key}" for key, count in sorted(self.tries.items())) or "none",
        )


HEADER = (
    "fault",
    "s",
    "answered",
    "not answered",
    "longest silence s",
    "from a dead view",
    "deletions: p50 s, max s",
    "tries refused",
)


class Stage:
    """Replicas under load, for one fault after another."""

    def __init__(self, run: Path, samples: list[str], log: Path, roads: Sequence[Proxy]) -> None:
        self.run, self.log, self.roads, self.acks = run, log, roads, Acks()
        self.processes = [self.start(number) for number in range(max(1, len(roads)))]
        self.clients = [Client(one.port, IMAGE, self.acks) for one in self.processes]
        self.tool = Tool(lambda: [one.port for one in self.processes], samples, self.acks)
        self.tool.start()
        self.faults: list[Fault] = []
        self._stale, self._seen = 0, Counter[str]()

    def start(self, number: int, before: Sequence[str] = (), **env: str) -> Serving:
        """Start a replica, over its road if it has one."""
        if self.roads:
            env |= {"PGPORT": str(self.roads[number].port)}
        return Serving(self.run, env, self.log, before)

    def restart(self, number: int, before: Sequence[str] = (), **env: str) -> None:
        """Start a replica again, with a client of its own."""
        gone = self.clients[number]
        gone.stop()
        self._stale += gone.stale
        self._seen += gone.snapshot()[0]
        self.processes[number] = self.start(number, before, **env)
        self.clients[number] = Client(self.processes[number].port, IMAGE, self.acks)

    @contextmanager
    def during(self, name: str, watched: Sequence[int] | None = None) -> Iterator[None]:
        """Break something in here, and let it be mended; what happened meanwhile is a fault's row.

        Args:
            name: of the fault.
            watched: replicas whose longest silence counts; default: all.
        """
        self._stale, self._seen, before = (
            0,
            Counter[str](),
            sum(client.stale for client in self.clients),
        )
        for client in self.clients:
            client.snapshot()
        self.tool.snapshot()
        started = time.monotonic()
        yield
        seconds, answers, silence = time.monotonic() - started, self._seen, 0.0
        for number, client in enumerate(self.clients):
            seen, silent = client.snapshot()
            answers += seen
            if watched is None or number in watched:
                silence = max(silence, silent)
        stale = self._stale + sum(client.stale for client in self.clients) - before
        done, tries = self.tool.snapshot()
        fault = Fault(name, seconds, answers, stale, silence, done, tries)
        self.faults.append(fault)
        print(" | ".join(fault.row()), flush=True)

    def end(self) -> list[int]:
        """Stop everything; exit codes of the replicas."""
        self.tool.stop()
        for client in self.clients:
            client.stop()
        return [one.stop() for one in self.processes]


def run(output: Path, quick: bool = False) -> dict[str, Any]:
    """Break everything once, print the table, and check what was promised."""
    report, pause = Report("faults", output), 3.0 if quick else 8.0
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        here = Path(folder)
        here.chmod(0o755)  # PostgreSQL runs as somebody else
        disk = stack.enter_context(_disk(here / "disk"))
        server = Server.find(disk)
        if server is None:
            raise SystemExit("there is no PostgreSQL on this machine: apt-get install postgresql")
        stack.callback(server.remove)
        server.start()
        replicated = _replicated(here, server, disk, pause)
        lone = _on_sqlite(here, pause)
        faults = [*replicated["faults"], *lone["faults"]]
    print(table(HEADER, [fault.row() for fault in faults]))
    checks = {
        name: {key: value for key, value in one.items() if key != "faults"}
        for name, one in (("3 replicas, PostgreSQL", replicated), ("1 replica, SQLite", lone))
    }
    for name, check in checks.items():
        print(f"{name}: {json.dumps(check)}")
    wrong = sum(fault.stale for fault in faults) + sum(
        check["lost"] + check["broken_claims"] for check in checks.values()
    )
    result = report.finish(
        {"lease": LEASE, "faults": [vars(fault) for fault in faults], "checks": checks}
    )
    if wrong:
        raise SystemExit(1)
    return result


def _replicated(here: Path, server: Server, disk: Path | None, pause: float) -> dict[str, Any]:
    name = server.create_database().rpartition("/")[2]
    os.environ.update(PGHOST="127.0.0.1", PGPORT=str(server.port), PGUSER="s3t")
    path = here / "run"
    samples = train(path, f"postgresql+psycopg:///{name}", *FAST, env={})
    random.Random(0).shuffle(samples)
    stage = Stage(path, samples, here / "log", [Proxy(server.port) for _ in range(3)])
    with stage.during("nothing"):
        time.sleep(pause)
    with stage.during("kill -9 of a replica, started again"):
        stage.processes[2].kill()
        time.sleep(pause)
        stage.restart(2)
    with stage.during("kill -9 of PostgreSQL, back at once"):
        server.kill()
        server.start()
        time.sleep(pause)
    with stage.during("PostgreSQL away for 3 leases"):
        server.kill()
        time.sleep(3 * LEASE)
        server.start()
        time.sleep(pause)
    with stage.during("a replica cut off for 3 leases"):
        stage.roads[1].stall()
        time.sleep(3 * LEASE)
        stage.roads[1].heal()
        time.sleep(pause + LEASE)
    _skewed(stage, pause)
    if disk is not None:
        with stage.during("disk of PostgreSQL full, then not"):
            with _full(disk):
                time.sleep(pause / 2)
                with suppress(psycopg.Error):  # the files that it has written ahead are used up
                    server.sql("SELECT pg_switch_wal(); CHECKPOINT")
                time.sleep(pause)
            if not server.alive():
                server.start()
            time.sleep(pause + LEASE)
    with stage.during("nodes on disk damaged"):
        damaged = _damage(path)
        time.sleep(pause)
    with stage.during("nodes put back"):
        for file, content in damaged.items():
            file.write_bytes(content)
        time.sleep(pause / 2)
    codes = stage.end()
    return _checked(stage, codes)


def _skewed(stage: Stage, pause: float) -> None:
    """A replica whose clocks are wrong: the wall's by an hour, the others by days."""
    if shutil.which("faketime") is None:
        print("no faketime on this machine: a clock that is off is left out")
        return
    before = ["faketime", "-f", "+1h"]
    if not subprocess.run(
        ["unshare", "--time", "true"], capture_output=True, check=False
    ).returncode:
        before = ["unshare", "--time", "--boottime", "999999", "--monotonic", "777777", *before]
    stage.processes[2].kill()
    # else its sleep fails now and then (EINVAL): what is off beside the wall's clock is unshare's
    stage.restart(2, before, FAKETIME_DONT_FAKE_MONOTONIC="1", DONT_FAKE_MONOTONIC="1")
    with stage.during("a replica's clocks 1 h (wall) and 11 days off"):
        time.sleep(pause)
    stage.processes[2].kill()
    stage.restart(2)


def _on_sqlite(here: Path, pause: float) -> dict[str, Any]:
    with _disk(here / "small") as disk:
        if disk is None:
            print("a disk of its own cannot be mounted here: a full disk is left out")
            return {"faults": [], "acknowledged": 0, "lost": 0, "broken_claims": 0}
        path = disk / "run"
        samples = train(path, None, *FAST, env={})
        random.Random(0).shuffle(samples)
        stage = Stage(path, samples, here / "log", [])
        with stage.during("SQLite: disk of the run full, then not"):
            time.sleep(1)
            with _full(disk):
                time.sleep(pause)
            time.sleep(pause)
        return _checked(stage, stage.end())


def _checked(stage: Stage, codes: list[int]) -> dict[str, Any]:
    """What was promised: nothing acknowledged is lost, and the audit holds."""
    run = RunDir(stage.run)
    with run.ledger() as ledger:
        lost = [ack for ack in stage.acks.all if not _held(ledger, ack.request)]
    found = audit(stage.run)
    broken = [claim for claim in found.claims if claim.status == "broken"]
    for claim in broken:
        print(f"{claim.name} is broken: {'; '.join(claim.problems)}")
    return {
        "faults": stage.faults,
        "acknowledged": len(stage.acks.all),
        "never_acknowledged": len(stage.tool.unanswered),
        "lost": len(lost),
        "broken_claims": len(broken),
        "exit_codes": codes,
    }


def _held(ledger: Ledger, request: str) -> bool:
    try:
        receipt = ledger.receipt(request)
    except InputError:
        return False
    return bool(receipt.hashes) and receipt.effective_at is not None


def _damage(path: Path) -> dict[Path, bytes]:
    """Flip a bit in every second node that could serve next; returns what the files held."""
    run, kept = RunDir(path), {}
    keys = sorted(run.store.keys())
    for key in keys[::2]:
        file = run.store.path(NodeKey(key))
        content = kept[file] = file.read_bytes()
        file.write_bytes(content[:-9] + bytes([content[-9] ^ 4]) + content[-8:])
    return kept


@contextmanager
def _disk(at: Path) -> Iterator[Path | None]:
    """A small disk of its own; None where none can be mounted."""
    at.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=755", "s3t-faults", str(at)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        yield None
        return
    at.chmod(0o755)
    try:
        yield at
    finally:
        subprocess.run(["umount", "-l", str(at)], check=False)


@contextmanager
def _full(disk: Path) -> Iterator[None]:
    """Nothing more can be written while in here."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(2**16))
    with ballast.open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"\0")
    try:
        yield
    finally:
        ballast.unlink()


if __name__ == "__main__":
    main(run, __doc__, OUTPUT)
    sys.exit()
