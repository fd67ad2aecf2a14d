"""Bulk work gives way: what is done for millions of codes takes turns, and rests for others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Final, LiteralString, TypeVar
from weakref import WeakValueDictionary

from coupon_service.store.database import Database, Work
from coupon_service.store.pipeline import Connection, Pipeline
from coupon_service.store.sessions import APPLICATION_NAME

T = TypeVar("T")

REST_FACTOR: Final = 5
"""How many times as long as a step a rest is while others are at work all the time: bulk work then
has a sixth of the time."""

REST_MAX_S: Final = 0.25
"""Longest rest: far less than the idle time that PostgreSQL allows to a transaction."""

SAMPLE_WEIGHT: Final = 0.2
"""Of the newest sample in the load: what was sampled some ten steps ago hardly counts any more."""

BULK_LOCK: Final = 6_120_418_377
"""The advisory lock of the transactions of bulk work; the number means nothing."""

SILENCE_MAX_S: Final = 35.0
"""Longest wait for an answer: a little longer than for a statement."""

# In the transaction, since behind a pooler it is not the session that has them.
BE_PATIENT: Final = """
SELECT set_config('lock_timeout', '20s', true), set_config('statement_timeout', '30s', true)
"""
LOCK_LANE: Final = "SELECT pg_advisory_xact_lock(%s)"


class BulkLane:
    """Bulk work of a worker: one piece at a time, on a connection that nobody else uses.

    A piece is a chunk or a page. It is done in steps of a few milliseconds. While nobody else is
    served, one step follows the other. While others are, by any worker on the same database,
    there is a rest after each, in proportion to how often somebody was at work.
    """

    def __init__(self, database: Database) -> None:
        """`database`: with one connection, which says that it is for bulk work."""
        self._database = database
        self._turn = asyncio.Lock()
        self._businesses: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._load = 1.0  # until it is known that nobody else is at work

    @asynccontextmanager
    async def turn(self, business_id: str) -> AsyncGenerator[None]:
        """For a piece of work. Businesses take turns, and so do the calls of each.

        Whoever waits holds nothing, and is passed over when it is cancelled.
        """
        business = self._businesses.setdefault(business_id, asyncio.Lock())
        async with business, self._turn:  # both are first come, first served
            yield

    async def transaction(self, name: str, work: Work[T]) -> T:
        """As Database.transaction, for whoever has the turn; one at a time over all workers.

        It may wait for locks, and its statements may take, longer than others.
        """

        async def alone(connection: Connection) -> T:
            await connection.execute(BE_PATIENT)
            connection.silence_max_s = SILENCE_MAX_S
            await connection.execute(LOCK_LANE, [BULK_LOCK])
            return await work(connection)

        return await self._database.transaction(name, alone)

    async def read(self, name: str, work: Work[T]) -> T:
        """As Database.read, for whoever has the turn."""
        return await self._database.read(name, work)

    async def whole_transaction(self, name: str, work: Work[T]) -> T:
        """As `transaction`, for one that holds up others as long as it takes: the rest comes after
        it."""
        began_s = perf_counter()
        done = await self.transaction(name, work)
        took_s = perf_counter() - began_s
        await self.read("others_at_work", self._look)
        await self._rest(took_s)
        return done

    async def steps(self, items: Sequence[T], size: int) -> AsyncGenerator[Sequence[T]]:
        """The items in steps of so many, with a rest after what is done with each step."""
        for start in range(0, len(items), size):
            began_s = perf_counter()
            yield items[start : start + size]
            await self._rest(perf_counter() - began_s)

    @asynccontextmanager
    async def step(self, connection: Connection) -> AsyncGenerator[None]:
        """For a step of work in PostgreSQL: with a look at what others do, and a rest after it."""
        began_s = perf_counter()
        yield
        await self._look(connection)
        await self._rest(perf_counter() - began_s)

    async def _look(self, connection: Connection) -> None:
        self._load += (await others_at_work(connection) - self._load) * SAMPLE_WEIGHT

    async def _rest(self, step_s: float) -> None:
        """Others get their turn of the event loop in any case."""
        await asyncio.sleep(min(step_s * self._load * REST_FACTOR, REST_MAX_S))


# A transaction sees others as they were when it first looked.
LOOK_ANEW: Final = "SELECT pg_stat_clear_snapshot()"
OTHERS_AT_WORK: Final[LiteralString] = f"""
SELECT EXISTS (
    SELECT FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = '{APPLICATION_NAME}'
        AND (state <> 'idle' OR state_change > clock_timestamp() - interval '20 ms'))
"""


async def others_at_work(connection: Connection) -> bool:
    """Whether anything but bulk work is being done, by any worker, or was a moment ago.

    Others hardly ever are at work just when it looks, since it looks when its own step has ended.
    """
    pipeline = Pipeline(connection)
    pipeline.add(LOOK_ANEW)
    found = pipeline.add(OTHERS_AT_WORK)
    await pipeline.run()
    return found == [(True,)]
