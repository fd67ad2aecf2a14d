"""What decisions are made on: the rows of books, codes, assignments and counters."""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any
from uuid import UUID

from coupon_service.errors import CouponServiceError
from coupon_service.model import (
    AmountOff,
    Assignment,
    AssignmentPolicy,
    AssignmentState,
    Book,
    BookLimits,
    BookState,
    BookStats,
    BookTotals,
    Code,
    CodeState,
    Command,
    CommandGroup,
    Done,
    Event,
    EventType,
    Lease,
    LeaseNeeded,
    Lock,
    LockPolicy,
    OrderCoupons,
    Outcome,
    Redeem,
    State,
    UserCounts,
    WriteSet,
    order_keys,
)
from coupon_service.rules import decide
from coupon_service.rules.periods import period_keys

NOW = datetime(2026, 1, 15, 12, tzinfo=UTC)
MOMENT = timedelta(microseconds=1)
MINUTE = timedelta(minutes=1)
BOOK_ID = UUID(int=1)

PERMIT = Lease(permits_taken=1)
"""A permit on a code where nobody else has one."""

NOTHING = WriteSet(
    codes={},
    assignments={},
    users={},
    totals={},
    periods={},
    orders={},
    events=(),
    stats={},
)


def book(book_id: UUID = BOOK_ID, **changes: Any) -> Book:
    """A book that refuses nothing but the second use of a code. `changes` may name limits."""
    limits = {it.name: changes.pop(it.name) for it in fields(BookLimits) if it.name in changes}
    values: dict[str, Any] = {
        "state": BookState.ACTIVE,
        "discount": AmountOff(500),
        "currency_code": "EUR",
        "assignment_policy": AssignmentPolicy.BEARER,
        "lock_policy": LockPolicy.OFF,
    }
    return Book(
        book_id=book_id,
        business_id="business",
        name="book",
        create_time=NOW,
        update_time=NOW,
        limits=BookLimits(**limits),
        **{**values, **changes},
    )


