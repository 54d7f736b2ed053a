"""The endpoints by which engines list, load, unload and use adapters while they serve.

                 vLLM                                           SGLang
    list         GET  /v1/models                                the same
    load         POST /v1/load_lora_adapter {lora_name,         POST /load_lora_adapter, the same
                 lora_path}
    unload       POST /v1/unload_lora_adapter {lora_name}       POST /unload_lora_adapter, the same
    ask          POST /v1/completions {model: its name}         POST /generate {lora_path: its name}
    under way    GET  /metrics                                  the same, if --enable-metrics

Without a name both answer from the base. vLLM loads and unloads only if one API server runs and
VLLM_ALLOW_RUNTIME_LORA_UPDATING is set; SGLang needs --enable-lora, and for adapters it did not
start with --max-lora-rank and --lora-target-modules. Both answer 400 for a name that is loaded
already; for one that is not there vLLM answers 404 and SGLang 400. SGLang's unload waits until
answers with the adapter have ended; vLLM lets them end later, those in its queue too.

Invariants: an adapter is loaded if the engine lists it; after every load and unload the list is
read. Metrics are of an engine's last step and may miss a request that was accepted before, so they
are read after the base has answered twice in a row.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from s3t.errors import S3TError, UnavailableError
from s3t.export import engine_limits
from s3t.export.sync.http import EngineClient, EngineError, Reply
from s3t.export.sync.metrics import MetricSample, read_metrics, seen_at_work, under_way, written_at

__all__ = ["EngineAnswer", "ListedModel", "ServingEngine", "connect"]

Prompts = list[list[int]]
"""Token ids."""

_SHORT = [[1]]

_REFUSED = (400, 404, 422)
"""Statuses with which engines refuse an adapter that they do not have."""


@dataclass(frozen=True, slots=True)
class EngineAnswer:
    """The token that an engine took, and its log probability."""

    token: int
    log_probability: float


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A model that an engine lists: its name, and the path that it says it is from, if any."""

    name: str
    root: str | None


class _Dialect(Protocol):
    """What differs between engines."""

    prefix: str
    hint: str
    counts: Sequence[str]
    visible: str
    waits: bool

    def question(self, name: str | None, prompts: Prompts) -> tuple[str, dict[str, Any]]:
        """Route and body that ask an adapter, or the base, for one token after each prompt."""

    def answers(self, body: Any) -> list[EngineAnswer]:
        """What the engine's answer says, prompt by prompt."""


class _Vllm:
    prefix = "/v1"
    counts: Sequence[str] = ("vllm:num_requests_running", "vllm:num_requests_waiting")
    visible = "start vLLM without --disable-log-stats"
    waits = False
    hint = (
        "start one API server of vLLM with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
    )

    def question(self, name: str | None, prompts: Prompts) -> tuple[str, dict[str, Any]]:
        return "/v1/completions", {
            **({} if name is None else {"model": name}),
            "prompt": prompts,
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": 1,
            "return_tokens_as_token_ids": True,
        }

    def answers(self, body: Any) -> list[EngineAnswer]:
        choices = sorted(body["choices"], key=lambda one: int(one["index"]))
        return [self._answer(one["logprobs"]) for one in choices]

    def _answer(self, found: Any) -> EngineAnswer:
        token = str(found["tokens"][0]).removeprefix("token_id:")
        return EngineAnswer(int(token), float(found["token_logprobs"][0]))


class _Sglang:
    prefix = ""
    counts: Sequence[str] = ("sglang:num_running_reqs", "sglang:num_queue_reqs")
    visible = "start SGLang with --enable-metrics"
    waits = True
    hint = "start SGLang with --enable-lora, --max-lora-rank and --lora-target-modules"

    def question(self, name: str | None, prompts: Prompts) -> tuple[str, dict[str, Any]]:
        return "/generate", {
            "input_ids": prompts,
            **({} if name is None else {"lora_path": name}),
            "sampling_params": {"temperature": 0, "max_new_tokens": 1},
            "return_logprob": True,
        }

    def answers(self, body: Any) -> list[EngineAnswer]:
        return [self._answer(one["meta_info"]["output_token_logprobs"][0]) for one in body]

    def _answer(self, found: Any) -> EngineAnswer:
        return EngineAnswer(int(found[1]), float(found[0]))


_DIALECTS: dict[str, _Dialect] = {"vllm": _Vllm(), "sglang": _Sglang()}


