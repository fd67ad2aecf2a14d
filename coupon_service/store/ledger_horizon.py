"""How far the ledger is complete: up to which number nothing can be added to it any more.

Numbers are drawn in order, and committed in any. An event that becomes visible below one that was
read already would be missed for good. So a number is only read once all transactions have ended
that may have drawn it or one below: those that had an id when it was the last one, since each gets
its id first and draws then (the DEFAULT of the column sees to that).

That bound is the next id to be given out. The `xmax` of a snapshot is not: it is the one after the
last that *ended*, and a writer that alone is in flight has just that id. `age` counts up to the
next one, and uses none up.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from datetime import datetime
from time import monotonic
from typing import Final, LiteralString

from coupon_service.errors import DatabaseUnavailable
from coupon_service.store.database import Database
from coupon_service.store.pipeline import Connection, Pipeline, Rows

BOUNDS_MAX: Final = 64
"""Kept while a transaction holds the ledger up; beyond that the newest is replaced."""

SETTLE_POLL_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class Complete:
    """Each event up to `number` is committed and can be read, or will never be there.

    `time`: an event above `number` was drawn after it. By PostgreSQL's clock.
    """

    number: int
    time: datetime


@dataclass(frozen=True, slots=True)
class Holder:
    """A transaction that holds the ledger up: one that has an id and has not ended.

    `application`: what its session calls itself, or, of a prepared one, the name of that.
    `pid`: None for a prepared one. `seconds`: how long it has been going on; None where this role
    may not know.
    """

    application: str
    pid: int | None
    role: str
    database: str
    seconds: float | None

    def __str__(self) -> str:
        """It in a few words, for people."""
        what = "prepared transaction" if self.pid is None else f"backend {self.pid},"
        since = "" if self.seconds is None else f", since {self.seconds:.0f} s"
        return (
            f"{what} {self.application or 'unnamed'} (role {self.role or 'unknown'},"
            f" database {self.database or 'unknown'}{since})"
        )


@dataclass(frozen=True, slots=True)
class _Bound:
    """`complete` is so as soon as no transaction is left with an id below `next_id`."""

    complete: Complete
    next_id: int


# By the function, which locks the page: while nextval writes to the WAL, a plain SELECT of the
# sequence may see the number up to which that is written, which has not been drawn.
LAST_NUMBER: Final = """
SELECT coalesce(pg_sequence_last_value('redemption_audit_numbers'), 0), clock_timestamp(),
    pg_postmaster_start_time(), pg_is_in_recovery()
"""

# After the last number, in a statement of its own, and in a transaction without an id: `age` counts
# up to an id of the transaction, where that has one.
IDS: Final = """
SELECT pg_snapshot_xmin(snapshot)::text::bigint,
    pg_snapshot_xmax(snapshot)::text::bigint + age(pg_snapshot_xmax(snapshot)::xid)
FROM pg_current_snapshot() AS snapshot
"""


class LedgerHorizon:
    """Follows how far the ledger is complete. One reader moves it on, any number may look."""

    def __init__(self, database: Database) -> None:
        """`database`: the primary. A standby sees the sequence ahead of what was drawn."""
        self._database = database
        self._bounds: deque[_Bound] = deque()
        self.complete: Complete | None = None
        """By the last `advance`; None before it could tell."""
        self.server: datetime | None = None
        """When the server started that was looked at, by which it is told from others."""
        self.last_number = 0
        """The last that was drawn, committed or not."""
        self.read_time: datetime | None = None
        """When that was, by PostgreSQL's clock."""

    @property
    def behind_s(self) -> float:
        """For how long it has not been complete, by the last `advance`; 0 when it is."""
        if self.read_time is None or not self._bounds:
            return 0.0
        since = self.complete.time if self.complete else self._bounds[0].complete.time
        return (self.read_time - since).total_seconds()

    async def advance(self) -> Complete | None:
        """Looks once, in one round trip. Idle, the ledger is complete at once; under load it is as
        of an earlier call.

        Raises DatabaseUnavailable, also for a standby.
        """
        drawn, ids = await self._database.batch("ledger_horizon", _look)
        ((number, time, server, is_standby),), ((oldest_id, next_id),) = drawn, ids
        if is_standby:
            raise DatabaseUnavailable("The ledger is followed on the primary, not on a standby.")
        # Another server, or a ledger that was put back to an earlier state: it gives out ids and
        # numbers again that were lost, of which nothing is known yet.
        if server != self.server or number < self.last_number:
            self.server, self.complete = server, None
            self._bounds.clear()
        self.last_number, self.read_time = number, time
        if len(self._bounds) == BOUNDS_MAX:
            self._bounds.pop()
        self._bounds.append(_Bound(Complete(number, time), next_id))
        if self.complete is not None and number == self.complete.number:
            self._bounds.clear()
            self.complete = Complete(number, time)
        while self._bounds and self._bounds[0].next_id <= oldest_id:
            self.complete = self._bounds.popleft().complete
        return self.complete

    async def settled(self, within_s: float) -> Complete | None:
        """What is complete once all that was drawn by now is; when that takes longer, what is
        complete by then, None for nothing.

        Raises as `advance` does.
        """
        deadline_s = monotonic() + within_s
        complete = await self.advance()
        wanted = self.last_number
        while (complete is None or complete.number < wanted) and monotonic() < deadline_s:
            await asyncio.sleep(SETTLE_POLL_S)
            complete = await self.advance()
        return complete

    async def holders(self, count: int = 3) -> list[Holder]:
        """Who holds it up: the oldest transactions first, those of other databases among them."""

        async def work(connection: Connection) -> list[Holder]:
            cursor = await connection.execute(SELECT_HOLDERS, {"count": count})
            return [Holder(*row) for row in await cursor.fetchall()]

        return await self._database.read_at_once("ledger_holders", work)


async def _look(pipeline: Pipeline) -> tuple[Rows, Rows]:
    """Filled when the transaction has ended."""
    return pipeline.add(LAST_NUMBER), pipeline.add(IDS)


# Ids, names and prepared transactions are for everyone to see, times of other roles are not.
SELECT_HOLDERS: Final[LiteralString] = """
SELECT name, pid, role, database, seconds
FROM (
    SELECT coalesce(application_name, '') AS name, pid, coalesce(usename, '') AS role,
        coalesce(datname, '') AS database, backend_xid AS id,
        extract(epoch FROM clock_timestamp() - xact_start)::float8 AS seconds
    FROM pg_stat_activity WHERE backend_xid IS NOT NULL
    UNION ALL
    SELECT gid, NULL, owner, database, transaction,
        extract(epoch FROM clock_timestamp() - prepared)::float8
    FROM pg_prepared_xacts
) AS holder
ORDER BY age(id) DESC
LIMIT %(count)s
"""
