"""Waiting for a condition."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final

PATIENCE: Final = float(os.environ.get("COUPON_TEST_PATIENCE", "4"))
"""Factor on all time limits, since the test machine may be busy. 1 for an idle machine."""

WITHIN_S: Final = 15.0
POLL_S: Final = 0.02


def until(
    holds: Callable[[], object], within_s: float = WITHIN_S, why_not: Callable[[], object] = str
) -> float:
    """Wait until `holds` is true; returns the waiting time in seconds.

    Fails after `within_s` times PATIENCE, with the result of `why_not`.
    """
    started_s = time.monotonic()
    while not holds():
        waited_s = time.monotonic() - started_s
        assert waited_s < within_s * PATIENCE, f"not within {waited_s:.1f} s: {why_not()}"
        time.sleep(POLL_S)
    return time.monotonic() - started_s
