"""Coupon books in PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final, LiteralString
from uuid import UUID

from coupon_service.errors import (
    BookNotFound,
    ConcurrentModification,
    PermissionDenied,
    RequestIdReused,
)
from coupon_service.model import (
    Attempt,
    Book,
    BookState,
    BookStats,
    Call,
    Event,
    EventType,
    bucket_of_book,
    bucket_of_event,
    event_id,
)
from coupon_service.model.codes import CodeFormat
from coupon_service.model.normalization import id_spellings
from coupon_service.model.scopes import scoped_book_id
from coupon_service.rules import book_updates
from coupon_service.store.arrays import int_array, uuid_array
from coupon_service.store.counters import select_stats
from coupon_service.store.database import Database
from coupon_service.store.events import insert_events, recorded_fingerprint
from coupon_service.store.generations import codes_taken, drop_reserved
from coupon_service.store.keyset import Position, page_of, time_and_id, time_position
from coupon_service.store.pipeline import Connection
from coupon_service.store.rows import BOOKS, book_from_row
from coupon_service.store.scopes import is_finished


class Books:
    """Coupon books: made, found, changed, counted.

    Every change locks the row of the book, is recorded in the ledger in the same transaction, and
    is made once: a repeat of the call finds the record and returns the book as it is now, unless
    that has another state than the call gave it (InvalidStateTransition). A book of another
    business than the caller's does not exist (BookNotFound).

    Everything here raises Contention, DatabaseUnavailable or Overloaded as Database does.
    """

    def __init__(
        self, database: Database, now: Callable[[], datetime], lock_life_ms: int = 0
    ) -> None:
        """`lock_life_ms`: the greatest time of a lock, grace included."""
        self._database = database
        self._now = now
        self._lock_life = timedelta(milliseconds=lock_life_ms)

    async def create(
        self,
        book: Book,
        call: Call,
        event_id: UUID,
        fingerprint: int,
        earlier: Sequence[Attempt] = (),
    ) -> tuple[Book, bool]:
        """Stores a new book; returns it, and whether an earlier call had done so.

        `event_id` is that of BOOK_CREATED, made of caller, request_id and business, and
        `book.book_id` has to be the same UUID; once codes are unique within their business, the
        book gets another that follows from it. So a repeat meets the book itself. `earlier`: see
        `earlier_attempts`.

        Raises PermissionDenied, RequestIdReused.
        """
        if call.business_id and call.business_id != book.business_id:
            raise PermissionDenied("The caller may only make coupon books of its own business.")

        async def work(connection: Connection) -> tuple[Book, bool]:
            for attempt, parameters in ((event_id, fingerprint), *earlier):
                created = await select_created(connection, attempt)
                if created is not None and created[1] != parameters:
                    raise RequestIdReused
                if created is not None:
                    return await select_book(connection, created[0], call.business_id), True
            made = book
            if await is_finished(connection):
                made = replace(book, book_id=scoped_book_id(event_id, book.business_id))
            if not await insert_book(connection, made):
                # The same call at the same time was faster.
                if await recorded_fingerprint(connection, event_id) != fingerprint:
                    raise RequestIdReused
                return await select_book(connection, made.book_id, call.business_id), True
            await keep_total(connection, made)
            event = _event(
                EventType.BOOK_CREATED, event_id, call, fingerprint, before=None, after=made
            )
            await insert_events(connection, [event])
            return made, False

        return await self._database.transaction("create_book", work)

    async def get(self, book_id: UUID, business_id: str) -> Book:
        """The book. `business_id`: of the caller, empty = any. Raises BookNotFound."""
        return await self._database.read(
            "get_book", lambda connection: select_book(connection, book_id, business_id)
        )

    async def list(
        self,
        business_id: str,
        state: BookState | None,
        page_size: int,
        after: Position | None,
    ) -> tuple[list[Book], Position | None]:
        """A page of books, newest first, and the position to go on from.

        `business_id`: whose books, empty = all; `state`: a stored one.
        """
        return await self._database.read(
            "list_books",
            lambda connection: select_books(connection, business_id, state, page_size, after),
        )

    async def update(
        self,
        book_id: UUID,
        changes: Mapping[str, object],
        etag_version: int | None,
        call: Call,
        fingerprint: int,
    ) -> tuple[Book, bool]:
        """Gives the fields of Book that `changes` names other values.

        Returns the book, and whether an earlier call had done so. `etag_version`: the version it
        has to have, None = any.

        Raises BookNotFound, RequestIdReused, ConcurrentModification, InvalidStateTransition,
        InvalidArgument.
        """
        names = sorted(name.removesuffix("_ms").removesuffix("_s") for name in changes)
        return await self._change(
            book_id,
            EventType.BOOK_UPDATED,
            lambda book: book_updates.updated(book, changes, self._now() + self._lock_life),
            etag_version=etag_version,
            call=call,
            fingerprint=fingerprint,
            metadata=json.dumps({"fields": names}),
        )

    async def transition(
        self,
        book_id: UUID,
        event: EventType,
        etag_version: int | None,
        call: Call,
        fingerprint: int,
    ) -> tuple[Book, bool]:
        """Activates, pauses or closes a book: `event` is BOOK_ACTIVATED, BOOK_PAUSED, BOOK_CLOSED.

        Raises BookNotFound, RequestIdReused, ConcurrentModification, InvalidStateTransition.
        """
        return await self._change(
            book_id,
            event,
            lambda book: replace(book, state=book_updates.state_after(book, event)),
            etag_version=etag_version,
            call=call,
            fingerprint=fingerprint,
        )

    async def stats(self, book_id: UUID, business_id: str) -> tuple[Book, BookStats]:
        """The book and its counts. Raises BookNotFound."""

        async def work(connection: Connection) -> tuple[Book, BookStats]:
            book = await select_book(connection, book_id, business_id)
            return book, await select_stats(connection, book_id)

        return await self._database.read("book_stats", work)

    async def codes_taken(
        self, book_id: UUID, business_id: str, code_format: CodeFormat | None = None
    ) -> tuple[Book, int]:
        """The book, with this code format or its own, and how many codes there are or will be, in
        it and in others with this format. Raises BookNotFound."""

        async def work(connection: Connection) -> tuple[Book, int]:
            book = await select_book(connection, book_id, business_id)
            book = replace(book, code_format=code_format or book.code_format)
            return book, await codes_taken(connection, book)

        return await self._database.read("codes_taken", work)

    async def redemptions(self, books: Sequence[Book]) -> Mapping[UUID, int]:
        """How often each of the books that limit it (max_redemptions) has been redeemed."""
        limited = [book.book_id for book in books if book.limits.max_redemptions]
        if not limited:
            return {}
        return await self._database.read(
            "book_totals", lambda connection: select_totals(connection, limited)
        )

    async def _change(
        self,
        book_id: UUID,
        event_type: EventType,
        change: Callable[[Book], Book],
        *,
        etag_version: int | None,
        call: Call,
        fingerprint: int,
        metadata: str | None = None,
    ) -> tuple[Book, bool]:
        bucket = bucket_of_book(book_id)
        attempt, *earlier = [
            event_id(bucket, event_type, caller, call.request_id, book_id)
            for caller in id_spellings(call.caller)
        ]

        async def work(connection: Connection) -> tuple[Book, bool]:
            before = await select_book(connection, book_id, call.business_id, lock=True)
            # After the lock, so that a repeat that had to wait for the first call finds its record.
            recorded = await recorded_fingerprint(connection, attempt, *earlier)
            if recorded is not None:
                if recorded != fingerprint:
                    raise RequestIdReused
                book_updates.check_repeat(before, event_type)
                return before, True
            if etag_version not in (None, before.version):
                raise ConcurrentModification
            after = replace(change(before), version=before.version + 1, update_time=self._now())
            await update_book(connection, after)
            if after.limits != before.limits:
                await keep_total(connection, after, before)
            if after.code_format != before.code_format:
                await drop_reserved(connection, book_id)
            event = _event(
                event_type,
                attempt,
                call,
                fingerprint,
                before=before,
                after=after,
                metadata=metadata,
            )
            await insert_events(connection, [event])
            return after, False

        return await self._database.transaction(event_type.name.lower(), work)


def _event(
    event_type: EventType,
    attempt: UUID,
    call: Call,
    fingerprint: int,
    *,
    before: Book | None,
    after: Book,
    metadata: str | None = None,
) -> Event:
    return Event(
        event_id=attempt,
        type=event_type,
        event_time=after.update_time,
        book_id=after.book_id,
        caller=call.caller,
        peer=call.peer,
        user_agent=call.user_agent,
        request_id=call.request_id,
        fingerprint=fingerprint,
        state_before=before and before.state,
        state_after=after.state,
        metadata=metadata,
    )


# --- statements ---------------------------------------------------------------------------------

SELECT_CREATED: Final = """
SELECT book_id, fingerprint FROM redemption_audit WHERE event_id = %s AND bucket = %s
"""


async def select_created(connection: Connection, attempt: UUID) -> tuple[UUID, int] | None:
    """The book that an attempt has made, and the fingerprint of the attempt."""
    cursor = await connection.execute(SELECT_CREATED, (attempt, bucket_of_event(attempt)))
    return await cursor.fetchone()


INSERT_BOOK: Final[LiteralString] = f"""
INSERT INTO coupon_books (
    {BOOKS.names})
