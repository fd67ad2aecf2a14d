"""What is only read: codes, assignments, redemptions, the ledger. Nothing here locks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final, LiteralString
from uuid import UUID

from coupon_service.errors import Archived, CouponServiceError, RedemptionNotFound
from coupon_service.model import (
    Assignment,
    AssignmentState,
    Book,
    BookState,
    Code,
    CodeState,
    Event,
    EventType,
    rollback_id,
)
from coupon_service.model.codes import bucket_of
from coupon_service.model.refused_attempts import RefusedAttempt
from coupon_service.rules import adjusted
from coupon_service.store.adjustments import SELECT_ADJUSTMENTS, adjustment_keys
from coupon_service.store.arrays import int_array
from coupon_service.store.books import select_book, select_books_by_id
from coupon_service.store.database import Database
from coupon_service.store.events import (
    AuditFilter,
    event_position,
    select_events,
    select_events_by_id,
)
from coupon_service.store.keyset import Position, code_only, page_of, time_and_code, time_position
from coupon_service.store.pipeline import Connection
from coupon_service.store.queries.assignment_pages import (
    AssignmentFilter,
    ShownAssignment,
    select_assignments,
)
from coupon_service.store.queries.due_returns import DueReturn, select_due_returns
from coupon_service.store.queries.live_coupons import select_live_coupons
from coupon_service.store.queries.lookups import (
    CodeLookup,
    Coupon,
    CouponsLookup,
    Found,
    LocksLookup,
    Lookup,
    Lookups,
)
from coupon_service.store.refusals import RefusalFilter, select_refusals
from coupon_service.store.rows import SHOWN_CODES, adjustment_from_row, shown_code_from_row
from coupon_service.store.terms import OF_CODE

__all__ = ["AuditFilter", "Reads", "assignment_position", "event_position"]


class Reads:
    """Reads what is stored. `business_id` is always the caller's, empty = any: what belongs to
    the book of another business is not there.

    Everything here raises DatabaseUnavailable or Overloaded as Database does, and, where it pages,
    InvalidArgument for a position that is not one.
    """

    def __init__(
        self, database: Database, look_up: Callable[[Lookup], Awaitable[Any]] | None = None
    ) -> None:
        """`look_up` answers a lookup, with those of others; else each is answered alone."""
        self._database = database
        self._lookups = Lookups(database)
        self._look_up: Callable[[Lookup], Awaitable[Any]] = look_up or self._look_up_alone

    async def _look_up_alone(self, lookup: Lookup) -> Found:
        (found,) = await self._lookups.execute([lookup])
        return found

    async def code(self, code: str, book_id: UUID | None, business_id: str) -> tuple[Code, Book]:
        """A code and its book. Raises CodeNotFound; with `book_id` also CodeChecksumInvalid."""
        found = await self._look_up(CodeLookup(code, book_id, business_id))
        if isinstance(found, CouponServiceError):
            raise found
        return found

    async def codes(
        self,
        book_id: UUID,
        business_id: str,
        state: CodeState | None,
        page_size: int,
        after: Position | None,
    ) -> tuple[Book, list[Code], Position | None]:
        """The book, a page of its codes, in the order of the table, and the position to go on from.

        A code keeps its place when its state changes, so that paging through all of them misses
        none. Raises BookNotFound.
        """

        async def work(connection: Connection) -> tuple[Book, list[Code], Position | None]:
            book = await select_book(connection, book_id, business_id)
            return book, *await select_code_page(connection, book, state, page_size, after)

        return await self._database.read("list_codes", work)

    async def assignments(
        self, wanted: AssignmentFilter, business_id: str, page_size: int, after: Position | None
    ) -> tuple[Book, list[ShownAssignment], Position | None]:
        """The book, a page of its assignments, newest first, and where to go on from.

        The page may end before it is full. Raises BookNotFound.
        """

        async def work(
            connection: Connection,
        ) -> tuple[Book, list[ShownAssignment], Position | None]:
            book = await select_book(connection, wanted.book_id, business_id)
            return book, *await select_assignments(connection, wanted, page_size, after)

        return await self._database.transaction("list_assignments", work)

    async def user_coupons(
        self,
        user_id: str,
        book_id: UUID | None,
        business_id: str,
        state: AssignmentState | None,
        page_size: int,
        after: Position | None,
    ) -> tuple[list[Coupon], Position | None]:
        """A page of the codes that are or were a user's, newest first, and where to go on from."""
        time, code = time_and_code(after)
        states = tuple(AssignmentState) if state is None else (state,)
        wanted = CouponsLookup(user_id, book_id, business_id, states, time, code, page_size + 1)
        found: list[Coupon] = await self._look_up(wanted)
        return page_of(found, page_size, lambda it: assignment_position(it[0]))

    async def live_coupons(
        self, user_id: str, business_id: str, now: datetime, count: int
    ) -> tuple[list[Coupon], bool]:
        """See `select_live_coupons`."""
        return await self._database.read(
            "live_coupons",
            lambda connection: select_live_coupons(connection, user_id, business_id, now, count),
        )

    async def redemption(
        self, redemption_id: UUID, business_id: str, own_user_id: str = ""
    ) -> tuple[Event, Event | None]:
        """A redemption, of this user, empty = any, and its roll-back if there was one.

        Raises RedemptionNotFound, and Archived.
        """

        async def work(connection: Connection) -> tuple[Event, Event | None]:
            event = (await select_events_by_id(connection, [redemption_id])).get(redemption_id)
            if event is None:
                raise await _missing_redemption(connection, redemption_id, business_id)
            if event.type is not EventType.REDEEMED:
                raise RedemptionNotFound
            if own_user_id not in ("", event.user_id):
                raise RedemptionNotFound
            books = await select_books_by_id(connection, [event.book_id])
            if business_id not in ("", books[event.book_id].business_id):
                raise RedemptionNotFound
            return (await _as_they_are(connection, [event]))[0]

        return await self._database.read("get_redemption", work)

    async def redemptions(
        self, wanted: AuditFilter, page_size: int, after: Position | None
    ) -> tuple[list[tuple[Event, Event | None]], Position | None]:
        """A page of redemptions with their roll-backs, newest first, and where to go on from.

        `wanted`: which of the events REDEEMED.
        """

        async def work(
            connection: Connection,
        ) -> tuple[list[tuple[Event, Event | None]], Position | None]:
            events, position = await select_events(connection, wanted, page_size, after)
            return await _as_they_are(connection, events), position

        return await self._database.transaction("list_redemptions", work)

    async def lock_events(self, lock_ids: Sequence[UUID], business_id: str) -> list[list[Event]]:
        """For each of the locks all its events; none for one that is not there."""
        return await self._look_up(LocksLookup(lock_ids, business_id))

    async def has_book(self, book_id: UUID, business_id: str) -> bool:
        """Whether there is such a book."""
        return bool(await self.known_books([str(book_id)], business_id))

    async def known_books(self, ids: Iterable[str], business_id: str = "") -> set[str]:
        """Those that are ids of books that there are."""
        parsed = list(_uuids(ids))

        async def work(connection: Connection) -> set[str]:
            found = await select_books_by_id(connection, parsed)
            return {str(it) for it, book in found.items() if business_id in ("", book.business_id)}

        return await self._database.read("known_books", work)

    async def due_returns(
        self, ended_by: datetime, count: int, after: DueReturn | None
    ) -> Sequence[DueReturn]:
        """Assignments that were over at `ended_by` and may go back to the pools of their books."""
        return await self._database.read(
            "due_returns",
            lambda connection: select_due_returns(connection, ended_by, count, after),
        )

    async def my_turn(self, name: str, interval_ms: int) -> bool:
        """Whether it is the caller's turn; see `take_turn`."""
        least_ms = interval_ms * 9 // 10  # whoever slept for the interval may have woken early
        return await self._database.read_at_once(
            "turn", lambda connection: take_turn(connection, name, least_ms)
        )

    async def audit_events(
        self, wanted: AuditFilter, page_size: int, after: Position | None
    ) -> tuple[list[Event], Position | None]:
        """A page of the ledger, newest first, and the position to go on from."""
        return await self._database.transaction(
            "list_events", lambda connection: select_events(connection, wanted, page_size, after)
        )

    async def refusals(
        self, wanted: RefusalFilter, page_size: int, after: Position | None
    ) -> tuple[list[RefusedAttempt], Position | None]:
        """A page of refused attempts, newest first, and the position to go on from."""
        return await self._database.transaction(
            "list_refusals",
            lambda connection: select_refusals(connection, wanted, page_size, after),
        )


