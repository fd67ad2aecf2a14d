"""Writes refused attempts to PostgreSQL, beside the calls: no call waits for it or fails by it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from typing import Final

import structlog

from coupon_service.errors import CouponServiceError
from coupon_service.model.pseudonyms import NO_PSEUDONYMS, Pseudonyms
from coupon_service.model.refused_attempts import RefusedAttempt
from coupon_service.store.database import Database
from coupon_service.store.refusals import insert_refusals
from coupon_service.telemetry.metrics import Metrics

DELAY_S: Final = 1.0
"""How long the first attempt waits for others that are written with it, unless there are enough."""

WAITING_MAX: Final = 10_000
"""Attempts of a worker that wait to be written, some MiB; more are dropped."""

WRITTEN_MAX: Final = 500
"""Attempts in one statement, so that no call waits for long while it is made."""

TRIES: Final = 5
RETRY_S: Final = 2.0
"""Between two of them: PostgreSQL may restart, or fail over, meanwhile."""

DRAIN_S: Final = 2.0
"""For how long a stop waits at most."""


class RefusalWriter:
    """Collects refused attempts for a moment, and writes those that came within it together.

    What does not fit, or cannot be written after some tries, is dropped and counted.
    """

    def __init__(
        self,
        database: Database,
        metrics: Metrics,
        pseudonyms: Pseudonyms = NO_PSEUDONYMS,
        *,
        delay_s: float = DELAY_S,
        waiting_max: int = WAITING_MAX,
        retry_s: float = RETRY_S,
    ) -> None:
        self._database = database
        self._metrics = metrics
        self._pseudonyms = pseudonyms
        self._delay_s = delay_s
        self._waiting_max = waiting_max
        self._retry_s = retry_s
        self._waiting: deque[Callable[[], RefusedAttempt]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._enough = asyncio.Event()
        self._hurried = asyncio.Event()
        self._log = structlog.get_logger(__name__)

    def add(self, refused: Callable[[], RefusedAttempt]) -> None:
        """Has the attempt written a moment later, as it is made then."""
        if len(self._waiting) >= self._waiting_max:
            self._metrics.refusals_dropped("full", 1)
            return
        self._waiting.append(refused)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._write_all())
        elif len(self._waiting) >= WRITTEN_MAX:
            self._enough.set()

    async def drain(self) -> None:
        """Returns when all that waits is written, or, without the rest, after DRAIN_S."""
        self._hurried.set()
        self._enough.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=DRAIN_S)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._drop("stopped", len(self._waiting))
            self._waiting.clear()

    async def _write_all(self) -> None:
        try:
            while self._waiting:
                await self._collect()
                rows = [it() for it in islice(self._waiting, WRITTEN_MAX)]
                await self._write(rows)
                for _ in rows:  # until here they count among those that wait
                    self._waiting.popleft()
        finally:
            self._task = None

    async def _collect(self) -> None:
        """Waits until there are enough for a statement, or the first may wait no longer: each
        statement costs as much as dozens of rows."""
        if len(self._waiting) < WRITTEN_MAX and not self._hurried.is_set():
            self._enough.clear()
            await self._pause(self._enough, self._delay_s)

    async def _write(self, rows: list[RefusedAttempt]) -> None:
        for left in reversed(range(TRIES)):
            try:
                await self._database.read(
                    "refusals", lambda it: insert_refusals(it, rows, self._pseudonyms)
                )
            except Exception as error:  # noqa: BLE001 - whatever it is, no call is to suffer from it
                if left == 0 or not isinstance(error, CouponServiceError):
                    self._drop("failed", len(rows), cause=repr(error.__cause__ or error))
                    return
                await self._pause(self._hurried, self._retry_s)
            else:
                self._metrics.refusals_written(len(rows))
                return

    async def _pause(self, until: asyncio.Event, seconds: float) -> None:
        """Waits for so long at most."""
        with suppress(TimeoutError):
            await asyncio.wait_for(until.wait(), seconds)

    def _drop(self, reason: str, count: int, **told: str) -> None:
        self._metrics.refusals_dropped(reason, count)
        self._log.warning("refused attempts dropped", reason=reason, count=count, **told)
