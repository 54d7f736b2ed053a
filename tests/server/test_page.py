"""The page in a real browser: it shows what the service tells, as text, and changes nothing.

One test by default uses a browser; the others are heavy.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from s3t import S3T
from s3t.run import RunDir
from s3t.server.report import page_files
from tests.conftest import Run
from tests.support.browser import DESK, PHONE, Tab, chromium, expected_grid, expected_tree, tab

pytest.importorskip("fastapi", reason="pip install 's3t[serve]'")

HOSTILE = "<img src=x onerror='window.hacked = 1'><script>window.hacked = 1</script>"


class Site:
    """A service on a free port.

    Args:
        model: what it serves.
        port: where.
    """

    def __init__(self, model: S3T, port: int) -> None:
        self.model, self.port = model, port
        self.url = f"http://127.0.0.1:{port}/"

    def ask(
        self, method: str, path: str, body: object = None, **headers: str
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        content = None if body is None else json.dumps(body)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if content is not None:
            given["Content-Type"] = "application/json"
        connection.request(method, path, content, given)
        answer = connection.getresponse()
        try:
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def picture(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.ask("GET", "/v1/picture")[2])
        return found


@contextmanager
def served(run: Path, insecure: bool = True) -> Iterator[Site]:
    import uvicorn

    from s3t.server.app import create_app

    with S3T.load(run) as model:
        app = create_app(model, model.config.serve, insecure=insecure)
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="on"))
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            limit = time.monotonic() + 20
            while not server.started:
                assert thread.is_alive() and time.monotonic() < limit, "it does not start"
                time.sleep(0.01)
            yield Site(model, server.servers[0].sockets[0].getsockname()[1])
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture
def site(small_run: RunDir) -> Iterator[Site]:
    with served(small_run.root) as found:
        yield found


def opened(shown: Tab, site: Site) -> Tab:
    shown.page.goto(site.url)
    shown.page.wait_for_selector("#grid table")
    return shown


# ── without a browser ────────────────────────────────────────────────────────────────────────


def test_files_are_served_by_name_under_a_strict_policy(site: Site) -> None:
    for name, file in page_files().items():
        path = "/" if name == "index.html" else f"/page/{name}"
        status, headers, content = site.ask("GET", path)
        assert (status, content) == (200, file.content)
        assert headers["Content-Type"] == file.media_type
        rules = headers["Content-Security-Policy"]
        assert "default-src 'none'" in rules and "frame-ancestors 'none'" in rules
        assert "unsafe" not in rules and "http" not in rules
        assert headers["X-Content-Type-Options"] == "nosniff"
        again, _, nothing = site.ask("GET", path, If_None_Match=headers["ETag"])
        assert (again, nothing) == (304, b"")


def test_nothing_else_is(site: Site) -> None:
    climbing = ("/page/../app.py", "/page/%2e%2e%2freport.py", "/page//etc/passwd")
    for path in ("/page/", "/page/none.js", *climbing):
        status, _, content = site.ask("GET", path)
        assert (status, json.loads(content)["code"]) == (404, "not_found"), path


# ── in one ───────────────────────────────────────────────────────────────────────────────────


def test_it_shows_the_picture_and_loads_from_nowhere_else(browser: Any, site: Site) -> None:
    site.model.deactivate(subjects=["p03"], request_id="ticket-1")
    picture = site.picture()
    with tab(browser) as shown:
        opened(shown, site)
        assert shown.grid() == expected_grid(picture)
        assert shown.tree() == expected_tree(picture, 0)
        shown.page.click("button.shard >> nth=1")
        assert shown.tree() == expected_tree(picture, 1)
        assert shown.page.get_attribute("button.shard >> nth=1", "aria-pressed") == "true"
        assert "ticket-1" in shown.page.inner_text("#receipts")
        assert f"view {picture['view']}" in shown.page.inner_text("#view")
        site.ask("POST", "/v1/predict", {"rows": ["a text"]})
        shown.page.wait_for_selector("#traffic .spark", state="attached")
        assert shown.problems == []
        assert all(url.startswith(site.url) for url in shown.asked), shown.asked


@pytest.mark.heavy
def test_a_deletion_shows_without_a_reload(browser: Any, site: Site) -> None:
    with tab(browser) as shown:
        opened(shown, site)
        before = shown.grid()
        shown.page.evaluate("window.still = 1")
        body = {"subjects": ["p03"], "subject_request_id": "ticket-7"}
        assert site.ask("POST", "/v1/deletions", body)[0] == 201
        shown.page.wait_for_selector("#grid [data-state=hit]")
        assert shown.grid() == expected_grid(site.picture()) != before
        shown.page.wait_for_selector("[data-request=ticket-7]")
        assert "deleted" in shown.page.inner_text("#news")
        assert shown.page.evaluate("window.still") == 1
        assert shown.problems == []


@pytest.mark.heavy
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_shows_how_accuracy_went_and_begins_a_repair_when_little_is_left(
    browser: Any,
    site: Site,
    size: dict[str, int],
    scheme: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun = threading.Event()
    monkeypatch.setattr(site.model, "repair", lambda: begun.set() or {})
    values = [site.model.evaluate().value]
    for person in ("p03", "p05", "p07", "p01"):
        site.model.deactivate(subjects=[person], request_id=f"{person}-{'long' * 20}")
        values.append(site.model.evaluate().value)
    with tab(browser, size, scheme) as shown:
        opened(shown, site)
        name = site.picture()["name"]
        assert (shown.page.inner_text("#run"), shown.page.title()) == (name, f"{name} – s3t")
        said = shown.page.inner_text("#course")
        assert f"{100 * values[-1]:.3g} %" in said and f"{100 * values[0]:.3g} %" in said
        assert shown.page.locator("#course circle").count() == len(values)
        assert " min" not in shown.page.inner_text("#figures"), "no rate from a minute of deletions"
        for row in shown.page.locator("#receipts td").all():
            box = row.bounding_box()
            assert box is not None and 0 <= box["x"] <= size["width"] - box["width"]
        assert shown.overflow() <= 0
        shown.page.click("#low button")
        assert not begun.is_set(), "it asks a second time"
        shown.page.click("#low button")
        shown.page.wait_for_selector("#low .note:not(:empty)")
        assert begun.wait(5) and shown.problems == []


@pytest.mark.heavy
def test_a_dry_run_tells_and_changes_nothing(browser: Any, site: Site) -> None:
    before, log = site.model.status(), site.model.ledger.recent(100)
    with tab(browser, PHONE) as shown:
        opened(shown, site)
        shown.page.fill("[name=subjects]", "p03")
        shown.page.fill("[name=samples]", "s050\ns051")
        shown.page.click("#rehearsal [type=submit]")
        shown.page.wait_for_selector(".outcome")
        said = shown.page.inner_text("#outcome")
        expected = site.model.deactivate(["s050", "s051"], ["p03"], dry_run=True)
        assert f"Would delete {len(expected.deleted)} samples" in said
        assert f"switch off {len(expected.nodes_dead)} block" in said
        dead = [node for node in site.picture()["nodes"] if node["key"] in expected.nodes_dead]
        hit = {
            (n["shard"], n["prefix"][-1]) for n in dead if n["parent"] not in expected.nodes_dead
        }
        assert shown.page.locator("#grid tbody .doomed").count() == len(hit) > 0
        assert shown.overflow() <= 0
        shown.page.click("#rehearsal [type=reset]")
        shown.page.wait_for_selector(".doomed", state="detached")
        assert shown.page.inner_text("#outcome") == ""
        assert shown.problems == []
    assert site.model.status() == before and site.model.ledger.recent(100) == log


@pytest.mark.heavy
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_never_scrolls_sideways(browser: Any, site: Site, scheme: str) -> None:
    for person in ("p01", "p02", "p03"):
        site.model.deactivate(subjects=[person], request_id=f"{person}-{'long' * 40}")
    with tab(browser, PHONE, scheme) as shown:
        opened(shown, site)
        shown.page.wait_for_selector("[data-request]")
        assert shown.overflow() <= 0
        assert shown.problems == []


@pytest.mark.heavy
def test_the_tree_goes_by_keys(browser: Any, site: Site) -> None:
    with tab(browser) as shown:
        opened(shown, site)
        chosen = shown.page.locator("#tree [aria-selected=true]")
        nodes = {node["key"]: node for node in site.picture()["nodes"]}
        first = nodes[chosen.get_attribute("data-key")]
        assert first["state"] == "serving" and first["parent"] is not None
        chosen.focus()
        shown.page.keyboard.press("ArrowLeft")
        assert chosen.get_attribute("data-key") == first["parent"]
        assert first["parent"] in shown.page.inner_text("#tree dl")
        shown.page.keyboard.press("Home")
        top = chosen.get_attribute("data-key")
        shown.page.keyboard.press("ArrowDown")
        assert chosen.count() == 1 and chosen.get_attribute("data-key") != top
        assert "stage 1" in (chosen.get_attribute("aria-label") or "")


@pytest.mark.heavy
def test_hostile_words_stay_words(browser: Any, site: Site) -> None:
    receipt = {
        **{"request_id": HOSTILE, "deleted": [HOSTILE], "view": HOSTILE, "accepted_at": HOSTILE},
        "schedule": {"nodes_dead": []},
    }
    told = {
        "**/v1/deletions?*": {"deletions": [{"receipt": receipt}], "next": None},
        "**/v1/replicas": {"replicas": [{"name": HOSTILE, "view": HOSTILE, "since": HOSTILE}]},
    }
    with tab(browser) as shown:
        for address, body in told.items():
            shown.page.route(address, lambda route, _, body=body: route.fulfill(json=body))
        shown.page.route(
            "**/v1/deletions",
            lambda route: route.fulfill(status=404, json={"code": "x", "detail": HOSTILE}),
        )
        opened(shown, site)
        shown.page.wait_for_selector("#replicas code")
        shown.page.fill("[name=subjects]", HOSTILE)
        shown.page.click("#rehearsal [type=submit]")
        shown.page.wait_for_selector(".outcome")
        for place in ("#receipts", "#replicas", "#outcome"):
            assert HOSTILE in shown.page.inner_text(place), place
        assert shown.page.locator("main img, main script").count() == 0
        assert shown.page.evaluate("window.hacked") is None


@pytest.mark.heavy
def test_it_says_so_when_the_service_is_away_and_goes_on_when_it_is_back(
    browser: Any, site: Site
) -> None:
    with tab(browser) as shown:
        opened(shown, site)
        shown.page.context.set_offline(True)
        shown.page.wait_for_selector("#banner:not([hidden])")
        assert "does not answer" in shown.page.inner_text("#banner")
        assert shown.page.inner_text("#pill") == "away"
        assert shown.page.is_visible("#grid table"), "what was known stays"
        site.model.deactivate(subjects=["p03"])
        shown.page.context.set_offline(False)
        shown.page.wait_for_selector("#banner", state="hidden")
        assert shown.page.inner_text("#pill") == "serving"
        assert shown.grid() == expected_grid(site.picture())


@pytest.mark.heavy
def test_a_token_is_asked_for_and_kept_in_the_tab(
    browser: Any, small_run: RunDir, s3t: Run
) -> None:
    token = s3t("token", "create", small_run.root, "--role", "audit").out.strip()
    with served(small_run.root, insecure=False) as site, tab(browser) as shown:
        page = shown.page
        page.goto(site.url)
        page.wait_for_selector("#sign-in:not([hidden])")
        assert not page.is_visible("main")
        page.fill("#token", "s3t_audit_guessed")
        page.click("#sign-in button")
        page.wait_for_selector("#banner:not([hidden])")
        page.fill("#token", token)
        page.click("#sign-in button")
        page.wait_for_selector("#grid table")
        assert not page.is_visible("#sign-in") and not page.is_visible("#banner")
        assert page.evaluate("Object.values(sessionStorage)") == [token]
        assert page.evaluate("localStorage.length") == 0 and page.context.cookies() == []
        assert not [url for url in shown.asked if token in url]

        page.fill("[name=subjects]", "p03")
        page.click("#rehearsal [type=submit]")
        page.wait_for_selector(".outcome")
        assert "delete" in page.inner_text("#outcome"), "it says which role is missing"
        assert page.is_visible("#grid table")
        page.reload()
        page.wait_for_selector("#grid table")
        page.click("#sign-out")
        page.wait_for_selector("#sign-in:not([hidden])")
        assert page.evaluate("sessionStorage.length") == 0 and not page.is_visible("main")
