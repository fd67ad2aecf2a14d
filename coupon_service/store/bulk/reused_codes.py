"""Codes that CLOSED books have, for the books of their business that are made of them again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final, LiteralString
from uuid import UUID

from coupon_service.model import Book, BookState
from coupon_service.model.codes import bucket_of
from coupon_service.model.scopes import scope_of_book
from coupon_service.store.arrays import int_array, text_array, uuid_array
from coupon_service.store.bulk.lane import BulkLane
from coupon_service.store.bulk.new_codes import PART
from coupon_service.store.pipeline import Connection

HAS_CLOSED: Final = """
SELECT EXISTS (SELECT FROM coupon_books WHERE business_id = %s AND state = %s)
"""
# Code by code, in their order.
SELECT_REUSABLE: Final[LiteralString] = """
SELECT found.code, found.book_id
FROM unnest(%(buckets)s::smallint[], %(codes)s::text[]) AS wanted (bucket, code)
CROSS JOIN LATERAL (
    SELECT c.code, c.book_id FROM coupon_codes AS c
    WHERE c.bucket = wanted.bucket AND c.code = wanted.code AND c.scope IN (0, %(scope)s)
        AND EXISTS (
            SELECT FROM coupon_books AS b
            WHERE b.book_id = c.book_id AND b.business_id = %(business_id)s
                AND b.state = %(closed)s)
    OFFSET 0
) AS found
"""
LOCK_REUSABLE: Final[LiteralString] = SELECT_REUSABLE.replace("OFFSET 0", "FOR UPDATE OF c")


async def select_reusable(
    connection: Connection, book: Book, codes: Sequence[str], lane: BulkLane, *, lock: bool
) -> dict[str, UUID]:
    """Those of the codes that the book can get from CLOSED books of its business, and these books.
    With `lock`, locked against all batches, where `codes` are in the order of the table's key.

    None for a book whose codes are unique over all businesses. It stays so to the end of a
    transaction of the lane: a book is CLOSED for good, and nothing else gives codes to books.
    """
    closed = book.business_id, BookState.CLOSED
    scope = scope_of_book(book.book_id)
    if not scope:
        return {}
    cursor = await connection.execute(HAS_CLOSED, closed)
    if await cursor.fetchone() == (False,):
        return {}
    found: dict[str, UUID] = {}
    for start in range(0, len(codes), PART):
        part = codes[start : start + PART]
        parameters = {
            "buckets": int_array(map(bucket_of, part)),
            "codes": text_array(part),
            "scope": scope,
            "business_id": book.business_id,
            "closed": BookState.CLOSED,
        }
        async with lane.step(connection):
            statement = LOCK_REUSABLE if lock else SELECT_REUSABLE
            cursor = await connection.execute(statement, parameters)
            found.update(await cursor.fetchall())
    return found


# In each: which codes, by their keys in the CLOSED books.
KEEP_PAST: Final = """
INSERT INTO coupon_past_codes (
    book_id, next_book_id, reuse_time, redemptions, redemption_limit, assignments, source_tag,
    bucket, state, code, spelling)
SELECT c.book_id, %s, %s, c.redemptions, c.redemption_limit, c.assignments, c.source_tag,
    c.bucket, c.state, c.code, s.spelling
FROM unnest(%s::smallint[], %s::text[], %s::bigint[]) AS wanted (bucket, code, scope)
JOIN coupon_codes AS c USING (bucket, code, scope)
LEFT JOIN coupon_code_spellings AS s USING (bucket, code, scope)
"""
DELETE_SPELLINGS: Final = """
DELETE FROM coupon_code_spellings AS s
USING unnest(%s::smallint[], %s::text[], %s::bigint[]) AS d (bucket, code, scope)
WHERE s.bucket = d.bucket AND s.code = d.code AND s.scope = d.scope
"""
# In place: who waits for the row finds it in the other book.
REUSE_CODES: Final = """
UPDATE coupon_codes AS c
SET book_id = %s, scope = %s, source_tag = %s,
    state = DEFAULT, redemptions = DEFAULT, redemption_limit = DEFAULT, assignments = DEFAULT
FROM unnest(%s::smallint[], %s::text[], %s::bigint[]) AS d (bucket, code, scope)
WHERE c.bucket = d.bucket AND c.code = d.code AND c.scope = d.scope
"""


# What was done with the codes may be in archives: see Book.archived_until.
MARK_ARCHIVED: Final = """
UPDATE coupon_books SET archived_until = 0
WHERE book_id = %s AND archived_until IS NULL AND EXISTS (
    SELECT FROM coupon_books AS closed
    WHERE closed.book_id = ANY(%s::uuid[]) AND closed.archived_until IS NOT NULL)
"""


async def reuse_codes(
    connection: Connection,
    book_id: UUID,
    tag: int,
    codes: Mapping[str, UUID],
    now: datetime,
    lane: BulkLane,
) -> None:
    """Gives the codes, which are locked, to the book, as if they were new; what they were in the
    CLOSED books goes to coupon_past_codes."""
    keys = list(codes.items())
    for start in range(0, len(keys), PART):
        part = keys[start : start + PART]
        names = [code for code, _ in part]
        scopes = [scope_of_book(of_book) for _, of_book in part]
        arrays = int_array(map(bucket_of, names)), text_array(names), int_array(scopes)
        async with lane.step(connection):
            await connection.execute(KEEP_PAST, (book_id, now, *arrays))
            await connection.execute(DELETE_SPELLINGS, arrays)
            await connection.execute(REUSE_CODES, (book_id, scope_of_book(book_id), tag, *arrays))
    if keys:
        closed = uuid_array(set(codes.values()))
        await connection.execute(MARK_ARCHIVED, (book_id, closed))


def reused_of(codes: Mapping[str, UUID]) -> Mapping[str, Mapping[str, int]]:
    """What the ledger row of a chunk says of them: how many each CLOSED book had."""
    if not codes:
        return {}
    return {"reused": {str(it): count for it, count in Counter(codes.values()).items()}}
