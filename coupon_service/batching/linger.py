"""How long a batch that fills waits for more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import NamedTuple

from coupon_service.batching.settings import LingerSettings


class LastBatch(NamedTuple):
    """What is known of the batch before: how many commands it had, and how long it took."""

    size: int = 0
    took_s: float = 0.0


class Rush:
    """What the batchers of one kind know of each other, where a worker has several: their commands
    come through the same event loop, and all of their batches wait behind each other there."""

    def __init__(self) -> None:
        self.arrived = 0
        """Commands that have come to any of them."""
        self._last: dict[object, tuple[float, LastBatch]] = {}

    def executed(self, batcher: object, batch: LastBatch) -> None:
        """One of them has carried out a batch."""
        self._last[batcher] = perf_counter(), batch

    def last(self, batcher: object, within_s: float) -> LastBatch:
        """The batch before of this one, with those of the others that ended within so long."""
        size, took_s = 0, 0.0
        since_s = perf_counter() - within_s
        for it, (ended_s, batch) in self._last.items():
            if it is batcher or ended_s >= since_s:
                size += batch.size
                took_s += batch.took_s
        return LastBatch(size, took_s)


async def linger(
    settings: LingerSettings,
    rush: Rush,
    last: LastBatch,
    waiting: Callable[[], int],
    *,
    enough: int,
    since_s: float,
    max_wait_s: float,
) -> None:
    """Returns when it is time to serve those who wait: when no more come, there are `enough`, or
    the first of them, who came at `since_s` (of time.perf_counter), has waited for long enough.

    Under load the event loop has other work to do, and the more are served together the less each
    costs. But who waits may wait in vain, and where callers come one by one without an end there
    are always more on their way. So nobody waits for others longer than the batch before took,
    behind which everybody waits: at the worst it is twice as long.
    """
    if last.size < settings.busy_size:
        for _ in range(settings.idle_yields):
            if waiting() >= enough or perf_counter() >= since_s + max_wait_s:
                return
            await asyncio.sleep(0)
        return
    until_s = since_s + min(max_wait_s, last.took_s)
    linger_s = settings.linger_ms / 1000
    seen = -1
    while seen < rush.arrived and waiting() < enough and (left_s := until_s - perf_counter()) > 0:
        seen = rush.arrived
        await asyncio.sleep(min(linger_s, left_s))
