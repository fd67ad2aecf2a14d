"""Generations of codes that are under way, and what they have reserved of the format of their book.

A generation reserves all of its codes when it begins, under the locks of its book and format, which
other books of the business may have too, and each chunk makes some of them. One that makes none for
ABANDONED_AFTER_S is abandoned: what is missing of it is free for others, and it reserves anew if
somebody goes on with it after all.
"""

from __future__ import annotations

import json
from typing import Final
from uuid import UUID

from coupon_service.errors import Contention, RequestIdReused
from coupon_service.model import Book, BookState
from coupon_service.model.codes import CodeFormat, check_capacity
from coupon_service.model.scopes import ALL_BUSINESSES, scope_of_book
from coupon_service.store.arrays import uuid_array
from coupon_service.store.pipeline import Connection

ABANDONED_AFTER_S: Final = 3_600

SHARED_CAPACITY_MAX: Final = 10**10
"""Of formats that the books of a business may fill together. Nearly all books have larger ones, as
the default, which have room for more codes than are ever stored: these are not added up."""


# The order of the alphabet makes no other codes, or only other check characters. What CLOSED books
# have is in the way only of a book whose codes are unique over all businesses: others get it.
SELECT_SHARING: Final = """
SELECT book_id FROM coupon_books
WHERE business_id = %(business_id)s
    AND code_length = %(length)s AND code_check_character = %(check_character)s
    AND code_prefix = %(prefix)s AND code_suffix = %(suffix)s
    AND length(code_alphabet) = length(%(alphabet)s)
    AND translate(code_alphabet, %(alphabet)s, '') = ''
    AND (state <> %(closed)s OR NOT %(gets_codes_of_closed)s)
"""


async def _books_sharing(connection: Connection, book: Book) -> set[UUID]:
    """The book, and the others of its business whose format makes the same codes, and which keep
    them."""
    code_format = book.code_format
    if not _is_shared(code_format):
        return {book.book_id}
    cursor = await connection.execute(
        SELECT_SHARING,
        {
            "business_id": book.business_id,
            "length": code_format.length,
            "check_character": code_format.check_character,
            "prefix": code_format.prefix,
            "suffix": code_format.suffix,
            "alphabet": code_format.alphabet,
            "closed": BookState.CLOSED,
            "gets_codes_of_closed": scope_of_book(book.book_id) != ALL_BUSINESSES,
        },
    )
    return {book.book_id, *(book_id for (book_id,) in await cursor.fetchall())}


def _is_shared(code_format: CodeFormat) -> bool:
    return code_format.capacity <= SHARED_CAPACITY_MAX


LOCK_FORMAT: Final = "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))"


async def _lock_format(connection: Connection, book: Book) -> None:
    """Waits for generations that begin in other books with these codes. In a transaction."""
    it = book.code_format
    if _is_shared(it):
        key = (book.business_id, it.length, sorted(it.alphabet), it.prefix, it.suffix)
        await connection.execute(LOCK_FORMAT, [json.dumps(key)])


# One statement: codes that are committed meanwhile are there or reserved, and never neither.
SUM_TAKEN: Final = """
SELECT
    (SELECT coalesce(sum(available + assigned + redeemed + disabled), 0)::bigint
     FROM coupon_book_counters WHERE book_id = ANY(%(books)s::uuid[]))
    + (SELECT coalesce(sum(missing), 0)::bigint
       FROM coupon_generations
       WHERE book_id = ANY(%(books)s::uuid[])
         AND update_time > clock_timestamp() - %(abandoned_after_s)s * interval '1 s')
"""


async def codes_taken(connection: Connection, book: Book) -> int:
    """How many codes a book has, and others with its format, those included that are reserved."""
    books = uuid_array(await _books_sharing(connection, book))
    parameters = {"books": books, "abandoned_after_s": ABANDONED_AFTER_S}
    cursor = await connection.execute(SUM_TAKEN, parameters)
    row = await cursor.fetchone()
    return row[0] if row else 0


# Since the transaction began: Citus takes no VOLATILE function here.
DELETE_ABANDONED: Final = """
DELETE FROM coupon_generations
WHERE book_id = %(book_id)s
    AND update_time <= now() - %(abandoned_after_s)s * interval '1 s'
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

    In a transaction that has locked the book; locks its format. Raises RequestIdReused for another
    count than before, CodeSpaceExhausted.
    """
    parameters = {"book_id": book.book_id, "abandoned_after_s": ABANDONED_AFTER_S}
    await connection.execute(DELETE_ABANDONED, parameters)
    cursor = await connection.execute(SELECT_COUNT, (book.book_id, generation_id))
    reserved = await cursor.fetchone()
    if reserved is not None:
        if reserved[0] != count:
            raise RequestIdReused
        return
    await _lock_format(connection, book)
    made = count - missing
    check_capacity(book.code_format, await codes_taken(connection, book) - made, count)
    await connection.execute(INSERT_GENERATION, (book.book_id, generation_id, count, missing))


USE_RESERVED: Final = """
UPDATE coupon_generations SET missing = missing - %s, update_time = now()
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
