"""What fails beneath the service, for real: the log has the cause once, the client its code, the
command line exit code 5; nothing is changed, and it goes on by itself once it is mended."""

from __future__ import annotations

import errno
import http.client
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from s3t.cli.output import write
from s3t.errors import IntegrityError, S3TError, UnavailableError, unavailable
from s3t.ledger.database import backend
from s3t.run import RunDir
from s3t.server.logs import FailureLog
from s3t.store.depot import open_depot
from tests.conftest import ROOT, Run
from tests.server.test_predict import refused
from tests.support.fake import Model, served
from tests.support.waiting import until

DELETION = {"sample_ids": ["s000"], "subject_request_id": "r-1"}


# ── told once ────────────────────────────────────────────────────────────────────────────────


def test_a_cause_is_told_once_while_it_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    causes = FailureLog(lambda: now[0])

    def lines(seconds: float, error: S3TError) -> int:
        now[0] += seconds
        caplog.clear()
        causes.report(error)
        return len(caplog.records)

    full = UnavailableError("no room", "disk_full")
    assert [lines(30, full) for _ in range(5)] == [1, 0, 0, 0, 0]
    assert lines(0, UnavailableError("locked", "ledger_locked")) == 1
    assert lines(0, IntegrityError("damaged")) == 1
    assert lines(61, full) == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UnavailableError("at /secret"), "unavailable"),
        (UnavailableError("at /secret", "ledger_locked"), "ledger_locked"),
        (OSError(errno.ENOSPC, "no room", "/secret"), "disk_full"),
        (OSError(errno.EDQUOT, "no room", "/secret"), "disk_full"),
        (PermissionError(errno.EACCES, "no", "/secret"), "storage_denied"),
        (OSError(errno.EROFS, "no", "/secret"), "storage_denied"),
        (FileNotFoundError(errno.ENOENT, "gone", "/secret"), "run_gone"),
        (OSError(errno.EMFILE, "too many", "/secret"), "out_of_files"),
        (IntegrityError("at /secret"), "damaged"),
    ],
    ids=lambda one: str(one) if isinstance(one, str) else type(one).__name__,
)
def test_every_way_of_failing_is_coded_and_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: Exception, code: str
) -> None:
    model = Model(tmp_path, error=error)
    with served(model) as client:
        for _ in range(5):
            answer = client.post("/v1/predict", json={"rows": ["a"]})
            assert "secret" not in refused(answer, code)
            assert answer.status_code == 500 or int(answer.headers["retry-after"]) >= 1
    told = [one.getMessage() for one in caplog.records if "/secret" in one.getMessage()]
    assert len(told) == 1


def test_what_is_not_known_is_logged_by_its_kind_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for error in (S3TError("id s000"), ConnectionResetError("id s000"), KeyError("id s000")):
        caplog.clear()
        with served(Model(tmp_path, error=error)) as client:
            answer = client.post("/v1/predict", json={"rows": ["a"]})
            refused(answer, "internal")
            number = answer.json()["instance"].removeprefix("urn:s3t:")
        assert number in caplog.text and "s000" not in caplog.text


# ── the command line ─────────────────────────────────────────────────────────────────────────


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Another process holds the ledger's write lock."""
    code = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "c.execute('BEGIN IMMEDIATE'); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(run / "ledger.db")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdin is not None and other.stdout is not None
        try:
            assert other.stdout.readline() == b"held\n"
            yield
        finally:
            other.stdin.close()
            other.wait(10)


