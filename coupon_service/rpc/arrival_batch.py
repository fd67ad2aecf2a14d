"""Calls that come one by one go on together, when there are many.

What is done for one call right after another finds its code in the processor's caches. Between the
arrivals of two calls all of gRPC's is run, and each begins as if it were the first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from coupon_service.batching import BatchingSettings, FlushBuffer


class ArrivalBatcher:
    """Where calls wait for each other, once more than `busy_calls` are open."""

    def __init__(self, batching: BatchingSettings) -> None:
        self.busy_calls = batching.arrival_busy_calls
        self._waiting = FlushBuffer(_release, batching.arrival_linger_ms)

    async def join(self) -> None:
        """Returns with the others of its batch."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(turn)
        await turn


def _release(turns: Sequence[asyncio.Future[None]]) -> None:
    for turn in turns:
        if not turn.done():
            turn.set_result(None)
