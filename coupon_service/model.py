"""What the service speaks about: books, codes, assignments, ledger events, commands, outcomes.

Everything here is a value: frozen, free of I/O, compared by content. Numbers of the enums are those
of the proto and of the database. Money is in minor units, times are aware datetimes in UTC.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum
from hashlib import blake2b
from typing import Final
from uuid import UUID

from coupon_service.codes import CodeFormat, bucket_of
from coupon_service.errors import CouponServiceError

# --- enums --------------------------------------------------------------------------------------


class BookState(IntEnum):
    """State of a book. From SCHEDULED on derived, never stored."""

    DRAFT = 1
    ACTIVE = 2
    PAUSED = 3
    CLOSED = 4
    SCHEDULED = 5
    EXPIRED = 6
    EXHAUSTED = 7


class CodeState(IntEnum):
    """State of a code. LOCKED and EXPIRED are derived, never stored."""

    AVAILABLE = 1
    ASSIGNED = 2
    REDEEMED = 3
    DISABLED = 4
    LOCKED = 5
    EXPIRED = 6


class AssignmentState(IntEnum):
    """State of the link between user and code.

    UNASSIGNED is a bearer's: the code was never given to the user, the link only counts.
    """

    UNASSIGNED = 0
    ACTIVE = 1
    REDEEMED = 2
    REVOKED = 3


class AssignmentPolicy(IntEnum):
    """Who may redeem."""

    REQUIRED = 1
    BEARER = 2


class LockPolicy(IntEnum):
    """Whether a redemption needs a lock."""

    REQUIRED = 1
    OPTIONAL = 2
    OFF = 3


class LockState(IntEnum):
    """State of a lock, derived from its ledger events and the time."""

    HELD = 1
    REDEEMED = 2
    RELEASED = 3
    EXPIRED = 4


class EventType(IntEnum):
    """What a ledger row records."""

    BOOK_CREATED = 1
    BOOK_UPDATED = 2
    BOOK_ACTIVATED = 3
    BOOK_PAUSED = 4
    BOOK_CLOSED = 5
    CODES_GENERATED = 6
    CODES_IMPORTED = 7
    CODE_DISABLED = 8
    CODE_ENABLED = 9
    ASSIGNED = 10
    REVOKED = 11
    LOCKED = 12
    LOCK_EXTENDED = 13
    UNLOCKED = 14
    LOCK_EXPIRED = 15
    REDEEMED = 16
    ROLLED_BACK = 17


# --- identity -----------------------------------------------------------------------------------


def event_id(bucket: int, event: EventType, *parts: object) -> UUID:
    """The id of the ledger row of an attempt: the same attempt has the same id, for ever.

    A hash of what names the attempt (caller, request_id, resource), so that the primary key of the
    ledger is what makes every change happen once, and so that an id leads to its bucket: the first
    byte is the bucket, the rest a UUID of version 8 (RFC 9562).
    """
    text = "\x1f".join((event.name, *map(str, parts)))
    digest = bytearray(blake2b(text.encode(), digest_size=16).digest())
    digest[0] = bucket
    digest[6] = 0x80 | (digest[6] & 0x0F)
    digest[8] = 0x80 | (digest[8] & 0x3F)
    return UUID(bytes=bytes(digest))


def bucket_of_event(event: UUID) -> int:
    """The bucket an event id leads to. Any number 0-255 for ids that are not ours."""
    return event.bytes[0]


def fingerprint(*parameters: object) -> int:
    """A signed 64-bit hash of the parameters of a call, to tell a repeat from a reuse."""
    text = "\x1f".join(map(str, parameters))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)


# --- books --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Money:
    """An amount in minor units."""

    amount_minor: int
    currency_code: str


@dataclass(frozen=True, slots=True)
class PercentOff:
    """A share of the order, in basis points (1/100 %), with an optional cap (0 = none)."""

    basis_points: int
    max_discount_minor: int


@dataclass(frozen=True, slots=True)
class AmountOff:
    """A fixed amount, never more than the order."""

    amount_minor: int


@dataclass(frozen=True, slots=True)
class Benefit:
    """Something that is not computed here."""

    description: str


Discount = PercentOff | AmountOff | Benefit


@dataclass(frozen=True, slots=True)
class BookLimits:
    """How often codes can be used. 0 = no limit."""

    max_redemptions: int = 0
    max_redemptions_per_code: int = 1
    max_redemptions_per_user_per_code: int = 0
    max_redemptions_per_user: int = 0
    max_assignments_per_user: int = 0

    @property
    def any_per_user(self) -> bool:
        """Whether the book keeps a row of counts for each user."""
        return bool(self.max_redemptions_per_user or self.max_assignments_per_user)


@dataclass(frozen=True, slots=True, kw_only=True)
class Book:
    """A coupon book as stored. Lock lifetimes of 0 mean the server's."""

    book_id: UUID
    business_id: str
    name: str
    description: str = ""
    state: BookState = BookState.DRAFT
    discount: Discount
    currency_code: str = ""
    min_order_amount_minor: int = 0
    limits: BookLimits = field(default_factory=BookLimits)
    assignment_policy: AssignmentPolicy = AssignmentPolicy.REQUIRED
    lock_policy: LockPolicy = LockPolicy.OPTIONAL
    default_lock_ttl_ms: int = 0
    max_lock_ttl_ms: int = 0
    start_time: datetime | None = None
    end_time: datetime | None = None
    assigned_code_validity_s: int = 0
    code_format: CodeFormat = field(default_factory=CodeFormat)
    metadata: str | None = None
    version: int = 1
    create_time: datetime
    update_time: datetime


