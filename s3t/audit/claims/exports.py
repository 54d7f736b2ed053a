"""Part of E7: adapters that the run has exported, which hold copies of nodes.

    RUN/exports.json ─► folders ─► adapters that lie there ─► the nodes that each holds ─► alive?
                                        └─ files ─► digest ─► its name

Invariant: no code of ``export/`` is used. The name of an adapter is a digest over its weights and
the keys of its nodes; an adapter that does not match its name is broken.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from s3t.audit.audited_run import AuditedRun
from s3t.audit.claims.dead_nodes import PURGE, DeadNodes
from s3t.audit.findings import Findings
from s3t.errors import IntegrityError
from s3t.types import NodeKey, digest

__all__ = ["judge_exports"]

_ADAPTER = re.compile(r"s3t-([0-9a-f]{8})-(?:shard-[0-9]{3,}|merged)-([0-9a-f]{16})")

_HALF = re.compile(r"\.s3t-([0-9a-f]{8})-(?:shard-[0-9]{3,}|merged)-[0-9a-f]{16}\..*\.tmp")
_YOUNG = 60.0
"""A half-written adapter younger than this, in seconds, may be of an export under way."""


def judge_exports(audited: AuditedRun, found: Findings) -> None:
    """Judge that no exported adapter holds a dead node."""
    path = audited.run.root / "exports.json"
    records, owner = _records(path)
    if owner != str(path.parent.resolve()) and (Path(owner) / path.name).exists():
        found.checked(f"exports are of {owner}, of which this run is a copy")
        return
    needed, dead_nodes = audited.needed, DeadNodes(audited)
    looked, absent = 0, []
    for folder, known in sorted(records.items()):
        place = Path(folder)
        if not place.is_dir():
            absent.append(folder)
            continue
        tags = {parts[1] for parts in map(_ADAPTER.fullmatch, known) if parts}
        held = _told(place) | dict(known)
        for path in sorted(place.iterdir()):
            parts = _ADAPTER.fullmatch(path.name)
            if parts is not None and (path.name in held or parts[1] in tags):
                looked += 1
                _judge(path, held.get(path.name, []), needed, dead_nodes, found)
            half = _HALF.fullmatch(path.name)
            if half is not None and half[1] in tags and _is_old(path):
                found.pending(f"{path} is half-written, by an export that was killed: {PURGE}")
    if records:
        gone = f", folders that are not there: {', '.join(absent)}" if absent else ""
        found.checked(f"{looked} exported adapters in {len(records)} folders{gone}")


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.lstat().st_mtime > _YOUNG
    except FileNotFoundError:  # finished meanwhile
        return False


def _judge(
    path: Path, nodes: list[str], needed: set[NodeKey], dead_nodes: DeadNodes, found: Findings
) -> None:
    if not nodes or not _is_what_it_says(path, nodes):
        found.broken(
            f"the adapter {path} is not what its name says, so its nodes are unknown: remove "
            "it, and export the run again"
        )
        return
    dead = [key for key in map(NodeKey, nodes) if key not in needed]
    if dead:
        broken = any(dead_nodes.judge(key)[0] for key in dead)
        (found.broken if broken else found.pending)(
            f"the adapter {path} holds {len(dead)} dead nodes, such as {dead[0]}: {PURGE}, and "
            "s3t sync for engines that have loaded it"
        )


def _is_what_it_says(path: Path, nodes: list[str]) -> bool:
    try:
        config = json.loads((path / "adapter_config.json").read_bytes())
        proof: dict[str, Any] = {
            "nodes": nodes,
            "weights": _digest_of(path / "adapter_model.safetensors"),
            "r": config["r"],
            "lora_alpha": config["lora_alpha"],
        }
        if (path / "head.safetensors").exists():
            proof["head"] = _digest_of(path / "head.safetensors")
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return path.name.endswith(f"-{digest(proof)[:16]}")


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _records(path: Path) -> tuple[Mapping[str, Mapping[str, list[str]]], str]:
    """From ``exports.json``: folder → adapter → keys of its nodes; and the run that wrote it."""
    if not path.exists():
        return {}, str(path.parent.resolve())
    try:
        document = json.loads(path.read_bytes())
        found: dict[str, dict[str, list[str]]] = document["exports"]
        owner = str(document["run"])
        for held in found.values():
            _ = [[*map(str, nodes)] for nodes in held.values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(
            f"{path} cannot be understood ({error}), so copies of nodes cannot be found: "
            "restore it from a copy, or remove it and all exports by hand"
        ) from None
    return found, owner


def _told(folder: Path) -> dict[str, list[str]]:
    """Adapter name → keys of its nodes, by the folder's own manifest; empty if unreadable."""
    try:
        document = json.loads((folder / "s3t-export.json").read_bytes())
        listed = [*document["adapters"], *document.get("replaced", [])]
        return {str(one["name"]): [*map(str, one["nodes"])] for one in listed}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
