"""Commands: one class for each change that a caller can request.

`event_id` and `fingerprint` are those of the attempt; `earlier`: see `earlier_attempts`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from uuid import UUID

from coupon_service.model.books import Money
from coupon_service.model.enums import EventType
from coupon_service.model.identity import Attempt
from coupon_service.model.normalization import canonical_id
from coupon_service.model.records import Event
from coupon_service.model.values import value


@value
class Call:
    """The caller, its address, and the `request_id` of the attempt.

    `business_id`: the business of the caller's token; empty: the caller may see every business.
    `deadline`, in seconds of time.perf_counter: a command that has not started by then is dropped.
    `end_user`: the caller is a user, whose user_id is `caller`. Codes that it cannot use are
    indistinguishable from codes that do not exist.
    """

    caller: str
    request_id: str
    peer: str = ""
    user_agent: str = ""
    business_id: str = ""
    deadline: float | None = None
    end_user: bool = False

    @property
    def own_user_id(self) -> str:
        """The only user whose locks the caller may see and change; empty: any."""
        return self.caller if self.end_user else ""


@value
class LockClaims:
    """The claims of a verified lock token. `expire_ms`: milliseconds since 1970."""

    lock_id: UUID
    code: str
    book_id: UUID
    user_id: str
    fence: int
    expire_ms: int

    def is_on(self, code: str, book_id: UUID) -> bool:
        """Whether it locks this code of this book."""
        return self.code == code and self.book_id == book_id

    def is_of(self, user_id: str) -> bool:
        """Whether this user holds the lock. A token from before ids were compared in NFC may have
        another spelling, by which Redis knows the lock."""
        return canonical_id(self.user_id) == user_id


@value
class Lease:
    """The answer of Redis about the permit that a redemption or lock needs.

    `permits_taken` counts the live permits of the code, this one included; 0 when this one was
    counted as its lock was acquired. `gone`: the lock of the token was released or used.
    `held_lock_id`: the user's own lock, which a redemption without token uses up; it expires at
    `held_expire_ms` (since 1970). `book_id`: for whose code it is; None: the book of the token.
    """

    permits_taken: int = 0
    retry_after_ms: int = 0
    gone: bool = False
    held_lock_id: UUID | None = None
    held_expire_ms: int = 0
    book_id: UUID | None = None


@value(kw_only=True)
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
    earlier: tuple[Attempt, ...] = ()

    @property
    def order_user_id(self) -> str | None:
        """The end user whose own order it is; None for an order of the business."""
        return self.user_id if self.order_id and self.call.end_user else None


@value(kw_only=True)
class Rollback:
    """Undo a redemption, whose ledger row is `redemption`."""

    call: Call
    code: str
    event_id: UUID
    fingerprint: int
    user_id: str
    redemption: Event
    metadata: str | None = None
    earlier: tuple[Attempt, ...] = ()


@value(kw_only=True)
class Adjust:
    """Give the order of a redemption, whose ledger row is `redemption`, another amount.

    `adjustments`: how often it has to have been adjusted before; None: any number.
    """

    call: Call
    code: str
    event_id: UUID
    fingerprint: int
    user_id: str
    redemption: Event
    order_amount: Money
    adjustments: int | None = None
    metadata: str | None = None
    earlier: tuple[Attempt, ...] = ()


@value(kw_only=True)
class Lock:
    """Record the lock `lock_id`, for which Redis granted a permit until `expire_time`.

    `event_id` identifies the attempt; `lock_id` differs from it when the user already held a lock.
    `ttl_ms`: the requested lifetime, if any. `taken_from`: the lock of another user, which goes
    over to this one.
    """

    call: Call
    code: str
    event_id: UUID
    fingerprint: int
    user_id: str
    book_id: UUID | None = None
    lock_id: UUID
    ttl_ms: int | None = None
    lease: Lease | None = None
    expire_time: datetime | None = None
    taken_from: LockClaims | None = None
    metadata: str | None = None
    earlier: tuple[Attempt, ...] = ()


@value(kw_only=True)
class ChangeLock:
    """Extend, release or expire the lock `lock_id` on a code of a book: `type` says which.

    `expire_time`: the new one of an extension. `extensions_max`: the limit of extensions.
    """

    call: Call
    type: EventType
    code: str
    book_id: UUID
    event_id: UUID
    fingerprint: int
    user_id: str
    lock_id: UUID
    expire_time: datetime | None = None
    extensions_max: int = 0
    earlier: tuple[Attempt, ...] = ()


@value(kw_only=True)
class Assign:
    """Give a code to a user."""

    call: Call
    code: str
    event_id: UUID
    fingerprint: int
    user_id: str
    book_id: UUID | None = None
    metadata: str | None = None
    earlier: tuple[Attempt, ...] = ()


@value(kw_only=True)
class AssignRandom:
    """Give any available code of a book to a user."""

    call: Call
    event_id: UUID
    fingerprint: int
    user_id: str
    book_id: UUID
    metadata: str | None = None
    earlier: tuple[Attempt, ...] = ()


@value(kw_only=True)
class Revoke:
    """Take a code from a user."""

    call: Call
    code: str
    event_id: UUID
    fingerprint: int
    user_id: str
    book_id: UUID | None = None
    earlier: tuple[Attempt, ...] = ()


@value(kw_only=True)
class Transfer:
    """Hand the code of a user over to another. `lock`: the one of the giver that ends with it."""

    call: Call
    code: str
    event_id: UUID
    fingerprint: int
    from_user_id: str
    to_user_id: str
    book_id: UUID | None = None
    lock: LockClaims | None = None
    metadata: str | None = None
    earlier: tuple[Attempt, ...] = ()


@value(kw_only=True)
class ReturnToPool:
    """Give a code to the pool again whose assignment of `assign_time` has expired.

    Not unless the assignment was over at `ended_by`, and locks of the user at `unlocked_by`.
    """

    call: Call
    code: str
    event_id: UUID
    fingerprint: int
    user_id: str
    book_id: UUID
    assign_time: datetime
    ended_by: datetime
    unlocked_by: datetime
    earlier: tuple[Attempt, ...] = ()


@value(kw_only=True)
class SetCodeEnabled:
    """Disable or enable a code: `type` says which."""

    call: Call
    type: EventType
    code: str
    event_id: UUID
    fingerprint: int
    earlier: tuple[Attempt, ...] = ()


CodeCommand = (
    Redeem
    | Rollback
    | Adjust
    | Lock
    | ChangeLock
    | Assign
    | Revoke
    | Transfer
    | ReturnToPool
    | SetCodeEnabled
)
"""Commands that name the code they change."""

Command = CodeCommand | AssignRandom


@value
class CommandGroup:
    """Commands of one call, decided in order; when `atomic`, all of them or none.

    `completed`: asked once the rows of the commands are loaded, for the commands with what else has
    become known of them by then.
    """

    commands: tuple[Command, ...]
    atomic: bool = False
    completed: Callable[[], tuple[Command, ...]] | None = None

    @property
    def size(self) -> int:
        """The number of commands."""
        return len(self.commands)

    @property
    def deadline(self) -> float | None:
        """The latest deadline of its commands, in seconds of time.perf_counter."""
        latest = 0.0
        for command in self.commands:
            deadline = command.call.deadline
            if deadline is None:
                return None
            latest = max(latest, deadline)
        return latest

    def as_decided(self) -> CommandGroup:
        """The group as it is decided, now that its rows are loaded."""
        return self if self.completed is None else CommandGroup(self.completed(), self.atomic)
