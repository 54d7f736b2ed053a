"""README, docs and changelog name only what exists: links, files, modules, commands, keys, routes.

    document ─► code (inline spans and fenced blocks) ─► named(kind) ─► does it exist?

``docs/reference.md`` is generated, and must be what the code says now.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from s3t import S3T
from s3t.cli.reference import commands, keys, reference

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ["README.md", "CHANGELOG.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
DOCUMENTS.remove("docs/wrong-inputs.md")  # it names what is wrong

FOLDERS = ("s3t", "benchmarks", "tests", "configs", "docs", "examples")

FOREIGN = {
    "--help",
    *("--num_processes", "--num_machines", "--machine_rank", "--cpu"),  # accelerate launch
    *("--enable-lora", "--max-lora-rank", "--lora-target-modules", "--enable-metrics"),  # engines
    "--disable-log-stats",
    *("--quick", "--only"),  # benchmarks
}
"""Options of other programs that the documents name."""

_FENCED = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
_SPAN = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def blocks(text: str, language: str | None = None) -> list[str]:
    """The fenced blocks of a document, of all languages or of one."""
    return [body for name, body in _FENCED.findall(text) if language in (None, name)]


def spans(text: str) -> list[str]:
    """The inline code of a document, each on one line."""
    return [" ".join(span.split()) for span in _SPAN.findall(_FENCED.sub("", text))]


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def command_lines(text: str) -> Iterator[list[str]]:
    """The words of every ``s3t`` command named, without comments."""
    lines = [line for block in blocks(text) for line in block.splitlines()]
    for line in [*lines, *spans(text)]:
        for part in line.split("&&"):
            words = part.strip().removeprefix("$ ").split("  #")[0].split(" # ")[0]
            if re.match(r"s3t [a-z]", words):
                yield shlex.split(words, comments=True)[1:]


def lacking_links(text: str, document: str) -> Iterator[str]:
    for target in _LINK.findall(text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / document).parent / name if name else ROOT / document
        if not path.exists() or (anchor and anchor not in anchors(path)):
            yield target


def lacking_files(text: str, document: str) -> Iterator[str]:
    for span in [*spans(text), *blocks(text)]:
        for word in re.findall(r"[\w./-]*/[\w./-]+", span):
            known = word.startswith(tuple(f"{folder}/" for folder in FOLDERS))
            if not known and not word.endswith(".py"):
                continue
            if not (ROOT / word).exists() and not (ROOT / "s3t" / word).exists():
                yield word


def lacking_modules(text: str, document: str) -> Iterator[str]:
    for span in [*spans(text), *blocks(text)]:
        for module in re.findall(r"(?:python|launch) -m ([\w.]+)", span):
            path = ROOT / module.replace(".", "/")
            if not path.with_suffix(".py").exists() and not (path / "__main__.py").exists():
                yield module


def lacking_targets(text: str, document: str) -> Iterator[str]:
    made = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    for span in [*spans(text), *blocks(text)]:
        for target in re.findall(r"^make ([a-z][a-z-]*)", span, re.M):
            if target not in made:
                yield f"make {target}"


def lacking_commands(text: str, document: str) -> Iterator[str]:
    known = commands()
    for words in command_lines(text):
        name = " ".join(words[:2]) if " ".join(words[:2]) in known else words[0]
        if name not in known:
            if not any(one.startswith(f"{name} ") for one in known):  # a group: s3t token
                yield f"s3t {name}"
            continue
        has = {one for param in known[name].params for one in param.opts}
        launches = (known[name].context_settings or {}).get("ignore_unknown_options", False)
        for option in [word.partition("=")[0] for word in words if word.startswith("--")]:
            if option not in has and not (launches and option in FOREIGN):
                yield f"s3t {name} {option}"


def lacking_options(text: str, document: str) -> Iterator[str]:
    known = {one for command in commands().values() for p in command.params for one in p.opts}
    for span in spans(text):
        option = span.split()[0]
        if re.fullmatch(r"--[a-z][\w-]+", option) and option not in known | FOREIGN:
            yield option


def lacking_keys(text: str, document: str) -> Iterator[str]:
    known = keys()
    sections = {key.partition(".")[0] for key in known if "." in key}
    assigned = [word for words in command_lines(text) for word in words if "=" in word]
    for span in [*spans(text), *assigned]:
        found = re.fullmatch(r"(([a-z_]+)\.[a-z_.]+)(?:[=:].*)?", span)
        if found and found[2] in sections and found[1] not in known | {f"{found[2]}.py"}:
            yield found[1]


def lacking_routes(text: str, document: str) -> Iterator[str]:
    routes = "".join(path.read_text() for path in (ROOT / "s3t/server/routes").glob("*.py"))
    known = {re.sub(r"{\w+}", "{}", one) for one in re.findall(r'"(/v1/[^"]+)"', routes)}
    for span in [*spans(text), *blocks(text)]:
        for route in re.findall(r"/v1/[\w/{}]+", span):
            asked = re.sub(r"({\w+}|\bID\b)", "{}", route.rstrip("/"))
            if asked not in known and asked != "/v1/models":  # of an engine
                yield route


def lacking_methods(text: str, document: str) -> Iterator[str]:
    for block in blocks(text, "python"):
        for name in re.findall(r"\bmodel\.(\w+)", block):
            if not hasattr(S3T, name):
                yield f"S3T.{name}"
    for span in spans(text):
        for name in re.findall(r"\bS3T\.([a-z_]+)", span):
            if not hasattr(S3T, name):
                yield f"S3T.{name}"


KINDS: dict[str, Callable[[str, str], Iterator[str]]] = {
    "links": lacking_links,
    "files": lacking_files,
    "modules": lacking_modules,
    "make targets": lacking_targets,
    "commands": lacking_commands,
    "options": lacking_options,
    "keys": lacking_keys,
    "routes": lacking_routes,
    "methods": lacking_methods,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_a_document_names_exists(document: str, kind: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    assert sorted({*KINDS[kind](text, document)}) == []


@pytest.mark.parametrize(
    ("kind", "text", "found"),
    [
        ("links", "[a](docs/none.md)", "docs/none.md"),
        ("links", "[a](docs/design.md#no-such-title)", "docs/design.md#no-such-title"),
        ("files", "`plan/none.py`", "plan/none.py"),
        ("files", "`configs/none.yaml`", "configs/none.yaml"),
        ("modules", "```\npython -m benchmarks.none\n```", "benchmarks.none"),
        ("make targets", "`make none`", "make none"),
        ("commands", "`s3t none RUN`", "s3t none"),
        (
            "commands",
            "```\n$ s3t audit RUN && s3t purge RUN --none  # why\n```",
            "s3t purge --none",
        ),
        ("commands", "`s3t token create RUN --nmae x`", "s3t token create --nmae"),
        ("options", "with `--none`", "--none"),
        ("keys", "`partition.none`", "partition.none"),
        ("keys", "```\ns3t train C stage.none=2\n```", "stage.none"),
        ("routes", "`POST /v1/none`", "/v1/none"),
        ("methods", "```python\nmodel.none()\n```", "S3T.none"),
    ],
)
def test_what_does_not_exist_is_found(kind: str, text: str, found: str) -> None:
    assert [*KINDS[kind](text, "README.md")] == [found]


def test_reference_is_fresh() -> None:
    path = ROOT / "docs" / "reference.md"
    assert path.read_text(encoding="utf-8") == reference(), (
        "docs/reference.md is not what the code says: "
        "python -m s3t.cli.reference docs/reference.md writes it"
    )


def test_every_argument_and_option_has_its_help() -> None:
    silent = [
        f"s3t {name} {param.name}"
        for name, command in commands().items()
        for param in command.params
        if param.name != "help" and not param.help
    ]
    assert silent == []


def test_every_key_has_its_words() -> None:
    assert [line for line in reference().splitlines() if line.endswith("|  |")] == []


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200