@contextmanager
def small_files(length: int) -> Iterator[None]:
    """No file may become longer than so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (length, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def state(run: RunDir) -> tuple[int, set[str]]:
    with run.ledger() as ledger:
        return ledger.view(), {one.sample_id for one in ledger.samples() if one.deleted}


def test_a_locked_ledger_ends_a_command_with_5(
    small_run: RunDir, s3t: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "BUSY_SECONDS", 0.2)
    before = state(small_run)
    with locked(small_run.root):
        done = s3t("deactivate", small_run.root, "--ids", "s000")
    assert done.code == 5 and "was locked for 0.2 s" in done.err and not done.out
    assert state(small_run) == before
    assert s3t("deactivate", small_run.root, "--ids", "s000").code == 0


def test_a_limit_of_file_sizes_ends_a_command_with_5(small_run: RunDir, s3t: Run) -> None:
    before = state(small_run)
    with small_files(4096):
        done = s3t("deactivate", small_run.root, "--ids", "s000")
    assert done.code == 5 and "no space left" in done.err and "Traceback" not in done.err
    assert state(small_run) == before


def test_a_file_that_finds_no_room_is_not_the_wrong_option(tmp_path: Path) -> None:
    with small_files(10), pytest.raises(UnavailableError, match="make room") as caught:
        write(tmp_path / "page.html", b"x" * 100, "--output")
    assert (caught.value.code, caught.value.exit_code) == ("disk_full", 5)
    assert not list(tmp_path.iterdir())


@contextmanager
def disk(folder: Path, size: str) -> Iterator[Path]:
    """A small disk; the test skips where none can be made."""
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "s3t", str(folder)]
    if not shutil.which("mount") or subprocess.run(words, check=False).returncode:
        pytest.skip("no tmpfs can be mounted here: that takes root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take what room there is."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 1024)
        except OSError as error:
            assert error.errno == errno.ENOSPC
    return path


# ── a service ────────────────────────────────────────────────────────────────────────────────


BUSY = 4.0
SHORT = f"""
import runpy
from s3t.ledger.database import backend
backend.BUSY_SECONDS = {BUSY}
runpy.run_module("s3t", run_name="__main__")
"""
"""``s3t``, with a shorter wait for a ledger that is locked."""


class Service:
    """``s3t serve`` as a process, which waits shortly for a locked ledger."""

    def __init__(self, run: Path, *before: str) -> None:
        words = ["serve", str(run), "--port", "0", "--insecure", "--json-logs"]
        self.process = subprocess.Popen(
            [*before, sys.executable, "-c", SHORT, *words],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline().rpartition(":")[2] or 0)

    def ask(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=100)
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read() or "null")

    def causes(self) -> list[str]:
        """End it; the codes of the failures that it logged, in turn."""
        self.process.send_signal(signal.SIGTERM)
        _, err = self.process.communicate(timeout=30)
        lines = [json.loads(line) for line in err.splitlines()]
        assert "unexpected" not in err and not any("passed" in line for line in lines), err
        return [line["code"] for line in lines if "code" in line]


@contextmanager
def serving(run: Path, *before: str) -> Iterator[Service]:
    service = Service(run, *before)
    try:
        yield service
    finally:
        service.process.kill()
        service.process.communicate()


@pytest.mark.heavy
def test_a_full_disk(small_run: RunDir, tmp_path: Path, s3t: Run) -> None:
    with disk(tmp_path / "disk", "8m") as folder:
        run = RunDir(shutil.copytree(small_run.root, folder / "run"))
        with serving(run.root) as service:
            assert service.ask("/v1/predict", {"rows": ["a"]})[0] == 200
            filler = fill(folder)
            before = state(run)
            for _ in range(3):
                status, said = service.ask("/v1/deletions", DELETION)
                assert (status, said["code"]) == (503, "disk_full")
            assert service.ask("/v1/predict", {"rows": ["a"]})[0] == 200
            done = s3t("deactivate", run.root, "--ids", "s000")
            assert done.code == 5 and state(run) == before
            filler.unlink()
            assert service.ask("/v1/deletions", DELETION)[0] == 201
            assert service.causes() == ["disk_full"]


@pytest.mark.heavy
def test_a_locked_ledger(small_run: RunDir) -> None:
    with serving(small_run.root) as service:
        assert service.ask("/v1/predict", {"rows": ["a"]})[0] == 200
        with locked(small_run.root):
            found: list[tuple[int, Any]] = []
            asking = [
                threading.Thread(
                    target=lambda: found.append(service.ask("/v1/deletions", DELETION))
                )
                for _ in range(2)
            ]
            for thread in asking:
                thread.start()
            assert service.ask("/v1/predict", {"rows": ["a"]})[0] == 200
            assert not found, "no answer waits for the lock"
            for thread in asking:
                thread.join(120)
        assert [(status, said["code"]) for status, said in found] == [(503, "ledger_locked")] * 2
        assert service.ask("/v1/deletions", DELETION)[0] == 201
        assert service.causes() == ["ledger_locked"]


@pytest.mark.heavy
def test_a_run_that_was_moved_away(small_run: RunDir, s3t: Run) -> None:
    aside = small_run.root.with_name("aside")
    with serving(small_run.root) as service:
        assert service.ask("/v1/predict", {"rows": ["a"]})[0] == 200
        small_run.root.rename(aside)
        for _ in range(3):
            status, said = service.ask("/v1/deletions", DELETION)
            assert (status, said["code"]) == (503, "run_gone")
        aside.rename(small_run.root)
        until(lambda: service.ask("/v1/deletions", DELETION)[0] == 201)
        assert set(service.causes()) == {"run_gone"}


def bound() -> Sequence[str]:
    """What starts a process that may not read what it has no right to, even as root."""
    if os.geteuid():
        return ()
    if not shutil.which("setpriv"):
        pytest.skip("root reads everything, and there is no setpriv to make it not")
    return ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all")


@pytest.mark.heavy
def test_a_store_that_may_not_be_read(small_run: RunDir) -> None:
    nodes = small_run.root / "nodes"
    with serving(small_run.root, *bound()) as service:
        assert service.ask("/v1/predict", {"rows": ["a"]})[0] == 200
        nodes.chmod(0)
        try:
            for _ in range(3):
                status, said = service.ask("/v1/reload", {})
                assert (status, said["code"]) == (503, "storage_denied")
            assert service.ask("/v1/predict", {"rows": ["a"]})[0] == 200  # what was read serves
            words = ["-m", "s3t", "evaluate", str(small_run.root)]
            command = [*bound(), sys.executable, *words]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 5 and "let this process read" in done.stderr, done.stderr
        finally:
            nodes.chmod(0o755)
        assert service.ask("/v1/reload", {})[0] == 204
        assert service.causes() == ["storage_denied"]


# ── the store ────────────────────────────────────────────────────────────────────────────────


@contextmanager
def refusing_s3() -> Iterator[str]:
    """A server that answers 403 to everything, as S3 does to a key that may not."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # clients wait for its 100 before they send

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
            self.send_response(403)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_bucket_that_refuses_is_denied_not_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs", reason="pip install s3fs")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with refusing_s3() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        depot = open_depot("s3://bucket/run")
        for ask in (
            lambda: depot.get("a"),
            lambda: depot.put("a", b"b"),
            lambda: depot.create("a", b"b"),
        ):
            with pytest.raises(UnavailableError) as caught:
                ask()
            assert caught.value.code == "storage_denied"


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (PermissionError(errno.EACCES, "Access Denied"), "storage_denied"),
        (PermissionError("Access Denied"), "storage_denied"),  # as client libraries raise it
        (OSError(errno.ENOSPC, "full"), "disk_full"),
        (ConnectionError("no answer"), "store_unreachable"),
        (RuntimeError("of a library"), "store_unreachable"),
    ],
    ids=repr,
)
def test_what_a_store_raises_has_its_code(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, code: str
) -> None:
    depot = open_depot("memory://causes")

    def fail(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr(depot.backend.files, "cat_file", fail)
    with pytest.raises(UnavailableError) as caught:
        depot.get("a")
    assert caught.value.code == code and caught.value.exit_code == 5


def test_a_node_that_may_not_be_read_is_not_damaged(
    small_run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = small_run.store
    key = next(iter(store.keys()))

    def fail(*_: Any) -> bytes:
        raise PermissionError(errno.EACCES, "no", str(store.path(key)))

    monkeypatch.setattr("s3t.store.nodes._bytes_of", fail)
    with pytest.raises(UnavailableError) as caught:
        store.read(key)
    assert caught.value.code == "storage_denied"


def test_only_failures_of_disk_and_rights_are_taken_for_such() -> None:
    for error in (ConnectionResetError(errno.ECONNRESET, "x"), OSError("x"), BlockingIOError()):
        assert unavailable(error) is None
