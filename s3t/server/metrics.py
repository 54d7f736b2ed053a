"""Metrics of the service: for Prometheus, and the traffic of the last minutes for the page.

Every sample has the label ``run``: the first digits of the digest of the log's first entry.
Replicas of one run have the same label, and different runs have different ones.

Invariant: the values of labels are runs, routes, methods, statuses and states, few and known in
advance. No id, subject, token or address is ever a label or a value.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import prometheus_client as prometheus
from prometheus_client.core import GaugeMetricFamily, Metric

from s3t.version import __version__

if TYPE_CHECKING:
    from s3t.service import S3T

__all__ = ["CONTENT_TYPE", "Metrics", "RecentTraffic"]

CONTENT_TYPE = prometheus.CONTENT_TYPE_LATEST
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_ANSWERS = frozenset({"/v1/predict", "/v1/completions"})
_DELETIONS = ("POST", "/v1/deletions")
_OUTCOMES = (201, 202, 401, 403, 429, 500, 503, 504)
"""Statuses of deletions that are exported as 0 from the start. Prometheus sees no increase in a
counter that first appears as 1."""
_KEPT = 300
"""Seconds of traffic that are kept for the page."""
_SAMPLED = 256
"""Latencies that are kept of one second, at most: enough for the p99."""


@dataclass
class _SecondCounts:
    """Predictions and completions that ended within one second.

    Attributes:
        at: the second, Unix time.
        requests: how many ended.
        failed: how many of them with a status of 500 and above.
        latencies: seconds that they took; of the first 256.
    """

    at: int
    requests: int = 0
    failed: int = 0
    latencies: list[float] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values (``routes.health.Second``), with the median and p99 of the latencies."""
        ranked = sorted(self.latencies)
        return {
            "at": self.at,
            "requests": self.requests,
            "failed": self.failed,
            "p50": round(ranked[len(ranked) // 2], 6),
            "p99": round(ranked[len(ranked) * 99 // 100], 6),
        }


class RecentTraffic:
    """Predictions and completions of the last 300 seconds. To be used on the event loop."""

    def __init__(self) -> None:
        self._seconds: deque[_SecondCounts] = deque(maxlen=_KEPT)
        self._name = secrets.token_hex(4)  # processes behind one load balancer differ in it

    def count(self, status: int, seconds: float) -> None:
        """Count a request that has ended now.

        Args:
            status: of the response.
            seconds: that it took.
        """
        now = int(time.time())
        if not self._seconds or self._seconds[-1].at != now:
            self._seconds.append(_SecondCounts(now))
        second = self._seconds[-1]
        second.requests += 1
        second.failed += status >= 500
        if len(second.latencies) < _SAMPLED:
            second.latencies.append(seconds)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values (``routes.health.Recent``): the seconds in which requests ended, the
        oldest first."""
        now = int(time.time())
        seconds = [second.to_dict() for second in self._seconds if second.at > now - _KEPT]
        return {"replica": self._name, "now": now, "seconds": seconds}


class Metrics:
    """Metrics of one app, in a registry of their own.

    Args:
        model: its run and task become labels.

    Attributes:
        traffic: what the page shows of the last minutes.
        batch_rows, batch_seconds, queued, dropped: of ``work.batcher``.
        streams: of ``work.streams``.
        again, cut: of ``http.held_response``.
        connections, evicted, refused: of ``http.connections``.
    """

    def __init__(self, model: S3T) -> None:
        self.registry, self.traffic = prometheus.CollectorRegistry(), RecentTraffic()
        counter = partial(prometheus.Counter, registry=self.registry)
        gauge = partial(prometheus.Gauge, registry=self.registry)
        histogram = partial(prometheus.Histogram, registry=self.registry)
        self._requests = counter("s3t_requests", "Requests ended.", ["route", "method", "status"])
        what = "From a request's head to the end of its answer."
        self._latency = histogram("s3t_request_seconds", what, ["route"], buckets=_SECONDS)
        what = "Rows of one forward pass."
        self.batch_rows = histogram("s3t_batch_rows", what, buckets=_ROWS)
        what = "Seconds of one forward pass."
        self.batch_seconds = histogram("s3t_batch_seconds", what, buckets=_SECONDS)
        self.queued = gauge("s3t_queue_rows", "Rows that wait for a forward pass.")
        what = "Rows not computed since the client had disconnected."
        self.dropped = counter("s3t_rows_dropped", what)
        self.streams = gauge("s3t_streams", "Completions under way.")
        what = "Answers computed again since a deletion hit one of their blocks."
        self.again = counter("s3t_answers_again", what)
        what = "Clients disconnected since they did not read their answer."
        self.cut = counter("s3t_answers_cut", what)
        self.connections = gauge("s3t_connections", "Clients connected.")
        what = "Connections closed to accept others, while they had no complete request."
        self.evicted = counter("s3t_connections_evicted", what)
        what = "Connections closed at once since all others were at work."
        self.refused = counter("s3t_connections_refused", what)
        about = prometheus.Info("s3t", "The software.", registry=self.registry)
        about.info({"version": __version__, "task": model.config.task})
        self._run = {"run": _run_id(model)}
        self._children: dict[tuple[str, str, int], Callable[[], None]] = {}
        self._observers: dict[str, Callable[[float], None]] = {}
        method, route = _DELETIONS
        for status in _OUTCOMES:
            self._requests.labels(route, method, str(status))

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request that has ended. To be called on the event loop.

        Args:
            route: path template of the route.
            method: of HTTP.
            status: of the response.
            seconds: from the request's head to the end of its response.
        """
        key = (route, method, status)
        count = self._children.get(key)
        if count is None:
            count = self._children[key] = self._requests.labels(route, method, str(status)).inc
        count()
        observe = self._observers.get(route)
        if observe is None:
            observe = self._observers[route] = self._latency.labels(route).observe
        observe(seconds)
        if route in _ANSWERS:
            self.traffic.count(status, seconds)

    def render(self, picture: Mapping[str, Any] | None, lease_left: float | None) -> bytes:
        """All metrics in Prometheus' text format.

        Args:
            picture: the run's state (``S3T.picture``); None if the ledger cannot be read now.
            lease_left: seconds until this replica stops answering (``S3T.lease_left``).
        """
        return prometheus.generate_latest(self._labelled(_run_metrics(picture, lease_left)))

    def _labelled(self, more: Iterable[Metric]) -> Any:
        """A registry for ``generate_latest``: all metrics, each sample with the run's label."""
        found = [*self.registry.collect(), *more]
        for metric in found:
            metric.samples = [one._replace(labels=self._run | one.labels) for one in metric.samples]
        registry = prometheus.CollectorRegistry()
        registry.register(_Collected(found))
        return registry


class _Collected:
    """A collector of metrics that were collected before."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _run_metrics(picture: Mapping[str, Any] | None, lease_left: float | None) -> Iterator[Metric]:
    """Gauges of the run; without its picture only ``s3t_up 0`` and the lease."""
    up = float(picture is not None)
    yield GaugeMetricFamily("s3t_up", "Whether the run's ledger can be read.", value=up)
    if lease_left is not None:
        what = "Seconds until this replica stops answering unless it hears from the ledger."
        yield GaugeMetricFamily("s3t_lease_seconds_left", what, value=float(lease_left))
    if picture is None:
        return
    for name, what, value in (
        ("s3t_view", "Version of what is served (view).", picture["view"]),
        ("s3t_samples", "Samples held.", picture["samples"]),
        ("s3t_samples_deleted", "Samples deleted.", picture["deleted"]),
        ("s3t_exhausted", "Whether no block is left.", picture["exhausted"]),
        (
            "s3t_expected_deletions_left",
            "Random deletions until no block is left: the rule of thumb N·H(K).",
            picture["expected_deletions_left"],
        ),
        (
            "s3t_shards_alive",
            "Shards that still serve a prefix.",
            sum(map(bool, picture["serving"])),
        ),
        ("s3t_shards", "Shards in all.", picture["shards"]),
        ("s3t_jobs_waiting", "Deletions accepted and not done.", picture["jobs"]),
        ("s3t_callbacks_waiting", "Callbacks that no host has accepted.", picture["callbacks"]),
    ):
        yield GaugeMetricFamily(name, what, value=float(value))
    states = Counter(node["state"] for node in picture["nodes"])
    nodes = GaugeMetricFamily("s3t_nodes", "Blocks by their state.", labels=["state"])
    for state in ("serving", "alive", "dead", "missing"):
        nodes.add_metric([state], states[state])
    yield nodes


def _run_id(model: S3T) -> str:
    """What tells runs apart: the beginning of the digest of the log's first entry. Copies and
    replicas of a run share it, wherever they lie."""
    return str(next(model.ledger.log()).digest[:12])
