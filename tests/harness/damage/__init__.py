"""Damage to a run: kind by kind, bit by bit, and processes that are killed while they write.

victim ──► files (kinds: files), records (kinds: ledger) ──► kinds
       └─► opening ──► flips
made ──► checked, shim       poison (node files that do not belong)
"""
