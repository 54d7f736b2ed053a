"""A service that accepts a large deletion and is killed, as by kill -9, where it is told to be.

    python -m tests.support.killed RUN POINT HOST

Prints the status of the POST. POINT is ``accepted`` (no thread has looked), ``claimed`` (before the
deletion), ``deleted`` (after it, before the job has ended), ``ended`` (before its callback) or
``told`` (after it, before it is written down that it was made).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from s3t import S3T
from s3t.ledger import Outbox
from s3t.server.deletions.callbacks import Callbacks
from s3t.server.deletions.jobs import JobQueue
from tests.support.asked import asked

MANY = [f"s{person:02d}{number}" for person in range(2, 5) for number in range(3)]


def main(run: str, point: str, host: str) -> None:
    """See above."""
    printed = threading.Event()

    def die(*_: Any, **__: Any) -> Any:
        printed.wait()
        os.kill(os.getpid(), signal.SIGKILL)

    owner, name = {
        "accepted": (JobQueue, "_work"),
        "claimed": (S3T, "deactivate"),
        "deleted": (Outbox, "end"),
        "ended": (Callbacks, "_post"),
        "told": (Outbox, "told"),
    }[point]
    setattr(owner, name, die)
    with asked(Path(run), insecure=True, job_samples=5, callback_hosts=[host]) as site:
        url = f"http://{host}/done"
        said = site.delete(
            None, sample_ids=MANY, subject_request_id="large", status_callback_urls=[url]
        )
        print(said.status_code, flush=True)
        printed.set()
        time.sleep(60)


if __name__ == "__main__":
    main(*sys.argv[1:])
