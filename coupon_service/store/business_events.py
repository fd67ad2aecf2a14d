"""Pages of the ledger of a whole business: those of its books, merged.

The ledger has no index that begins with the business. The one by book and type has the events of
each type in each book in order, and this merges those runs. Of each it reads a few events at first,
and more only of those runs of which all events that were read are on the page: so for a page of n
events it reads about 2 n and one a run, and at most n times four in each of a handful of rounds,
however many events the books have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from heapq import nlargest
from itertools import product
from typing import Any, Final
from uuid import UUID

from coupon_service.store.arrays import int_array, uuid_array
from coupon_service.store.keyset import IN_ORDER
from coupon_service.store.pipeline import Connection

Key = tuple[datetime, UUID]
"""By what events are sorted: time and id."""
Run = tuple[UUID, int]
"""The events of one type in one book."""

GROWTH: Final = 4
"""Of the number of events that is read of a run, from round to round."""

SELECT_BOOK_IDS: Final = """
SELECT book_id FROM coupon_books WHERE business_id = %(business_id)s AND create_time < %(end_time)s
"""

# An index-only scan for each run.
SELECT_KEYS: Final = """
SELECT run_book, run_type, event.event_time, event.event_id
FROM unnest(%(books)s::uuid[], %(types)s::smallint[]) AS run (run_book, run_type)
CROSS JOIN LATERAL (
    SELECT event_time, event_id FROM redemption_audit
    WHERE book_id = run_book AND type = run_type
        AND (event_time, event_id) < (%(time)s, %(id)s)
        AND event_time >= %(start_time)s AND event_time < %(end_time)s
    ORDER BY event_time DESC, event_id DESC
    LIMIT %(depth)s
) AS event
"""


async def newest_event_ids(
    connection: Connection, types: Sequence[int], parameters: Mapping[str, Any], count: int
) -> list[UUID]:
    """The ids of the newest events of these types of a business, newest first. In a transaction.

    `parameters`: `business_id`; `time` and `id`, before which they are; `start_time`, `end_time`.
    """
    await connection.execute(IN_ORDER)
    cursor = await connection.execute(SELECT_BOOK_IDS, parameters)
    books = [book_id for (book_id,) in await cursor.fetchall()]
    unread: list[Run] = list(product(books, types))
    runs: dict[Run, list[Key]] = {}
    newest: list[Key] = []
    depth = 1 + 2 * count // max(len(unread), 1)
    while unread:
        runs |= {run: [] for run in unread}
        runs |= await _select_keys(connection, unread, depth, parameters)
        newest = nlargest(count, (key for run in runs.values() for key in run))
        unread = [
            it
            for it in unread
            if len(runs[it]) == depth and (len(newest) < count or runs[it][-1] > newest[-1])
        ]
        depth *= GROWTH
    return [event_id for _, event_id in newest]


async def _select_keys(
    connection: Connection, runs: Sequence[Run], depth: int, parameters: Mapping[str, Any]
) -> dict[Run, list[Key]]:
    """So many events of each of the runs, newest first; none of one that has none."""
    read: dict[str, Any] = {
        **parameters,
        "books": uuid_array([book_id for book_id, _ in runs]),
        "types": int_array([event_type for _, event_type in runs]),
        "depth": depth,
    }
    cursor = await connection.execute(SELECT_KEYS, read)
    keys: dict[Run, list[Key]] = {}
    for book_id, event_type, time, event_id in await cursor.fetchall():
        keys.setdefault((book_id, event_type), []).append((time, event_id))
    return {run: sorted(of_run, reverse=True) for run, of_run in keys.items()}
