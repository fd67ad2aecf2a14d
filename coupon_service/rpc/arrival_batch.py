"""Calls that come one by one go on together, when there are many.

What is done for one call right after another finds its code in the processor's caches. Between the
arrivals of two calls all of gRPC's is run, and each begins as if it were the first.
"""

from __future__ import annotations

import asyncio
from typing import Final

BUSY_CALLS: Final = 32
"""With fewer open calls each goes on at once."""

ARRIVAL_LINGER_S: Final = 0.005
"""How long the first call of a batch waits for more."""


class ArrivalBatcher:
    """Where calls wait for each other."""

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []

    async def join(self) -> None:
        """Returns with the others of its batch."""
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_later(ARRIVAL_LINGER_S, self._go_on)
        turn = loop.create_future()
        self._waiting.append(turn)
        await turn

    def _go_on(self) -> None:
        waiting, self._waiting = self._waiting, []
        for turn in waiting:
            if not turn.done():
                turn.set_result(None)
