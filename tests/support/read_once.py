"""Bases that a test process reads from the disk once: most runs of tests keep one of a few."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from s3t.config import Config
from s3t.model import loading

__all__ = ["read_once"]

_LARGEST = 4 * 2**20
"""Bytes of a folder from which on it is read each time."""


def read_once(patch: pytest.MonkeyPatch) -> None:
    """Give a copy of what was read where all files of a folder have the same bytes again."""
    read, kept = loading._pretrained, dict[tuple[bool, bytes], PreTrainedModel]()

    def found(config: Config, name: str) -> PreTrainedModel:
        files = sorted(Path(name).rglob("*")) if Path(name).is_dir() else []
        files = [file for file in files if file.is_file()]
        size = sum(file.stat().st_size for file in files)
        if not 0 < size < _LARGEST or config.model.quantization:
            return read(config, name)
        known = hashlib.sha256()
        for file in files:
            known.update(f"{file.name}\0{file.stat().st_size}\0".encode() + file.read_bytes())
        key = config.generates, known.digest()
        if key not in kept:
            kept[key] = read(config, name)
        model = copy.deepcopy(kept[key])
        model.name_or_path = model.config.name_or_path = name
        return model

    patch.setattr(loading, "_pretrained", found)
