"""A real vLLM, started from this machine's program.

The program is ``vllm``, or what ``S3T_VLLM`` names; it may be of an environment of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["VllmServer", "find_vllm"]

_START = 600.0
"""Seconds that it may take to start."""


def find_vllm() -> str | None:
    """The program; None if there is none."""
    return shutil.which(os.environ.get("S3T_VLLM", "vllm"))


class VllmServer:
    """One vLLM on a free port, on the processor, that loads and unloads adapters.

    Attributes:
        url: where it listens.
    """

    def __init__(self, program: str, base: Path, log: Path, sequences: int = 4) -> None:
        """Start it, and wait until it answers.

        Args:
            program: see ``find_vllm``.
            base: folder of the base and its tokenizer.
            log: for what it says.
            sequences: that it computes at once; more wait.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url, self._log = f"http://127.0.0.1:{port}", log
        words = f"--host 127.0.0.1 --port {port} --dtype float32 --enforce-eager --enable-lora"
        words += " --max-lora-rank 16 --max-loras 4 --max-cpu-loras 8 --served-model-name base"
        words += f" --max-num-seqs {sequences}"
        switches = {
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [program, "serve", str(base), *words.split()],
                env={**inherited, **switches},
                stdout=out,
                stderr=out,
            )
        limit = time.monotonic() + _START
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > limit:
                self.stop()
                raise RuntimeError(f"{program} does not start: see {log}")
            time.sleep(0.5)

    @classmethod
    @contextmanager
    def running(cls, *words: Any, **named: Any) -> Iterator[VllmServer]:
        """One that is stopped at the end."""
        server = cls(*words, **named)
        try:
            yield server
        finally:
            server.stop()

    def stop(self) -> None:
        """Stop it."""
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def version(self) -> str:
        """Its version."""
        return str(self.get("/version")["version"])

    def names(self) -> list[str]:
        """Adapters that it lists."""
        return [one["id"] for one in self.get("/v1/models")["data"] if one.get("parent")]

    def get(self, route: str) -> Any:
        """GET of JSON values."""
        with urllib.request.urlopen(self.url + route, timeout=10) as found:
            return json.load(found)

    def complete(self, name: str, prompt: list[int], tokens: int) -> int:
        """Let an adapter write exactly so many tokens; the status of the answer."""
        body = {"model": name, "prompt": prompt, "max_tokens": tokens, "ignore_eos": True}
        request = urllib.request.Request(
            f"{self.url}/v1/completions",
            json.dumps({**body, "temperature": 0}).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=600) as found:
                found.read()
                return int(found.status)
        except urllib.error.HTTPError as error:
            return error.code

    def _answers(self) -> bool:
        try:
            return bool(self.get("/v1/models"))
        except OSError:
            return False
