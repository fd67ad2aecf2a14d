"""Gives codes to the pools of their books again that their users have let expire."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from coupon_service.batching import CommandLanes
from coupon_service.locks.limits import LockLimits
from coupon_service.maintenance.periodic import run_periodically
from coupon_service.model import (
    Call,
    CommandGroup,
    Done,
    EventType,
    ReturnToPool,
    event_id,
    fingerprint,
)
from coupon_service.model.codes import bucket_of
from coupon_service.store.queries.due_returns import DueReturn
from coupon_service.store.queries.reads import Reads

RETURN_BATCH = 500
"""Codes that are returned at a time."""


class PoolSweeper:
    """Ends assignments that have expired in books with `return_to_pool`.

    Not before every lock that was taken in time is over: the greatest lifetime of one and the grace
    later. All replicas take turns; should two do it at once, nothing happens twice.
    """

    def __init__(
        self,
        lanes: CommandLanes,
        reads: Reads,
        limits: LockLimits,
        now: Callable[[], datetime],
        interval_ms: int,
    ) -> None:
        self._lanes = lanes
        self._reads = reads
        self._life_max = timedelta(milliseconds=limits.life_max_ms)
        self._grace = timedelta(milliseconds=limits.grace_ms)
        self._now = now
        self._interval_ms = interval_ms

    async def run(self) -> None:
        """Sweeps until it is cancelled."""
        await run_periodically(self.sweep, lambda: self._interval_ms / 1000, failed="sweep failed")

    async def sweep(self) -> int:
        """Returns every code that is due, and says how many. 0 when it is not its turn."""
        if not await self._reads.my_turn("returns", self._interval_ms):
            return 0
        returned = 0
        now = self._now()
        due: Sequence[DueReturn] = ()
        while True:
            last = due[-1] if due else None
            due = await self._reads.due_returns(now - self._life_max, RETURN_BATCH, last)
            if due:
                commands = tuple(self._command(it, now) for it in due)
                outcomes = await self._lanes.submit(CommandGroup(commands))
                returned += sum(isinstance(it, Done) and not it.replayed for it in outcomes)
            if len(due) < RETURN_BATCH:
                return returned

    def _command(self, due: DueReturn, now: datetime) -> ReturnToPool:
        ended = due.book_id, due.code, due.user_id, due.assign_time.isoformat()
        return ReturnToPool(
            call=Call(caller="sweeper", request_id="assignment-expired"),
            code=due.code,
            event_id=event_id(bucket_of(due.code), EventType.ASSIGNMENT_EXPIRED, *ended),
            fingerprint=fingerprint(*ended),
            user_id=due.user_id,
            book_id=due.book_id,
            assign_time=due.assign_time,
            ended_by=now - self._life_max,
            unlocked_by=now - self._grace,
        )
