"""serve: a run over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from s3t.cli.app import RunPath, app
from s3t.cli.output import quiet
from s3t.errors import InputError

if TYPE_CHECKING:
    from s3t.config.aggregation import ServeConfig

__all__: list[str] = []

_SECTION = "serve."


ServeOverrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[serve.KEY=VALUE]...", help="values for keys of the section serve"),
]
Host = Annotated[str | None, typer.Option(help="the same as serve.host=")]
Port = Annotated[int | None, typer.Option(help="the same as serve.port=; 0 takes a free one")]
Insecure = Annotated[
    bool,
    typer.Option(
        "--insecure", help="ask for no tokens; everyone on this machine may then do anything"
    ),
]
JsonLogs = Annotated[
    bool, typer.Option("--json-logs", help="write the log as JSON lines, to standard error")
]


@app.command()
def serve(
    run: RunPath,
    overrides: ServeOverrides = None,
    host: Host = None,
    port: Port = None,
    insecure: Insecure = False,
    json_logs: JsonLogs = False,
) -> None:
    """Serve a run over HTTP: predictions, deletions, status, metrics and a page.

    Prints its URL when it is ready. SIGTERM ends it after what is under way; on SIGHUP it reads
    tokens, plan and nodes again. Needs pip install 's3t[serve]'.
    """
    words = [*(overrides or [])]
    words += [] if host is None else [f"serve.host={host}"]
    words += [] if port is None else [f"serve.port={port}"]
    config = _config(run, words)
    lease = config.lease if any(word.startswith("serve.lease=") for word in words) else None
    with quiet():
        try:
            from s3t.server.logs import log_to_stderr
            from s3t.server.process import check_address
            from s3t.server.process import serve as run_server
        except ModuleNotFoundError as error:
            raise InputError(f"{error}: pip install 's3t[serve]'") from None
        from s3t.service import S3T

        check_address(config, insecure)
        log_to_stderr(as_json=json_logs)
        model = S3T.load(run)
        model.join(lease=lease)
    with model:
        run_server(
            model,
            config,
            insecure=insecure,
            on_start=lambda url: print(f"{run} at {url}", flush=True),
        )


def _config(run: Path, words: list[str]) -> ServeConfig:
    from s3t.config import load_config
    from s3t.run import RunDir

    strange = [word for word in words if not word.startswith(_SECTION)]
    if strange:
        raise InputError(f"s3t serve takes no {strange[0]!r}: only the section serve can change")
    return load_config(RunDir.existing(run).config_path, words).serve
