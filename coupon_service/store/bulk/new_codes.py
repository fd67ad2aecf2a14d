"""New codes as rows of their table: made ready, copied or inserted, and found again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from struct import pack
from typing import Final
from uuid import UUID

from coupon_service.model.codes import bucket_of
from coupon_service.store.arrays import int_array, text_array
from coupon_service.store.pipeline import Connection


@dataclass(frozen=True, slots=True)
class NewCodes:
    """Codes in the order of the table's key, and the same as rows for COPY."""

    codes: list[str]
    rows: bytes

    @classmethod
    def made_ready(cls, book_id: UUID, tag: int, codes: list[str]) -> NewCodes:
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


async def copy_codes(connection: Connection, new: NewCodes) -> None:
    """Stores all of the codes, the fastest way, or raises psycopg's UniqueViolation."""
    async with connection.cursor().copy(COPY_CODES) as copy:
        await copy.write(new.rows)


INSERT_CODES: Final = """
INSERT INTO coupon_codes (book_id, source_tag, bucket, code)
SELECT %s, %s, made.* FROM unnest(%s::smallint[], %s::text[]) AS made (bucket, code)
ON CONFLICT DO NOTHING
RETURNING code
"""


async def insert_codes(
    connection: Connection, book_id: UUID, tag: int, codes: Sequence[str]
) -> set[str]:
    """Stores those of the codes that are new; returns them."""
    parameters = book_id, tag, int_array(map(bucket_of, codes)), text_array(codes)
    cursor = await connection.execute(INSERT_CODES, parameters)
    return {row[0] for row in await cursor.fetchall()}


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
    connection: Connection, book_id: UUID, tag: int, codes: Sequence[str]
) -> dict[str, bool]:
    """Those of the codes that are there, and whether the request with this tag made them."""
    parameters = book_id, tag, int_array(map(bucket_of, codes)), text_array(codes)
    cursor = await connection.execute(SELECT_EXISTING, parameters)
    return dict(await cursor.fetchall())
