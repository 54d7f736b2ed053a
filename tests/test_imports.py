"""The architecture, read from the import graph: imports run one way, third parties have doors.

A module under ``s3t/`` belongs to the layer named by its first part below ``s3t``, so
``s3t.plan.trie`` to ``plan``. Imports count wherever they stand: at the top, inside a function,
for types only.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "s3t"

LAYERS = (
    "errors",
    "types",
    "scratch",
    "pinned",
    "config",
    "data",
    "plan",
    "partition",
    "ledger",
    "schedule",
    "store",
    "run",
    "purging",
    "model",
    "clusters",
    "training",
    "branches",
    "decoding",
    "members",
    "routing",
    "prompted",
    "ensemble",
    "audit",
    "forgetting",
    "overview",
    "forecasting",
    "repairing",
    "picture",
    "writing",
    "answering",
    "exporting",
    "readers",
    "replica",
    "views",
    "serving",
    "syncing",
    "pipelines",
    "service",
    "report",
    "server",
    "__init__",
    "train",
    "cli",
    "__main__",
)
"""Lowest first. A module may import only from layers before its own, and from its own package."""

PURE = ("errors", "types", "config", "partition", "plan", "schedule")
"""Layers that neither import nor load any of ``HEAVY``."""

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
        "s3t.serving.pipelines",
        "s3t.training.prepare.adapt",
        "s3t.training.environment",
    ),
    "fsspec": ("s3t.store",),
    "cryptography": ("s3t.store", "s3t.ledger"),
    "matplotlib": ("s3t.cli.budget_picture",),
    "psycopg": ("s3t.ledger",),
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


def layer(module: str) -> str:
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
    """The layers that a module imports from, with lines. ``s3t.__version__`` is free to all."""
    for name, line in imports(module):
        if not within(name, "s3t") or name == "s3t.__version__":
            continue
        first = layer(name)
        known = first in LAYERS or f"s3t.{first}" in MODULES
        yield (first if known else "__init__"), line


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_a_layer(module: str) -> None:
    assert layer(module) in LAYERS, f"{module} is in no layer: name {layer(module)!r} in LAYERS"


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module: str) -> None:
    own = layer(module)
    if own not in LAYERS:
        pytest.skip("in no layer, which another test reports")
    allowed = LAYERS[: LAYERS.index(own) + 1]
    wrong = [
        f"{MODULES[module]}:{line}: {own} must not import {target}, which is not below it"
        for target, line in internal(module)
        if target not in allowed
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
def test_pure_layer_imports_nothing_heavy(pure: str) -> None:
    wrong = [
        f"{MODULES[module]}:{line}: {pure} is pure, and must not import {name}"
        for module in MODULES
        if layer(module) == pure
        for name, line in imports(module)
        if any(within(name, package) for package in HEAVY)
    ]
    assert not wrong, "\n".join(wrong)


def test_pure_layers_load_nothing_heavy(run_python: Callable[[str], str]) -> None:
    pure = [module for module in MODULES if layer(module) in PURE]
    code = f"import sys, {', '.join(pure)}\nprint(*sorted(set({HEAVY}) & set(sys.modules)))"
    assert run_python(code) == "", f"importing {', '.join(pure)} loads what the output names"
