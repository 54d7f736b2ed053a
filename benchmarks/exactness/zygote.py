"""A process that has loaded everything, and forks a child for each command that it is told.

    stdin: {"words": [...], "out": path}  ─►  fork: python -m s3t WORDS, in a session of its own
    stdout: {"pid": n}                        then, once asked with {"wait": n}: {"code": n}

So a command begins its work at once, and kills fall upon the work and not upon the loading of
torch. Nothing is opened here before the fork.
"""

from __future__ import annotations

import json
import os
import sys

__all__: list[str] = []


def main() -> None:
    """Serve until the input ends."""
    import torch

    import s3t.run.purge
    import s3t.serving.predictor
    import s3t.training.work.train
    from s3t.cli import main as s3t

    torch.set_num_threads(1)
    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            _, status = os.waitpid(asked["wait"], 0)
            answer = {"code": os.waitstatus_to_exitcode(status)}
        else:
            child = os.fork()
            if not child:
                os.setsid()
                out = os.open(asked["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(out, 1)
                os.dup2(out, 2)
                sys.argv = ["s3t", *asked["words"]]
                code = s3t()
                sys.stdout.flush()
                os._exit(code)
            answer = {"pid": child}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
