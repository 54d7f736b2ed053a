"""A service over a small run, asked in this process, with a token for each role."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from s3t import S3T
from s3t.config.aggregation import ServeConfig
from s3t.server.app import create_app
from s3t.server.security.tokens import ROLES, TokenFile, token_path
from s3t.server.state import Service

URL = "http://127.0.0.1"


class Asked:
    """What tests ask: by role, by a token's text, or without one.

    Attributes:
        tokens: a token of each role, by role.
        model: what is served.
        service: what its routes share.
    """

    def __init__(self, client: TestClient, model: Any, tokens: dict[str, str]) -> None:
        self.client, self.model, self.tokens = client, model, tokens
        self.service: Service = client.app.state.service  # type: ignore[attr-defined]

    def ask(self, method: str, path: str, role: str | None = None, **more: Any) -> Any:
        """The answer; ``role`` is one of ``tokens``, or a token."""
        headers = dict(more.pop("headers", {}))
        if role is not None:
            headers["Authorization"] = f"Bearer {self.tokens.get(role, role)}"
        return self.client.request(method, path, headers=headers, **more)

    def delete(self, role: str | None = "delete", **body: Any) -> Any:
        """The answer to a deletion."""
        headers = body.pop("headers", {})
        return self.ask("POST", "/v1/deletions", role, json=body, headers=headers)

    def state(self) -> tuple[Any, ...]:
        """All that a refused request must not change."""
        root: Path = self.model.root
        files = {
            str(path.relative_to(root)): path.read_bytes()
            for path in sorted(root.rglob("*"))
            if path.is_file() and not path.name.startswith(("ledger.db", ".lock"))
        }
        return self.model.status(), self.model.log(1000), files


@contextmanager
def asked(run: Path, insecure: bool = False, model: Any = None, **serve: Any) -> Iterator[Asked]:
    """A service over the run, with keys of ``serve`` set."""
    with S3T.load(run) as loaded:
        served = loaded if model is None else model(loaded)
        config = ServeConfig.model_validate(loaded.config.serve.model_dump() | serve)
        file = TokenFile(token_path(loaded.root, config))
        tokens = {role: file.create(role, [role])[0] for role in ROLES}
        app = create_app(served, config, insecure=insecure)
        with TestClient(app, base_url=URL, raise_server_exceptions=False) as client:
            yield Asked(client, served, tokens)
