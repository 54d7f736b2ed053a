"""What routes share: the model, its config, and what counts and limits their work.

    app.state.service : Service ─┬─ model     the S3T that answers and forgets
                                 ├─ config    ServeConfig
                                 ├─ access    who may do what
                                 ├─ batcher   predictions that share a pass
                                 ├─ streams   the completions under way
                                 └─ metrics

A route reaches it through ``service_of(request)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.requests import HTTPConnection

from s3t.config.serve import ServeConfig

if TYPE_CHECKING:
    from s3t.server.deletions.service import DeletionService
    from s3t.server.logs import Causes
    from s3t.server.metrics import Metrics
    from s3t.server.security.access import Access
    from s3t.server.work.batcher import Batcher
    from s3t.server.work.maintenance import Maintenance
    from s3t.server.work.streams import Streams
    from s3t.server.work.threads import ThreadPool
    from s3t.service import S3T

__all__ = ["Service", "service_of"]


@dataclass(eq=False)
class Service:
    """One app's shared objects.

    Attributes:
        model: what answers and forgets.
        config: limits and waits.
        access: who may do what.
        metrics: what is counted.
        batcher: predictions that share a pass.
        streams: the completions under way.
        deletions: takes deletions in.
        maintenance: repair, purge and reload.
        lookups: threads for what only looks.
        probes: a thread for what ``/metrics`` looks at.
        causes: what the log is told of failures, once each.
        draining: the process is about to end, and takes nothing new.
        reloads: called on SIGHUP, after the model has looked at store and ledger anew.
    """

    model: S3T
    config: ServeConfig
    access: Access
    metrics: Metrics
    batcher: Batcher
    streams: Streams
    deletions: DeletionService
    maintenance: Maintenance
    lookups: ThreadPool
    probes: ThreadPool
    causes: Causes
    draining: bool = False
    reloads: list[Callable[[], None]] = field(default_factory=list)


def service_of(request: HTTPConnection) -> Service:
    """The service that a request came to."""
    service: Service = request.app.state.service
    return service
