"""Pages of the ledger of a whole business: those of its books, merged.

The ledger has no index that begins with the business. The one by book and type has the times of the
events of each type in each book in order, and this merges those runs. Of each it reads a few times
at first, and more only of those runs of which all that were read are on the page: so for a page of
n events it reads about 2 n and one a run, and at most n times four in each of a handful of rounds,
however many events the books have. Then it reads the events of those times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from heapq import nlargest
from itertools import product
from typing import Any, Final, LiteralString
from uuid import UUID

from coupon_service.model import Event
from coupon_service.store.arrays import int_array, uuid_array
from coupon_service.store.pipeline import Connection
from coupon_service.store.rows import EVENTS, event_from_row

Run = tuple[UUID, int]
"""The events of one type in one book."""

GROWTH: Final = 4
"""Of the number of events that is read of a run, from round to round."""

SELECT_BOOK_IDS: Final = """
SELECT book_id FROM coupon_books WHERE business_id = %(business_id)s AND create_time < %(end_time)s
"""

# Few events have the time at which the page before has ended: they are found by it, not run by run.
SELECT_TIED: Final[LiteralString] = f"""
SELECT {EVENTS.selected}
FROM unnest(%(all_types)s::smallint[]) AS wanted (event_type)
CROSS JOIN LATERAL (
    SELECT * FROM redemption_audit
    WHERE type::integer = event_type AND event_time = %(time)s AND event_id < %(id)s
        AND book_id = ANY(%(books)s::uuid[])
        AND event_time >= %(start_time)s AND event_time < %(end_time)s
    OFFSET 0
) AS event
"""

# An index-only scan for each run.
SELECT_TIMES: Final = """
SELECT run_book, run_type, event.event_time
FROM unnest(%(books)s::uuid[], %(types)s::smallint[]) AS run (run_book, run_type)
CROSS JOIN LATERAL (
    SELECT event_time FROM redemption_audit
    WHERE book_id = run_book AND type = run_type AND event_time < %(time)s
        AND event_time >= %(start_time)s AND event_time < %(end_time)s
    ORDER BY event_time DESC
    LIMIT %(depth)s
) AS event
"""

SELECT_SINCE: Final[LiteralString] = f"""
SELECT {EVENTS.selected}
FROM unnest(%(books)s::uuid[], %(types)s::smallint[]) AS run (run_book, run_type)
CROSS JOIN LATERAL (
    SELECT * FROM redemption_audit
    WHERE book_id = run_book AND type = run_type AND event_time < %(time)s
        AND event_time >= %(since)s AND event_time < %(end_time)s
    OFFSET 0
) AS event
"""


async def newest_events(
    connection: Connection, types: Sequence[int], parameters: Mapping[str, Any], count: int
) -> list[Event]:
    """The newest events of these types of a business, newest first. In a transaction that reads
    indexes in their order.

    `parameters`: `business_id`; `time` and `id`, before which they are; `start_time`, `end_time`.
    """
    cursor = await connection.execute(SELECT_BOOK_IDS, parameters)
    books = [book_id for (book_id,) in await cursor.fetchall()]
    tied = {**parameters, "all_types": int_array(types), "books": uuid_array(books)}
    events = await _select(connection, SELECT_TIED, tied)
    if len(events) < count:
        runs = list(product(books, types))
        events += await _earlier(connection, runs, parameters, count - len(events))
    return nlargest(count, events, key=lambda it: (it.event_time, it.event_id))


async def _earlier(
    connection: Connection, runs: Sequence[Run], parameters: Mapping[str, Any], count: int
) -> list[Event]:
    """The `count` newest events of the runs before `time`, and those that have the time of the last
    of them."""
    unread = list(runs)
    times: dict[Run, list[datetime]] = {}
    newest: list[datetime] = []
    depth = 1 + 2 * count // max(len(unread), 1)
    while unread:
        times |= {run: [] for run in unread}
        times |= await _select_times(connection, unread, depth, parameters)
        newest = nlargest(count, (time for of_run in times.values() for time in of_run))
        unread = [
            it
            for it in unread
            if len(times[it]) == depth and (len(newest) < count or times[it][-1] > newest[-1])
        ]
        depth *= GROWTH
    if not newest:
        return []
    since = newest[-1]
    read = [it for it, of_run in times.items() if of_run and of_run[0] >= since]
    return await _select(connection, SELECT_SINCE, {**parameters, **_arrays(read), "since": since})


async def _select_times(
    connection: Connection, runs: Sequence[Run], depth: int, parameters: Mapping[str, Any]
) -> dict[Run, list[datetime]]:
    """The times of so many events of each of the runs, newest first; none of one that has none."""
    read = {**parameters, **_arrays(runs), "depth": depth}
    cursor = await connection.execute(SELECT_TIMES, read)
    times: dict[Run, list[datetime]] = {}
    for book_id, event_type, time in await cursor.fetchall():
        times.setdefault((book_id, event_type), []).append(time)
    return {run: sorted(of_run, reverse=True) for run, of_run in times.items()}


async def _select(
    connection: Connection, statement: LiteralString, parameters: Mapping[str, Any]
) -> list[Event]:
    cursor = await connection.execute(statement, parameters)
    return [event_from_row(row) for row in await cursor.fetchall()]


def _arrays(runs: Sequence[Run]) -> dict[str, Any]:
    return {
        "books": uuid_array([book_id for book_id, _ in runs]),
        "types": int_array([event_type for _, event_type in runs]),
    }
