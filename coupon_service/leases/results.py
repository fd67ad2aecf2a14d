"""What the lease module is asked for, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from coupon_service.model import LockClaims, LockView
from coupon_service.model.scopes import name_of_locks


class LeaseKey(NamedTuple):
    """Which lock: whose, on which code of which book. A user has at most one on a code."""

    code: str
    book_id: str
    user_id: str
    lock_id: str

    @property
    def name(self) -> str:
        """Under which name Redis has the locks of the code."""
        return name_of_locks(self.code, self.book_id)

    @classmethod
    def of(cls, lock: LockClaims | LockView) -> LeaseKey:
        """That of a lock as its token or the ledger names it."""
        return cls(lock.code, str(lock.book_id), lock.user_id, str(lock.lock_id))


@dataclass(frozen=True, slots=True)
class Predecessor:
    """A lock of another user whose permit goes over to the lock that takes its place."""

    key: LeaseKey
    expire_ms: int
    """When it ends, by the ledger; and so does the other."""


@dataclass(frozen=True, slots=True)
class LeaseRequest:
    """A permit on a code, for a lock that lives for so many milliseconds."""

    key: LeaseKey
    ttl_ms: int
    permits_max: int | None = None
    """The most permits that can fit as far as the caller knows, such as the limit of the code. When
    so many are taken the answer is FULL and nothing is added. Without it, callers who find that
    theirs does not fit are in each other's way until they have given it back, and in a storm of
    them nobody might get in."""
    locks_not_counted: int = 0
    """So many of the user's locks do not count towards the limit of a user."""
    follows: str = ""
    """A lock_id of the user that is over by the ledger, so that no redemption with its token can be
    decided any more: should it still have its permit, then this lock gets it."""
    takes_over: Predecessor | None = None
    """The lock gets the permit of this one, or, where Redis has lost that, a free one, and ends
    when this one ends. Until the end of this one is recorded, `hand_back` undoes it."""


@dataclass(frozen=True, slots=True)
class ReleaseRequest:
    """A lock whose permit is to be given back."""

    key: LeaseKey
    tombstone_until_ms: int = 0
    """Until then the lock is GONE for whoever shows its token: it was redeemed or unlocked. To be
    set to the end of the token plus the tolerance; 0 when no token of it was given out. It counts
    also when Redis had lost the lock."""


class AcquireStatus(Enum):
    """What became of a request for a permit."""

    GRANTED = "GRANTED"
    """The permit is taken. Whether it fits is for the caller to see:
    redemptions + permits_taken <= limit."""
    HELD_BEFORE = "HELD_BEFORE"
    """The user holds a lock on the code already, be it this very one; it is left as it was."""
    GONE = "GONE"
    """The lock was released or redeemed."""
    FULL = "FULL"
    """As many permits as ``permits_max`` are taken, or the user redeems without a token just now;
    nothing was added."""
    LIMIT = "LIMIT"
    """The user holds as many locks as is allowed."""


@dataclass(frozen=True, slots=True)
class AcquireResult:
    """The answer to ``acquire``."""

    status: AcquireStatus
    lock_id: str
    """The lock the user holds: with HELD_BEFORE perhaps not the one that was asked for."""
    expire_ms: int
    """When the lock ends, as its token says; Redis keeps it for the grace longer."""
    permits_taken: int
    """Live permits on the code, this one included once it is taken."""
    retry_after_ms: int | None
    """Until the first permit of someone else ends; None when no one else has one."""


@dataclass(frozen=True, slots=True)
class TransientResult:
    """The answer to ``acquire_transient``."""

    permits_taken: int
    """Live permits on the code, this one included, the user's own lock never; other attempts only
    while someone else holds a lock."""
    retry_after_ms: int | None
    """Until the first permit of someone else ends; None when no one else has one."""
    own_lock_id: str | None
    """The user's own lock on the code, which the redemption consumes."""
    own_expire_ms: int | None
    """When the token of that lock ends."""


@dataclass(frozen=True, slots=True)
class Peek:
    """The answer to ``peek``."""

    others: int
    """Live locks of others on the code."""
    retry_after_ms: int | None
    """Until the first permit of someone else ends; None when no one else has one."""
    holds: bool
    """Whether the user holds a lock on the code."""
    gone: bool
    """Whether the lock that was asked about was released, redeemed, or followed by another."""


class AdmitStatus(Enum):
    """What Redis says about a lock whose token is good."""

    HELD = "HELD"
    """The lock is held."""
    RETAKEN = "RETAKEN"
    """Redis had lost the lock; its permit is taken again, now or before. Whether it still fits is
    for the caller: redemptions + permits_taken <= limit."""
    GONE = "GONE"
    """It was released or redeemed, its time is over, or the user holds another lock by now."""


@dataclass(frozen=True, slots=True)
class Admission:
    """The answer to ``admit``."""

    status: AdmitStatus
    permits_taken: int
    """Live permits on the code, this one included unless it is GONE."""
    retry_after_ms: int | None
    """Until the first permit of someone else ends; None when no one else has one."""


@dataclass(frozen=True, slots=True)
class LeaseStats:
    """The answer to ``stats``."""

    live: int
    """Locks that have not ended, by their tokens."""
    waiting_since_ms: int
    """When the first of the locks that wait for the sweeper ended, grace included; in the future
    when none does."""


@dataclass(frozen=True, slots=True)
class IndexedLock:
    """A lock as the indexes know it. The last one of a page is where the next page begins."""

    key: LeaseKey
    expire_ms: int
