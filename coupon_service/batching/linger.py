"""How long those who work for many callers at once wait for more of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import Final

IDLE_YIELDS: Final = 8
"""Turns of the event loop that there is for others to come where few did before: some ten
microseconds in an idle worker."""

BUSY_SIZE: Final = 16
"""When so many were served together, more are on their way."""

LINGER_S: Final = 0.006
"""Then they are waited for, until none has come for so long: a little longer than the calls of a
busy worker wait for each other before they come here (`rpc/arrival_batch.py`). With 2 ms
RedeemCode had 0.96 of the throughput, LockCode 0.91 (alternating, medians of three rounds)."""


async def linger(served: int, waiting: Callable[[], int], *, enough: int, until_s: float) -> None:
    """Returns when it is time to serve those who wait: when no more come, there are `enough`, or it
    is `until_s` (of time.perf_counter).

    `served`: how many there were the last time. Under load the event loop has other work to do, and
    the more are served together the less each costs: LockCode, which waits for others in each of
    its steps, has 1.3 to 1.4 times the throughput of one that waits for eight turns of the loop.
    """
    if served < BUSY_SIZE:
        for _ in range(IDLE_YIELDS):
            if waiting() >= enough or perf_counter() >= until_s:
                return
            await asyncio.sleep(0)
        return
    seen = 0
    while seen < waiting() < enough and perf_counter() < until_s:
        seen = waiting()
        await asyncio.sleep(LINGER_S)
