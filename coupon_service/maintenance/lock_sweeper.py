"""Records in the ledger that locks expired. Redis ends them by itself; nothing waits for this."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from uuid import UUID

from coupon_service.batching import CommandLanes
from coupon_service.leases import LeaseKey, Leases
from coupon_service.locks.release import lock_end
from coupon_service.maintenance.periodic import run_periodically
from coupon_service.model import Call, CommandGroup, Done, EventType, LockState
from coupon_service.model.times import milliseconds_of
from coupon_service.rules import lock_view
from coupon_service.store.queries.reads import Reads

SWEEP_BATCH = 500
"""Locks that the sweeper records at a time."""


class LockSweeper:
    """Writes to the ledger that locks expired, and clears their index entries.

    Nothing waits for it. All replicas take turns; should two do it at once, nothing happens twice.
    """

    def __init__(
        self,
        lanes: CommandLanes,
        reads: Reads,
        leases: Leases,
        now: Callable[[], datetime],
        interval_ms: int,
        is_own: Callable[[str], bool] = lambda _: True,
    ) -> None:
        """`is_own`: whether the book with this id may be in this database."""
        self._is_own = is_own
        self._lanes = lanes
        self._reads = reads
        self._leases = leases
        self._now = now
        self._interval_ms = interval_ms

    async def run(self) -> None:
        """Sweeps until it is cancelled."""
        await run_periodically(self.sweep, lambda: self._interval_ms / 1000, failed="sweep failed")

    async def sweep(self) -> int:
        """Records every lock that has expired, and says how many. 0 when it is not its turn."""
        if not await self._reads.my_turn("sweep", self._interval_ms):
            return 0
        swept = 0
        while expired := await self._expired():
            for keys in expired:
                swept += await self._record([UUID(key.lock_id) for key in keys])
                await self._leases.forget(keys)
            if max(map(len, expired)) < SWEEP_BATCH:
                break
        return swept

    async def _expired(self) -> list[list[LeaseKey]]:
        """Expired locks, book by book, of the books that are in this database."""
        now_ms = milliseconds_of(self._now())
        books = [it for it in await self._leases.books() if self._is_own(it)]
        expired = await self._leases.expired(books, now_ms, SWEEP_BATCH)
        known = await self._reads.known_books(expired) if expired else ()
        return [[it.key for it in locks] for book_id, locks in expired.items() if book_id in known]

    async def _record(self, lock_ids: list[UUID]) -> int:
        call = Call(caller="sweeper", request_id="lock-expired")
        histories = await self._reads.lock_events(lock_ids, "")
        views = [lock_view(events, self._now()) for events in histories]
        commands = tuple(
            lock_end(view, EventType.LOCK_EXPIRED, call)
            for view in views
            if view is not None and view.state is LockState.EXPIRED
        )
        if not commands:
            return 0
        outcomes = await self._lanes.submit(CommandGroup(commands))
        return sum(isinstance(it, Done) and not it.replayed for it in outcomes)
