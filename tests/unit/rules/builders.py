"""What decisions are made on, and by: the rows of a few books, and the commands of a few users."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from coupon_service.codes import bucket_of
from coupon_service.errors import CouponServiceError
from coupon_service.model import (
    AmountOff,
    Assign,
    Assignment,
    AssignmentPolicy,
    AssignmentState,
    AssignRandom,
    Book,
    BookLimits,
    BookState,
    BookStats,
    Call,
    ChangeLock,
    Code,
    CodeState,
    Command,
    Done,
    Effects,
    Event,
    EventType,
    Lease,
    LeaseNeeded,
    Lock,
    LockClaims,
    LockPolicy,
    Money,
    Outcome,
    Redeem,
    Revoke,
    Rollback,
    State,
    SwitchCode,
    Unit,
    bucket_of_book,
    event_id,
    fingerprint,
)
from coupon_service.rules import decide

NOW = datetime(2026, 1, 15, 12, tzinfo=UTC)
MOMENT = timedelta(microseconds=1)
MINUTE = timedelta(minutes=1)

PLACE = Lease(places_taken=1)
"""A place on a code on which nobody else has one."""


# --- books and their rows -----------------------------------------------------------------------


def book(number: int = 1, **changes: Any) -> Book:
    """A book that refuses nothing but the second use of a code; `changes` also name limits."""
    limits = {it.name: changes.pop(it.name) for it in fields(BookLimits) if it.name in changes}
    values: dict[str, Any] = {
        "state": BookState.ACTIVE,
        "discount": AmountOff(500),
        "currency_code": "EUR",
        "assignment_policy": AssignmentPolicy.BEARER,
        "lock_policy": LockPolicy.OFF,
        "limits": BookLimits(**limits),
        **changes,
    }
    return Book(
        book_id=UUID(int=number),
        business_id="business",
        name="book",
        create_time=NOW,
        update_time=NOW,
        **values,
    )


class World:
    """All rows there are. Decisions are made on a copy, and their effects written as by the store.

    `codes` are new codes of the book.
    """

    def __init__(self, book: Book, codes: Iterable[str] = "ABC", now: datetime = NOW) -> None:
        self.state = State(fences=list(range(99, 0, -1)))
        self.stats: dict[UUID, BookStats] = {}
        self.ledger: list[Event] = []
        self.now = now
        self.put_book(book)
        for code in codes:
            self.put_code(Code(code, book.book_id, CodeState.AVAILABLE, 0, 0))

    def put_book(self, book: Book) -> None:
        """Makes a book, or gives it other rules."""
        self.state.books[book.book_id] = book
        self.state.totals.setdefault(book.book_id, 0)

    def change_book(self, **changes: Any) -> None:
        """Gives the first book other rules."""
        old = self.state.books[UUID(int=1)]
        limits = {it.name: changes.pop(it.name) for it in fields(BookLimits) if it.name in changes}
        self.put_book(replace(old, limits=replace(old.limits, **limits), **changes))

    def put_code(self, code: Code) -> None:
        self.state.codes[code.code] = code

    def code(self, code: str = "A") -> Code:
        return self.state.codes[code]

    def link(self, code: str = "A", user: str = "ann") -> Assignment | None:
        return self.state.assignments.get((code, user))

    # --- decisions ------------------------------------------------------------------------------

    def decide(self, *units: Unit) -> tuple[list[list[Outcome]], Effects]:
        """What the units come to, all at once; nothing is written."""
        return decide(units, copy_of(self.state), self.now)

    def run(self, *units: Unit) -> list[list[Outcome]]:
        """Decides the units as one batch and writes the effects."""
        outcomes, effects = self.decide(*units)
        self.write(effects)
        return outcomes

    def batch(self, *commands: Command) -> list[Outcome]:
        """Decides commands of different callers as one batch and writes the effects."""
        return [outcome for (outcome,) in self.run(*(Unit((command,)) for command in commands))]

    def does(self, command: Command) -> Done:
        """Carries a command out that nothing speaks against."""
        ((outcome,),) = self.run(Unit((command,)))
        assert isinstance(outcome, Done), repr(outcome)
        return outcome

    def refuses(self, command: Command) -> CouponServiceError:
        """Why a command is not carried out; then nothing at all is changed."""
        outcome, effects = self.decide(Unit((command,)))
        assert effects == NOTHING
        ((error,),) = outcome
        assert isinstance(error, CouponServiceError), repr(error)
        return error

    def needs_lease(self, command: Command) -> bool:
        """Whether the command is to come again with a place in Redis."""
        ((outcome,),), effects = self.decide(Unit((command,)))
        assert effects == NOTHING or isinstance(outcome, Done)
        return isinstance(outcome, LeaseNeeded)

    def write(self, effects: Effects) -> None:
        """Writes the effects: rows that were there are changed from what the decision saw."""
        state = self.state
        for key, (before, after) in effects.codes.items():
            assert state.codes[key] == before
            state.codes[key] = after
        for key, (before, after) in effects.assignments.items():
            assert state.assignments.get(key) == before
            state.assignments[key] = after
        for key, (before, after) in effects.users.items():
            assert state.users.get(key, UserZero) == before
            state.users[key] = after
        for key, (before, after) in effects.totals.items():
            assert state.totals[key] == before
            state.totals[key] = after
        for key, change in effects.stats.items():
            self.stats[key] = added(self.stats.get(key, BookStats()), change)
        for event in effects.events:
            self._append(event)

    def _append(self, event: Event) -> None:
        state = self.state
        assert event.event_id not in state.events, "an id of the ledger is given once"
        self.ledger.append(event)
        state.events[event.event_id] = event
        if event.lock_id:
            earlier = state.lock_events.get(event.lock_id, ())
            state.lock_events[event.lock_id] = (*earlier, event)
        if event.code and event.order_id:
            if event.type is EventType.REDEEMED:
                state.orders[(event.code, event.order_id)] = event.event_id
            else:
                del state.orders[(event.code, event.order_id)]
        if event.type is EventType.LOCKED:
            state.fences.remove(event.fence or 0)
