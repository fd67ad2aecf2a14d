"""New codes as rows of their table: made ready, copied or inserted, and found again.

All of it is done in parts of PART codes, between which others get their turn.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from struct import pack
from typing import Final
from uuid import UUID

from coupon_service.model.codes import BUCKETS, bucket_of
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
        for bucket, in_bucket in groupby(codes, key=bucket_of):
            for length, group in groupby(map(str.encode, in_bucket), key=len):
                before = pack("!hi16sihiii", 4, 16, book_id.bytes, 2, bucket, 4, tag, length)
                parts.append(before + before.join(group))
        parts.append(pack("!h", -1))
        return cls(codes, b"".join(parts))


COPY_CODES: Final = """
COPY coupon_codes (book_id, bucket, source_tag, code) FROM STDIN (FORMAT binary)
"""


async def copy_codes(connection: Connection, parts: Iterable[NewCodes], lane: BulkLane) -> None:
    """Stores all of the codes, the fastest way, or raises psycopg's UniqueViolation."""
    for part in parts:
        async with lane.step(connection), connection.cursor().copy(COPY_CODES) as copy:
            await copy.write(part.rows)


INSERT_CODES: Final = """
INSERT INTO coupon_codes (book_id, source_tag, bucket, code)
SELECT %s, %s, made.* FROM unnest(%s::smallint[], %s::text[]) AS made (bucket, code)
ON CONFLICT DO NOTHING
RETURNING code
"""


async def insert_new_codes(
    connection: Connection, book_id: UUID, tag: int, parts: Iterable[NewCodes], lane: BulkLane
) -> set[str]:
    """Stores those of the codes that are new; returns them."""
    created: set[str] = set()
    for part in parts:
        parameters = book_id, tag, int_array(map(bucket_of, part.codes)), text_array(part.codes)
        async with lane.step(connection):
            cursor = await connection.execute(INSERT_CODES, parameters)
            created.update(row[0] for row in await cursor.fetchall())
    return created


# LATERAL and LIMIT keep the planner, which does not know how many codes the book will get, from
# going through all of them for every code that is wanted.
SELECT_EXISTING: Final = """
SELECT wanted.code, found.book_id = %s AND found.source_tag = %s
FROM unnest(%s::smallint[], %s::text[]) AS wanted (bucket, code)
CROSS JOIN LATERAL (
    SELECT book_id, source_tag FROM coupon_codes AS c
    WHERE c.bucket = wanted.bucket AND c.code = wanted.code
    LIMIT 1
) AS found
"""


async def select_existing(
    connection: Connection, book_id: UUID, tag: int, codes: Sequence[str], lane: BulkLane
) -> dict[str, bool]:
    """Those of the codes that are there, and whether the request with this tag made them."""
    found: dict[str, bool] = {}
    for start in range(0, len(codes), PART):
        part = codes[start : start + PART]
        parameters = book_id, tag, int_array(map(bucket_of, part)), text_array(part)
        async with lane.step(connection):
            cursor = await connection.execute(SELECT_EXISTING, parameters)
            found.update(await cursor.fetchall())
    return found
