"""Reads from an engine's /metrics with which adapters answers run or wait.

vLLM has one line for each set of adapters that ever ran or waited together; its value is the time
when that was so. Only the newest line tells of now. SGLang counts all requests together.

    vllm:lora_requests_info{running_lora_adapters="a,b",waiting_lora_adapters="",…} 1.7960673e+09
    vllm:num_requests_running{…} 2.0             sglang:num_running_reqs{…} 2.0
    vllm:num_requests_waiting{…} 0.0             sglang:num_queue_reqs{…} 0.0

Engines write metrics after a step, so they may be of the moment before: see ``under_way``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from s3t.errors import S3TError

__all__ = ["MetricSample", "read_metrics", "seen_at_work", "under_way", "written_at"]

_LINE = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{(.*)\})?[ \t]+(\S+)", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_ADAPTERS = "vllm:lora_requests_info"
_WITH = ("running_lora_adapters", "waiting_lora_adapters")
_LATEST = 3e9
"""Seconds since 1970: the year 2065. More is a sum of the times of several processes."""


@dataclass(frozen=True, slots=True)
class MetricSample:
    """One line of the metrics: its labels and its value."""

    labels: Mapping[str, str]
    value: float


def read_metrics(text: str) -> dict[str, list[MetricSample]]:
    """Samples by name, of Prometheus' text format; what is none is passed over."""
    found: dict[str, list[MetricSample]] = {}
    for name, labels, value in _LINE.findall(text):
        try:
            sample = MetricSample(dict(_LABEL.findall(labels)), float(value))
        except ValueError:
            continue
        found.setdefault(name, []).append(sample)
    return found


def under_way(
    before: Mapping[str, Sequence[MetricSample]],
    after: Mapping[str, Sequence[MetricSample]],
    names: Collection[str],
    counts: Sequence[str],
) -> set[str]:
    """Adapters with which answers run or wait, as far as that can be told.

    Args:
        before, after: samples from before and after the engine has answered something else, so
            that it has written them since.
        names: of the adapters.
        counts: names of the metrics that count answers that run or wait, with any adapter.

    Raises:
        S3TError: it cannot be told.
    """
    newest, last = written_at(after), written_at(before)
    if newest > _LATEST:
        raise S3TError("several API servers of the engine count apart: start it with one")
    if newest > last:
        return seen_at_work(after, names)
    missing = [name for name in counts if not after.get(name)]
    if missing:
        raise S3TError(f"the engine's /metrics have no {missing[0]}")
    busy = any(one.value != 0 for name in counts for one in after[name])
    return {*names} if busy else set()


def seen_at_work(samples: Mapping[str, Sequence[MetricSample]], names: Collection[str]) -> set[str]:
    """Adapters that ran or waited when vLLM last wrote it down."""
    newest = written_at(samples)
    now = [one.labels for one in samples.get(_ADAPTERS, ()) if one.value == newest]
    at_work = {name for one in now for label in _WITH for name in one.get(label, "").split(",")}
    return at_work & {*names}


def written_at(samples: Mapping[str, Sequence[MetricSample]]) -> float:
    """When vLLM last wrote down which adapters are at work; 0 if never."""
    usable = (
        one.value for one in samples.get(_ADAPTERS, ()) if all(name in one.labels for name in _WITH)
    )
    return max(usable, default=0.0)