VALUES (
    {BOOKS.each("%({0})s")})
ON CONFLICT DO NOTHING
"""


async def insert_book(connection: Connection, book: Book) -> bool:
    """Stores a new book unless its id is there; returns whether it was stored."""
    cursor = await connection.execute(INSERT_BOOK, BOOKS.parameters(book))
    return cursor.rowcount == 1


UPDATE_BOOK: Final[LiteralString] = f"""
UPDATE coupon_books
SET {BOOKS.each("{0} = %({0})s", without=("book_id", "business_id", "create_time"))}
WHERE book_id = %(book_id)s
"""


async def update_book(connection: Connection, book: Book) -> None:
    """Stores a changed book."""
    await connection.execute(UPDATE_BOOK, BOOKS.parameters(book))


# A limit below what was redeemed already cannot be stored: the closest that holds is.
KEEP_TOTAL: Final = """
INSERT INTO coupon_book_totals AS total (book_id, redemption_limit, discount_limit_minor)
VALUES (%(book_id)s, %(redemptions)s, %(discount_minor)s)
ON CONFLICT (book_id) DO UPDATE
SET redemption_limit = CASE
        WHEN EXCLUDED.redemption_limit > 0
        THEN greatest(EXCLUDED.redemption_limit, total.redemptions)
        ELSE 0 END,
    discount_limit_minor = CASE
        WHEN EXCLUDED.discount_limit_minor > 0
        THEN greatest(EXCLUDED.discount_limit_minor, total.discount_minor)
        ELSE 0 END
