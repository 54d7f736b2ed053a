"""A deletion in a real vLLM: what it has queued for a dead adapter, and what it says of it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from s3t.config import Config
from s3t.export.sync import EndedAdapter
from s3t.service import S3T
from tests.harness.vllm import VllmServer, find_vllm
from tests.support.deletions import shortened
from tests.support.language_run import language_config

pytestmark = [pytest.mark.slow, pytest.mark.heavy]


def test_a_dead_adapter_is_forgotten_after_its_last_answer(tmp_path: Path) -> None:
    program = find_vllm()
    if program is None:
        pytest.skip("there is no vllm here: name its program in S3T_VLLM")
    from s3t.training.work.train import train

    make = {"hidden": 128, "layers": 3, "heads": 2, "init_scale": 3}  # heads as vLLM takes them
    document = language_config(tmp_path, make=make).model_dump(mode="json", exclude_unset=True)
    document["data"]["max_length"] = 64
    config = Config.model_validate(document)
    train(config)
    answered: list[tuple[int, float]] = []
    with (
        VllmServer.running(program, config.run_dir / "base", tmp_path / "vllm.log") as server,
        S3T.load(config.run_dir) as service,
    ):
        sync = service.synchroniser("vllm", server.url, tmp_path / "out", timeout=120)
        done = sync.sync()
        assert done.exit_code == 0 and done.difference < 1e-3, done.problems
        first, second = done.loaded

        def ask(number: int) -> None:
            status = server.complete(first, [3 + number, 7, 9], 40)
            answered.append((status, time.monotonic()))

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(40)]
        for thread in threads:
            thread.start()
        time.sleep(1.0)
        shortened(service, 0)
        reported: list[tuple[EndedAdapter, float]] = []
        done = sync.sync(lambda one: reported.append((one, time.monotonic())))
        for thread in threads:
            thread.join()
        assert (done.forgotten, done.kept, done.exit_code) == ((first,), (second,), 0)
        late = [at for status, at in answered if status == 200]
        assert late and max(late) <= reported[0][1], "an answer after the report"
        assert server.complete(first, [3, 7, 9], 1) == 404
