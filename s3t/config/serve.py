"""How a run is served over HTTP. Nothing here changes a node's bytes, or what may be served."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Annotated

from pydantic import AfterValidator, Field

from s3t.config.section import Natural, Positive, Section

__all__ = ["ServeConfig"]

_Seconds = Annotated[float, Field(gt=0)]
_Network = Annotated[str, AfterValidator(lambda text: str(ip_network(text)))]
_Rate = Annotated[float, Field(gt=0)] | None


class ServeConfig(Section):
    """The service of a run (``s3t serve``)."""

    host: str = Field("127.0.0.1", description="address to listen on")
    port: Annotated[int, Field(ge=0, le=65535, strict=True)] = Field(
        8000, description="port to listen on; 0 takes a free one"
    )
    tokens: str | None = Field(
        None, description="file with the hashes of tokens; default: tokens.json in the run"
    )
    lease: _Seconds = Field(
        5.0,
        description="seconds without a sign of life after which a replica counts as gone; it stops "
        "answering before that",
    )
    batch_rows: Positive = Field(64, description="most rows answered in one pass")
    batch_wait: Annotated[float, Field(ge=0)] = Field(
        0.002, description="seconds that a row waits for others to share its pass"
    )
    queue_rows: Positive = Field(
        1024, description="most rows that wait; above it 503 with Retry-After"
    )
    timeout: _Seconds = Field(
        30.0, description="seconds for a body to arrive, and again for its answer"
    )
    head_timeout: _Seconds = Field(
        10.0, description="seconds within which the head of a request has to arrive"
    )
    connections: Annotated[int, Field(ge=8, strict=True)] = Field(
        4096,
        description="most connections at once, fewer where ulimit -n is low; a quarter is kept for "
        "deletions and probes",
    )
    address_connections: Positive = Field(
        256, description="most connections of one address at once"
    )
    trusted_proxies: tuple[_Network, ...] = Field(
        ("127.0.0.0/8", "::1/128"),
        description="addresses and networks without the limit address_connections",
    )
    request_rows: Positive = Field(256, description="most rows of one request")
    body_bytes: Positive = Field(2**20, description="most bytes of a request's body")
    streams: Positive = Field(16, description="most completions at once; above it 503")
    predict_rate: _Rate = Field(
        None, description="most predictions and completions a second for each token"
    )
    delete_rate: _Rate = Field(50.0, description="most deletions a second for each token")
    refusals: Positive = Field(
        20, description="wrong tokens a minute from one address; above it 429"
    )
    job_samples: Natural = Field(
        1000, description="a deletion that names more samples and persons is done in the background"
    )
    evaluate: Annotated[float, Field(ge=0)] = Field(
        60.0,
        description="seconds between looks at whether what serves was evaluated on the public test "
        "rows, which is done then; 0 never",
    )
    open_metrics: bool = Field(False, description="serve /metrics without a token")
    drain: _Seconds = Field(
        30.0, description="seconds to finish what is under way when the service ends"
    )
    callback_hosts: tuple[str, ...] = Field(
        (), description="hosts that may be called back about deletions"
    )
    domain: str | None = Field(
        None, description="domain of this service in callbacks and signatures; default: the host"
    )
