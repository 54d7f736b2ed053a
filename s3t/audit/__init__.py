"""Independent evidence: what a run proves about itself, and what its answers still give away.

    audit                                        nothing here is taken from what serves: no import
    ├── case ◄── books, nodes, base, config      of forgetting, answering or service, so a fault
    └── log, receipts, lineage, weights,         there cannot vouch for itself
        sources, serving, remains, trials
             └──► claims
    leakage
    ├── membership   who was trained on?
    └── extraction   what can be read back?

Invariant: importing this package loads neither numpy nor torch; its modules load what they need.
"""

__all__: list[str] = []
