"""The paper's bipartite matching (BMS): sequences that differ in every position.

stage k    sequences so far      slices
             (0, 2)  ──────────── 1      edge weight: how well the longer prefix lasts
             (1, 3)  ──────────── 0      a perfect matching of greatest weight gives each
             (2, 0)  ──────────── 3      sequence its next slice, each slice once
             (3, 1)  ──────────── 2
"""

from __future__ import annotations

import math

import networkx as nx

from s3t.errors import ConfigError
from s3t.plan.sequences import Sequences
from s3t.plan.strategies.brief import Brief

__all__ = ["matching"]


def matching(brief: Brief) -> Sequences:
    """Bipartite-matching based selection: L sequences, one stage after another.

    At each stage the slices are matched with the sequences so that the sum of the scores is
    greatest; the score of a prefix is Σ_n n·e^{−t·p(c_1 … c_n)} over its own prefixes, with t the
    horizon. Every slice stands in every position exactly once, so L sequences are built always,
    and for a smaller budget those whose first slices are deleted least are kept. It looks at
    orders, not at sets, so {0, 1} is often trained again as {1, 0}.

    Source: arXiv 2406.16257, section 3 (deletion-aware selection), and the authors'
    ``sequence_selection.py`` (with (1 − p)^100 in place of the horizon).

    Raises:
        ConfigError: more than L sequences.
    """
    slices, budget = brief.slices, int(brief.budget)
    if budget > slices:
        raise ConfigError(
            [
                f"sequences.budget {budget} is over {slices}: matching gives one sequence per "
                "slice; lower it, or use strategy tree or greedy"
            ]
        )
    sequences = [[c] for c in range(slices)]
    for _ in range(slices - 1):
        for number, c in _matched(brief, sequences):
            sequences[number].append(c)
    kept = sorted(range(slices), key=lambda c: (brief.scaled_rates[c], c))[:budget]
    return tuple(tuple(sequences[c]) for c in sorted(kept))


def _matched(brief: Brief, sequences: list[list[int]]) -> list[tuple[int, int]]:
    """(sequence, slice) of a perfect matching. One exists: the graph is regular (Hall)."""
    # Plain numbers for nodes: networkx goes through sets, whose order then is the same everywhere.
    rows, slices = len(sequences), brief.slices
    graph: nx.Graph[int] = nx.Graph()
    graph.add_nodes_from(range(rows), bipartite=0)
    for number, sequence in enumerate(sequences):
        for c in range(slices):
            if c not in sequence:
                graph.add_edge(number, rows + c, weight=-_score(brief, [*sequence, c]))
    found = nx.bipartite.minimum_weight_full_matching(graph, top_nodes=range(rows))
    return [(number, found[number] - rows) for number in range(rows)]


def _score(brief: Brief, prefix: list[int]) -> float:
    score = mass = 0.0
    for length, c in enumerate(prefix, 1):
        mass += brief.scaled_rates[c]
        score += length * math.exp(-mass * brief.horizon)
    return score
