"""The objects that the routes of one app share.

    app.state.service : Service ─┬─ model, config    the S3T that answers and deletes; ServeConfig
                                 ├─ access           tokens, roles, rates
                                 ├─ batcher          predictions that share a forward pass
                                 ├─ streams          completions
                                 ├─ deletions        deletions, their jobs and callbacks
                                 ├─ maintenance      repair, purge, reload
                                 ├─ evaluation       on the public test rows, now and then
                                 ├─ lookups, probes  thread pools for requests that only read
                                 └─ metrics, failures

A route gets it by ``service_of(request)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.requests import HTTPConnection

from s3t.config.serve import ServeConfig
from s3t.server.deletions.service import DeletionService
from s3t.server.logs import FailureLog
from s3t.server.metrics import Metrics
from s3t.server.security.access import AccessControl
from s3t.server.security.tokens import TokenFile, token_path
from s3t.server.work.batcher import Batcher
from s3t.server.work.evaluation import RegularEvaluation
from s3t.server.work.maintenance import Maintenance
from s3t.server.work.streams import Streams
from s3t.server.work.threads import ThreadPool

if TYPE_CHECKING:
    from s3t.service import S3T

__all__ = ["Service", "service_of"]


class Service:
    """Builds, starts and closes the shared objects of one app.

    Args:
        model: what answers and deletes; the caller closes it.
        config: limits and timeouts.
        insecure: requests need no token.

    Attributes:
        access: checks the token, role and rate of a request.
        metrics: counts for Prometheus and the page.
        failures: logs failures of the service, each cause once.
        batcher: predictions, which share forward passes.
        streams: completions.
        deletions: deletions, their jobs and callbacks.
        maintenance: repair, purge and reload.
        evaluation: how what serves does on the public test rows.
        lookups: threads for routes that only read.
        probes: a thread for the ledger read of ``/metrics``.
        draining: the process is about to end and accepts no new work.
    """

    def __init__(self, model: S3T, config: ServeConfig, insecure: bool = False) -> None:
        self.model, self.config = model, config
        self.access = AccessControl(TokenFile(token_path(model.root, config)), config, insecure)
        self.metrics, self.failures = Metrics(model), FailureLog()
        self.batcher = Batcher(model, config, self.metrics)
        self.streams = Streams(config.streams, self.metrics)
        self.deletions = DeletionService(model, config, insecure)
        self.maintenance = Maintenance(model)
        self.evaluation = RegularEvaluation(model, config.evaluate)
        self.lookups = ThreadPool("lookups", 2, 32)
        self.probes = ThreadPool("probes", 1, 4)
        self.draining = False

    def start(self) -> None:
        """Start the threads of deletion jobs, callbacks and evaluations."""
        self.deletions.start()
        self.evaluation.start()

    def close(self) -> None:
        """Wait for work under way. The model stays open."""
        self.draining = True
        self.batcher.close()
        self.streams.close()
        self.deletions.close()
        self.maintenance.close()
        self.evaluation.close()
        self.lookups.close()
        self.probes.close()


def service_of(request: HTTPConnection) -> Service:
    """The service of the app that a request came to."""
    service: Service = request.app.state.service
    return service
