"""How long a deletion takes over HTTP: until it is durable, and until no replica can answer from
what it switched off.

    python -m benchmarks.serving.latency [--output DIR] [--quick]

One replica on SQLite, then three on PostgreSQL, each under a light load of predictions; deletions
come one after another, at each replica in turn. Accepted is the ledger's own time stamp, to the
millisecond; effective is when the client has the answer.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.environment import quantile, table
from benchmarks.reports import Report, main
from benchmarks.serving import OUTPUT
from benchmarks.serving.cluster import Acks, Client, Serving, delete, train
from tests.harness.postgres import Server

DELETIONS, QUICK = 200, 20
FAST = ("stage.epochs=1", "model.adapt.steps=20", "aggregation.on_exhausted=base")
"""What is trained does not matter here, only how much of it there is."""


def run(output: Path, quick: bool = False) -> dict[str, Any]:
    """Measure both and print the table."""
    report, count = Report("latency", output), QUICK if quick else DELETIONS
    found = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        here = Path(folder)
        found["1 replica, SQLite"] = _measured(here / "sqlite", None, {}, 1, count)
        server = Server.find()
        if server is None:
            print("no PostgreSQL on this machine: three replicas are left out")
        else:
            stack.callback(server.remove)
            server.start()
            kept = here / "postgres"
            found["3 replicas, PostgreSQL"] = _measured(
                kept, server.create_database(), {}, 3, count
            )
        shutil.rmtree(here, ignore_errors=True)
    rows = [
        (name, what, *(f"{1000 * quantile(values, q):.1f}" for q in (0.5, 0.99)), len(values))
        for name, both in found.items()
        for what, values in both.items()
    ]
    print(table(("replicas", "a deletion is", "p50 ms", "p99 ms", "deletions"), rows))
    return report.finish({"seconds": found})


def _measured(
    run: Path, ledger: str | None, env: dict[str, str], replicas: int, count: int
) -> dict[str, Sequence[float]]:
    samples = train(run, ledger, *FAST, env=env)
    random.Random(0).shuffle(samples)
    log, acks = run.parent / "log", Acks()
    processes = [Serving(run, env, log) for _ in range(replicas)]
    body = json.dumps({"rows": [[[0] * 8] * 8]}).encode()
    clients = [Client(one.port, body, acks, pause=0.05) for one in processes]
    try:
        delete([processes[0].port], samples.pop(), acks)  # the first one warms up
        acks.all.clear()
        for number in range(count):
            delete([processes[number % replicas].port], samples.pop(), acks)
            time.sleep(0.02)
    finally:
        for client in clients:
            client.stop()
        codes = [one.stop() for one in processes]
    stale = sum(client.stale for client in clients)
    if stale or any(codes):
        raise SystemExit(f"{stale} answers of a dead view; exit codes {codes}: {log.read_text()}")
    accepted = [max(0.0, _moment(ack.accepted_at) - ack.asked) for ack in acks.all]
    return {"accepted": accepted, "effective": [ack.told - ack.asked for ack in acks.all]}


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


if __name__ == "__main__":
    main(run, __doc__, OUTPUT)