class ServingEngine:
    """One engine, by its endpoints.

    Args:
        target: ``vllm`` or ``sglang``.
        client: of it.
    """

    def __init__(self, target: str, client: EngineClient) -> None:
        self.target, self.client = target, client
        self._dialect = _DIALECTS[target]
        self._written = 0.0

    @property
    def url(self) -> str:
        """Its address."""
        return self.client.url

    def listed(self, until: float = math.inf) -> list[ListedModel]:
        """The models that it lists: its base, and all adapters that are loaded.

        Raises:
            UnavailableError: it cannot be reached.
            EngineError: it gives no list.
        """
        reply = self.client.get("/v1/models", until)
        try:
            if reply.status == 200:
                return [ListedModel(str(one["id"]), one.get("root")) for one in reply.body["data"]]
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
        reply = self.client.post(route, {"lora_name": name, "lora_path": path})
        if name not in {one.name for one in self.listed()}:
            raise self._refused(f"{name} was not loaded", reply)

    def unload(self, name: str, until: float = math.inf) -> bool:
        """Have an adapter unloaded; one that is not there is fine.

        Args:
            name: of the adapter.
            until: when to give up (``time.monotonic``).

        Returns:
            whether the engine itself has waited for the answers that were under way with it.

        Raises:
            UnavailableError: it cannot be reached.
            EngineError: it is still listed.
        """
        route = f"{self._dialect.prefix}/unload_lora_adapter"
        reply = self.client.post(route, {"lora_name": name}, until)
        if name in {one.name for one in self.listed(until)}:
            raise self._refused(f"{name} was not unloaded", reply)
        return self._dialect.waits and reply.status == 200

    def refuse(self, name: str, until: float = math.inf) -> None:
        """See that an adapter is refused.

        Raises:
            UnavailableError: the engine cannot be reached.
            S3TError: it has answered, or it is not clear why it has not.
        """
        reply = self.client.post(*self._dialect.question(name, _SHORT), until)
        if reply.status == 200:
            raise S3TError(f"{name} ANSWERS, though it is not listed")
        if reply.status not in _REFUSED:
            raise EngineError(f"{name} may still answer", reply.status, reply.message)

    def answer_base(self, until: float, what: str = "its base does not answer") -> None:
        """See that the base answers what ``refuse`` asks: where all is refused, no adapter is.

        Args:
            until: when to give up (``time.monotonic``).
            what: to say if it does not.

        Raises:
            UnavailableError: the engine cannot be reached.
            EngineError: it does not answer.
        """
        reply = self.client.post(*self._dialect.question(None, _SHORT), until)
        if reply.status != 200:
            raise EngineError(what, reply.status, reply.message)

    def under_way(self, names: Collection[str], until: float) -> set[str]:
        """Those of some unloaded adapters with which answers still run or wait.

        Raises:
            UnavailableError: the engine cannot be reached, or does not answer in time.
            S3TError: it does not tell.
        """
        try:
            before = self._metrics(until)
            written, self._written = self._written, written_at(before)
            if self._written > written and seen_at_work(before, names) == {*names}:
                return {*names}  # it is at them: to ask the base would wait behind all
            for _ in range(2):  # the first may have passed one that was being taken in
                self.answer_base(until)
            return under_way(before, self._metrics(until), names, self._dialect.counts)
        except UnavailableError:
            raise
        except S3TError as error:
            raise S3TError(f"{error}: {self._dialect.visible}") from None

    def ask(self, name: str | None, prompts: list[list[int]]) -> list[EngineAnswer]:
        """The likeliest token after each of some prompts, under an adapter; None: the base alone.

        Raises:
            UnavailableError: it cannot be reached.
            EngineError: it refused.
            S3TError: its answer cannot be understood.
        """
        route, body = self._dialect.question(name, prompts)
        reply, called = self.client.post(route, body), name or "the base"
        if reply.status != 200:
            raise EngineError(f"{called} does not answer", reply.status, reply.message)
        try:
            found = self._dialect.answers(reply.body)
        except (LookupError, TypeError, ValueError, AttributeError):
            found = []
        if len(found) != len(prompts) or not all(math.isfinite(x.log_probability) for x in found):
            raise S3TError(
                f"{called} answers without a token and its log probability for each prompt "
                f"({reply.message}): is this {self.target}?"
            )
        return found

    def _metrics(self, until: float) -> dict[str, list[MetricSample]]:
        reply = self.client.get("/metrics", until)
        if reply.status != 200 or not isinstance(reply.body, str):
            raise EngineError("it has no /metrics", reply.status, reply.message)
        return read_metrics(reply.body)

    def _refused(self, what: str, reply: Reply) -> EngineError:
        words = reply.message
        if reply.status in (404, 405) and not reply.names_error:
            words = f"{words}; it has no such route: {self._dialect.hint}"
        return EngineError(what, reply.status, words)


def connect(target: str, client: EngineClient) -> ServingEngine:
    """An engine.

    Raises:
        InputError: a target that is not known.
    """
    engine_limits(target)
    return ServingEngine(target, client)
