"""The files of configs/deploy, as far as they can be judged without the engines that read them.

Whether the image builds is not tested here: that takes a docker engine and the network.
"""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from s3t.config.aggregation import ServeConfig
from tests.conftest import ROOT, Run

DEPLOY = ROOT / "configs" / "deploy"
ALERTS = ROOT / "tests" / "server" / "alerts_test.yml"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
UNIT = (DEPLOY / "s3t.service").read_text(encoding="utf-8")

_TOP = {"name", "services", "volumes", "secrets", "networks", "configs"}
_SERVICE = {
    *("image", "build", "command", "entrypoint", "environment", "env_file", "depends_on", "ports"),
    *("volumes", "secrets", "healthcheck", "deploy", "restart", "profiles", "read_only", "tmpfs"),
    *("stop_grace_period", "security_opt", "cap_drop", "shm_size", "user", "init"),
}
"""The fields of the compose specification that may be used here."""


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's, lines joined and comments left out."""
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [
        (word, rest.strip())
        for word, _, rest in (one.partition(" ") for one in joined.splitlines())
    ]


def of(word: str) -> list[str]:
    return [rest for name, rest in instructions() if name == word]


def serve_words(words: list[str]) -> list[str]:
    """The arguments of ``s3t serve``; its help must know every option."""
    assert words[0] == "serve", words
    return words[1:]


# ── Dockerfile ───────────────────────────────────────────────────────────────────────────────


def test_the_image_copies_what_is_there() -> None:
    kept = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    for rest in of("COPY"):
        *sources, _ = [word for word in rest.split() if not word.startswith("--from")]
        if "--from" in rest:
            continue
        for source in sources:
            assert (ROOT / source).exists(), source
            assert source.removeprefix("./") in kept, f".dockerignore leaves {source} out"


def test_the_image_installs_extras_that_exist_under_the_pins() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    (install,) = [rest for rest in of("RUN") if "pip install" in rest]
    (extras,) = re.findall(r"'\.\[([\w,]+)\]'", install)
    assert set(extras.split(",")) <= set(setup["options.extras_require"])
    assert {"serve", "postgres"} <= set(extras.split(","))
    assert "-c constraints.txt" in install and "TORCH_INDEX" in install
    assert all(word.startswith("python:3.11") for word in of("FROM"))


def test_the_image_runs_as_nobody_in_particular_and_knows_its_health() -> None:
    names = [name for name, _ in instructions()]
    assert names.index("USER") < names.index("ENTRYPOINT") and of("USER") == ["s3t"]
    (health,) = of("HEALTHCHECK")
    code = yaml.safe_load(health.partition("CMD ")[2])
    assert code[0] == "python" and "/readyz" in code[2]
    compile(code[2], "HEALTHCHECK", "exec")
    assert of("STOPSIGNAL") == ["SIGTERM"] and yaml.safe_load(of("ENTRYPOINT")[0]) == ["s3t"]


def test_the_commands_of_image_and_unit_are_known(s3t: Run) -> None:
    started = next(line for line in UNIT.splitlines() if line.startswith("ExecStart="))
    program, *words = shlex.split(started.partition("=")[2])
    assert Path(program).name == "s3t"
    helped = s3t("serve", "--help")
    assert helped.code == 0, helped.err
    for arguments in (yaml.safe_load(of("CMD")[0]), words):
        for option in serve_words(arguments):
            assert not option.startswith("--") or option in helped.out, option


# ── compose ──────────────────────────────────────────────────────────────────────────────────


def test_compose_uses_fields_that_exist() -> None:
    assert {key for key in COMPOSE if not key.startswith("x-")} <= _TOP
    for name, service in COMPOSE["services"].items():
        assert service.keys() <= _SERVICE, name
        assert "image" in service
        for volume in service.get("volumes", []):
            source = volume.rpartition(":/")[0] if volume.count(":") == 1 else volume.split(":/")[0]
            if not source.startswith((".", "/", "$")):
                assert source in COMPOSE["volumes"], volume
        for needed in service.get("depends_on", []):
            assert needed in COMPOSE["services"]
        for secret in service.get("secrets", []):
            assert secret in COMPOSE["secrets"]


def test_compose_names_files_that_are_there() -> None:
    build = COMPOSE["services"]["serve"]["build"]
    context = (DEPLOY / build["context"]).resolve()
    assert context == ROOT and (context / build["dockerfile"]).is_file()
    mounted = [
        volume.split(":")[0]
        for service in COMPOSE["services"].values()
        for volume in service.get("volumes", [])
        if volume.startswith("./")
    ]
    assert mounted and all((DEPLOY / path).is_file() for path in mounted)


