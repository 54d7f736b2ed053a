"""What is counted, and how it is told: Prometheus' text, and the last minutes for the page.

Every sample has the label ``run``, the beginning of the digest of the log's first entry: replicas
of one run share it wherever their directories lie, and several runs under one Prometheus do not.

Invariant: labels are runs, routes, methods, states and shards, all few and known before. No id,
subject, token or address is ever a label or a value.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import prometheus_client as prometheus
from prometheus_client.core import GaugeMetricFamily, Metric

from s3t.version import __version__

if TYPE_CHECKING:
    from s3t.service import S3T

__all__ = ["Metrics", "Second"]

CONTENT_TYPE = prometheus.CONTENT_TYPE_LATEST
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_QUESTIONS = frozenset({"/v1/predict", "/v1/completions"})
_DELETIONS = ("POST", "/v1/deletions")
_OUTCOMES = (201, 202, 401, 403, 429, 500, 503, 504)
"""Of deletions, told as 0 from the start: what appears as 1 has not risen for Prometheus."""
_KEPT = 300
"""Seconds of traffic that are remembered for the page."""
_SAMPLED = 256
"""Latencies kept of one second: enough for its p99, and bounded."""


class Second(NamedTuple):
    """What was asked within one second.

    Attributes:
        at: the second, Unix time.
        requests: ended in it, in all.
        failed: of those with a status of 500 and above.
        latencies: seconds that some of them took, the first 256.
    """

    at: int
    requests: list[int]
    failed: list[int]
    latencies: list[float]


class Metrics:
    """Counters of one app.

    Args:
        model: whose state is told beside them.
    """

    def __init__(self, model: S3T) -> None:
        self.registry = prometheus.CollectorRegistry()
        made: dict[str, Any] = {"registry": self.registry}
        self._requests = prometheus.Counter(
            "s3t_requests", "Requests ended.", ["route", "method", "status"], **made
        )
        self._latency = prometheus.Histogram(
            "s3t_request_seconds",
            "From a request's head to the end of its answer.",
            ["route"],
            buckets=_SECONDS,
            **made,
        )
        self.batch_rows = prometheus.Histogram(
            "s3t_batch_rows", "Rows answered in one pass.", buckets=_ROWS, **made
        )
        self.batch_seconds = prometheus.Histogram(
            "s3t_batch_seconds", "Seconds of one pass.", buckets=_SECONDS, **made
        )
        self.queued = prometheus.Gauge("s3t_queue_rows", "Rows that wait for a pass.", **made)
        self.streams = prometheus.Gauge("s3t_streams", "Completions under way.", **made)
        self.again = prometheus.Counter(
            "s3t_answers_again", "Answers computed anew since a block of theirs died.", **made
        )
        self.cut = prometheus.Counter(
            "s3t_answers_cut", "Clients cut off since they did not take their answer.", **made
        )
        self.dropped = prometheus.Counter(
            "s3t_rows_dropped", "Rows not answered since the client had gone.", **made
        )
        self.connections = prometheus.Gauge("s3t_connections", "Clients connected.", **made)
        self.evicted = prometheus.Counter(
            "s3t_connections_evicted",
            "Connections closed, while no whole request had come, to let others in.",
            **made,
        )
        self.refused = prometheus.Counter(
            "s3t_connections_refused",
            "Connections closed at once, all others being at work.",
            **made,
        )
        about = prometheus.Info("s3t", "The software.", **made)
        about.info({"version": __version__, "task": model.config.task})
        self._run = {"run": _run_id(model)}
        self._children: dict[tuple[str, str, int], Callable[[], None]] = {}
        self._observers: dict[str, Callable[[float], None]] = {}
        self._recent: deque[Second] = deque(maxlen=_KEPT)
        self._name = secrets.token_hex(4)  # tells the processes behind one address apart
        method, route = _DELETIONS
        for status in _OUTCOMES:
            self._requests.labels(route, method, str(status))

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one request that has ended. Called on the event loop."""
        key = (route, method, status)
        count = self._children.get(key)
        if count is None:
            count = self._children[key] = self._requests.labels(route, method, str(status)).inc
        count()
        observe = self._observers.get(route)
        if observe is None:
            observe = self._observers[route] = self._latency.labels(route).observe
        observe(seconds)
        if route in _QUESTIONS:
            self._remember(status, seconds)

    def _remember(self, status: int, seconds: float) -> None:
        now = int(time.time())
        if not self._recent or self._recent[-1].at != now:
            self._recent.append(Second(now, [0], [0], []))
        second = self._recent[-1]
        second.requests[0] += 1
        second.failed[0] += status >= 500
        if len(second.latencies) < _SAMPLED:
            second.latencies.append(seconds)

    def recent(self) -> dict[str, Any]:
        """The last seconds in which something was asked, oldest first, as JSON values."""
        now = int(time.time())
        seconds = [_shown(second) for second in self._recent if second.at > now - _KEPT]
        return {"replica": self._name, "now": now, "seconds": seconds}

    def render(self, picture: Mapping[str, Any] | None, lease_left: float | None) -> bytes:
        """Prometheus' text.

        Args:
            picture: of the run (``S3T.picture``); None if its records cannot be read now.
            lease_left: seconds (``S3T.lease_left``).
        """
        return prometheus.generate_latest(self._labelled(_run_metrics(picture, lease_left)))

    def _labelled(self, more: Iterable[Metric]) -> Any:
        """What ``generate_latest`` takes: all metrics, each sample with the run's label."""
        found = [*self.registry.collect(), *more]
        for metric in found:
            metric.samples = [one._replace(labels=self._run | one.labels) for one in metric.samples]
        registry = prometheus.CollectorRegistry()
        registry.register(_Collected(found))
        return registry


