"""Sizes and seeds of randomised tests: small in each test run, large in `make proof`."""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Iterator
from typing import Final

AT_LENGTH: Final = bool(os.environ.get("COUPON_TEST_PROOF"))
"""Whether this is `make proof`."""

PROGRESS_INTERVAL_S: Final = 30


def times(ci: int, proof: int) -> int:
    """`ci`, or `proof` in `make proof`."""
    return proof if AT_LENGTH else ci


def new_seed() -> str:
    """``COUPON_TEST_SEED``, which repeats a failed run; otherwise a new seed each time."""
    return os.environ.get("COUPON_TEST_SEED") or str(random.randrange(10**9))


def progress(what: str, count: int) -> Iterator[int]:
    """The numbers below `count`. In `make proof` it prints the progress at intervals."""
    started_s = printed_s = time.monotonic()
    for number in range(count):
        yield number
        now_s = time.monotonic()
        if AT_LENGTH and (now_s - printed_s > PROGRESS_INTERVAL_S or number + 1 == count):
            printed_s = now_s
            # pytest-xdist swallows the standard output of its workers.
            sys.stderr.write(
                f"\n{what}: {number + 1:,} of {count:,} in {now_s - started_s:,.0f} s\n"
            )
