"""Small reads of many callers at the same moment, answered together in two round trips.

What one caller asks for is a lookup; a batch of lookups of any kind is answered at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, LiteralString, TypeAlias
from uuid import UUID

from coupon_service.errors import CouponServiceError
from coupon_service.model import (
    Assignment,
    AssignmentState,
    Book,
    BookState,
    Code,
    Event,
    State,
    bucket_of_event,
)
from coupon_service.model.scopes import scope_of_book
from coupon_service.rules import book_of, find_code
from coupon_service.store.arrays import int_array, text_array, time_array, uuid_array
from coupon_service.store.books import SELECT_BOOKS
from coupon_service.store.columns import Row
from coupon_service.store.database import Database
from coupon_service.store.events import SELECT_LOCK_EVENTS
from coupon_service.store.past_codes import select_past_codes
from coupon_service.store.pipeline import Connection, Pipeline, Rows
from coupon_service.store.rows import (
    ASSIGNMENTS,
    assignment_from_row,
    book_from_row,
    event_from_row,
    past_code_from_row,
    shown_code_from_row,
)
from coupon_service.store.scopes import SELECT_SOLE_BUSINESS, ScopedCode, Scoping
from coupon_service.store.spellings import select_shown_codes


@dataclass(frozen=True, slots=True)
class One:
    """A lookup among others: it waits as long as its caller does."""

    @property
    def size(self) -> int:
        """How much of a batch it is."""
        return 1

    @property
    def deadline(self) -> None:
        """None: it is cheap enough to be done for a caller who has gone."""
        return None


@dataclass(frozen=True, slots=True)
class CodeLookup(One):
    """A code and its book, or the reason why there is none."""

    code: str
    book_id: UUID | None
    business_id: str


@dataclass(frozen=True, slots=True)
class CouponsLookup(One):
    """The codes that are or were a user's, newest first; `count` of them after (time, code)."""

    user_id: str
    book_id: UUID | None
    business_id: str
    states: Sequence[AssignmentState]
    time: datetime
    code: str
    count: int


@dataclass(frozen=True, slots=True)
class LocksLookup(One):
    """All events of each of the locks."""

    lock_ids: Sequence[UUID]
    business_id: str


Lookup: TypeAlias = CodeLookup | CouponsLookup | LocksLookup
Coupon: TypeAlias = tuple[Assignment, Code, Book]
Found: TypeAlias = tuple[Code, Book] | CouponServiceError | list[Coupon] | list[list[Event]]


class Lookups:
    """Answers lookups."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._scoping = Scoping()

    async def execute(self, lookups: Sequence[Lookup]) -> list[Found]:
        """What each lookup finds. Raises what `Database.read_at_once` raises."""

        async def work(connection: Connection) -> list[Found]:
            found: list[Found] | None = None
            while found is None:
                batch = _Batch(Pipeline(connection), self._scoping)
                found = await batch.answer(lookups)
                self._scoping = batch.scoping
            return found

        return await self._database.read_at_once("lookups", work)


LIST_ASSIGNMENTS: Final[LiteralString] = f"""
SELECT w_number, assignment.*
FROM unnest(%s::integer[], %s::text[], %s::uuid[], %s::text[], %s::integer[], %s::timestamptz[],
            %s::text[], %s::integer[])
    AS wanted (w_number, w_user, w_book, w_business, w_states, w_time, w_code, w_count)
