"""The counts of books: spread over a row a bucket, so that none is hot, and added up by readers."""

from __future__ import annotations

from collections.abc import Iterable
from operator import itemgetter
from typing import Final, LiteralString
from uuid import UUID

from coupon_service.model import BookStats
from coupon_service.store.arrays import int_array, uuid_array
from coupon_service.store.pipeline import Connection
from coupon_service.store.rows import COUNTERS

CounterRow = tuple[UUID, int, BookStats]
"""What is added to a book's counts, in the row of this bucket."""

ADD_TO_COUNTERS: Final[LiteralString] = f"""
INSERT INTO coupon_book_counters AS counter (
    book_id,
    bucket,
    {COUNTERS.names})
SELECT * FROM unnest(
    %s::uuid[],
    %s::smallint[],
    {COUNTERS.arrays})
ON CONFLICT (book_id, bucket) DO UPDATE
SET {COUNTERS.each("{0} = counter.{0} + excluded.{0}")}
"""


def counter_parameters(rows: Iterable[CounterRow]) -> tuple[str, ...]:
    """Parameters of ADD_TO_COUNTERS, in the order in which all batches lock these rows."""
    books, buckets, stats = zip(*sorted(rows, key=itemgetter(0, 1)), strict=True)
    return uuid_array(books), int_array(buckets), *COUNTERS.array_parameters(stats)


async def add_to_counters(connection: Connection, row: CounterRow) -> None:
    """Adds to the counts of one book."""
    await connection.execute(ADD_TO_COUNTERS, counter_parameters([row]))


SUM_COUNTERS: Final[LiteralString] = f"""
SELECT {COUNTERS.each("coalesce(sum({0}), 0)")}
FROM coupon_book_counters
WHERE book_id = %s
"""


async def select_stats(connection: Connection, book_id: UUID) -> BookStats:
    """The counts of a book: the sum of its counters."""
    cursor = await connection.execute(SUM_COUNTERS, [book_id])
    row = await cursor.fetchone()
    return BookStats(*map(int, row or ()))
