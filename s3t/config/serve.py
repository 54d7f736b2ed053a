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

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, strict=True)] = 8000
    tokens: str | None = Field(
        None, description="file of the tokens' hashes; default: tokens.json in the run"
    )
    lease: _Seconds = Field(
        5.0,
        description="seconds without a sign of life after which a replica counts as gone, and it "
        "stops answering itself",
    )
    batch_rows: Positive = Field(64, description="rows answered in one pass at the most")
    batch_wait: Annotated[float, Field(ge=0)] = Field(
        0.002, description="seconds that a row waits for others to share a pass with"
    )
    queue_rows: Positive = Field(1024, description="rows waiting; above it 503 and Retry-After")
    timeout: _Seconds = Field(
        30.0, description="seconds that a question may take, and before that its body to arrive"
    )
    head_timeout: _Seconds = Field(
        10.0, description="seconds within which the head of a request has to arrive"
    )
    connections: Annotated[int, Field(ge=8, strict=True)] = Field(
        4096,
        description="connections at once, fewer where ulimit -n is low; a quarter is kept for "
        "deletions and probes",
    )
    address_connections: Positive = Field(256, description="connections of one address at once")
    trusted_proxies: tuple[_Network, ...] = Field(
        ("127.0.0.0/8", "::1/128"),
        description="addresses and networks that address_connections does not apply to",
    )
    request_rows: Positive = Field(256, description="rows of one question")
    body_bytes: Positive = Field(2**20, description="bytes of one request's body")
    streams: Positive = Field(16, description="completions under way at once; above it 503")
    predict_rate: _Rate = Field(None, description="questions a second, for each token")
    delete_rate: _Rate = Field(50.0, description="deletions a second, for each token")
    refusals: Positive = Field(
        20, description="wrong tokens a minute from one address, after which it has to wait"
    )
    job_samples: Natural = Field(
        1000, description="a deletion that names more samples and subjects becomes a job"
    )
    open_metrics: bool = Field(False, description="/metrics asks for no token")
    drain: _Seconds = Field(30.0, description="seconds for what is under way to finish at the end")
    callback_hosts: tuple[str, ...] = Field(
        (), description="hosts that may be called back about deletions; none by default"
    )
    domain: str | None = Field(
        None, description="of the processor, as callbacks name it; default: the host"
    )
