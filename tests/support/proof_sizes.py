"""How much is tried, a little in every test run and a lot in `make proof`, and from which seed."""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Iterator
from typing import Final

AT_LENGTH: Final = bool(os.environ.get("COUPON_TEST_PROOF"))
"""Whether this is `make proof`."""

TELL_AGAIN_S: Final = 30


def times(ci: int, proof: int) -> int:
    """`ci`, or `proof` in `make proof`."""
    return proof if AT_LENGTH else ci


def new_seed() -> str:
    """``COUPON_TEST_SEED``, to repeat a run that failed, or another each time."""
    return os.environ.get("COUPON_TEST_SEED") or str(random.randrange(10**9))


def progress(what: str, count: int) -> Iterator[int]:
    """The numbers below `count`; in `make proof` it says now and then how far they are."""
    started_s = told_s = time.monotonic()
    for number in range(count):
        yield number
        now_s = time.monotonic()
        if AT_LENGTH and (now_s - told_s > TELL_AGAIN_S or number + 1 == count):
            told_s = now_s
            # What a process of pytest-xdist writes to stdout is not seen.
            sys.stderr.write(
                f"\n{what}: {number + 1:,} of {count:,} in {now_s - started_s:,.0f} s\n"
            )
