"""How late a real vLLM still answers from a dead adapter, against what s3t sync reports.

    python -m benchmarks.engine_gap [--quick] [--output DIR]

A small Llama is trained, vLLM serves its adapters, and ``s3t sync --watch`` keeps them. In each
run 200 requests for one adapter are queued at once, and a sample that this adapter has seen is
deleted. Told are when the last answer of the dead adapter arrived, and when the watch reported the
adapter forgotten: the first less the second is the gap, which must never be positive. vLLM is
``vllm`` of the path, or what ``S3T_VLLM`` names.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from benchmarks.environment import table
from benchmarks.prepared_data import ROOT
from benchmarks.reports import Report, main, shown, spread
from tests.harness.vllm import VllmServer, find_vllm

if TYPE_CHECKING:
    from s3t import S3T
    from s3t.config import Config

__all__ = ["run"]

OUTPUT = Path("runs/benchmarks/engine_gap")
PEOPLE, SHARDS, SLICES = 60, 2, 6
RUNS, QUEUED, TOKENS = 10, 200, 24
TIMEOUT = 180


def run(output: Path, quick: bool) -> dict[str, Any]:
    """Run it; returns the figures."""
    program = find_vllm()
    if program is None:
        raise SystemExit("there is no vllm here: install one, and name its program in S3T_VLLM")
    os.environ["OMP_NUM_THREADS"] = "1"
    report, started = Report("engine_gap", output), time.monotonic()
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        from s3t import S3T
        from s3t.training.work.train import train

        config = _config(Path(folder))
        train(config)
        with (
            S3T.load(config.run_dir) as service,
            VllmServer.running(
                program, config.run_dir / "base", output.resolve() / "vllm.log"
            ) as server,
            _Watch(config.run_dir, server.url) as watch,
        ):
            version, found = server.version(), []
            for number in range(2 if quick else RUNS):
                found.append(_measured(service, server, watch, number % SHARDS, quick))
                print(found[-1], flush=True)
    assert max(one["gap"] for one in found) <= 0, "a dead adapter answered after the report"
    seconds = round(time.monotonic() - started, 1)
    result = {"vllm": version, "quick": quick, "runs": found, "seconds": seconds}
    print(f"\n{_table(found)}\n", flush=True)
    return report.finish(result)


def _measured(
    service: S3T, server: VllmServer, watch: _Watch, shard: int, quick: bool
) -> dict[str, Any]:
    """One deletion under a queue."""
    (name,) = (one for one in server.names() if f"-shard-{shard:03d}-" in one)
    ended: list[tuple[int, float]] = []

    def ask(number: int) -> None:
        status = server.complete(name, [3 + number % 200, 7, 9, 11], TOKENS)
        ended.append((status, time.monotonic()))

    threads = [
        threading.Thread(target=ask, args=(number,)) for number in range(20 if quick else QUEUED)
    ]
    for thread in threads:
        thread.start()
    time.sleep(1.0)
    prefix = service.status().shards[shard].prefix
    entries = service.ledger.samples((shard, prefix[-1]), deleted=False)
    deleted = time.monotonic()
    service.deactivate([str(next(iter(entries)).sample_id)])
    reported = watch.wait(name)
    for thread in threads:
        thread.join()
    watch.wait(None)  # it has loaded what takes its place
    answered = [at for status, at in ended if status == 200]
    last = max(answered)
    return {
        "answered": len(answered),
        "refused": sum(status == 404 for status, _ in ended),
        "after_deletion": sum(at > deleted for at in answered),
        "last_answer": round(last - deleted, 3),
        "reported": round(reported - deleted, 3),
        "gap": round(last - reported, 3),
    }


class _Watch:
    """``s3t sync --watch`` as a process, and when it said what."""

    def __init__(self, run_dir: Path, url: str) -> None:
        words = f"--target vllm --watch 5 --timeout {TIMEOUT} --json"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "s3t", "sync", str(run_dir), url, *words.split()],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        self._lines: SimpleQueue[tuple[float, dict[str, Any]]] = SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> _Watch:
        while self._next()[1].get("event") != "watching":
            continue
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()

    def wait(self, name: str | None) -> float:
        """When it reported an adapter forgotten; None: when it ended a sync."""
        while True:
            at, line = self._next()
            assert not line.get("problems"), line
            if line.get("name") == name and ("event" in line) == (name is not None):
                return at

    def _next(self) -> tuple[float, dict[str, Any]]:
        return self._lines.get(timeout=2 * TIMEOUT)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put((time.monotonic(), json.loads(line)))


def _config(place: Path) -> Config:
    """A Llama whose heads are of a width that vLLM takes, on texts of persons."""
    from s3t.config import Config

    def written(name: str, first: int, last: int) -> dict[str, str]:
        rows = [
            {"id": f"{person}-{n}", "who": f"p{person}", "text": f"person {person} likes {n * 7}"}
            for person in range(first, last)
            for n in range(2)
        ]
        path = place / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return {"format": "json", "files": str(path)}

    public = written("public", PEOPLE, PEOPLE + 5)
    return Config.model_validate(
        {
            "output": str(place / "run"),
            "task": "causal-lm",
            "data": {
                "private": written("private", 0, PEOPLE),
                "public": {"validation": public, "test": public},
                "columns": {"id": "id"},
                "max_length": 64,
            },
            "model": {
                "base": "make:llama",
                "make": {"hidden": 128, "layers": SLICES, "heads": 2, "init_scale": 3},
            },
            "partition": {"shards": SHARDS, "slices": SLICES, "salt": "gap", "subject": "who"},
            "sequences": {"strategy": "cyclic"},
            "lora": {"rank": 4},
            "stage": {"epochs": 1, "learning_rate": 1e-2},
            "training": {"workers": 1},
        }
    )


def _table(found: list[dict[str, Any]]) -> str:
    rows = [
        (kind, shown(spread([one[key] for one in found]), ".2f"))
        for kind, key in (
            ("last answer of the dead adapter, s after the deletion", "last_answer"),
            ("reported, s after the deletion", "reported"),
            ("gap: the first less the second, s", "gap"),
        )
    ]
    return table(("", "median (least–greatest)"), rows)


if __name__ == "__main__":
    main(run, __doc__, OUTPUT)
