"""New codes as rows of their table: made ready, copied or inserted, and found again.

All of it is done in parts of PART codes, between which others get their turn.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from struct import pack
from typing import Final
from uuid import UUID

from coupon_service.model import Book
from coupon_service.model.codes import BUCKETS, bucket_of
from coupon_service.model.scopes import (
    FIRST_SCOPED_BOOK,
    LAST_SCOPED_BOOK,
    scope_of_book,
    scope_of_business,
)
from coupon_service.store.arrays import int_array, text_array
from coupon_service.store.bulk.lane import BulkLane
from coupon_service.store.pipeline import Connection

PART: Final = 1_000
"""Codes that are stored at a time: some ten milliseconds of work for PostgreSQL."""


@dataclass(frozen=True, slots=True)
class NewCodes:
    """Codes in the order of the table's key, and the same as rows for COPY."""

    codes: Sequence[str]
    rows: bytes

    @classmethod
    async def in_parts(
        cls, book_id: UUID, tag: int, codes: Collection[str], lane: BulkLane
    ) -> list[NewCodes]:
        """Codes of the request with this tag, in the order of the table's key."""
        buckets: list[list[str]] = [[] for _ in range(BUCKETS)]
        async for some in lane.steps(list(codes), PART):
            for code in some:
                buckets[bucket_of(code)].append(code)
        in_order: list[str] = []
        async for some in lane.steps(buckets, BUCKETS // 8):
            for bucket in some:
                in_order += sorted(bucket)
        parts = lane.steps(in_order, PART)
        return [cls.made_ready(book_id, tag, part) async for part in parts]

    @classmethod
    def made_ready(cls, book_id: UUID, tag: int, codes: Sequence[str]) -> NewCodes:
        """Codes, which are in the order of the table's key, of the request with this tag.

        Source of the rows: the binary format in PostgreSQL's documentation of COPY.
        """
        parts = [b"PGCOPY\n\xff\r\n\0", pack("!ii", 0, 0)]
        scope = scope_of_book(book_id)
        for bucket, in_bucket in groupby(codes, key=bucket_of):
            for length, group in groupby(map(str.encode, in_bucket), key=len):
                ids = 16, book_id.bytes, 2, bucket, 4, tag, 8, scope
                before = pack("!hi16sihiiiqi", 5, *ids, length)
                parts.append(before + before.join(group))
        parts.append(pack("!h", -1))
        return cls(codes, b"".join(parts))


COPY_CODES: Final = """
COPY coupon_codes (book_id, bucket, source_tag, scope, code) FROM STDIN (FORMAT binary)
"""


async def copy_codes(connection: Connection, parts: Iterable[NewCodes], lane: BulkLane) -> None:
    """Stores all of the codes, the fastest way, or raises psycopg's UniqueViolation."""
    for part in parts:
        async with lane.step(connection), connection.cursor().copy(COPY_CODES) as copy:
            await copy.write(part.rows)


INSERT_CODES: Final = """
INSERT INTO coupon_codes (book_id, source_tag, scope, bucket, code)
SELECT %s, %s, %s, made.* FROM unnest(%s::smallint[], %s::text[]) AS made (bucket, code)
ON CONFLICT DO NOTHING
RETURNING code
"""


async def insert_new_codes(
    connection: Connection, book_id: UUID, tag: int, parts: Iterable[NewCodes], lane: BulkLane
) -> set[str]:
    """Stores those of the codes that are new; returns them."""
    created: set[str] = set()
    for part in parts:
        codes = int_array(map(bucket_of, part.codes)), text_array(part.codes)
        parameters = book_id, tag, scope_of_book(book_id), *codes
        async with lane.step(connection):
            cursor = await connection.execute(INSERT_CODES, parameters)
            created.update(row[0] for row in await cursor.fetchall())
    return created


# LATERAL and LIMIT keep the planner, which does not know how many codes the book will get, from
# going through all of them for every code that is wanted. A code of another business is in the way
# only where both are unique over all businesses.
SELECT_EXISTING: Final = """
SELECT wanted.code, found.book_id = %(book_id)s AND found.source_tag = %(tag)s
FROM unnest(%(buckets)s::smallint[], %(codes)s::text[]) AS wanted (bucket, code)
CROSS JOIN LATERAL (
    SELECT c.book_id, c.source_tag
    FROM coupon_codes AS c JOIN coupon_books AS b USING (book_id)
    WHERE c.bucket = wanted.bucket AND c.code = wanted.code
        AND c.scope IN (0, %(business_scope)s)
        AND (b.business_id = %(business_id)s OR (%(scope)s = 0 AND c.scope = 0))
    ORDER BY c.book_id = %(book_id)s DESC
    LIMIT 1
) AS found
"""


async def select_existing(
    connection: Connection, book: Book, tag: int, codes: Sequence[str], lane: BulkLane
) -> dict[str, bool]:
    """Those of the codes that the book cannot get since they are there, and whether the request
    with this tag made them."""
    found: dict[str, bool] = {}
    for part in _parts(codes):
        async with lane.step(connection):
            cursor = await connection.execute(SELECT_EXISTING, _parameters(book, tag, part))
            found.update(await cursor.fetchall())
    return found


def _parts(codes: Sequence[str]) -> Iterator[Sequence[str]]:
    return (codes[start : start + PART] for start in range(0, len(codes), PART))


def _parameters(book: Book, tag: int, codes: Sequence[str]) -> dict[str, object]:
    return {
        "book_id": book.book_id,
        "business_id": book.business_id,
        "business_scope": scope_of_business(book.business_id),
        "scope": scope_of_book(book.book_id),
        "tag": tag,
        "buckets": int_array(map(bucket_of, codes)),
        "codes": text_array(codes),
    }


SELECT_IN_OTHER_SCOPE: Final = """
SELECT wanted.code
FROM unnest(%(buckets)s::smallint[], %(codes)s::text[]) AS wanted (bucket, code)
CROSS JOIN LATERAL (
    SELECT FROM coupon_codes AS c JOIN coupon_books AS b USING (book_id)
    WHERE c.bucket = wanted.bucket AND c.code = wanted.code
        AND c.scope IN (0, %(business_scope)s) AND c.scope <> %(scope)s
        AND b.business_id = %(business_id)s
    LIMIT 1
) AS found
"""
HAS_OTHER_SCOPE: Final = """
SELECT EXISTS (
    SELECT FROM coupon_books
    WHERE business_id = %s AND (book_id BETWEEN %s AND %s) <> %s)
"""


async def select_in_other_scope(
    connection: Connection, book: Book, codes: Sequence[str], lane: BulkLane
) -> set[str]:
    """Those of the codes that the business has in books whose codes are of another scope: no index
    keeps the book from getting them as well.

    Exact within a transaction of the lane: there is one of them at a time, and nothing else makes
    codes.
    """
    scope = scope_of_book(book.book_id)
    scoped = FIRST_SCOPED_BOOK, LAST_SCOPED_BOOK, bool(scope)
    cursor = await connection.execute(HAS_OTHER_SCOPE, (book.business_id, *scoped))
    if await cursor.fetchone() == (False,):
        return set()
    found: set[str] = set()
    for part in _parts(codes):
        async with lane.step(connection):
            cursor = await connection.execute(SELECT_IN_OTHER_SCOPE, _parameters(book, 0, part))
            found.update(row[0] for row in await cursor.fetchall())
    return found
