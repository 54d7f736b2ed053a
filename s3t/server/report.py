"""The page: its files, and the report, which is the same page with its data inside.

    page/index.html, style.css, *.js ─┬─► served as they are; the page asks for its data
                                      └─► report: one file with everything in it, data as JSON
    model ─► status, picture, forecast, receipts, all of one view ─► JSON

Invariants: nothing on the page is loaded from elsewhere, and its policy forbids it. Data stand in a
report as JSON that no text can break out of; the page puts them in as text alone. Samples appear by
keyed hashes, never by ids. The same run at the same moment gives the same bytes.
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

__all__ = ["PageFile", "Pictured", "page_files", "policy", "report", "snapshot"]

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
    """Something that tells itself as JSON values."""

    def to_dict(self) -> dict[str, Any]: ...


class Pictured(Protocol):
    """What a report needs of ``s3t.S3T``."""

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
        media_type: what they are.
        digest: SHA-256 of them, hex.
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
    """The files of the page by name; ``index.html`` is the page itself, the others lie in
    ``page/`` beside it."""
    found = {}
    for entry in sorted(files("s3t.server").joinpath("page").iterdir(), key=lambda one: one.name):
        media_type = _TYPES.get(entry.name[entry.name.rfind(".") :])
        if media_type is not None:
            content = entry.read_bytes()
            found[entry.name] = PageFile(content, media_type, sha256(content).hexdigest())
    return found


def policy(scripts: str = "'self'", styles: str = "'self'", connect: str = "'self'") -> str:
    """The content security policy: nothing but the page's own files, and no one may frame it."""
    return (
        f"default-src 'none'; script-src {scripts}; style-src {styles}; connect-src {connect}; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'"
    )


def snapshot(model: Pictured, name: str, at: datetime) -> dict[str, Any]:
    """What the page shows of a run, all of one view, as JSON values.

    Args:
        model: the run.
        name: what to call it.
        at: the moment, with its time zone.

    Raises:
        S3TError: deletions come faster than it can be read.
    """
    for _ in range(_TRIES):
        picture = model.picture()
        status, forecast = model.status().to_dict(), model.forecast().to_dict()
        if status["view"] == picture["view"] == forecast["view"]:
            return {
                "name": name,
                "version": __version__,
                "made_at": at.isoformat(timespec="seconds"),
                "status": status,
                "picture": picture,
                "forecast": forecast,
                "receipts": _receipts(model),
            }
    raise S3TError(f"the run changed {_TRIES} times while it was read: ask again")


def _receipts(model: Pictured) -> list[dict[str, Any]]:
    """The last deletions, newest first, by what the page shows of them."""
    told = [receipt.to_dict() for receipt in model.ledger.receipts(RECEIPTS)]
    return [{name: receipt[name] for name in _RECEIPT} for receipt in told]


def report(data: Mapping[str, Any]) -> bytes:
    """The page as one HTML file with its data inside, that needs no server and no network.

    Args:
        data: of ``snapshot``.
    """
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
    """JSON without a character that HTML could take for markup."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


def _bundle(entry: str) -> str:
    """A module and all that it imports as one script: each a function that gives its exports.

    Knows the forms that the page is written in: imports of one line, exports of declarations.
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