@dataclass(frozen=True, slots=True)
class BookStats:
    """Counts of a book; codes by stored state."""

    available: int = 0
    assigned: int = 0
    redeemed: int = 0
    disabled: int = 0
    assignments: int = 0
    redemptions: int = 0
    rollbacks: int = 0
    discount_minor: int = 0

    @property
    def codes(self) -> int:
        """All codes of the book."""
        return self.available + self.assigned + self.redeemed + self.disabled


# --- codes, assignments, ledger -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Code:
    """A row of coupon_codes. `assignments` counts those that were not revoked."""

    code: str
    book_id: UUID
    state: CodeState
    redemptions: int
    assignments: int


@dataclass(frozen=True, slots=True)
class Assignment:
    """A row of coupon_assignments. `fence`: the newest lock this user redeemed the code with."""

    code: str
    user_id: str
    book_id: UUID
    state: AssignmentState
    redemptions: int = 0
    fence: int = 0
    assign_time: datetime | None = None
    expire_time: datetime | None = None
    metadata: str | None = None


@dataclass(frozen=True, slots=True)
class UserCounts:
    """What one user has done in one book; kept where the book limits it."""

    redemptions: int = 0
    assignments: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A row of redemption_audit; also what a repeat of the call is answered from.

    `state_before` and `state_after` are numbers of BookState or CodeState, by the type of the
    event. `metadata` is JSON text.
    """

    event_id: UUID
    type: EventType
    event_time: datetime
    book_id: UUID
    code: str | None = None
    user_id: str | None = None
    order_id: str | None = None
    caller: str
    peer: str
    user_agent: str
    request_id: str
    fingerprint: int
    state_before: int | None = None
    state_after: int | None = None
    order_amount_minor: int | None = None
    discount_minor: int | None = None
    currency_code: str | None = None
    benefit: str | None = None
    redemption_id: UUID | None = None
    lock_id: UUID | None = None
    fence: int | None = None
    code_redemptions: int | None = None
    code_redemption_limit: int | None = None
    user_code_redemptions: int | None = None
    expire_time: datetime | None = None
    metadata: str | None = None


@dataclass(frozen=True, slots=True)
class LockView:
    """A lock as its ledger events tell it."""

    lock_id: UUID
    code: str
    book_id: UUID
    user_id: str
    state: LockState
    fence: int
    create_time: datetime
    expire_time: datetime


# --- commands -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Call:
    """Who asks, from where, and what the caller named the attempt.

    `business_id` is the one the caller's token names; empty: the caller may see every business.
    `deadline`, in seconds of time.perf_counter: a command that has not begun by then is dropped.
    """

    caller: str
    request_id: str
    peer: str = ""
    user_agent: str = ""
    business_id: str = ""
    deadline: float | None = None


@dataclass(frozen=True, slots=True)
class LockClaims:
    """What a lock token proves. `expire_ms`: milliseconds since 1970."""

    lock_id: UUID
    code: str
    book_id: UUID
    user_id: str
    fence: int
    expire_ms: int


@dataclass(frozen=True, slots=True)
class Lease:
    """What Redis said of the place that a redemption or lock needs.

    `places_taken` counts the live places of the code, this one included; 0 when this one was
    counted when the lock was taken. `gone`: the lock of the token was released or used.
    `held_lock_id`: the user's own lock, which a redemption without token uses up; it ends at
    `held_expire_ms` (since 1970).
    """

    places_taken: int = 0
    retry_after_ms: int = 0
    gone: bool = False
    held_lock_id: UUID | None = None
    held_expire_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Redeem:
    """Use a code once. Without `lease`, a book with locking answers LeaseNeeded."""

    call: Call
    code: str
    event_id: UUID
    fingerprint: int
    user_id: str
    book_id: UUID | None = None
    order_id: str = ""
    order_amount: Money | None = None
    lock: LockClaims | None = None
    lease: Lease | None = None
    metadata: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollback:
    """Undo a redemption, whose ledger row is `redemption`."""

    call: Call
    code: str
    event_id: UUID
    fingerprint: int
    user_id: str
    redemption: Event
    metadata: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """Record the lock `lock_id`, for which Redis granted a place until `expire_time`.

    `event_id` names the attempt; `lock_id` differs from it when the user held a lock before.
    """

    call: Call
    code: str
    event_id: UUID
    fingerprint: int
    user_id: str
    book_id: UUID | None = None
    lock_id: UUID
    lease: Lease | None = None
    expire_time: datetime | None = None
    metadata: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeLock:
    """Extend, release or expire the lock `lock_id`: `type` says which.

    `expire_time` is the new one of an extension.
    """

    call: Call
    type: EventType
    code: str
    event_id: UUID
    fingerprint: int
    user_id: str
    lock_id: UUID
    expire_time: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Assign:
    """Give a code to a user."""

    call: Call
    code: str
    event_id: UUID
    fingerprint: int
    user_id: str
    book_id: UUID | None = None
    metadata: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AssignRandom:
    """Give any available code of a book to a user."""

    call: Call
    event_id: UUID
    fingerprint: int
    user_id: str
    book_id: UUID
    metadata: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Revoke:
    """Take a code from a user."""

    call: Call
    code: str
    event_id: UUID
    fingerprint: int
    user_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchCode:
    """Disable or enable a code: `type` says which."""

    call: Call
    type: EventType
    code: str
    event_id: UUID
    fingerprint: int


CodeCommand = Redeem | Rollback | Lock | ChangeLock | Assign | Revoke | SwitchCode
"""Commands that name the code they change."""

Command = CodeCommand | AssignRandom


@dataclass(frozen=True, slots=True)
class Unit:
    """Commands of one call, decided in order; when `atomic`, all of them or none."""

    commands: tuple[Command, ...]
    atomic: bool = False


# --- outcomes -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Done:
    """The command was carried out, now or (`replayed`) by an earlier call.

    `code` and `assignment` are as they are after the command. When replayed, `code` is as it is
    now (None for a random assignment), and `assignment` as it was recorded, where it was assigned,
    or else as it is now.
    """

    event: Event
    book: Book
    code: Code | None
    assignment: Assignment | None = None
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class LeaseNeeded:
    """Nothing speaks against it, but the book has locking: take a place in Redis and come again."""

    book: Book


Outcome = Done | LeaseNeeded | CouponServiceError


@dataclass(slots=True)
class State:
    """What a batch of commands is decided on; the decision works on it in place.

    Holds just what the commands touch: a missing key means that there is no such row.
    `users` has the books that count users, `totals` those with a limit for all redemptions.
    `picks` are locked, available codes of a book for AssignRandom; `picks_contended` the books
    where more are available but were locked by others. `fences` are unused fencing numbers.
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
    picks: dict[UUID, list[str]] = field(default_factory=dict[UUID, list[str]])
    picks_contended: frozenset[UUID] = frozenset()
    fences: list[int] = field(default_factory=list[int])


@dataclass(frozen=True, slots=True)
class Effects:
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


BOOK_BUCKET_SEED: Final = "books/"


def bucket_of_book(book_id: UUID) -> int:
    """The bucket of ledger rows that are about a book as a whole."""
    return bucket_of(f"{BOOK_BUCKET_SEED}{book_id}")


def bucket_of_user(user_id: str) -> int:
    """The bucket of a user's counts."""
    return bucket_of(user_id)
