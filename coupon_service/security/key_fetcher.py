"""When published keys are fetched: from time to time, and when a token names an unknown key."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Final

FETCH_INTERVAL_S: Final = 300.0
"""Between two fetches, so that a key that was withdrawn is not good for much longer."""

PAUSE_S: Final = 5.0
"""After a fetch began, so that invented key ids do not each become a request to the provider."""

WAIT_MAX_S: Final = 8.0
"""How long a call waits at most: a pause, and a fetch."""

WAITING_MAX: Final = 1_000
"""Calls that wait at a time."""


class KeyFetcher:
    """Runs `fetch`, which blocks, in a thread: one at a time."""

    def __init__(self, fetch: Callable[[], object], pause_s: float | None = None) -> None:
        """`pause_s`: in place of PAUSE_S."""
        self._fetch = fetch
        self._pause_s = PAUSE_S if pause_s is None else pause_s
        self._began_s = monotonic()
        self._running: asyncio.Task[None] | None = None
        self._waiting = 0

    @property
    def full(self) -> bool:
        """Whether so many calls wait already that no other may."""
        return self._waiting >= WAITING_MAX

    async def refresh(self) -> None:
        """Fetches, or waits for the fetch that is under way."""
        await asyncio.wait([self._started(0)])

    async def fetched(self) -> None:
        """Waits until keys were fetched after now or just before, successfully or not, for
        WAIT_MAX_S at most."""
        pause_s = max(0.0, self._began_s + self._pause_s - monotonic())
        self._waiting += 1
        try:
            await asyncio.wait([self._started(pause_s)], timeout=WAIT_MAX_S)
        finally:
            self._waiting -= 1

    def _started(self, pause_s: float) -> asyncio.Task[None]:
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run(pause_s))
        return self._running

    async def _run(self, pause_s: float) -> None:
        await asyncio.sleep(pause_s)
        self._began_s = monotonic()
        await asyncio.to_thread(self._fetch)
