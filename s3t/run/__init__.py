"""A run on disk: its directory, the files of its plans, what it tells other machines.

RunDir (directory) ──► plans, notices, trainers, locks; exports (copies of nodes elsewhere)
"""

from __future__ import annotations

from s3t.run.directory import RunDir
from s3t.run.files.plans import PlanFiles
from s3t.run.files.published import Notices
from s3t.system.locks import prove_locks

__all__ = ["Notices", "PlanFiles", "RunDir", "prove_locks"]