class _Collected:
    """Metrics that were collected before."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _shown(second: Second) -> dict[str, Any]:
    ranked = sorted(second.latencies)
    return {
        "at": second.at,
        "requests": second.requests[0],
        "failed": second.failed[0],
        "p50": round(ranked[len(ranked) // 2], 6),
        "p99": round(ranked[len(ranked) * 99 // 100], 6),
    }


def _run_metrics(picture: Mapping[str, Any] | None, lease_left: float | None) -> Iterator[Metric]:
    """Gauges of the run; only ``s3t_up 0`` where its records cannot be reached."""
    up = float(picture is not None)
    yield GaugeMetricFamily("s3t_up", "Whether the run's records can be read.", value=up)
    if lease_left is not None:
        what = "Seconds until this replica stops answering unless it hears from the ledger."
        yield GaugeMetricFamily("s3t_lease_seconds_left", what, value=float(lease_left))
    if picture is None:
        return
    for name, what, value in (
        ("s3t_view", "Version of what is served.", picture["view"]),
        ("s3t_samples", "Samples held.", picture["samples"]),
        ("s3t_samples_deleted", "Samples deleted.", picture["deleted"]),
        ("s3t_exhausted", "Whether no block is left.", picture["exhausted"]),
        (
            "s3t_expected_deletions_left",
            "Random deletions until no block is left, as expected.",
            picture["expected_deletions_left"],
        ),
        (
            "s3t_shards_alive",
            "Shards that still serve a prefix.",
            sum(map(bool, picture["serving"])),
        ),
        ("s3t_shards", "Shards in all.", picture["shards"]),
        ("s3t_jobs_waiting", "Deletions accepted and not done.", picture["jobs"]),
        ("s3t_callbacks_waiting", "Callbacks that no host has taken.", picture["callbacks"]),
    ):
        yield GaugeMetricFamily(name, what, value=float(value))
    states = Counter(node["state"] for node in picture["nodes"])
    nodes = GaugeMetricFamily("s3t_nodes", "Blocks by what has become of them.", labels=["state"])
    for state in ("serving", "alive", "dead", "missing"):
        nodes.add_metric([state], states[state])
    yield nodes


def _run_id(model: S3T) -> str:
    """What tells runs apart: the beginning of the digest of the log's first entry. Copies and
    replicas of a run share it, wherever they lie."""
    return str(next(model.ledger.log()).digest[:12])
