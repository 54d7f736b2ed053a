"""The endpoints by which engines load and unload adapters while they serve.

                 vLLM                                           SGLang
    list         GET  /v1/models                                the same
    load         POST /v1/load_lora_adapter {lora_name,         POST /load_lora_adapter, the same
                 lora_path}
    unload       POST /v1/unload_lora_adapter {lora_name}       POST /unload_lora_adapter, the same
    ask          POST /v1/completions {model: its name}         POST /generate {lora_path: its name}

vLLM has the two in the middle only if VLLM_ALLOW_RUNTIME_LORA_UPDATING is set and one API server
runs; SGLang needs --enable-lora, and for adapters it did not start with --max-lora-rank and
--lora-target-modules. Both answer 400 for a name that is loaded already, vLLM 404 and SGLang 400
for one that is not there. Unloading waits in SGLang until answers under way with the adapter have
ended; vLLM lets them end later.

Invariant: what is loaded is what the engine lists; no answer to a load or an unload is believed
without looking at the list.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from s3t.errors import S3TError
from s3t.exporting import engine_named
from s3t.syncing.link import EngineError, Link, Reply

__all__ = ["Answered", "Served", "ServingEngine", "connect"]


@dataclass(frozen=True, slots=True)
class Answered:
    """The token that an engine took, and its log probability."""

    token: int
    log_probability: float


@dataclass(frozen=True, slots=True)
class Served:
    """A model that an engine lists: its name, and the path that it says it is from, if any."""

    name: str
    root: str | None


class _Dialect(Protocol):
    """What differs between engines."""

    prefix: str
    hint: str

    def question(self, name: str, tokens: Sequence[int]) -> tuple[str, dict[str, Any]]:
        """Route and body that ask an adapter for one token."""
        ...

    def answer(self, body: Any) -> Answered:
        """What the engine's answer says."""
        ...


class _Vllm:
    prefix = "/v1"
    hint = (
        "start one API server of vLLM with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
    )

    def question(self, name: str, tokens: Sequence[int]) -> tuple[str, dict[str, Any]]:
        return "/v1/completions", {
            "model": name,
            "prompt": list(tokens),
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": 1,
            "return_tokens_as_token_ids": True,
        }

    def answer(self, body: Any) -> Answered:
        found = body["choices"][0]["logprobs"]
        token = str(found["tokens"][0]).removeprefix("token_id:")
        return Answered(int(token), float(found["token_logprobs"][0]))


class _Sglang:
    prefix = ""
    hint = "start SGLang with --enable-lora, --max-lora-rank and --lora-target-modules"

    def question(self, name: str, tokens: Sequence[int]) -> tuple[str, dict[str, Any]]:
        return "/generate", {
            "input_ids": list(tokens),
            "lora_path": name,
            "sampling_params": {"temperature": 0, "max_new_tokens": 1},
            "return_logprob": True,
        }

    def answer(self, body: Any) -> Answered:
        chance, token = body["meta_info"]["output_token_logprobs"][0][:2]
        return Answered(int(token), float(chance))


_DIALECTS: dict[str, _Dialect] = {"vllm": _Vllm(), "sglang": _Sglang()}


class ServingEngine:
    """An engine that serves adapters.

    Args:
        target: ``vllm`` or ``sglang``.
        link: to it.
    """

    def __init__(self, target: str, link: Link) -> None:
        self.target, self.link = target, link
        self._dialect = _DIALECTS[target]

    @property
    def url(self) -> str:
        """Where it is."""
        return self.link.url

    def served(self) -> list[Served]:
        """All that it lists.

        Raises:
            UnavailableError: it cannot be reached.
            EngineError: it gives no list.
        """
        reply = self.link.get("/v1/models")
        try:
            if reply.status == 200:
                return [Served(str(one["id"]), one.get("root")) for one in reply.body["data"]]
        except (KeyError, TypeError, AttributeError):
            pass
        raise EngineError(f"{self.url} does not list its models", reply.status, reply.message)

    def load(self, name: str, path: str) -> None:
        """Have an adapter loaded; one that is loaded already stays so.

        Raises:
            UnavailableError: it cannot be reached.
            EngineError: it refused, with its reason.
        """
        route = f"{self._dialect.prefix}/load_lora_adapter"
        reply = self.link.post(route, {"lora_name": name, "lora_path": path})
        if name not in {one.name for one in self.served()}:
            raise self._refused(f"{name} was not loaded", reply)

    def unload(self, name: str) -> None:
        """Have an adapter unloaded; one that is not there is fine.

        Raises:
            UnavailableError: it cannot be reached.
            EngineError: it is still listed.
        """
        route = f"{self._dialect.prefix}/unload_lora_adapter"
        reply = self.link.post(route, {"lora_name": name})
        if name in {one.name for one in self.served()}:
            raise self._refused(f"{name} was not unloaded", reply)

    def ask(self, name: str, tokens: Sequence[int]) -> Answered:
        """The likeliest token after some others, under an adapter.

        Raises:
            UnavailableError: it cannot be reached.
            EngineError: it refused.
            S3TError: its answer cannot be understood.
        """
        route, body = self._dialect.question(name, tokens)
        reply = self.link.post(route, body)
        if reply.status != 200:
            raise EngineError(f"{name} does not answer", reply.status, reply.message)
        try:
            found = self._dialect.answer(reply.body)
        except (LookupError, TypeError, ValueError, AttributeError):
            found = None
        if found is None or not math.isfinite(found.log_probability):
            raise S3TError(
                f"{name} answers without a token and its log probability ({reply.message}): is "
                f"this {self.target}?"
            )
        return found

    def _refused(self, what: str, reply: Reply) -> EngineError:
        words = reply.message
        if reply.status in (404, 405) and not reply.names_error:
            words = f"{words}; it has no such route: {self._dialect.hint}"
        return EngineError(what, reply.status, words)


def connect(target: str, link: Link) -> ServingEngine:
    """An engine.

    Raises:
        InputError: a target that is not known.
    """
    engine_named(target)
    return ServingEngine(target, link)
