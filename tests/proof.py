"""How much is tried, a little in every test run and a lot in `make proof`, and from which seed."""

from __future__ import annotations

import os
import random


def times(ci: int, proof: int) -> int:
    """`ci`, or `proof` when ``COUPON_TEST_PROOF`` is set."""
    return proof if os.environ.get("COUPON_TEST_PROOF") else ci


def new_seed() -> str:
    """``COUPON_TEST_SEED``, to repeat a run that failed, or another each time."""
    return os.environ.get("COUPON_TEST_SEED") or str(random.randrange(10**9))
