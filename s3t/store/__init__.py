"""Where nodes are kept: files of the run, or of any fsspec URL with copies in the run."""

from s3t.store.depot import Depot
from s3t.store.durable import write_durably
from s3t.store.nodes import NodeMeta, NodeStore, tensors_digest

__all__ = ["Depot", "NodeMeta", "NodeStore", "tensors_digest", "write_durably"]