CROSS JOIN LATERAL (
    SELECT {ASSIGNMENTS.selected}
    FROM coupon_assignments
    WHERE user_id = w_user AND assign_time IS NOT NULL AND (assign_time, code) < (w_time, w_code)
        AND (1 << state) & w_states <> 0
        AND (w_book IS NULL OR book_id = w_book)
        AND (w_business = '' OR book_id IN (
            SELECT book.book_id FROM coupon_books AS book WHERE book.business_id = w_business))
    ORDER BY assign_time DESC, code DESC
    LIMIT w_count
) AS assignment
ORDER BY w_number, assign_time DESC, code DESC
"""


class _Batch:
    """Lookups on their way."""

    def __init__(self, pipeline: Pipeline, scoping: Scoping) -> None:
        self._pipeline = pipeline
        self.scoping = scoping
        """Whose codes are meant: as it was, and then as it is."""
        self._state = State()

    async def answer(self, lookups: Sequence[Lookup]) -> list[Found] | None:
        """What each finds; None where another scope would have been looked in."""
        of_codes = [it for it in lookups if isinstance(it, CodeLookup)]
        of_coupons = [it for it in lookups if isinstance(it, CouponsLookup)]
        of_locks = [it for it in lookups if isinstance(it, LocksLookup)]
        scopes = {it: self.scoping.scope_of(it.book_id, it.business_id) for it in of_codes}
        code_rows = self._select_codes({(it.code, scopes[it]) for it in of_codes})
        scoping = self._pipeline.add(SELECT_SOLE_BUSINESS) if of_codes else ()
        assignment_rows = self._list_assignments(of_coupons) if of_coupons else ()
        event_rows = self._select_events([it for each in of_locks for it in each.lock_ids])
        await self._pipeline.run()

        for (sole_business,) in scoping:
            known, self.scoping = self.scoping, Scoping.of(sole_business)
            if known != self.scoping:
                return None
        self._state.several_businesses = self.scoping.several_businesses
        self._put_codes(code_rows)
        assignments: defaultdict[int, list[Assignment]] = defaultdict(list)
        for number, *row in assignment_rows:
            assignments[number].append(assignment_from_row(tuple(row)))
        events = [event_from_row(row) for row in event_rows]
        assigned = [it for each in assignments.values() for it in each]
        code_rows = self._select_codes(
            {
                (it.code, scope_of_book(it.book_id))
                for it in assigned
                if (it.book_id, it.code) not in self._state.codes
            }
        )
        book_rows = self._select_books(
            {it.book_id for it in (*self._state.codes.values(), *assigned, *events)}
            | {it.book_id for it in of_codes if it.book_id}
        )
        await self._pipeline.run()

        self._put_codes(code_rows)
        self._state.books = {book.book_id: book for book in map(book_from_row, book_rows)}
        await self._put_past_codes(of_codes, assigned)
        pages = map(assignments.__getitem__, range(len(of_coupons)))
        return [self._found(it, pages, events) for it in lookups]

    def _found(
        self, lookup: Lookup, pages: Iterator[list[Assignment]], events: list[Event]
    ) -> Found:
        match lookup:
            case CodeLookup():
                return find_code(lookup.code, lookup.book_id, lookup.business_id, self._state)
            case CouponsLookup():
                page = next(pages)
                codes, books = self._state.codes, self._state.books
                coupons = ((it, codes[it.book_id, it.code], books[it.book_id]) for it in page)
                return [(it, code, book_of(code, book)) for it, code, book in coupons]
            case LocksLookup():
                return self._of_locks(lookup, events)

    def _of_locks(self, lookup: LocksLookup, events: Iterable[Event]) -> list[list[Event]]:
        found: dict[UUID | None, list[Event]] = {lock_id: [] for lock_id in lookup.lock_ids}
        for event in events:
            visible = lookup.business_id in ("", self._state.books[event.book_id].business_id)
            if visible and event.lock_id in found:
                found[event.lock_id].append(event)
        return [found[lock_id] for lock_id in lookup.lock_ids]

    def _put_codes(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self._state.put_code(shown_code_from_row(row))

    async def _put_past_codes(
        self, of_codes: Iterable[CodeLookup], assigned: Iterable[Assignment]
    ) -> None:
        """Reads what codes were in CLOSED books, in a round trip where any may be wanted."""
        named = {(it.book_id, it.code) for it in of_codes if it.book_id}
        keys = (named | {(it.book_id, it.code) for it in assigned}) - self._state.codes.keys()
        books = self._state.books
        wanted = [it for it in keys if it[0] in books and books[it[0]].state is BookState.CLOSED]
        if not wanted:
            return
        rows = select_past_codes(self._pipeline, wanted)
        await self._pipeline.run()
        for row in rows:
            self._state.put_code(past_code_from_row(row))

    def _select_codes(self, codes: Collection[ScopedCode]) -> Iterable[Row]:
        if not codes:
            return ()
        return select_shown_codes(self._pipeline, codes)

    def _select_books(self, books: Iterable[UUID]) -> Rows:
        return self._pipeline.add(SELECT_BOOKS, (uuid_array(books),))

    def _select_events(self, lock_ids: Sequence[UUID]) -> Iterable[Row]:
        if not lock_ids:
            return ()
        ids = list(dict.fromkeys(lock_ids))
        parameters = uuid_array(ids), int_array(map(bucket_of_event, ids))
        return self._pipeline.add(SELECT_LOCK_EVENTS, parameters)

    def _list_assignments(self, lookups: Sequence[CouponsLookup]) -> Rows:
        return self._pipeline.add(
            LIST_ASSIGNMENTS,
            (
                int_array(range(len(lookups))),
                text_array([it.user_id for it in lookups]),
                uuid_array([it.book_id for it in lookups]),
                text_array([it.business_id for it in lookups]),
                int_array([sum(1 << state for state in it.states) for it in lookups]),
                time_array([it.time for it in lookups]),
                text_array([it.code for it in lookups]),
                int_array([it.count for it in lookups]),
            ),
        )
