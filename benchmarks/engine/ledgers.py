"""Ledgers of any size for a trained run, and what it takes to make and to open them.

The run's own samples are real; up to the size asked for, others are made, each in the place that
its hash gives it. No node was trained on those, which a ledger cannot tell. Half of them belong to
persons of four. Everything is measured in a process of its own, so that its memory is its own.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from s3t import S3T, load_config
from s3t.config import PartitionConfig
from s3t.data.partition import slot_of
from s3t.ledger import Ledger
from s3t.types import Digest, Sample, SampleId, Slot, Subject

__all__ = ["alone", "build", "images", "made_id", "opened"]


def alone(what: str, *arguments: object) -> dict[str, Any]:
    """What ``build`` or ``opened`` gives in a fresh process that does nothing else."""
    words = [sys.executable, "-m", __name__, what, *map(str, arguments)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def build(run: Path, ledger: Path, size: int) -> dict[str, Any]:
    """Register ``size`` samples in a fresh ledger for the run."""
    from s3t.data import label_names, load_private  # more memory than a ledger takes

    config = load_config(run / "config.yaml")
    own = load_private(config, label_names(config)).samples
    some = min(size, 100_000)
    started = time.perf_counter()
    for _ in _samples(config.partition, own, some):
        pass
    making, before = (time.perf_counter() - started) * size / some, _peak_mib()
    started = time.perf_counter()
    with Ledger.open(ledger, create=True) as opened:
        opened.register(_samples(config.partition, own, size))
    return {
        "register_seconds": round(time.perf_counter() - started - making, 2),
        "register_mib": round(_peak_mib() - before, 1),
        "bytes": ledger.stat().st_size,
        "bytes_per_sample": round(ledger.stat().st_size / size, 1),
    }


def opened(run: Path) -> dict[str, Any]:
    """Open a run as ``s3t status`` does, then as a service: seconds and memory of each step."""
    found: dict[str, Any] = {"imports_mib": round(_peak_mib(), 1)}
    started = time.perf_counter()
    with S3T.load(run) as service:
        found["load_seconds"] = round(time.perf_counter() - started, 4)
        started = time.perf_counter()
        found["samples"] = service.status().samples
        found["status_seconds"] = round(time.perf_counter() - started, 4)
        found["status_mib"] = round(_peak_mib(), 1)
        started = time.perf_counter()
        service.predict(images(1))
        found["first_answer_seconds"] = round(time.perf_counter() - started, 2)
        found["service_mib"] = round(_peak_mib(), 1)
    return found


def images(count: int) -> list[Any]:
    """Digits to predict."""
    from sklearn.datasets import load_digits

    return [image / 16 for image in load_digits().images[:count]]


def made_id(number: int) -> SampleId:
    """Id of the made sample of this number."""
    return SampleId(f"made-{number:08d}")


def _peak_mib() -> float:
    """Peak of this process; getrusage would also know that of the one that started it."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def _samples(
    shape: PartitionConfig, own: Sequence[Sample], size: int
) -> Iterator[tuple[Sample, Slot]]:
    """The run's own samples, and made ones up to ``size``, each with its place."""
    for number in range(size):
        if number < len(own):
            sample = own[number]
        else:
            content = Digest(hashlib.sha256(b"made %d" % number).hexdigest())
            person = Subject(f"person-{number // 4:07d}") if number // 4 % 2 else None
            sample = Sample(made_id(number), person, content)
        yield sample, slot_of(sample, shape.shards, shape.slices, shape.salt)


if __name__ == "__main__":
    if sys.argv[1] == "build":
        print(json.dumps(build(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))))
    else:
        print(json.dumps(opened(Path(sys.argv[2]))))
