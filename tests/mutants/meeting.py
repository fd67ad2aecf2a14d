"""Where others come in between two steps that belong together."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Any, Final
from unittest import mock

import psycopg
from support.calls import tried
from support.waiting import until

from coupon_service.store.commands import executor

BETWEEN_S: Final = 0.2
"""How long others are let in who do not wait."""
ALONE_S: Final = 3.0
"""How long whoever comes first waits for the second."""


class Meeting:
    """Two who come at the same time go on when both are here, whatever server they come from.

    So both decide on what was there before either of them, however busy the machine is.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: threading.Event | None = None

    async def with_another(self) -> None:
        """Waits for another one."""
        with self._lock:
            other, mine = self._waiting, threading.Event()
            self._waiting = None if other is not None else mine
        if other is not None:
            other.set()
            return
        until_s = monotonic() + ALONE_S
        while not mine.is_set() and monotonic() < until_s:
            await asyncio.sleep(0.002)
        with self._lock:
            if self._waiting is mine:
                self._waiting = None


TAKE_TURN: Final = "SELECT pg_advisory_lock(4711)"
GIVE_TURN: Final = "SELECT pg_advisory_unlock(4711)"
WAIT_FOR_TURN: Final = (
    "SET LOCAL lock_timeout = 0",
    "SET LOCAL statement_timeout = 0",
    "SELECT FROM pg_advisory_xact_lock(4711)",
)
WAITING_FOR_A_LOCK: Final = """
SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
"""


def one_within_another(
    database_url: str, first: Callable[[], object], second: Callable[[], object]
) -> list[str]:
    """Make two calls, of which the second comes when the first has written, and is not committed
    before the second waits for it, or is done; returns the reason of each, or OK."""
    apply = executor.apply

    def held(pipeline: Any, *arguments: Any) -> None:
        apply(pipeline, *arguments)
        for statement in WAIT_FOR_TURN:
            pipeline.add(statement)

    with (
        psycopg.connect(database_url, autocommit=True) as observer,
        ThreadPoolExecutor(2) as pool,
    ):
        observer.execute(TAKE_TURN)
        try:
            with mock.patch.object(executor, "apply", held):
                one = pool.submit(tried, first)
                until(lambda: observer.execute(WAITING_FOR_A_LOCK).rowcount == 1 or one.done())
                assert not one.done(), one.result()
            other = pool.submit(tried, second)
            until(lambda: observer.execute(WAITING_FOR_A_LOCK).rowcount == 2 or other.done())
        finally:
            observer.execute(GIVE_TURN)
        return [one.result(), other.result()]
