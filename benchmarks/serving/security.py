"""Bad and hostile inputs, tried against a real service, and what each got.

    python -m benchmarks.serving.security [--output DIR] [--quick]

A small digits run is served with tokens; every attack of ``attacks`` is sent over the network, the
whole OpenAPI document is tried by schemathesis, and node files of ``poison`` are put into copies of
the run before they are served. After each the state must be what it was. Exit code 1 if anything
got a 5xx other than a documented 503, another outcome than it should, or a change of state. Sent
from one machine, in turn: this says nothing about floods. ``--quick`` takes fewer tries.
"""

from __future__ import annotations

import http.server
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from benchmarks.environment import table
from benchmarks.reports import Report, main
from benchmarks.serving import OUTPUT
from benchmarks.serving.attacks import ATTACKS, LIVING, timing
from benchmarks.serving.besieged import Besieged, trained
from tests.harness.damage.poison import KINDS, MARKER

TINY = (
    "model.make.hidden=16",
    "model.make.heads=2",
    "model.adapt.steps=5",
    "stage.epochs=1",
    "training.workers=1",
    "sequences.budget=1",
)
"""What is trained does not matter here."""
SETTINGS = ("serve.timeout=3", "serve.delete_rate=null", "serve.domain=forget.example")
EXAMPLES, QUICK = 60, 10
Row = dict[str, Any]


def run(output: Path, quick: bool = False) -> dict[str, Any]:
    """Try everything, print the tables and write the result."""
    report, folder = Report("security", output), trained(*TINY)
    base = folder / "run"
    key = folder / "key.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True)
    config = base / "config.yaml"
    config.write_text(config.read_text().replace("signing_key: null", f"signing_key: {key}"))
    try:
        rows, times, logged = _besieged(base, folder / "attacks", quick)
        # as many wrong tokens as it likes, which else would be told to wait
        with Besieged(base, folder / "cases", [*SETTINGS, "serve.refusals=1000000"]) as site:
            assert site.serves, site.log.read_text()
            tried = _schemathesis(site, QUICK if quick else EXAMPLES)
        rows += _called_back(base, folder / "callbacks")
        rows += _poisoned(base, folder, quick)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    rows.append(logged)
    columns = ("group", "input", "tries", "got", "verdict")
    print(table(columns, ([row[name] for name in columns] for row in rows)))
    print(table(("operation", "cases", "got", "failed checks"), _tried_rows(tried)))
    print("microseconds of a refusal, median:", times)
    wrong = [row for row in rows if row["verdict"] != "ok"]
    wrong += [one for one in tried if one["failures"] or one["state"] != "unchanged"]
    result = report.finish(
        {"attacks": rows, "schemathesis": tried, "refusal_microseconds": times, "wrong": len(wrong)}
    )
    if wrong:
        print(f"{len(wrong)} of {len(rows) + len(tried)} are not as they should be")
        raise SystemExit(1)
    print(f"all {len(rows) + len(tried)} as they should be")
    return result


def _besieged(base: Path, folder: Path, quick: bool) -> tuple[list[Row], dict[str, float], Row]:
    """All attacks over the network, one after the other."""
    rows = []
    with Besieged(base, folder, SETTINGS) as site:
        assert site.serves, site.log.read_text()
        for attack in ATTACKS:
            before = site.state()
            started = time.perf_counter()
            got = Counter(attack.send(site))
            seconds = time.perf_counter() - started
            bad = [outcome for outcome in got if not attack.allows(outcome)]
            row = _row(attack.group, attack.name, got, bad, before == site.state())
            rows.append(row | {"seconds": round(seconds, 2)})
            print(
                f"{row['verdict']:4s} {attack.group}: {attack.name} ({seconds:.1f} s)", flush=True
            )
        times = timing(site, 50 if quick else 500)
        alive = site.ask("POST", "/v1/deletions", body={"sample_ids": [LIVING]})[0] == 201
        site.ask("POST", "/v1/purge")  # an audit does not hold while something dead lies there
        clean = site.end()
        log = site.log.read_bytes()
        needles = [token.encode() for token in site.tokens.values()]
        needles += [
            LIVING.encode(),
            b"DROP TABLE",
            b"jndi",
            b"\x1b",
            b"<script",
            b"Bearer",
            b"Traceback",
        ]
        found = [needle.decode() for needle in needles if needle in log]
        audited = subprocess.run(
            [sys.executable, "-m", "s3t", "audit", str(site.run)], capture_output=True, check=False
        ).returncode
    ended = f"deletes still: {alive}, exit code {clean}, audit {audited}"
    whole = _row("afterwards", "the service", Counter([ended]), [], True)
    whole["verdict"] = "ok" if alive and clean == 0 and audited == 0 else "WRONG"
    rows.append(whole)
    lines = log.count(b"\n")
    logged = _row(
        "log", f"ids, tokens and control letters in {lines} lines", Counter(found), found, True
    )
    return rows, times, logged