"""


async def keep_total(connection: Connection, book: Book, before: Book | None = None) -> None:
    """Makes the row of what the book's redemptions come to hold its limits for that, where it has,
    or had, any."""
    if not any(it.limits.any_total for it in (book, before or book)):
        return
    parameters = {
        "book_id": book.book_id,
        "redemptions": book.limits.max_redemptions,
        "discount_minor": book.limits.budget_minor,
    }
    await connection.execute(KEEP_TOTAL, parameters)


SELECT_BOOKS: Final[LiteralString] = f"""
SELECT {BOOKS.selected} FROM coupon_books WHERE book_id = ANY(%s::uuid[])
"""
LOCK_BOOKS: Final[LiteralString] = f"{SELECT_BOOKS} FOR NO KEY UPDATE"


async def select_book(
    connection: Connection, book_id: UUID, business_id: str, *, lock: bool = False
) -> Book:
    """The book; `business_id`: of the caller, empty = any. `lock` its row. Raises BookNotFound."""
    cursor = await connection.execute(LOCK_BOOKS if lock else SELECT_BOOKS, [uuid_array([book_id])])
    book = next(map(book_from_row, await cursor.fetchall()), None)
    if book is None or business_id not in ("", book.business_id):
        raise BookNotFound
    return book


async def select_books_by_id(connection: Connection, ids: Iterable[UUID]) -> dict[UUID, Book]:
    """Those of the books that there are."""
    cursor = await connection.execute(SELECT_BOOKS, [uuid_array(set(ids))])
    return {book.book_id: book for book in map(book_from_row, await cursor.fetchall())}


LIST_BOOKS: Final[LiteralString] = f"""
SELECT {BOOKS.selected} FROM coupon_books
WHERE state = ANY(%(states)s::smallint[]) AND (create_time, book_id) < (%(time)s, %(id)s)
ORDER BY create_time DESC, book_id DESC
LIMIT %(count)s
"""
LIST_BOOKS_OF_BUSINESS: Final[LiteralString] = f"""
SELECT {BOOKS.selected} FROM coupon_books
WHERE business_id = %(business_id)s AND state = ANY(%(states)s::smallint[])
    AND (create_time, book_id) < (%(time)s, %(id)s)
ORDER BY create_time DESC, book_id DESC
LIMIT %(count)s
"""


async def select_books(
    connection: Connection,
    business_id: str,
    state: BookState | None,
    page_size: int,
    after: Position | None,
) -> tuple[list[Book], Position | None]:
    """A page of books, newest first, and the position to go on from."""
    time, book_id = time_and_id(after)
    cursor = await connection.execute(
        LIST_BOOKS_OF_BUSINESS if business_id else LIST_BOOKS,
        {
            "business_id": business_id,
            "states": int_array(list(BookState) if state is None else [state]),
            "time": time,
            "id": book_id,
            "count": page_size + 1,
        },
    )
    books = [book_from_row(row) for row in await cursor.fetchall()]
    return page_of(books, page_size, book_position)


def book_position(book: Book) -> Position:
    """Where a page goes on after this book."""
    return time_position(book.create_time, book.book_id)


SELECT_TOTALS: Final = """
SELECT book_id, redemptions FROM coupon_book_totals WHERE book_id = ANY(%s::uuid[])
"""


async def select_totals(connection: Connection, ids: Iterable[UUID]) -> dict[UUID, int]:
    """The redemptions of those of the books that limit them."""
    cursor = await connection.execute(SELECT_TOTALS, [uuid_array(ids)])
    return dict(await cursor.fetchall())
