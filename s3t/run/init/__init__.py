"""A first config for one's own data: ``s3t init``.

    DATA ─► table ─► choices: task and columns ─► draft of a config ─► grid ─► commented YAML
            (looking)  asked, given or guessed      read as by train    (planner)

    choices   which column is what, and the reason for each choice
    grid      shards, slices and tree by the planner, what they cost and how long they last
    base      the base, its layers, and the settings of training that suit it
    proposal  the whole: from files to a config that was checked as ``s3t train`` checks it
    text      the config as YAML with comments
    examples  data to try, made here

Invariant: nothing is chosen without a word. What is not clear is asked for or refused.
"""

from __future__ import annotations

from s3t.run.init.choices import Given
from s3t.run.init.proposal import Proposal, propose

__all__ = ["Given", "Proposal", "propose"]