def _row(group: str, name: str, got: Counter[str], bad: list[str], unchanged: bool) -> Row:
    verdict = "ok" if unchanged and not bad else "CHANGED" if not unchanged else "WRONG"
    told = ", ".join(f"{outcome} × {count}" for outcome, count in got.most_common())
    return {"group": group, "input": name, "tries": got.total(), "got": told, "verdict": verdict}


def _schemathesis(site: Besieged, examples: int) -> list[Row]:
    """Every operation of the document, with cases that it allows and that it does not."""
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis.checks import positive_data_acceptance
    from schemathesis.core.failures import FailureGroup
    from schemathesis.generation import GenerationMode

    schema = schemathesis.openapi.from_url(f"{site.url}/openapi.json")
    found = []
    for result in schema.get_all_operations():
        operation = result.ok()
        name = f"{operation.method.upper()} {operation.path}"
        if name in ("POST /v1/repair", "POST /v1/purge"):
            continue  # they work, and would each time
        got, failures = Counter[str](), Counter[str]()
        before = site.ask("GET", "/v1/status")[1]

        @settings(
            max_examples=examples,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(
            operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
            | operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)
        )
        def each(case: Any) -> None:
            said = case.call(headers={"Authorization": f"Bearer {site.tokens['all']}"})
            got[str(said.status_code)] += 1  # noqa: B023  (called below, before they change)
            try:
                # which rows, hosts and ids there are is not in the document
                case.validate_response(said, excluded_checks=[positive_data_acceptance])
            except FailureGroup as group:
                named = [type(one).__name__ for one in group.exceptions]
                if _unsent(case, said.request.url):  # the wrong part of it
                    named = [one for one in named if one != "AcceptedNegativeData"]
                failures.update(named)  # noqa: B023

        each()
        after = site.ask("GET", "/v1/status")[1]
        found.append(
            {
                "operation": name,
                "got": dict(sorted(got.items())),
                "failures": dict(failures),
                "state": "unchanged" if before == after else "changed",
            }
        )
    return found


def _unsent(case: Any, url: str) -> bool:
    """Whether a parameter of the query has no form in an address, such as an empty list."""
    sent = parse_qs(urlsplit(url).query, keep_blank_values=True)
    return any(name not in sent for name in case.query or {})


def _tried_rows(tried: list[Row]) -> Iterator[list[object]]:
    for one in tried:
        got = ", ".join(f"{status} × {count}" for status, count in one["got"].items())
        failures = ", ".join(f"{name} × {n}" for name, n in one["failures"].items()) or "none"
        yield [one["operation"], sum(one["got"].values()), got, failures]


# ── callbacks that may be asked for, and lead elsewhere ──────────────────────────────────────


