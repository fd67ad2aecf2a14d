"""What commands are decided on, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from uuid import UUID

from coupon_service.errors import Contention, CouponServiceError
from coupon_service.model.books import Book, BookStats
from coupon_service.model.records import Assignment, Code, Event, LockView, UserCounts
from coupon_service.model.values import value


@value
class Done:
    """The command was carried out, now or (`replayed`) by an earlier call.

    `code` and `assignment` are as they are after the command. When replayed, `code` is as it is
    now (None for a random assignment), and `assignment` as it was recorded, where it was assigned,
    or else as it is now. `lock` is the lock that the command was about, as it is now; None where
    its history was not read for the decision.
    """

    event: Event
    book: Book
    code: Code | None
    assignment: Assignment | None = None
    replayed: bool = False
    lock: LockView | None = None


@value
class LeaseNeeded:
    """Nothing speaks against it, but the book has locking: come again with a permit of Redis.

    `uses_left`: of the code, as far as PostgreSQL knows; None without a limit.
    """

    book: Book
    uses_left: int | None = None


Outcome = Done | LeaseNeeded | CouponServiceError


def done_of(outcome: Outcome) -> Done:
    """The outcome of a command that was carried out.

    Raises the error of one that was refused, and Contention for one that would need a permit once
    more, which happens only while the lock policy of its book is changing.
    """
    if isinstance(outcome, Done):
        return outcome
    raise outcome if isinstance(outcome, CouponServiceError) else Contention


@dataclass(slots=True)
class State:
    """What a batch of commands is decided on; the decision works on it in place.

    Holds just what the commands touch: a missing key means that there is no such row.
    `users` has the books that count users, `totals` those with a limit for all redemptions.
    `candidates` are locked, available codes of a book for AssignRandom; `candidates_contended` the
    books where more are available but were locked by others. `fences` are unused fencing numbers.
    `hidden`: codes, each with an end user who could not use it when it was loaded; what a decision
    on it would need besides was not loaded.
    """

    codes: dict[str, Code] = field(default_factory=dict[str, Code])
    books: dict[UUID, Book] = field(default_factory=dict[UUID, Book])
    assignments: dict[tuple[str, str], Assignment] = field(
        default_factory=dict[tuple[str, str], Assignment]
    )
    events: dict[UUID, Event] = field(default_factory=dict[UUID, Event])
    lock_events: dict[UUID, tuple[Event, ...]] = field(
        default_factory=dict[UUID, tuple[Event, ...]]
    )
    orders: dict[tuple[str, str], UUID] = field(default_factory=dict[tuple[str, str], UUID])
    users: dict[tuple[UUID, str], UserCounts] = field(
        default_factory=dict[tuple[UUID, str], UserCounts]
    )
    totals: dict[UUID, int] = field(default_factory=dict[UUID, int])
    candidates: dict[UUID, list[str]] = field(default_factory=dict[UUID, list[str]])
    candidates_contended: frozenset[UUID] = frozenset()
    fences: list[int] = field(default_factory=list[int])
    hidden: frozenset[tuple[str, str]] = frozenset()


@value
class WriteSet:
    """What a decision changes, table by table, as it is written.

    Codes, assignments, users and totals hold the row as it is afterwards and the row as it was
    (None: new); what is added to a counter is their difference.
    """

    codes: Mapping[str, tuple[Code, Code]]
    assignments: Mapping[tuple[str, str], tuple[Assignment | None, Assignment]]
    users: Mapping[tuple[UUID, str], tuple[UserCounts, UserCounts]]
    totals: Mapping[UUID, tuple[int, int]]
    events: tuple[Event, ...]
    stats: Mapping[UUID, BookStats]
