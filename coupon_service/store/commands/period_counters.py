"""Counts of books with limits a day, week or month: a row for each period, and user or book."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Final, LiteralString
from uuid import UUID

from coupon_service.model import (
    Book,
    Command,
    Lock,
    PeriodKey,
    PeriodLimits,
    Redeem,
    Rollback,
    WriteSet,
    bucket_of_user,
)
from coupon_service.rules.periods import period_end, period_keys
from coupon_service.store.arrays import date_array, int_array, text_array, uuid_array
from coupon_service.store.columns import Column, Columns
from coupon_service.store.pipeline import Connection, Pipeline, Rows

KEPT: Final = timedelta(days=2)
"""For how long a row is kept after its period, by dates in UTC: until that is over everywhere, also
by clocks that are behind. Nobody can redeem in it any more then, and a roll-back has nothing to
credit.
"""

DECIDED_WITHIN: Final = timedelta(minutes=1)
"""How long after the time for which counts are read their commands are decided, nearly always."""

# A period that is over is only credited: where its row is gone, none is made.
ENSURE_PERIODS: Final = """
INSERT INTO coupon_period_counters (bucket, book_id, user_id, period_start, period_end)
SELECT * FROM unnest(%s::smallint[], %s::uuid[], %s::text[], %s::date[], %s::date[])
    AS wanted (bucket, book_id, user_id, period_start, period_end)
WHERE period_end >= %s::date
ON CONFLICT DO NOTHING
"""
SELECT_PERIODS: Final[LiteralString] = """
SELECT p.book_id, p.user_id, p.period_start, p.redemptions
FROM unnest(%s::smallint[], %s::uuid[], %s::text[], %s::date[])
    AS wanted (bucket, book_id, user_id, period_start)
JOIN coupon_period_counters AS p USING (bucket, book_id, user_id, period_start)
"""
LOCK_PERIODS: Final[LiteralString] = SELECT_PERIODS + (
    "ORDER BY p.bucket, p.book_id, p.user_id, p.period_start FOR NO KEY UPDATE OF p"
)


def periods_of(command: Command, book: Book, now: datetime) -> Iterator[PeriodKey]:
    """Those in which the command may be counted: that of now, or the next one where it is about to
    begin; that of a redemption, to roll it back."""
    if isinstance(command, Rollback):
        yield from period_keys(book, command.user_id, command.redemption.event_time)
    elif isinstance(command, (Redeem, Lock)):
        for time in (now, now + DECIDED_WITHIN):
            yield from period_keys(book, command.user_id, time)


def select_periods(
    pipeline: Pipeline,
    keys: Collection[PeriodKey],
    erased: Collection[PeriodKey],
    books: Mapping[UUID, Book],
    now: datetime,
    *,
    lock: bool,
) -> Rows:
    """Adds what reads the counts of these periods, in the order that all batches lock; also of
    users that were erased, where there are any."""
    if lock:
        rows, limits = _sorted(keys), _limits(books)
        ends = [period_end(limits[book_id], start) for _, book_id, _, start in rows]
        pipeline.add(ENSURE_PERIODS, (*_arrays(rows), date_array(ends), _kept_since(now)))
    arrays = _arrays(_sorted((*keys, *erased)))
    return pipeline.add(LOCK_PERIODS if lock else SELECT_PERIODS, arrays)


def _sorted(keys: Iterable[PeriodKey]) -> list[tuple[int, UUID, str, date]]:
    return sorted({(bucket_of_user(user), book, user, start) for book, user, start in keys})


def _arrays(rows: Iterable[tuple[int, UUID, str, date]]) -> tuple[str, str, str, str]:
    buckets, ids, users, starts = zip(*rows, strict=True)
    return int_array(buckets), uuid_array(ids), text_array(users), date_array(starts)


PERIOD_CHANGES: Final = Columns[tuple[PeriodKey, int, PeriodLimits]](
    Column("bucket", "smallint", lambda it: bucket_of_user(it[0][1])),
    Column("book_id", "uuid", lambda it: it[0][0]),
    Column("user_id", "text", lambda it: it[0][1]),
    Column("period_start", "date", lambda it: it[0][2]),
    Column("redemptions", "bigint", lambda it: it[1]),
    Column("redemption_limit", "bigint", lambda it: it[2].of(it[0][1])),
)

UPDATE_PERIODS: Final[LiteralString] = f"""
UPDATE coupon_period_counters AS p
SET redemptions = p.redemptions + d.redemptions,
    redemption_limit = CASE WHEN d.redemptions > 0 THEN d.redemption_limit
                            ELSE p.redemption_limit END
FROM unnest(
    {PERIOD_CHANGES.arrays}) AS d (
    {PERIOD_CHANGES.names})
WHERE p.bucket = d.bucket AND p.book_id = d.book_id AND p.user_id = d.user_id
    AND p.period_start = d.period_start
"""


def update_periods(pipeline: Pipeline, write_set: WriteSet, books: Mapping[UUID, Book]) -> None:
    """Adds what writes the changes of the counts."""
    limits = _limits(books)
    changes = [
        (key, after - before, limits[key[0]]) for key, (before, after) in write_set.periods.items()
    ]
    pipeline.add(UPDATE_PERIODS, PERIOD_CHANGES.array_parameters(changes))


# Rows that are in use are left to the next time: nobody waits, and no order of locks is disturbed.
DELETE_PAST_PERIODS: Final = """
DELETE FROM coupon_period_counters WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM coupon_period_counters WHERE period_end < %s::date
    LIMIT %s FOR UPDATE SKIP LOCKED))
"""


async def delete_past_periods(connection: Connection, now: datetime, count: int) -> int:
    """Deletes so many rows, at most, of periods that are over; says how many it were."""
    cursor = await connection.execute(DELETE_PAST_PERIODS, [_kept_since(now), count])
    return cursor.rowcount


def _limits(books: Mapping[UUID, Book]) -> dict[UUID, PeriodLimits]:
    """Those of the books that have some."""
    found = ((book_id, book.period_limits) for book_id, book in books.items())
    return {book_id: limits for book_id, limits in found if limits is not None}


def _kept_since(now: datetime) -> str:
    return (now.astimezone(UTC).date() - KEPT).isoformat()