@dataclass(slots=True)
class World:
    """All rows there are. Decisions are made on a copy; write sets are written as by the store."""

    state: State
    now: datetime
    stats: dict[UUID, BookStats]
    ledger: list[Event]

    def __init__(self, *books: Book, codes: Iterable[str] = "ABC", now: datetime = NOW) -> None:
        """`codes` are new codes of the first book."""
        self.state = State(fences=list(range(999, 0, -1)))
        self.now = now
        self.stats = {}
        self.ledger = []
        for each in books or (book(),):
            self.state.books[each.book_id] = each
            self.state.totals[each.book_id] = BookTotals()
        first = next(iter(self.state.books))
        for code in codes:
            self.put(Code(code, first, CodeState.AVAILABLE, 0, 0))

    def put(self, row: Code | Assignment | UserCounts, user: str = "ann") -> None:
        """Stores a row as it is, whatever was there before."""
        if isinstance(row, Code):
            self.state.put_code(row)
        elif isinstance(row, Assignment):
            self.state.assignments[row.key] = row
        else:
            self.state.users[(BOOK_ID, user)] = row

    def change_book(self, **changes: Any) -> None:
        """Gives the first book other rules; `changes` may name limits."""
        old = self.state.books[BOOK_ID]
        names = [it.name for it in fields(BookLimits) if it.name in changes]
        limits = replace(old.limits, **{name: changes.pop(name) for name in names})
        self.state.books[BOOK_ID] = replace(old, limits=limits, **changes)

    def code(self, code: str = "A") -> Code:
        """A code as it is now."""
        (book_id,) = self.state.names[code]
        return self.state.codes[book_id, code]

    def assignment(self, user: str = "ann", code: str = "A") -> Assignment:
        """The assignment between a user and a code as it is now."""
        return self.state.assignments[*self.code(code).key, user]

    # --- decisions ------------------------------------------------------------------------------

    def decide(self, *groups: CommandGroup) -> tuple[list[list[Outcome]], WriteSet]:
        """What the groups come to, as one batch; nothing is written."""
        state = self._loaded()
        users = {
            command.user_id
            for group in groups
            for command in group.commands
            if isinstance(command, (Redeem, Lock))
        }
        for user, of_book in product(users, state.books.values()):
            for key in period_keys(of_book, user, self.now):
                state.periods.setdefault(key, 0)
        return decide(groups, state, self.now)

    def run(self, *groups: CommandGroup) -> list[list[Outcome]]:
        """Decides the groups as one batch and writes the write set."""
        outcomes, write_set = self.decide(*groups)
        self.write(write_set)
        return outcomes

    def batch(self, *commands: Command) -> list[Outcome]:
        """Decides commands of different callers as one batch and writes the write set."""
        return [
            outcome for (outcome,) in self.run(*(CommandGroup((command,)) for command in commands))
        ]

    def all_or_nothing(self, *commands: Command) -> list[Outcome]:
        """Decides commands as an atomic group and writes the write set."""
        return self.run(CommandGroup(commands, atomic=True))[0]

    def does(self, command: Command) -> Done:
        """Carries out a command that nothing speaks against."""
        (outcome,) = self.batch(command)
        assert isinstance(outcome, Done), repr(outcome)
        return outcome

    def refuses(self, command: Command) -> CouponServiceError:
        """Why a command is not carried out. Nothing at all is changed then."""
        ((error,),), write_set = self.decide(CommandGroup((command,)))
        assert isinstance(error, CouponServiceError), repr(error)
        assert write_set == NOTHING
        return error

    def asks_for_a_lease(self, command: Command) -> bool:
        """Whether a command is to come again with a permit. Nothing at all is changed then."""
        ((outcome,),), write_set = self.decide(CommandGroup((command,)))
        asked = isinstance(outcome, LeaseNeeded)
        assert asked is (write_set == NOTHING)
        return asked

    def write(self, write_set: WriteSet) -> None:
        """Writes a write set. Rows have to be, before that, as it says they were."""
        state = self.state
        for code, (before, after) in write_set.codes.items():
            assert state.codes[code] == before
            state.codes[code] = after
        for key, (assignment, new_assignment) in write_set.assignments.items():
            assert state.assignments.get(key) == assignment
            state.assignments[key] = new_assignment
        for user, (counts, new_counts) in write_set.users.items():
            assert state.users.get(user, UserCounts()) == counts
            state.users[user] = new_counts
        for book_id, (total, new_total) in write_set.totals.items():
            assert state.totals[book_id] == total
            state.totals[book_id] = new_total
        for period, (counted, new_count) in write_set.periods.items():
            assert state.periods.get(period, 0) == counted
            state.periods[period] = new_count
        for order, (coupons, new_coupons) in write_set.orders.items():
            assert state.order_coupons.get(order, OrderCoupons()) == coupons
            state.order_coupons[order] = new_coupons
        for book_id, change in write_set.stats.items():
            self.stats[book_id] = _sum(self.stats.get(book_id, BookStats()), change)
        for event in write_set.events:
            self._append(event)

    def _append(self, event: Event) -> None:
        state = self.state
        assert event.event_id not in state.events, "the primary key of the ledger"
        self.ledger.append(event)
        state.events[event.event_id] = event
        if event.lock_id is not None:
            earlier = state.lock_events.get(event.lock_id, ())
            state.lock_events[event.lock_id] = (*earlier, event)
        if event.type is EventType.LOCKED and event.event_id == event.lock_id:
            assert event.fence is not None
            state.fences.remove(event.fence)
        if event.order_id:
            self._append_order(event, event.order_id)

    def _append_order(self, event: Event, order_id: str) -> None:
        orders = self.state.orders
        code = event.book_id, event.code or ""
        for key in order_keys(code, order_id, event.user_id or "", event.order_user_id):
            if event.type is EventType.REDEEMED:
                assert key not in orders, "one live redemption an order"
                orders[key] = event.event_id
            else:
                assert orders.pop(key) == event.redemption_id

    def copy(self) -> World:
        """Rows of their own, equal to these."""
        twin = copy(self)
        twin.state = self._loaded()
        twin.stats = self.stats.copy()
        twin.ledger = self.ledger.copy()
        return twin

    def _loaded(self) -> State:
        state = self.state
        return State(
            codes=state.codes.copy(),
            names=state.names.copy(),
            books=state.books.copy(),
            assignments=state.assignments.copy(),
            events=state.events.copy(),
            lock_events=state.lock_events.copy(),
            orders=state.orders.copy(),
            users=state.users.copy(),
            totals=state.totals.copy(),
            periods=state.periods.copy(),
            order_coupons=state.order_coupons.copy(),
            adjustments=state.adjustments.copy(),
            terms=state.terms.copy(),
            candidates={
                book_id: candidates.copy() for book_id, candidates in state.candidates.items()
            },
            candidates_contended=state.candidates_contended,
            fences=state.fences.copy(),
            hidden=state.hidden,
        )


def _sum(one: BookStats, other: BookStats) -> BookStats:
    names = [it.name for it in fields(BookStats)]
    return BookStats(**{name: getattr(one, name) + getattr(other, name) for name in names})


def active(
    user: str = "ann", code: str = "A", book_id: UUID = BOOK_ID, **changes: Any
) -> Assignment:
    """An assignment that was made long ago; the counts of the code do not know of it."""
    values: dict[str, Any] = {"state": AssignmentState.ACTIVE, "assign_time": NOW, **changes}
    return Assignment(code, user, book_id, **values)


def lockable(policy: LockPolicy = LockPolicy.OPTIONAL, **changes: Any) -> World:
    """The rows of a book with locking."""
    return World(book(lock_policy=policy, **changes))
