"""Independent evidence: what a run proves about itself, and what its answers still give away.

    audited_run ◄── ledger_facts, node files, plans, base, config
        └──► claims/, comparison ──► audit.CLAIMS ──► Audit
    leakage/
    ├── membership   which rows were trained on?
    └── extraction   which texts can be read back?

Invariant: the claims take nothing from the code that serves or deletes, so a fault there cannot
confirm itself; a test holds these imports. Importing this package loads neither numpy nor torch;
its modules load what they need.
"""

__all__: list[str] = []