class _Inside(http.server.ThreadingHTTPServer):
    """A service that is not to be reached; counts who does."""

    def __init__(self, redirect: str | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.redirect, self.reached = redirect, 0
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Inside

    def do_POST(self) -> None:
        self.server.reached += 1
        self.send_response(307 if self.server.redirect else 200)
        if self.server.redirect:
            self.send_header("Location", self.server.redirect)
        self.end_headers()

    do_GET = do_POST

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def _inside(redirect: str | None = None) -> Iterator[_Inside]:
    with _Inside(redirect) as server:
        yield server
        server.shutdown()


def _called_back(base: Path, folder: Path) -> list[Row]:
    """A listed name that leads to this machine, a redirect, a page that turned its name to us."""
    rows = []
    with socket.create_server(("127.0.0.1", 0)) as victim:
        victim.settimeout(4)
        port = victim.getsockname()[1]
        listed = f"serve.callback_hosts=[localhost:{port}]"
        with Besieged(base, folder / "dns", [*SETTINGS, listed]) as site:
            assert site.serves, site.log.read_text()
            url = f"https://localhost:{port}/"
            body = {"sample_ids": [LIVING], "status_callback_urls": [url]}
            said = site.asked("POST", "/v1/deletions", body=body)
            try:
                victim.accept()
                got = "reached"
            except TimeoutError:
                got = "not reached"
        name = "a listed name that leads to 127.0.0.1"
        bad = [got] if got == "reached" else []
        rows.append(_row("callbacks", name, Counter([f"{said}, {got}"]), bad, True))
    with (
        _inside() as victim_server,
        _inside(f"http://127.0.0.1:{victim_server.server_port}/") as first,
    ):
        listed = f"serve.callback_hosts=['127.0.0.1:{first.server_port}']"
        with Besieged(base, folder / "redirect", [*SETTINGS, listed], insecure=True) as site:
            assert site.serves, site.log.read_text()
            url = f"http://127.0.0.1:{first.server_port}/"
            body = {"sample_ids": [LIVING], "status_callback_urls": [url]}
            said = site.asked("POST", "/v1/deletions", None, body=body)
            limit = time.monotonic() + 15
            while not first.reached and time.monotonic() < limit:
                time.sleep(0.05)
            time.sleep(0.5)
            got = f"{said}, called {bool(first.reached)}, followed {bool(victim_server.reached)}"
            wrong = [got] if victim_server.reached or not first.reached else []
            rows.append(
                _row("callbacks", "a host that redirects inside", Counter([got]), wrong, True)
            )
            before = site.state()
            told = Counter(
                site.asked("POST", "/v1/deletions", None, body=body, headers={"Host": host})
                for host in ("evil.example", f"evil.example:{site.port}", "127.0.0.1.evil.example")
            )
            bad = [one for one in told if not one.startswith("403")]
            name = "--insecure, asked by another name (DNS rebinding)"
            rows.append(_row("callbacks", name, told, bad, before == site.state()))
    return rows


# ── node files ───────────────────────────────────────────────────────────────────────────────


def _poisoned(base: Path, folder: Path, quick: bool) -> list[Row]:
    """Each kind in a copy of the run that is then served."""
    rows = []
    picture = json.loads(
        subprocess.run(
            [sys.executable, "-m", "s3t", "status", str(base), "--json"],
            capture_output=True,
            check=True,
        ).stdout
    )
    serving = picture["shards"][0]["node"]
    chosen = list(KINDS.items())[:: 4 if quick else 1]
    for name, make in chosen:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            run = Path(shutil.copytree(base, Path(place) / "base"))
            make(run / "nodes" / f"{serving}.safetensors")
            started = time.monotonic()
            got, bad = _served(run, Path(place) / "site", serving)
            bad += ["it was executed"] if list(Path(place).rglob(MARKER)) else []
            row = _row("node files", name, Counter([got]), bad, True)
            rows.append(row | {"seconds": round(time.monotonic() - started, 1)})
            print(f"{row['verdict']:4s} node files: {name}: {got}", flush=True)
    return rows


def _served(run: Path, folder: Path, serving: str) -> tuple[str, list[str]]:
    """What the service made of a poisoned run, and what is wrong with that."""
    with Besieged(run, folder) as site:
        if not site.serves:
            code = site.end()
            named = serving[:16].encode() in site.log.read_bytes()
            crashed = (
                b"Traceback" in site.log.read_bytes() or b"unexpected" in site.log.read_bytes()
            )
            got = f"does not start: exit code {code}{', names the node' if named else ''}"
            return got, [got] if code != 4 or crashed else []
        rows = {"rows": [[[0] * 8] * 8]}
        status = site.ask("POST", "/v1/predict", body=rows)[0]
        shard = json.loads(site.ask("GET", "/v1/status")[1])["shards"][0]
        intact = (site.run / "nodes" / f"{serving}.safetensors").is_file()
        got = f"serves ({status}) prefix {shard['prefix']}"
        return got, [] if status == 200 and intact else [got]


if __name__ == "__main__":
    main(run, __doc__, OUTPUT)
