"""Waiting for what was promised within a time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final

PATIENCE: Final = float(os.environ.get("COUPON_TEST_PATIENCE", "4"))
"""How many times longer than promised it may take: a machine that tests run on has others to serve.
1 for one that has not."""

POLL_S: Final = 0.02


def until(
    what: str,
    holds: Callable[[], object],
    limit_s: float = 10.0,
    why_not: Callable[[], str] = str,
) -> float:
    """Waits for it, and says how long, in seconds. Fails after `limit_s`, times PATIENCE."""
    started_s = time.monotonic()
    while not holds():
        waited_s = time.monotonic() - started_s
        assert waited_s < limit_s * PATIENCE, f"not within {waited_s:.1f} s: {what} {why_not()}"
        time.sleep(POLL_S)
    return time.monotonic() - started_s
