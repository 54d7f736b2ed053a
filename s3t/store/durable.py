"""Files that are replaced whole and durably, or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

__all__ = ["fresh_beside", "write_durably"]


def fresh_beside(path: Path) -> Path:
    """A name in the same folder that no other writer uses, on this machine or another."""
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def write_durably(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content`` atomically and durably."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = fresh_beside(path)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
