"""The architecture, read from the import graph: imports run one way, third parties have doors.

A room is what stands at the top of ``s3t/``: a folder or a file. A module belongs to the room named
by its first part below ``s3t``, so ``s3t.plan.trie`` to ``plan``. Imports count wherever they
stand: at the top, inside a function, for types only.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "s3t"

ROOMS = (
    "errors",
    "types",
    "version",
    "system",
    "config",
    "data",
    "plan",
    "ledger",
    "store",
    "run",
    "model",
    "training",
    "serving",
    "audit",
    "export",
    "commands",
    "service",
    "__init__",
    "server",
    "train",
    "cli",
    "__main__",
)
"""Lowest first. A module may import only from rooms before its own, and from its own."""

APART = {
    "s3t.audit": (
        "s3t.serving",
        "s3t.service",
        "s3t.run.deletion",
        "s3t.run.opened",
        "s3t.run.status",
    )
}
"""The audit judges what is served, so it may not lean on what decides that. Attacks on the answers
(``s3t.audit.leakage``) are no judges: they ask the model."""

PURE = ("s3t.errors", "s3t.types", "s3t.config", "s3t.data.partition", "s3t.plan")
"""Modules and packages that neither import nor load any of ``HEAVY``."""

HEAVY = ("torch", "transformers", "peft", "accelerate")

DOORS = {
    "networkx": ("s3t.plan.trie", "s3t.plan.strategies.matching"),
    "sqlalchemy": ("s3t.ledger",),
    "accelerate": ("s3t.training", "s3t.train"),
    "peft": ("s3t.model",),
    "bitsandbytes": ("s3t.model.quantized",),
    "transformers": (
        "s3t.model",
        "s3t.export.probe",
        "s3t.serving.generation",
        "s3t.serving.pipelines",
        "s3t.training.prepare.adapt",
        "s3t.training.environment",
    ),
    "fsspec": ("s3t.store.objects",),
    "cryptography": ("s3t.store", "s3t.ledger"),
    "matplotlib": ("s3t.cli.pictures",),
    "psycopg": ("s3t.ledger",),
    "tqdm": ("s3t.system.progress",),
    "fastapi": ("s3t.server",),
    "starlette": ("s3t.server",),
    "uvicorn": ("s3t.server",),
    "prometheus_client": ("s3t.server",),
}
"""Third-party package → the only modules or packages that may import it."""


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


@cache
def imports(module: str) -> tuple[tuple[str, int], ...]:
    """Every imported module or name, dotted and absolute, with its line."""
    path = MODULES[module]
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(module, path, node)
            found += [(f"{base}.{alias.name}", node.lineno) for alias in node.names]
    return tuple(found)


def _absolute(module: str, path: Path, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = module.split(".") if path.stem == "__init__" else module.split(".")[:-1]
    kept = package[: len(package) - node.level + 1]
    return ".".join([*kept, *(node.module or "").split(".")]).rstrip(".")


def internal(module: str) -> Iterator[tuple[str, int]]:
    """The modules that a module imports, with lines."""
    for name, line in imports(module):
        if within(name, "s3t"):
            found = name if name in MODULES else name.rpartition(".")[0]
            if found != module:
                yield found, line


def test_every_module_has_a_room() -> None:
    lost = [f"{module}: name {room(module)!r}" for module in MODULES if room(module) not in ROOMS]
    assert not lost, f"in no room of ROOMS: {lost}"


def test_imports_run_one_way() -> None:
    wrong = [
        f"{MODULES[module]}:{line}: {room(module)} must not import {target}, which is above it"
        for module in MODULES
        for target, line in internal(module)
        if room(target) not in ROOMS[: ROOMS.index(room(module)) + 1]
    ]
    assert not wrong, "\n".join(wrong)


def test_no_files_import_each_other_in_a_circle() -> None:
    graph = {module: {target for target, _ in internal(module)} for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(reversed(error.args[1])))


@pytest.mark.parametrize("package", APART)
def test_judges_do_not_lean_on_what_they_judge(package: str) -> None:
    wrong = [
        f"{MODULES[module]}:{line}: {package} must not import {target}"
        for module in MODULES
        if within(module, package) and not within(module, "s3t.audit.leakage")
        for target, line in internal(module)
        if any(within(target, other) for other in APART[package])
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", DOORS)
def test_third_party_has_its_door(package: str) -> None:
    doors = DOORS[package]
    wrong = [
        f"{MODULES[module]}:{line}: {package} may be imported only in {', '.join(doors)}"
        for module in MODULES
        for name, line in imports(module)
        if within(name, package) and not any(within(module, door) for door in doors)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("pure", PURE)
def test_pure_room_imports_nothing_heavy(pure: str) -> None:
    wrong = [
        f"{MODULES[module]}:{line}: {pure} is pure, and must not import {name}"
        for module in MODULES
        if within(module, pure)
        for name, line in imports(module)
        if any(within(name, package) for package in HEAVY)
    ]
    assert not wrong, "\n".join(wrong)


def test_pure_rooms_load_nothing_heavy(run_python: Callable[[str], str]) -> None:
    pure = [module for module in MODULES if any(within(module, one) for one in PURE)]
    code = f"import sys, {', '.join(pure)}\nprint(*sorted(set({HEAVY}) & set(sys.modules)))"
    assert run_python(code) == "", f"importing {', '.join(pure)} loads what the output names"


@pytest.mark.parametrize(
    ("folder", "others"),
    [
        ("tests", r"benchmarks"),
        ("benchmarks", r"tests(?!\.harness)"),
        ("tests/harness", r"benchmarks|tests(?!\.harness)"),
        ("s3t", r"tests|benchmarks"),
    ],
)
def test_tests_and_benchmarks_share_the_harness_alone(folder: str, others: str) -> None:
    wrong = [
        f"{path}: {found.group().strip()}"
        for path in sorted((PACKAGE.parent / folder).rglob("*.py"))
        for found in re.finditer(
            rf"^\s*(from|import) ({others})\b.*", path.read_text(encoding="utf-8"), re.M
        )
    ]
    assert not wrong, "\n".join(wrong)
