"""Every error that s3t raises on purpose, and the exit code that each becomes.

    S3TError                     1   anything else
    ├── InputError               2   the caller gave something that cannot be used
    │   ├── ConfigError          2   the config, all its problems together
    │   ├── DataError            2   the data behind the config
    │   ├── UnknownSampleError   2   ids or subjects that the ledger does not hold
    │   │   └── PublicSampleError 2  since they are cut aside as public
    │   └── RequestConflictError 2   a request id that was used for another deletion
    ├── ExhaustedError           3   no shard has a surviving prefix
    ├── IntegrityError           4   bytes or lineage that do not prove what they claim
    └── UnavailableError         5   not now: the ledger cannot be reached, a lease ran out …

A message names the value, what was expected, and the next step.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence

__all__ = [
    "ConfigError",
    "DamagedNodeError",
    "DataError",
    "ExhaustedError",
    "InputError",
    "IntegrityError",
    "PublicSampleError",
    "RequestConflictError",
    "S3TError",
    "UnavailableError",
    "UnknownSampleError",
    "is_full",
    "named",
    "unavailable",
]


class S3TError(Exception):
    """Root of the tree. ``exit_code`` is what the command line ends with."""

    exit_code = 1


class InputError(S3TError):
    """The caller gave something that cannot be used; nothing was changed."""

    exit_code = 2


class ConfigError(InputError):
    """Problems of a config, reported together.

    Attributes:
        problems: a sentence for each, in the order found.
        source: the file or section of the config that they are about.
    """

    def __init__(self, problems: Sequence[str], source: str = "config") -> None:
        self.problems = tuple(problems)
        self.source = source
        count = len(self.problems)
        head = f"{source}: {count} problem{'s' if count != 1 else ''}"
        super().__init__("\n  - ".join([head, *self.problems]))


class DataError(ConfigError):
    """Problems of the data behind a config, reported together."""


class UnknownSampleError(InputError):
    """Sample ids or subjects that the ledger does not hold.

    Attributes:
        sample_ids: the unknown sample ids.
        subjects: the unknown subjects.
        alike: number of samples left whose id or subject looks like one of them (case, blanks,
            Unicode form).
    """

    def __init__(
        self, sample_ids: Sequence[str], subjects: Sequence[str], run: str, alike: int = 0
    ) -> None:
        self.sample_ids = tuple(sample_ids)
        self.subjects = tuple(subjects)
        self.run = run
        self.alike = alike
        super().__init__(self._message(" and ".join(self._names())))

    def _names(self) -> Iterator[str]:
        if self.sample_ids:
            yield f"sample ids {named(self.sample_ids)}"
        if self.subjects:
            yield f"subjects {named(self.subjects)}"

    def _message(self, names: str) -> str:
        close = f"{self.alike} samples have names that look alike, but names count byte for byte. "
        return (
            f"unknown {names}: nothing was deleted. {close if self.alike else ''}"
            f"List what the run holds with: s3t samples {self.run}"
        )


class PublicSampleError(UnknownSampleError):
    """Sample ids or subjects whose rows ``data.cut_from: private`` has cut aside as public.

    They were never trained on as private rows, so no deletion can take them from what serves.
    """

    def _message(self, names: str) -> str:
        return (
            f"{names} cannot be forgotten: their rows are cut aside as public (data.cut_from: "
            "private), for validation, test or the base. Nothing was deleted. To be rid of them, "
            "take them from the data and train a new run"
        )


class RequestConflictError(InputError):
    """A request id that was used for another deletion."""


class ExhaustedError(S3TError):
    """No shard has a surviving prefix, and the config names no fallback."""

    exit_code = 3


class IntegrityError(S3TError):
    """Bytes, lineage or records that do not prove what they claim; nothing is served from them."""

    exit_code = 4


class DamagedNodeError(IntegrityError):
    """A node that is missing, unreadable, or not what its key says.

    Attributes:
        key: the node's key.
    """

    def __init__(self, key: str, what: str, path: str) -> None:
        self.key = key
        super().__init__(
            f"node {key} {what} ({path}): remove the file if it is there, and run s3t train again"
        )


class UnavailableError(S3TError):
    """A failure that may pass: the ledger is locked or out of reach, the disk is full, a lease
    ended.

    The caller may repeat the call later.

    Attributes:
        code: the cause, as the service reports it: ``disk_full``, ``ledger_locked``, ``run_gone``,
            ``storage_denied``, ``store_unreachable``, ``out_of_files``, ``text_hit``, or
            ``unavailable`` for any other.
    """

    exit_code = 5
    code = "unavailable"

    def __init__(self, message: str, code: str = code) -> None:
        super().__init__(message)
        self.code = code


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CAUSES: dict[int, tuple[str, str]] = {
    **dict.fromkeys(_FULL, ("disk_full", "make room, or raise the quota or the limit")),
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS),
        ("storage_denied", "let this process read and write there"),
    ),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), ("out_of_files", "raise ulimit -n")),
    **dict.fromkeys(
        (errno.ENOENT, errno.ENOTDIR, errno.ESTALE),
        ("run_gone", "put back what was moved or removed"),
    ),
    errno.EIO: ("unavailable", "look at the disk"),
}


def unavailable(error: OSError) -> UnavailableError | None:
    """The error of the system as an ``UnavailableError`` with a next step.

    None if it is no failure of disk, rights, files or a run that is gone.
    """
    denied = isinstance(error, PermissionError)  # libraries raise it with no number
    cause = _CAUSES.get(error.errno or (errno.EACCES if denied else 0))
    if cause is None:
        return None
    code, step = cause
    where = f"{error.filename}: " if error.filename else ""
    # the system's words, since a library's may name what a client sent
    said = os.strerror(error.errno) if error.errno else "not allowed"
    return UnavailableError(f"{where}{said}: {step}, and repeat", code)


def is_full(error: OSError) -> bool:
    """Whether the disk, a quota or a limit of file sizes has no room left."""
    return error.errno in _FULL


def named(values: Sequence[str], limit: int = 10) -> str:
    """Text with up to ``limit`` of the values, and the number of the rest."""
    shown = ", ".join(repr(value) for value in values[:limit])
    rest = len(values) - limit
    return f"{shown} and {rest} more" if rest > 0 else shown
