"""Generations of codes that are under way, and what they have reserved of the format of their book.

A generation reserves all of its codes when it begins, under the lock of its book, and each chunk
makes some of them. One that makes none for ABANDONED_AFTER_S is abandoned: what is missing of it is
free for others, and it reserves anew if somebody goes on with it after all.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

from coupon_service.errors import Contention, RequestIdReused
from coupon_service.model import Book
from coupon_service.model.codes import check_capacity
from coupon_service.store.pipeline import Connection

ABANDONED_AFTER_S: Final = 3_600


# One statement: codes that are committed meanwhile are there or reserved, and never neither.
SUM_TAKEN: Final = """
SELECT
    (SELECT coalesce(sum(available + assigned + redeemed + disabled), 0)::bigint
     FROM coupon_book_counters WHERE book_id = %(book_id)s)
    + (SELECT coalesce(sum(missing), 0)::bigint
       FROM coupon_generations
       WHERE book_id = %(book_id)s
         AND update_time > clock_timestamp() - %(abandoned_after_s)s * interval '1 s')
"""


async def codes_taken(connection: Connection, book_id: UUID) -> int:
    """How many codes a book has, those included that are reserved."""
    parameters = {"book_id": book_id, "abandoned_after_s": ABANDONED_AFTER_S}
    cursor = await connection.execute(SUM_TAKEN, parameters)
    row = await cursor.fetchone()
    return row[0] if row else 0


DELETE_ABANDONED: Final = """
DELETE FROM coupon_generations
WHERE book_id = %(book_id)s
    AND update_time <= clock_timestamp() - %(abandoned_after_s)s * interval '1 s'
"""
SELECT_COUNT: Final = """
SELECT count FROM coupon_generations WHERE book_id = %s AND generation_id = %s
"""
INSERT_GENERATION: Final = """
INSERT INTO coupon_generations (book_id, generation_id, count, missing, update_time)
VALUES (%s, %s, %s, %s, clock_timestamp())
"""


async def reserve_codes(
    connection: Connection, book: Book, generation_id: UUID, count: int, missing: int
) -> None:
    """Reserves what is missing of the codes of a generation, unless it has done so before.

    In a transaction that has locked the book. Raises RequestIdReused for another count than before,
    CodeSpaceExhausted.
    """
    parameters = {"book_id": book.book_id, "abandoned_after_s": ABANDONED_AFTER_S}
    await connection.execute(DELETE_ABANDONED, parameters)
    cursor = await connection.execute(SELECT_COUNT, (book.book_id, generation_id))
    reserved = await cursor.fetchone()
    if reserved is not None:
        if reserved[0] != count:
            raise RequestIdReused
        return
    made = count - missing
    check_capacity(book.code_format, await codes_taken(connection, book.book_id) - made, count)
    await connection.execute(INSERT_GENERATION, (book.book_id, generation_id, count, missing))


USE_RESERVED: Final = """
UPDATE coupon_generations SET missing = missing - %s, update_time = clock_timestamp()
WHERE book_id = %s AND generation_id = %s
RETURNING missing
"""
DELETE_GENERATION: Final = """
DELETE FROM coupon_generations WHERE book_id = %s AND generation_id = %s
"""


async def use_reserved(
    connection: Connection, book_id: UUID, generation_id: UUID, made: int
) -> None:
    """Takes codes that were made off what is reserved; nothing stays behind when all are.

    Raises Contention when nothing is reserved any more.
    """
    cursor = await connection.execute(USE_RESERVED, (made, book_id, generation_id))
    row = await cursor.fetchone()
    if row is None:
        raise Contention(
            "The generation was abandoned, or the book has got another code format, before this"
            " chunk; nothing of it was made. Try again."
        )
    if not row[0]:
        await connection.execute(DELETE_GENERATION, (book_id, generation_id))


DELETE_RESERVED: Final = "DELETE FROM coupon_generations WHERE book_id = %s"


async def drop_reserved(connection: Connection, book_id: UUID) -> None:
    """Takes everything back that is reserved in a book: its code format has changed."""
    await connection.execute(DELETE_RESERVED, [book_id])
