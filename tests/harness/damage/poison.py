"""Node files that somebody has put into ``nodes/`` before the run is served.

Each kind takes the place of the node that serves shard 0, or lies beside it. It may keep the
service from starting, or be passed over; it may not be served, executed, or crash the process.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["KINDS", "MARKER"]

MARKER = "s3t-was-here"
"""A file that a pickle would make, in the run, if anybody loaded it."""

Kind = Callable[[Path], None]
KINDS: dict[str, Kind] = {}


def kind(name: str) -> Callable[[Kind], Kind]:
    """Put a kind on the list; it is given the path of the node that serves."""

    def put(make: Kind) -> Kind:
        KINDS[name] = make
        return make

    return put


def _parts(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def _joined(header: dict[str, Any], body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def _tensors(header: dict[str, Any]) -> list[str]:
    return sorted(name for name in header if name != "__metadata__")


@kind("a header that claims 2⁶³ bytes")
def _(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 2**63) + path.read_bytes()[8:])


@kind("a header of 100 MB of blanks")
def _(path: Path) -> None:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    blanks = b" " * 10**8
    header = struct.pack("<Q", length + len(blanks)) + content[8 : 8 + length] + blanks
    path.write_bytes(header + content[8 + length :])


@kind("a header 100,000 brackets deep")
def _(path: Path) -> None:
    text = b"[" * 100_000
    path.write_bytes(struct.pack("<Q", len(text)) + text)


@kind("tensors that overlap")
def _(path: Path) -> None:
    header, body = _parts(path)
    first, second, *_ = _tensors(header)
    header[second]["data_offsets"] = header[first]["data_offsets"]
    header[second]["shape"] = header[first]["shape"]
    path.write_bytes(_joined(header, body))


@kind("a tensor that ends behind the file")
def _(path: Path) -> None:
    header, body = _parts(path)
    begin, _ = header[_tensors(header)[-1]]["data_offsets"]
    header[_tensors(header)[-1]]["data_offsets"] = [begin, 2**40]
    path.write_bytes(_joined(header, body))


@kind("a tensor of another type")
def _(path: Path) -> None:
    header, body = _parts(path)
    one = header[_tensors(header)[0]]
    one["dtype"], one["shape"] = "I8", [4 * one["shape"][0], *one["shape"][1:]]
    path.write_bytes(_joined(header, body))


@kind("a tensor of a huge shape")
def _(path: Path) -> None:
    header, body = _parts(path)
    header[_tensors(header)[0]]["shape"] = [2**40, 2**40]
    path.write_bytes(_joined(header, body))


@kind("cut off in the middle")
def _(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@kind("empty")
def _(path: Path) -> None:
    path.write_bytes(b"")


class _Trap:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.mkdir, (str(self.marker),)


@kind("a pickle in disguise")
def _(path: Path) -> None:
    path.write_bytes(pickle.dumps(_Trap(path.parent.parent / MARKER)))


@kind("NaN in all weights")
def _(path: Path) -> None:
    header, body = _parts(path)
    path.write_bytes(_joined(header, b"\xff" * len(body)))


@kind("a link to another file")
def _(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


@kind("a link to itself")
def _(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


@kind("a folder")
def _(path: Path) -> None:
    path.unlink()
    path.mkdir()


@kind("another node's file under its name")
def _(path: Path) -> None:
    other = next(one for one in sorted(path.parent.glob("*.safetensors")) if one != path)
    path.write_bytes(other.read_bytes())


@kind("strangers beside it, with names of no node")
def _(path: Path) -> None:
    for name in ("x.safetensors", "-rf.safetensors", f"{'0' * 64}.safetensors", "a\nb.safetensors"):
        (path.parent / name).write_bytes(pickle.dumps(_Trap(path.parent.parent / MARKER)))
