"""How long plans last.

Only the coupon collector is imported here: it needs neither numpy nor scipy.

untouched    laws over the sets of slices that no request has hit, all 2^L of them
lengths      the longest surviving prefix of any tree under a law
stream       requests over slots, with or without repeats ──► hits, law: counted by a clock
exhaustion   how many requests a plan lasts: the exact law for any rates and sizes
persons      the same for persons who are not equally likely to ask
trajectories    Monte Carlo from first hits
"""

from __future__ import annotations

from s3t.plan.survival.coupons import expected_deletions

__all__ = ["expected_deletions"]
