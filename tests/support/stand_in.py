"""A stand-in for vLLM and SGLang: their documented endpoints, and answers from peft.

It really loads what it is given: config and weights are read, judged as the engines judge them, and
kept in memory, so that an adapter goes on being served when its folder has gone. Answers that are
under way are names in lists; as in the engines, unloading leaves vLLM's there and waits for
SGLang's, and metrics are written at a step alone, vLLM's a line for each set of adapters ever.
"""

from __future__ import annotations

import copy
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM

Answer = tuple[int, Any]
Fault = Callable[[str, dict[str, Any]], Answer | None]

MAPS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


class StandIn:
    """An engine.

    Attributes:
        url: where it listens.
        loaded: name → path and model of each adapter.
        calls: (method, route, name) of each request, in order.
        fault: asked first, with route and body; gives an answer to give instead, or None.
        runtime: whether adapters may be loaded while it serves.
        at_work, queued: the adapter of each answer that runs, or waits; "" is the base.
        tells: which metrics it has: "adapters" (vLLM alone), "counts", "".
    """

    def __init__(
        self, target: str, base: Path, *, max_rank: int = 16, key: str | None = None
    ) -> None:
        self.target, self.key, self.max_rank = target, key, max_rank
        self.runtime = True
        self.at_work: list[str] = []
        self.queued: list[str] = []
        self.tells = "adapters" if target == "vllm" else "counts"
        self._written: dict[tuple[str, str], float] = {}
        self._counted = (0, 0)
        self.loaded: dict[str, tuple[str, Any]] = {}
        self.calls: list[tuple[str, str, str]] = []
        self.fault: Fault = lambda route, body: None
        self._base = _base_in(base)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    @contextmanager
    def running(self) -> Iterator[StandIn]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()

    def load(self, name: str, path: str) -> None:
        """What an operator does at the start of an engine."""
        assert self._load({"lora_name": name, "lora_path": path})[0] == 200

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        engine = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer("GET", {})

            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                self._answer("POST", json.loads(self.rfile.read(length)))

            def _answer(self, method: str, body: dict[str, Any]) -> None:
                sent = self.headers.get("Authorization")
                status, found = engine.answer(method, self.path, body, sent)
                content = found.encode() if isinstance(found, str) else json.dumps(found).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler

    def answer(self, method: str, route: str, body: dict[str, Any], sent: str | None) -> Answer:
        name = body.get("lora_name") or body.get("model") or body.get("lora_path") or ""
        self.calls.append((method, route, name))
        if self.key is not None and sent != f"Bearer {self.key}":
            return 401, {"error": "Unauthorized"}
        if (fault := self.fault(route, body)) is not None:
            return fault
        prefix = "/v1" if self.target == "vllm" else ""
        routes: dict[tuple[str, str], Callable[[dict[str, Any]], Answer]] = {
            ("GET", "/v1/models"): self._models
        }
        if self.tells:
            routes["GET", "/metrics"] = self._metrics
        if self.runtime:
            routes["POST", f"{prefix}/load_lora_adapter"] = self._load
            routes["POST", f"{prefix}/unload_lora_adapter"] = self._unload
        asking = "/v1/completions" if self.target == "vllm" else "/generate"
        routes["POST", asking] = self._complete
        found = routes.get((method, route))
        return (404, {"detail": "Not Found"}) if found is None else found(body)

    def _models(self, _: dict[str, Any]) -> Answer:
        cards = [{"id": "base", "object": "model", "root": "base", "parent": None}]
        cards += [
            {"id": name, "object": "model", "root": path, "parent": "base"}
            for name, (path, _) in self.loaded.items()
        ]
        return 200, {"object": "list", "data": cards}

    def _load(self, body: dict[str, Any]) -> Answer:
        name, path = body.get("lora_name"), body.get("lora_path")
        if not name or not path:
            return self._no(400, "Both 'lora_name' and 'lora_path' must be provided.")
        if name in self.loaded:
            return self._no(400, f"The lora adapter '{name}' has already been loaded.")
        try:
            self._judge(Path(path))
            model = _adapted(self._base, Path(path))
        except FileNotFoundError:
            return self._no(404, f"No adapter found for {path}")
        except (ValueError, OSError) as error:
            return self._no(400 if self.target == "sglang" else 500, str(error))
        self.loaded[name] = path, model
        return self._yes(f"Success: LoRA adapter '{name}' added successfully.")

    def _judge(self, path: Path) -> None:
        config = json.loads((path / "adapter_config.json").read_bytes())
        if config["r"] > self.max_rank:
            raise ValueError(
                f"LoRA rank {config['r']} is greater than max_lora_rank {self.max_rank}."
            )
        if config["modules_to_save"] or config["bias"] != "none" or config["use_dora"]:
            raise ValueError("only plain LoRA is supported")
        held: set[str] = set()
        for file in path.glob("*.safetensors"):  # as SGLang does, not the adapter's alone
            with safe_open(file, framework="pt") as tensors:
                held |= {*tensors.keys()}
        for one in held:
            module, _, half = one.removesuffix(".weight").rpartition(".")
            if half not in ("lora_A", "lora_B") or module.rpartition(".")[2] not in MAPS:
                raise ValueError(f"{one} is unsupported LoRA weight")

    def _unload(self, body: dict[str, Any]) -> Answer:
        name = body["lora_name"]
        if name not in self.loaded:
            status = 404 if self.target == "vllm" else 400
            return self._no(status, f"The lora adapter '{name}' cannot be found.")
        del self.loaded[name]
        while self.target == "sglang" and name in (*self.at_work, *self.queued):
            time.sleep(0.01)
        return self._yes(f"Success: LoRA adapter '{name}' removed successfully.")

    def _complete(self, body: dict[str, Any]) -> Answer:
        name = body.get("model" if self.target == "vllm" else "lora_path")
        if name not in (None, "base", *self.loaded):
            status = 404 if self.target == "vllm" else 400
            return self._no(status, f"The model `{name}` does not exist.")
        model = self.loaded[name][1] if name in self.loaded else self._base
        self._step()
        prompts = body.get("prompt", body.get("input_ids", body.get("text")))
        if isinstance(prompts, str):
            prompts = [[1]]
        if isinstance(prompts[0], int):
            prompts = [prompts]
        found = self._next(model, prompts)
        if self.target == "vllm":
            assert body["return_tokens_as_token_ids"] and body["temperature"] == 0
            logs = [
                {"tokens": [f"token_id:{token}"], "token_logprobs": [log]} for token, log in found
            ]
            choices = [{"index": at, "text": "?", "logprobs": one} for at, one in enumerate(logs)]
            return 200, {"choices": choices[::-1]}
        assert body["return_logprob"] and body["sampling_params"]["temperature"] == 0
        all_ = [
            {"meta_info": {"output_token_logprobs": [[log, token, None]]}} for token, log in found
        ]
        return 200, all_ if "input_ids" in body else all_[0]

    def _next(self, model: Any, prompts: list[list[int]]) -> list[tuple[int, float]]:
        """The likeliest token after each prompt; no token sees the padding on the right of it."""
        ids = torch.zeros(len(prompts), max(map(len, prompts)), dtype=torch.long)
        for row, prompt in zip(ids, prompts, strict=True):
            row[: len(prompt)] = torch.tensor(prompt)
        ends = torch.tensor([len(prompt) - 1 for prompt in prompts])
        with torch.inference_mode():
            logits = model(input_ids=ids).logits[torch.arange(len(prompts)), ends]
            best = logits.log_softmax(dim=-1).max(dim=-1)
        return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))

    def _step(self) -> None:
        """What an engine writes down when it has computed something."""
        running, waiting = (
            ",".join(sorted({*names} - {""})) for names in (self.at_work, self.queued)
        )
        self._written[running, waiting] = time.time()
        self._counted = len(self.at_work), len(self.queued)

    def _metrics(self, _: dict[str, Any]) -> Answer:
        running, waiting = self._counted
        if self.target == "sglang":
            counts = {"sglang:num_running_reqs": running, "sglang:num_queue_reqs": waiting}
        else:
            counts = {"vllm:num_requests_running": running, "vllm:num_requests_waiting": waiting}
        lines = ["# TYPE everything gauge"]
        lines += [f'{name}{{engine="0"}} {float(count)}' for name, count in counts.items()]
        if self.tells == "adapters":
            lines += [
                f'vllm:lora_requests_info{{max_lora="4",running_lora_adapters="{one}",'
                f'waiting_lora_adapters="{other}"}} {at!r}'
                for (one, other), at in self._written.items()
            ]
        return 200, "\n".join(lines) + "\n"

    def _yes(self, message: str) -> Answer:
        if self.target == "vllm":
            return 200, message
        return 200, {"success": True, "error_message": "", "loaded_adapters": {}}

    def _no(self, status: int, message: str) -> Answer:
        if self.target == "vllm":
            return status, {"error": {"message": message, "type": "Error", "code": status}}
        return status, {"success": False, "error_message": message, "loaded_adapters": {}}


_BASES: dict[bytes, Any] = {}
"""Models by the contents of their folder: copies of a run have the same base."""

_ADAPTED: dict[bytes, Any] = {}
"""Models by the weights of their base and the files of their adapter."""


def _base_in(folder: Path) -> Any:
    """A model of its own; read from the disk once."""
    found = b"".join(path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file())
    if found not in _BASES:
        _BASES[found] = AutoModelForCausalLM.from_pretrained(folder).eval()
    return copy.deepcopy(_BASES[found])


def _adapted(base: Any, folder: Path) -> Any:
    """An adapter over a base; equal ones are built once, and nothing writes into them."""
    files = [folder / name for name in ("adapter_config.json", "adapter_model.safetensors")]
    known = hashlib.sha256()
    for content in (*(file.read_bytes() for file in files), *map(_bytes, base.parameters())):
        known.update(hashlib.sha256(content).digest())
    key = known.digest()
    if key not in _ADAPTED:
        _ADAPTED[key] = PeftModel.from_pretrained(copy.deepcopy(base), str(folder)).eval()
    return _ADAPTED[key]


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()
