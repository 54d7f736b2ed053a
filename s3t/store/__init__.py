"""Where nodes are kept: files in the run, or at a URL with copies in the run.

content ──► seal ──► files ──► nodes       plain bytes, sealed ones, one file, all of a run
             ▲                   ▲
          keyring              depot       data keys outside the run, names at a URL
                                 ▲
                              backend      a shared folder (``folder``), a URL (``objects``)
"""

from s3t.store.content import Evidence, NodeMeta, tensors_digest
from s3t.store.depot import Depot, open_depot
from s3t.store.keyring import FileKeyRing, KeyRing, MissingKeyError, open_ring
from s3t.store.nodes import NodeStore, Removal, Stamp, folder_stamp
from s3t.store.seal import Sealer
from s3t.system.durable import held_folder, sync_folder, write_durably

__all__ = [
    "Depot",
    "Evidence",
    "FileKeyRing",
    "KeyRing",
    "MissingKeyError",
    "NodeMeta",
    "NodeStore",
    "Removal",
    "Sealer",
    "Stamp",
    "folder_stamp",
    "held_folder",
    "open_depot",
    "open_ring",
    "sync_folder",
    "tensors_digest",
    "write_durably",
]
