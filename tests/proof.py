"""How much is tried: a little in every test run, a lot in `make proof`."""

from __future__ import annotations

import os


def times(ci: int, proof: int) -> int:
    """`ci`, or `proof` when ``COUPON_TEST_PROOF`` is set."""
    return proof if os.environ.get("COUPON_TEST_PROOF") else ci
