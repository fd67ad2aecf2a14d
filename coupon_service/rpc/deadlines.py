"""Deadlines of many operations, with one timer for all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from time import perf_counter
from typing import Any, Final, TypeVar

from coupon_service.errors import DeadlineExceeded

T = TypeVar("T")

TICK_S: Final = 0.02
"""How exact deadlines are kept. A timer for each operation would cost more than it is worth."""


class Deadlines:
    """Ends the work of tasks whose deadline has passed."""

    def __init__(self) -> None:
        self._due: dict[int, set[asyncio.Task[Any]]] = {}
        """The tasks by the tick after their deadline."""
        self._past = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def open(self) -> int:
        """How many ticks there are whose tasks may be late."""
        return len(self._due)

    async def within(self, deadline: float, work: Awaitable[T]) -> T:
        """What `work` returns. Raises DeadlineExceeded after the deadline, in seconds of
        time.perf_counter.
        """
        task = asyncio.current_task()
        if task is None:
            raise AssertionError("an operation is carried out outside of a task")
        if self._timer is None:
            self._past = int(perf_counter() / TICK_S)
            self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)
        tick = max(int(deadline / TICK_S), self._past) + 1
        due = self._due.setdefault(tick, set())
        due.add(task)
        try:
            return await work
        except asyncio.CancelledError:
            if task in due or task.uncancel() > 0:
                raise
            raise DeadlineExceeded from None
        finally:
            due.discard(task)
            if not due and self._due.get(tick) is due:
                del self._due[tick]

    def _tick(self) -> None:
        now = int(perf_counter() / TICK_S)
        for tick in range(self._past + 1, now + 1):
            due = self._due.pop(tick, set())
            late = tuple(due)
            due.clear()
            for task in late:
                task.cancel()
        self._past = now
        more = bool(self._due)
        self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick) if more else None
