"""Seconds that the nodes of a task take, with one worker, in this process's arithmetic.

python -m benchmarks.exactness.timed native|portable TASK FOLDER       prints a line of JSON
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.engine.runs import prepared, trained_anew
from benchmarks.engine.tasks import Unavailable, task_config


def main(arithmetic: str, task: str, folder: Path) -> None:
    """Prepare the task, train its nodes, and print the seconds."""
    place = folder / f"{task}-{arithmetic}"
    place.mkdir(exist_ok=True)
    try:
        config = task_config(task, place, quick=True)
    except Unavailable as error:
        print(json.dumps({"skipped": str(error)}))
        return
    training = config.training.model_copy(update={"arithmetic": arithmetic})
    config = config.model_copy(update={"training": training})
    prepared(config)
    print(json.dumps({"seconds": trained_anew(config, 1).nodes}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
