"""Every error that s3t raises on purpose, and the exit code that each becomes.

    S3TError                     1   anything else
    ├── InputError               2   the caller gave something that cannot be used
    │   ├── ConfigError          2   the config, all its problems together
    │   ├── DataError            2   the data behind the config
    │   ├── UnknownSampleError   2   ids or subjects that the ledger does not hold
    │   └── RequestConflictError 2   a request id that was used for another deletion
    ├── ExhaustedError           3   no shard has a surviving prefix
    ├── IntegrityError           4   bytes or lineage that do not prove what they claim
    └── UnavailableError         5   not now: the ledger cannot be reached, a lease ran out …

A message names the value, what was expected, and the next step.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "ConfigError",
    "DamagedNodeError",
    "DataError",
    "ExhaustedError",
    "InputError",
    "IntegrityError",
    "RequestConflictError",
    "S3TError",
    "UnavailableError",
    "UnknownSampleError",
    "named",
]


class S3TError(Exception):
    """Root of the tree. ``exit_code`` is what the command line ends with."""

    exit_code = 1


class InputError(S3TError):
    """The caller gave something that cannot be used; nothing was changed."""

    exit_code = 2


class ConfigError(InputError):
    """One or several problems of a config, reported together.

    Attributes:
        problems: one sentence per problem, in the order found.
        source: the file or section that they are of.
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
        alike: samples left that look like one of them, by id or person.
    """

    def __init__(
        self, sample_ids: Sequence[str], subjects: Sequence[str], run: str, alike: int = 0
    ) -> None:
        self.sample_ids = tuple(sample_ids)
        self.subjects = tuple(subjects)
        parts = []
        if sample_ids:
            parts.append(f"sample ids {named(sample_ids)}")
        if subjects:
            parts.append(f"subjects {named(subjects)}")
        self.alike = alike
        close = f"{alike} samples have names that look alike, but names count byte for byte. "
        super().__init__(
            f"unknown {' and '.join(parts)}: nothing was deleted. {close if alike else ''}"
            f"List what the run holds with: s3t samples {run}"
        )


class RequestConflictError(InputError):
    """A request id that already stands for another deletion."""


class ExhaustedError(S3TError):
    """No shard has a surviving prefix, and the config names no fallback."""

    exit_code = 3


class IntegrityError(S3TError):
    """Bytes, lineage or records that do not prove what they claim (fail closed)."""

    exit_code = 4


class DamagedNodeError(IntegrityError):
    """A node that is missing, unreadable, or not what its key says.

    Attributes:
        key: the node's key.
    """

    def __init__(self, key: str, what: str, path: str) -> None:
        self.key = key
        super().__init__(
            f"node {key} {what} ({path}): remove the file if it is there, and run s3t train "
            "again to build it anew"
        )


class UnavailableError(S3TError):
    """Not now: the ledger cannot be reached, is locked or its disk full, or a lease has run out.
    Nothing is lost by repeating it later."""

    exit_code = 5


def named(values: Sequence[str], limit: int = 10) -> str:
    """Name up to ``limit`` values, and count the rest."""
    shown = ", ".join(repr(value) for value in values[:limit])
    rest = len(values) - limit
    return f"{shown} and {rest} more" if rest > 0 else shown
