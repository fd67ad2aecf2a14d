"""The ledger for all who follow it in a worker: one poll of how far it is complete, for all of
them, and only while there are any.

LISTEN and NOTIFY would need a connection of its own, which poolers do not give.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from time import monotonic
from typing import Final, Protocol

import structlog

from coupon_service.errors import CouponServiceError, DatabaseUnavailable, ResumeTokenAhead
from coupon_service.model import Event
from coupon_service.store.database import Database
from coupon_service.store.events import AuditFilter
from coupon_service.store.ledger_horizon import Complete, Holder, LedgerHorizon
from coupon_service.store.pipeline import Connection
from coupon_service.store.queries.followed_events import (
    BEGINNING,
    LedgerPage,
    LedgerPosition,
    is_there,
    position_after,
    select_end,
    select_followed,
    select_start,
)

POLL_S: Final = 0.1

STALLED_S: Final = 2.0
"""From when on a ledger that is not complete is said to be held up, and by whom."""

NAMED_S: Final = 10.0
"""Between two looks at who holds it up."""

WINDOWS_MAX: Final = 10
"""Of the ledger, that a page of a list looks at."""

LOST_S: Final = 5.0
"""For how long PostgreSQL may not answer before followers are told."""


class LedgerObserver(Protocol):
    """Who is notified of those who follow the ledger."""

    def ledger_followed(self, followers: int, lag_s: float, stall_s: float) -> None:
        """So many follow it; the slowest has events to read since `lag_s`, and new ones have been
        held up for `stall_s`."""
        ...


@dataclass(frozen=True, slots=True)
class Stall:
    """New events are held up, for so long by now, by these transactions."""

    seconds: float
    holders: Sequence[Holder]


@dataclass(slots=True)
class Follower:
    """Somebody who reads the ledger. `caught_up_s`: when there was nothing more to read."""

    caught_up_s: float


@dataclass(frozen=True, slots=True)
class Followed:
    """A page, and when everything that was recorded before is in it or in those before; None while
    there is more."""

    page: LedgerPage
    complete_time: datetime | None


class LedgerFeed:
    """What the followers of a worker read."""

    def __init__(self, database: Database, observer: LedgerObserver) -> None:
        self._database = database
        self._observer = observer
        self._horizon = LedgerHorizon(database)
        self._followers: list[Follower] = []
        self._lookers = 0
        self._polling: asyncio.Task[None] | None = None
        self._tick = asyncio.Event()
        self._failed_since_s: float | None = None
        self._named_s = 0.0
        self._log = structlog.get_logger(__name__)
        self.stall: Stall | None = None
        """What holds new events up by now, if something does."""

    @contextmanager
    def following(self) -> Generator[Follower]:
        """Somebody follows the ledger meanwhile."""
        follower = Follower(monotonic())
        with self.looking():
            self._followers.append(follower)
            try:
                yield follower
            finally:
                self._followers.remove(follower)
                self._observe()

    @contextmanager
    def looking(self) -> Generator[None]:
        """Meanwhile it is known how far the ledger is complete."""
        self._lookers += 1
        if self._polling is None:
            self._horizon = LedgerHorizon(self._database)  # what was known is of some time ago
            self._failed_since_s = None
            self._polling = asyncio.ensure_future(self._poll())
        try:
            yield
        finally:
            self._lookers -= 1
            if not self._lookers:
                self._stop_polling()

    def _stop_polling(self) -> None:
        if self._polling is not None:
            self._polling.cancel()
        self._polling = self.stall = None

    async def tick(self) -> None:
        """Returns after the next look. Raises DatabaseUnavailable when none succeeds for LOST_S."""
        await self._tick.wait()
        if self._failed_since_s is not None and monotonic() - self._failed_since_s > LOST_S:
            raise DatabaseUnavailable

    async def complete(self) -> Complete:
        """How far it is complete, waiting for the first look. Raises as `tick`."""
        while self._horizon.complete is None:
            await self.tick()
        return self._horizon.complete

    @property
    def is_known(self) -> bool:
        """Whether it is known how far the ledger is complete."""
        return self._horizon.complete is not None

    @property
    def last_number(self) -> int:
        """The last number that was drawn, by the last look."""
        return self._horizon.last_number

    async def _poll(self) -> None:
        while True:
            try:
                await self._horizon.advance()
                await self._look_for_stall()
                self._failed_since_s = None
            except CouponServiceError:
                self._failed_since_s = self._failed_since_s or monotonic()
            self._observe()
            ticked, self._tick = self._tick, asyncio.Event()
            ticked.set()
            await asyncio.sleep(POLL_S)

    async def _look_for_stall(self) -> None:
        seconds = self._horizon.behind_s
        if seconds < STALLED_S:
            self.stall = None
            return
        holders: Sequence[Holder] = self.stall.holders if self.stall else ()
        if self.stall is None or monotonic() - self._named_s > NAMED_S:
            holders = await self._horizon.holders()
            self._named_s = monotonic()
            self._log.warning(
                "the ledger is held up", seconds=round(seconds, 1), by="; ".join(map(str, holders))
            )
        self.stall = Stall(seconds, holders)

    def _observe(self) -> None:
        now_s = monotonic()
        lag_s = max((now_s - it.caught_up_s for it in self._followers), default=0.0)
        self._observer.ledger_followed(
            len(self._followers), lag_s, self.stall.seconds if self.stall else 0.0
        )

    # --- pages ----------------------------------------------------------------------------------

    async def end(self) -> LedgerPosition:
        """After all that is complete now."""
        complete = await self.complete()
        return await self._database.read(
            "ledger_end", lambda connection: select_end(connection, complete.number)
        )

    async def start(self, time: datetime) -> LedgerPosition:
        """Before the first event of this time."""
        complete = await self.complete()
        return await self._database.read(
            "ledger_start", lambda connection: select_start(connection, time, complete.number)
        )

    async def page(
        self, wanted: AuditFilter, page_size: int, after: LedgerPosition | None
    ) -> Followed:
        """So many events, or fewer: at most WINDOWS_MAX windows are looked at.

        Raises as LedgerReader does.
        """
        with self.looking():
            if after is None:
                after = await self.start(wanted.start_time) if wanted.start_time else BEGINNING
            reader = self.reader(wanted, after)
            followed = await reader.next()
            events: list[Event] = [*followed.page.events]
            for _ in range(WINDOWS_MAX - 1):
                if len(events) >= page_size or reader.is_caught_up:
                    break
                followed = await reader.next()
                events += followed.page.events
            if len(events) > page_size:
                end = position_after(events[page_size - 1])
                return Followed(LedgerPage(events[:page_size], end, is_last=False), None)
            return replace(followed, page=replace(followed.page, events=events))

    def reader(self, wanted: AuditFilter, after: LedgerPosition = BEGINNING) -> LedgerReader:
        """Reads page after page. To be used while `following` or `looking`."""
        return LedgerReader(self, self._database, self._horizon, wanted, after)


SELECT_SERVER_START: Final = "SELECT pg_postmaster_start_time()"


class LedgerReader:
    """The pages of one follower."""

    def __init__(
        self,
        feed: LedgerFeed,
        database: Database,
        horizon: LedgerHorizon,
        wanted: AuditFilter,
        after: LedgerPosition,
    ) -> None:
        self._feed = feed
        self._database = database
        self._horizon = horizon
        self._wanted = wanted
        self._server: datetime | None = None
        self._position = after
        self.read_up_to = -1
        """Up to which number all has been read; -1 while there is more that is complete."""

    @property
    def is_caught_up(self) -> bool:
        """Whether all that is complete has been read."""
        return self.read_up_to >= 0

    def go_back(self, position: LedgerPosition) -> None:
        """Has the next page begin here."""
        self._position, self.read_up_to = position, -1

    async def next(self) -> Followed:
        """The next page, which may have no events.

        Raises ResumeTokenAhead when the ledger is not the one that was read, and as Database does.
        """
        complete = await self._feed.complete()
        server = self._horizon.server
        if server != self._server:
            self.read_up_to = -1
            await self._check()
        elif complete.number == self.read_up_to:
            return Followed(LedgerPage((), self._position, is_last=True), complete.time)

        async def work(connection: Connection) -> LedgerPage:
            cursor = await connection.execute(SELECT_SERVER_START)
            if await cursor.fetchone() != (server,):
                raise DatabaseUnavailable  # it has just changed, and is looked at anew
            return await select_followed(connection, self._wanted, self._position, complete.number)

        page = await self._database.transaction("follow_ledger", work)
        self._server, self._position = server, page.end
        self.read_up_to = complete.number if page.is_last else -1
        return Followed(page, complete.time if page.is_last else None)

    async def _check(self) -> None:
        """The server is not the one of before, as at the beginning: does it have what was read?"""
        position = self._position
        if position.sequence <= self._horizon.last_number and await self._database.read(
            "check_position", lambda connection: is_there(connection, position)
        ):
            return
        raise ResumeTokenAhead(sequence=str(position.sequence))
