"""How long a batch that fills waits for more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter

from coupon_service.batching.settings import LingerSettings


async def linger(
    settings: LingerSettings,
    served: int,
    waiting: Callable[[], int],
    *,
    enough: int,
    until_s: float,
) -> None:
    """Returns when it is time to serve those who wait: when no more come, there are `enough`, or it
    is `until_s` (of time.perf_counter).

    `served`: how many there were the last time. Under load the event loop has other work to do, and
    the more are served together the less each costs.
    """
    if served < settings.busy_size:
        for _ in range(settings.idle_yields):
            if waiting() >= enough or perf_counter() >= until_s:
                return
            await asyncio.sleep(0)
        return
    linger_s = settings.linger_ms / 1000
    seen = 0
    while seen < waiting() < enough and (left_s := until_s - perf_counter()) > 0:
        seen = waiting()
        await asyncio.sleep(min(linger_s, left_s))
