"""Coupons that are issued, assigned, locked and redeemed exactly once, over gRPC."""

from __future__ import annotations

__version__ = "0.1.0"