def _uuids(texts: Iterable[str]) -> Iterator[UUID]:
    for text in texts:
        with suppress(ValueError):
            yield UUID(text)


# 16 is REDEEMED.
SELECT_ARCHIVED_REDEMPTION: Final = """
SELECT file_name
FROM coupon_archived_events JOIN coupon_audit_archives USING (archive)
JOIN coupon_books AS book USING (book_id)
WHERE event_id = %(redemption_id)s AND type = 16
    AND (%(business_id)s = '' OR book.business_id = %(business_id)s)
"""


async def _missing_redemption(
    connection: Connection, redemption_id: UUID, business_id: str
) -> CouponServiceError:
    """Why the ledger does not have a redemption."""
    named = {"redemption_id": redemption_id, "business_id": business_id}
    cursor = await connection.execute(SELECT_ARCHIVED_REDEMPTION, named)
    row = await cursor.fetchone()
    return RedemptionNotFound() if row is None else Archived(archive=row[0])


async def _as_they_are(
    connection: Connection, redemptions: Iterable[Event]
) -> list[tuple[Event, Event | None]]:
    ids = {it.event_id: rollback_id(it.event_id) for it in redemptions}
    rollbacks = await select_events_by_id(connection, ids.values())
    cursor = await connection.execute(SELECT_ADJUSTMENTS, adjustment_keys(ids))
    adjustments = {row[0]: adjustment_from_row(row) for row in await cursor.fetchall()}
    return [
        (adjusted(it, adjustments.get(it.event_id)), rollbacks.get(ids[it.event_id]))
        for it in redemptions
    ]


