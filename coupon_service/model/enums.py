"""States, policies and event types. The numbers are those of the contract and the database."""

from __future__ import annotations

from enum import IntEnum


class BookState(IntEnum):
    """State of a book. SCHEDULED, EXPIRED and EXHAUSTED are derived, never stored."""

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
    """State of the assignment of a code to a user.

    UNASSIGNED: a bearer redeemed the code, and the row only counts redemptions.
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


class OrderPolicy(IntEnum):
    """Which other coupons an order may have."""

    INDEPENDENT = 1
    COMBINABLE = 2
    EXCLUSIVE = 3


class LockState(IntEnum):
    """State of a lock, derived from its ledger events and the time."""

    HELD = 1
    REDEEMED = 2
    RELEASED = 3
    EXPIRED = 4


class StockLevel(IntEnum):
    """What a book has left, compared with its threshold."""

    ENOUGH = 1
    LOW = 2
    USED_UP = 3


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
    BOOK_RUNNING_LOW = 18
    BOOK_USED_UP = 19
    ASSIGNMENT_EXPIRED = 20
    ASSIGNMENT_TRANSFERRED = 21
    ADJUSTED = 22
    CODES_DELETED = 23
    CODES_CHANGED = 24
    USER_ERASED = 40
    BOOK_ARCHIVED = 43
    BOOK_RESTORED = 44


class ErasureState(IntEnum):
    """How far it has come that a user is erased.

    ENDING: what the user holds comes to its end, and the user gets nothing new. ERASING: the name
    is being replaced, and nothing of the user's changes. ERASED: it is done, and a user of this
    name is a new one, but for limits.
    """

    ENDING = 1
    ERASING = 2
    ERASED = 3


class CodeChange(IntEnum):
    """What is done to many codes of a book."""

    DISABLE = 1
    ENABLE = 2
    DELETE = 3
    REVOKE = 4
