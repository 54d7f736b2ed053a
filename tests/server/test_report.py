"""The report: one file, of one view, with nothing in it that could run or that names a sample."""

from __future__ import annotations

import base64
import configparser
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from s3t import S3T
from s3t.errors import S3TError
from s3t.run import RunDir
from s3t.server import report as report_module
from s3t.server.report import page_files, report, snapshot
from tests.conftest import Run

AT = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>&amp;"


class Told:
    """A model that tells what it is given, and another view each time if it is ``restless``."""

    def __init__(self, data: Mapping[str, Any], restless: bool = False) -> None:
        self._data, self._restless, self._views = data, restless, 0

    def _of(self, name: str) -> dict[str, Any]:
        self._views += self._restless
        return {**self._data[name], "view": self._data[name]["view"] + self._views}

    def picture(self) -> dict[str, Any]:
        return self._of("picture")

    def status(self) -> Any:
        return _Value(self._of("status"))

    def forecast(self) -> Any:
        return _Value(self._of("forecast"))

    @property
    def ledger(self) -> Any:
        return self

    def receipts(self, limit: int) -> list[Any]:
        return [_Value(one) for one in self._data["receipts"][:limit]]


class _Value:
    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def to_dict(self) -> dict[str, Any]:
        return self._values


class Parts(HTMLParser):
    """What an HTML file is made of, as a browser would take it apart."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self._inside: list[str] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside = self.scripts if tag == "script" else self.styles
            self._inside.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside is not None:
            self._inside[-1] += data


@pytest.fixture
def deleted(small_run: RunDir) -> Iterator[S3T]:
    with S3T.load(small_run.root) as model:
        model.deactivate(subjects=["p03"], request_id="ticket-1")
        model.deactivate(["s050"], request_id="ticket-2")
        yield model


def test_a_snapshot_is_of_one_view_and_names_nobody(deleted: S3T, small_run: RunDir) -> None:
    found = snapshot(deleted, "small", AT)
    views = {found[part]["view"] for part in ("status", "picture", "forecast")}
    assert views == {deleted.status().view}
    assert [one["request_id"] for one in found["receipts"]] == ["ticket-2", "ticket-1"]
    assert all(one["effective_at"] >= one["accepted_at"] for one in found["receipts"])
    text = json.dumps(found)
    with small_run.ledger() as ledger:
        for entry in ledger.samples():
            assert f'"{entry.sample_id}"' not in text
            assert f'"{entry.subject}"' not in text


def test_receipts_are_of_the_same_view(deleted: S3T, monkeypatch: pytest.MonkeyPatch) -> None:
    read, others = report_module._receipts, ["s051"]

    def beside_a_deletion(model: Any) -> list[dict[str, Any]]:
        if others:
            deleted.deactivate([others.pop()], request_id="ticket-3")
        return read(model)

    monkeypatch.setattr(report_module, "_receipts", beside_a_deletion)
    found = snapshot(deleted, "small", AT)
    assert found["receipts"][0]["request_id"] == "ticket-3"
    assert found["receipts"][0]["view"] == found["status"]["view"] == found["picture"]["view"]


def test_the_same_data_gives_the_same_bytes(deleted: S3T) -> None:
    first = snapshot(deleted, "small", AT)
    again = {name: first[name] for name in reversed(first)}
    assert report(first) == report(again)
    later = report({**first, "made_at": "2026-03-01T12:30:01+00:00"})
    assert later != report(first) and len(later) == len(report(first))


def test_data_stay_data_whatever_they_say(deleted: S3T) -> None:
    data = snapshot(deleted, HOSTILE, AT)
    plain = Parts(report({**data, "name": "small"}).decode())
    parts = Parts(report(data).decode())
    assert [tag for tag, _ in parts.tags] == [tag for tag, _ in plain.tags]
    assert len(parts.scripts) == 2 and parts.scripts[1] == plain.scripts[1]
    assert json.loads(parts.scripts[0]) == json.loads(json.dumps(data))


def test_the_policy_allows_the_files_own_script_and_style_alone(deleted: S3T) -> None:
    parts = Parts(report(snapshot(deleted, "small", AT)).decode())
    (rules,) = [
        attributes["content"] or ""
        for tag, attributes in parts.tags
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert f"script-src {_hash(parts.scripts[1])};" in rules
    assert f"style-src {_hash(parts.styles[0])};" in rules
    assert "default-src 'none'" in rules and "unsafe" not in rules
    assert not re.search(r"^(import|export) ", parts.scripts[1], re.MULTILINE)


def test_nothing_is_loaded_from_elsewhere(deleted: S3T) -> None:
    parts = Parts(report(snapshot(deleted, "small", AT)).decode())
    named = [
        value or ""
        for _, attributes in parts.tags
        for name, value in attributes.items()
        if name in ("src", "href", "action", "srcset")
    ]
    assert sorted(value.partition(":")[0] for value in named) == ["#shards", "data"]
    assert not re.search(r"@import|url\(", parts.styles[0])


def test_no_markup_is_ever_made_of_text() -> None:
    for name, file in page_files().items():
        if name.endswith(".js"):
            forbidden = (
                r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function"
            )
            assert not re.search(forbidden, file.text), name


def test_the_page_names_files_that_are_there(repo_root: Path) -> None:
    names = set(re.findall(r'(?:href|src)="page/([\w.]+)"', page_files()["index.html"].text))
    for name, file in page_files().items():
        names |= set(re.findall(r'from "\./([\w.]+)"', file.text))
        assert (repo_root / "s3t" / "server" / "page" / name).read_bytes() == file.content
    assert names == page_files().keys() - {"index.html"}
    setup = configparser.ConfigParser()
    setup.read(repo_root / "setup.cfg", encoding="utf-8")
    assert "page/*" in setup["options.package_data"]["s3t"], "a wheel would leave the page out"


def test_a_run_that_never_rests_is_no_report(deleted: S3T) -> None:
    data = snapshot(deleted, "small", AT)
    assert snapshot(Told(data), "small", AT) == data
    with pytest.raises(S3TError, match="changed 20 times while it was read"):
        snapshot(Told(data, restless=True), "small", AT)


def test_the_command_writes_it_whole_or_not_at_all(
    s3t: Run, small_run: RunDir, tmp_path: Path
) -> None:
    assert s3t("report", small_run.root).code == 0
    inside = small_run.root / "reports" / "report.html"
    assert Parts(inside.read_text(encoding="utf-8")).scripts[1]

    target = tmp_path / "page.html"
    said = s3t("report", small_run.root, "--output", target, "--json")
    assert said.code == 0 and json.loads(said.out)["report"] == str(target)
    kept = json.loads(Parts(target.read_text(encoding="utf-8")).scripts[0])
    assert kept["made_at"] == json.loads(said.out)["made_at"] and kept["name"] == "run"

    before = target.read_bytes()
    refused = s3t("report", tmp_path, "--output", target)
    assert refused.code == 2 and target.read_bytes() == before
    folder = tmp_path / "folder"
    folder.mkdir()
    refused = s3t("report", small_run.root, "--output", folder)
    assert refused.code == 2 and "--output" in refused.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "page.html", "run"]


def test_an_audit_minds_no_report(s3t: Run, small_run: RunDir) -> None:
    with S3T.load(small_run.root) as model:
        model.deactivate(["s050"])
        model.purge()
    assert s3t("report", small_run.root).code == 0
    assert s3t("audit", small_run.root).code == 0


@pytest.mark.heavy
def test_it_opens_in_a_browser_without_a_server(deleted: S3T, tmp_path: Path) -> None:
    from tests.support.browser import PHONE, chromium, expected_grid, expected_tree, tab

    data = snapshot(deleted, HOSTILE, AT)
    data["picture"]["slices"] = 24  # far wider than a phone
    path = tmp_path / "report.html"
    path.write_bytes(report(data))
    with chromium() as browser, tab(browser, PHONE) as shown:
        shown.page.goto(path.as_uri())
        shown.page.wait_for_selector("#grid table")
        assert shown.grid() == expected_grid(data["picture"])
        assert shown.tree() == expected_tree(data["picture"], 0)
        shown.page.click("button.shard >> nth=1")
        assert shown.tree() == expected_tree(data["picture"], 1)
        assert HOSTILE in shown.page.inner_text("h1")
        assert "made at 2026-03-01T12:30:00+00:00" in shown.page.inner_text("header")
        assert not shown.page.is_visible("#rehearsal") and not shown.page.is_visible("#sign-in")
        assert shown.page.evaluate("window.hacked") is None
        assert shown.overflow() <= 0
        assert shown.problems == [] and {url.partition(":")[0] for url in shown.asked} <= {
            "file",
            "data",
        }


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
