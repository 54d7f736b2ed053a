"""What is said of a file or folder that was replaced or removed under a running process."""

from __future__ import annotations

from pathlib import Path

from s3t.errors import UnavailableError

__all__ = ["replaced"]


def replaced(path: Path, is_gone: bool, by: str, so: str = "") -> UnavailableError:
    """The error to raise.

    Args:
        path: of the file or folder.
        is_gone: whether nothing lies there now.
        by: what lies there instead, such as "another file".
        so: what follows from it, as a clause.
    """
    what = "is gone" if is_gone else f"was replaced by {by}"
    return UnavailableError(
        f"{path} {what} under this process{so and f', {so}'}: put back the one that was there, or "
        "start the process again on the new one",
        "run_gone",
    )
