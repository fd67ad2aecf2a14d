"""Input and results of decisions: the loaded state, outcomes, and the rows to write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import TypeAlias
from uuid import UUID

from coupon_service.errors import Contention, CouponServiceError
from coupon_service.model.books import Book, BookStats, Terms
from coupon_service.model.commands import LockClaims
from coupon_service.model.enums import ErasureState
from coupon_service.model.records import (
    Adjustment,
    Assignment,
    AssignmentKey,
    BookTotals,
    Code,
    CodeKey,
    Event,
    LockView,
    OrderCoupons,
    UserCounts,
)
from coupon_service.model.values import value


@value
class Done:
    """The command was carried out, now or (`replayed`) by an earlier call.

    `code` and `assignment` are as they are after the command. When replayed, `code` is as it is
    now, and `assignment` as it was recorded, where it was assigned, or else as it is now. `lock` is
    the lock that the command was about, as it is now; None where its history was not read for the
    decision.
    """

    event: Event
    book: Book
    code: Code | None
    assignment: Assignment | None = None
    replayed: bool = False
    lock: LockView | None = None


@value
class LeaseNeeded:
    """The rules allow the command, but the book has locking: decide again with a permit of Redis.

    `uses_left`: remaining uses of the code, as of PostgreSQL; None without a limit.
    """

    book: Book
    uses_left: int | None = None


Outcome = Done | LeaseNeeded | CouponServiceError


def done_of(outcome: Outcome) -> Done:
    """The outcome as Done.

    Raises the error of a refused command. Raises Contention for LeaseNeeded, which a decision with
    a permit returns only while the lock policy of the book changes.
    """
    if isinstance(outcome, Done):
        return outcome
    raise outcome if isinstance(outcome, CouponServiceError) else Contention


OrderKey: TypeAlias = tuple[CodeKey, str, str]
"""A code, an order, and the user of the order; "" for an order of the business."""

PeriodKey: TypeAlias = tuple[UUID, str, date]
"""A book, a user, or "" for all of them, and the first day of a period of the book."""

OrderRef: TypeAlias = tuple[str, str, str]
"""A business, an order, and the end user whose own order it is; "" for an order of the business."""

HiddenKey: TypeAlias = tuple[CodeKey, str, str, LockClaims | None, bool]
"""A code, an end user, an order, and the lock of the token, if any, and whether Redis says that it
is gone."""


def order_keys(
    code: CodeKey, order_id: str, user_id: str, order_user_id: str | None
) -> tuple[OrderKey, ...]:
    """The keys that a redemption for an order holds while it is live. Two never share a key.

    An order of the business is the same for all users. An order that an end user names
    (`order_user_id`) belongs to that user, and differs from orders of others with the same id.
    """
    own = (code, order_id, user_id)
    return (own,) if order_user_id is not None else (own, (code, order_id, ""))


@value
class ArchivedRange:
    """Events of the codes of a book that are in an archive, by their numbers, both included."""

    book_id: UUID
    first_sequence: int
    last_sequence: int
    file_name: str


@dataclass(slots=True)
class State:
    """The rows that a batch of commands is decided on. The decision updates it in place.

    Holds the rows that the commands touch: a missing key means that there is no such row.
    `names`: the books, here, that have a code of this name, without those that had it in the past.
    `several_businesses`: who names none has to, since codes are unique within theirs.
    `users`: counts in books that limit users. `totals`: of books that limit them.
    `periods`: redemptions in periods of books that limit those.

    `order_coupons`: of orders for which codes of books are redeemed that are not INDEPENDENT.
    `candidates`: locked, available codes of a book for AssignRandom. `candidates_contended`: books
    with more available codes, which other transactions had locked. `fences`: unused fencing
    numbers. `adjustments` and `terms`: of redemptions. `hidden`: codes that end users could not use
    when they were loaded; no further rows of them were loaded. `archived`: ids of events that are
    in archives, with the files. `archives`: those of the books.

    Only once anybody was erased: `pseudonyms` of users, and `order_pseudonyms` of orders, under
    which there may be rows as well; `erasures`: of whom, by pseudonym, one is under way.
    """

    codes: dict[CodeKey, Code] = field(default_factory=dict[CodeKey, Code])
    names: dict[str, tuple[UUID, ...]] = field(default_factory=dict[str, tuple[UUID, ...]])
    books: dict[UUID, Book] = field(default_factory=dict[UUID, Book])
    assignments: dict[AssignmentKey, Assignment] = field(
        default_factory=dict[AssignmentKey, Assignment]
    )
    events: dict[UUID, Event] = field(default_factory=dict[UUID, Event])
    lock_events: dict[UUID, tuple[Event, ...]] = field(
        default_factory=dict[UUID, tuple[Event, ...]]
    )
    orders: dict[OrderKey, UUID] = field(default_factory=dict[OrderKey, UUID])
    users: dict[tuple[UUID, str], UserCounts] = field(
        default_factory=dict[tuple[UUID, str], UserCounts]
    )
    totals: dict[UUID, BookTotals] = field(default_factory=dict[UUID, BookTotals])
    periods: dict[PeriodKey, int] = field(default_factory=dict[PeriodKey, int])

    order_coupons: dict[OrderRef, OrderCoupons] = field(
        default_factory=dict[OrderRef, OrderCoupons]
    )
    candidates: dict[UUID, list[str]] = field(default_factory=dict[UUID, list[str]])
    candidates_contended: frozenset[UUID] = frozenset()
    fences: list[int] = field(default_factory=list[int])
    adjustments: dict[UUID, Adjustment] = field(default_factory=dict[UUID, Adjustment])
    terms: dict[UUID, Terms] = field(default_factory=dict[UUID, Terms])
    hidden: frozenset[HiddenKey] = frozenset()
    several_businesses: bool = False
    pseudonyms: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    order_pseudonyms: Mapping[str, tuple[str, ...]] = field(
        default_factory=dict[str, tuple[str, ...]]
    )
    erasures: Mapping[str, ErasureState] = field(default_factory=dict[str, ErasureState])
    archived: dict[UUID, str] = field(default_factory=dict[UUID, str])
    archives: tuple[ArchivedRange, ...] = ()

    def put_code(self, code: Code) -> None:
        """Adds a code, or changes it."""
        key = code.key
        if key not in self.codes and not code.is_past:
            self.names[code.code] = (*self.names.get(code.code, ()), code.book_id)
        self.codes[key] = code


@value
class WriteSet:
    """The changes of a decision, table by table.

    Codes, assignments, users, totals, periods and orders hold the row before (None: new) and the
    row after; counters are changed by their difference. Adjustments are the rows after.
    """

    codes: Mapping[CodeKey, tuple[Code, Code]]
    assignments: Mapping[AssignmentKey, tuple[Assignment | None, Assignment]]
    users: Mapping[tuple[UUID, str], tuple[UserCounts, UserCounts]]
    totals: Mapping[UUID, tuple[BookTotals, BookTotals]]
    periods: Mapping[PeriodKey, tuple[int, int]]

    orders: Mapping[OrderRef, tuple[OrderCoupons, OrderCoupons]]
    events: tuple[Event, ...]
    stats: Mapping[UUID, BookStats]
    adjustments: Mapping[UUID, Adjustment] = field(default_factory=dict[UUID, Adjustment])
