"""How long plans last. Only the coupon collector is imported here: it needs neither numpy nor scipy."""

from __future__ import annotations

from s3t.plan.survival.coupons import expected_deletions

__all__ = ["expected_deletions"]