def test_compose_runs_several_replicas_over_a_ledger_that_is_ready() -> None:
    serve, postgres = COMPOSE["services"]["serve"], COMPOSE["services"]["postgres"]
    assert serve["deploy"]["replicas"] >= 2
    first, last = map(int, serve["ports"][0].split(":")[1].split("-"))
    assert last - first + 1 >= serve["deploy"]["replicas"], "each replica needs a port"
    assert serve["depends_on"]["postgres"] == {"condition": "service_healthy"}
    assert "pg_isready" in postgres["healthcheck"]["test"][1] and postgres["volumes"]
    assert int(postgres["image"].partition(":")[2]) >= 15
    assert seconds(serve["stop_grace_period"]) > ServeConfig().drain
    told = [service.get("environment", {}) for service in COMPOSE["services"].values()]
    passwords = [value for one in told for name, value in one.items() if "PASSWORD" in name]
    assert passwords and all(value.startswith("${LEDGER_PASSWORD:?") for value in passwords)


def seconds(text: str) -> int:
    assert text.endswith("s")
    return int(text[:-1])


# ── Prometheus ───────────────────────────────────────────────────────────────────────────────


def test_prometheus_asks_each_replica_with_a_token() -> None:
    rules = yaml.safe_load((DEPLOY / "prometheus.yml").read_text(encoding="utf-8"))
    (job,) = rules["scrape_configs"]
    assert job["metrics_path"] == "/metrics"
    secret = job["authorization"]["credentials_file"].rpartition("/")[2]
    assert secret in COMPOSE["secrets"] and secret in COMPOSE["services"]["prometheus"]["secrets"]
    (found,) = job["dns_sd_configs"]
    assert set(found["names"]) <= set(COMPOSE["services"]) and found["port"] == ServeConfig().port
    assert [(DEPLOY / name).is_file() for name in rules["rule_files"]] == [True]


def rules() -> list[dict[str, Any]]:
    alerts = yaml.safe_load((DEPLOY / "alerts.yml").read_text(encoding="utf-8"))
    return [rule for group in alerts["groups"] for rule in group["rules"]]


_TOKEN = re.compile(
    r"""\s+ | [A-Za-z_]\w* | \d+[smhd](:\d+[smhd])? | \d+(\.\d+)? | "[^"\\]*"
    | =~ | != | == | [<>]=? | [-+*/=(),{}\[\]]""",
    re.VERBOSE,
)


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_an_alert_can_be_read_and_keeps_runs_apart(rule: dict[str, Any]) -> None:
    text = rule["expr"]
    assert not _TOKEN.sub("", text), "a character that is none of PromQL's"
    opened = []
    for sign in re.findall(r"[(){}\[\]]", re.sub(r'"[^"]*"', "", text)):
        if sign in "({[":
            opened.append(sign)
        else:
            assert opened and opened.pop() + sign in ("()", "{}", "[]"), text
    assert not opened, text
    assert rule["labels"].keys() == {"severity"}
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"]["summary"]
    for word, grouped in re.findall(r"\b(sum|min|max|count|group)\b( by \((?:run|job)\b)?", text):
        assert grouped, f"{word} adds up over runs"


@pytest.mark.heavy
def test_alerts_fire_when_they_should() -> None:
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("no promtool on the PATH (the Debian package prometheus has it)")
    for words in (["check", "rules", DEPLOY / "alerts.yml"], ["test", "rules", ALERTS]):
        done = subprocess.run([tool, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_are_about_metrics_that_exist() -> None:
    metrics = pytest.importorskip("s3t.server.metrics", reason="pip install 's3t[serve]'")
    text = Path(metrics.__file__).read_text(encoding="utf-8")
    for rule in rules():
        assert rule.keys() <= {"alert", "expr", "for", "annotations", "labels"}
        for name in set(re.findall(r"\bs3t_\w+", rule["expr"])):
            made = name.removesuffix("_bucket").removesuffix("_total")
            assert f'"{made}"' in text, f"{rule['alert']} asks for {name}"


# ── systemd ──────────────────────────────────────────────────────────────────────────────────


def test_the_unit_ends_and_begins_as_the_service_does() -> None:
    settings = dict(
        line.split("=", 1) for line in UNIT.splitlines() if "=" in line and line[0] != "#"
    )
    assert (
        settings["KillSignal"] == "SIGTERM" and settings["ExecReload"] == "/bin/kill -HUP $MAINPID"
    )
    assert int(settings["TimeoutStopSec"]) > ServeConfig().drain
    assert settings["Restart"] == "on-failure" and settings["User"] not in ("", "root")
    assert settings["ProtectSystem"] == "strict" and settings["NoNewPrivileges"] == "yes"
    run = shlex.split(settings["ExecStart"])[2]
    assert run.startswith(settings["ReadWritePaths"])


def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("no systemd-analyze on the PATH")
    unit = tmp_path / "s3t.service"
    unit.write_text(UNIT.replace("/opt/s3t/bin/s3t", sys.executable), encoding="utf-8")
    done = subprocess.run(
        [tool, "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "s3t.service" not in done.stderr, done.stderr
