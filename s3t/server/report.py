"""The page's files, and the report: the same page as one HTML file with its data inside.

    page/index.html, style.css, *.js ─┬─► served as they are; the page fetches its data
                                      └─► report: one file with styles, scripts and data
    model ─► status, picture, forecast, receipts, all of one view ─► JSON

Invariants: the page loads nothing from other hosts; its content security policy forbids it. The
data in a report are JSON in which <, > and & are escaped; the page inserts them as text only.
Samples appear as keyed hashes, never as ids. The same run at the same time gives the same bytes.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any, Protocol

from s3t.errors import S3TError
from s3t.ledger import Ledger
from s3t.version import __version__

__all__ = ["PageFile", "Reported", "page_files", "policy", "report", "snapshot"]

RECEIPTS = 50
"""Receipts in a report, at most."""

_TRIES = 20
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_RECEIPT = ("request_id", "deleted", "view", "accepted_at", "effective_at", "purged_at", "schedule")
_IMPORT = re.compile(r'^import (\{[^}]*\}) from "\./(\w+)\.js";$', re.MULTILINE)
_EXPORT = re.compile(r"^export ((?:async )?(?:function|class|const) (\w+))", re.MULTILINE)


class Dictable(Protocol):
    """A value with a form in JSON."""

    def to_dict(self) -> dict[str, Any]: ...


class Reported(Protocol):
    """The part of ``s3t.S3T`` that a report reads. A run that is not loaded has it as well."""

    def status(self) -> Dictable: ...
    def picture(self) -> dict[str, Any]: ...
    def forecast(self) -> Dictable: ...
    @property
    def ledger(self) -> Ledger: ...


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file of the page.

    Attributes:
        content: its bytes.
        media_type: value of Content-Type.
        digest: SHA-256 of the content, hex.
    """

    content: bytes
    media_type: str
    digest: str

    @property
    def text(self) -> str:
        """The content as text."""
        return self.content.decode()


@cache
def page_files() -> Mapping[str, PageFile]:
    """The files of the page by name: ``index.html``, and what it loads from ``page/``."""
    found = {}
    for entry in sorted(files("s3t.server").joinpath("page").iterdir(), key=lambda one: one.name):
        media_type = _TYPES.get(entry.name[entry.name.rfind(".") :])
        if media_type is not None:
            content = entry.read_bytes()
            found[entry.name] = PageFile(content, media_type, sha256(content).hexdigest())
    return found


def policy(scripts: str = "'self'", styles: str = "'self'", connect: str = "'self'") -> str:
    """The content security policy. Whatever the arguments do not allow is forbidden."""
    return (
        f"default-src 'none'; script-src {scripts}; style-src {styles}; connect-src {connect}; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'"
    )


def snapshot(model: Reported, name: str, at: datetime) -> dict[str, Any]:
    """The data of a report as JSON values, all of one view.

    Args:
        model: the run.
        name: name of the run on the page.
        at: time of the report, with its time zone.

    Raises:
        S3TError: deletions changed the run during each of 20 attempts to read it.
    """
    for _ in range(_TRIES):
        picture, forecast = model.picture(), model.forecast().to_dict()
        receipts = _receipts(model)
        status = model.status().to_dict()  # last: views only grow, so the others are of it too
        if status["view"] == picture["view"] == forecast["view"]:
            return {
                "name": name,
                "version": __version__,
                "made_at": at.isoformat(timespec="seconds"),
                "status": status,
                "picture": picture,
                "forecast": forecast,
                "receipts": receipts,
            }
    raise S3TError(f"the run changed {_TRIES} times while it was read: try again")


def _receipts(model: Reported) -> list[dict[str, Any]]:
    """The last deletions, the newest first, with the fields that the page shows."""
    told = [receipt.to_dict() for receipt in model.ledger.receipts(RECEIPTS)]
    return [{name: receipt[name] for name in _RECEIPT} for receipt in told]


def report(data: Mapping[str, Any]) -> bytes:
    """The page as one HTML file that needs no server and no network, in UTF-8."""
    page = page_files()
    style, script = page["style.css"].text, _bundle("page")
    icon = b64encode(page["icon.svg"].content).decode()
    rules = policy(_hash(script), _hash(style), "'none'")
    parts = {
        '<meta charset="utf-8">': '<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{rules}">',
        'href="page/icon.svg"': f'href="data:image/svg+xml;base64,{icon}"',
        '<link rel="stylesheet" href="page/style.css">': f"<style>{style}</style>",
        '<script id="kept" type="application/json"></script>': (
            f'<script id="kept" type="application/json">{_embedded(data)}</script>'
        ),
        '<script type="module" src="page/page.js"></script>': (
            f'<script type="module">{script}</script>'
        ),
    }
    text = page["index.html"].text
    for place, content in parts.items():
        before, found, after = text.partition(place)
        assert found, f"the page has no {place}"
        text = before + content + after
    return text.encode()


def _embedded(data: Mapping[str, Any]) -> str:
    """JSON without characters that HTML could take for markup."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


def _bundle(entry: str) -> str:
    """A JavaScript module and all that it imports as one script: each module becomes a function
    that returns its exports.

    It reads only the forms that the page uses: imports on one line, exports of declarations.
    """
    done: dict[str, str] = {}

    def visit(name: str) -> None:
        if name in done:
            return
        text = page_files()[f"{name}.js"].text
        for _, needed in _IMPORT.findall(text):
            visit(needed)
        exports = ", ".join(found for _, found in _EXPORT.findall(text))
        body = _EXPORT.sub(r"\1", _IMPORT.sub(r"const \1 = of_\2;", text))
        done[name] = f"const of_{name} = (() => {{\n{body}\nreturn {{ {exports} }};\n}})();\n"

    visit(entry)
    return "".join(done.values())
