"""Public and private rows with ids, subjects and content digests.

    source ─► Table ─► Columns ─► LabelledRows                     public: never deletable
    (files)  (names)  (checked)└► PrivateData = Sample + row       private: deletable, hence an id

Invariants: label sets come from the config or from public data, never from a private sample (E5);
reading a private file leaves no copy of it (E7); a row that is not wholly understood is a problem,
never a guess (E8). All problems of a source are reported together.
"""

from __future__ import annotations

from s3t.data.conversations import Conversation
from s3t.data.rows import LabelledRows
from s3t.data.samples import (
    Data,
    PrivateData,
    cut_names,
    label_names,
    load_all,
    load_private,
    load_public,
    private_origins,
)

__all__ = [
    "Conversation",
    "Data",
    "LabelledRows",
    "PrivateData",
    "cut_names",
    "label_names",
    "load_all",
    "load_private",
    "load_public",
    "private_origins",
]