# --- statements ---------------------------------------------------------------------------------

# The index begins with the state, so each state is read by itself, and then merged.
LIST_CODES: Final[LiteralString] = f"""
SELECT {SHOWN_CODES.selected}
FROM (
    SELECT of_state.*
    FROM unnest(%(states)s::smallint[]) AS wanted (wanted_state)
    CROSS JOIN LATERAL (
        SELECT * FROM coupon_codes
        WHERE book_id = %(book_id)s AND state = wanted_state
            AND (bucket, code) > (%(bucket)s, %(code)s)
        ORDER BY bucket, code
        LIMIT %(count)s
    ) AS of_state
    ORDER BY bucket, code
    LIMIT %(count)s
) AS c
LEFT JOIN coupon_code_spellings USING (bucket, code, scope)
CROSS JOIN LATERAL (SELECT CASE WHEN %(terms)s THEN {OF_CODE} END AS terms) AS own
ORDER BY bucket, code
"""


_IN_ORDER: Final[LiteralString] = """
        WHERE book_id = %(book_id)s AND state = wanted_state
            AND (bucket, code) > (%(bucket)s, %(code)s)
        ORDER BY bucket, code
        LIMIT %(count)s
"""
_STORED: Final[LiteralString] = "bucket, code, book_id, state, redemptions, assignments"
LIST_CODES_OF_CLOSED: Final[LiteralString] = f"""
SELECT {SHOWN_CODES.selected}
FROM (
    SELECT of_state.*
    FROM unnest(%(states)s::smallint[]) AS wanted (wanted_state)
    CROSS JOIN LATERAL (
        (SELECT {_STORED}, scope, NULL AS past_spelling FROM coupon_codes {_IN_ORDER})
        UNION ALL
        (SELECT {_STORED}, NULL, spelling FROM coupon_past_codes {_IN_ORDER})
    ) AS of_state
    ORDER BY bucket, code
    LIMIT %(count)s
) AS c
LEFT JOIN (
    SELECT bucket, code, scope, spelling AS present_spelling FROM coupon_code_spellings
) AS present USING (bucket, code, scope)
CROSS JOIN LATERAL (
    SELECT coalesce(past_spelling, present_spelling) AS spelling,
        CASE WHEN %(terms)s THEN {OF_CODE} END AS terms
) AS own
ORDER BY bucket, code
"""
"""With those that other books have now."""


async def select_code_page(
    connection: Connection,
    book: Book,
    state: CodeState | None,
    page_size: int,
    after: Position | None,
) -> tuple[list[Code], Position | None]:
    """A page of a book's codes, by (bucket, code), and the position to go on from."""
    code = code_only(after)
    cursor = await connection.execute(
        LIST_CODES_OF_CLOSED if book.state is BookState.CLOSED else LIST_CODES,
        {
            "book_id": book.book_id,
            "terms": book.codes_have_terms,
            "states": int_array(CodeState if state is None else [state]),
            "bucket": bucket_of(code) if code else -1,
            "code": code,
            "count": page_size + 1,
        },
    )
    codes = [shown_code_from_row(row) for row in await cursor.fetchall()]
    return page_of(codes, page_size, lambda code: (code.code,))


def assignment_position(assignment: Assignment) -> Position:
    """Where a page goes on after this assignment, one that was made."""
    if assignment.assign_time is None:
        raise AssertionError("a user's code without an assignment")
    return time_position(assignment.assign_time, assignment.code)


# PostgreSQL's, since the clocks of replicas differ. By itself, since Citus takes no function that
# is not IMMUTABLE in ON CONFLICT.
SELECT_TIME: Final = "SELECT now()"

TAKE_TURN: Final = """
INSERT INTO coupon_turns AS turn (name, taken_time) VALUES (%(name)s, %(now)s)
ON CONFLICT (name) DO UPDATE SET taken_time = excluded.taken_time
WHERE turn.taken_time <= %(before)s
"""


async def take_turn(connection: Connection, name: str, interval_ms: int) -> bool:
    """Whether it is the caller's turn to do what is done once in `interval_ms`, over all replicas.

    Who takes a turn and then dies leaves it undone until the next one.
    """
    cursor = await connection.execute(SELECT_TIME)
    row = await cursor.fetchone()
    now = row[0] if row else datetime.now(UTC)
    before = now - timedelta(milliseconds=interval_ms)
    cursor = await connection.execute(TAKE_TURN, {"name": name, "now": now, "before": before})
    return cursor.rowcount == 1
