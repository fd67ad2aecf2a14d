"""How long locks live, and times as Redis and lock tokens have them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from coupon_service.model import Book

TOMBSTONE_EXTRA_MS = 60_000
"""How much longer than its token a used lock is remembered: more than clocks can differ."""


def tombstone_until_ms(expire_ms: int) -> int:
    """Until when a lock has to be remembered as gone, in milliseconds since 1970."""
    return expire_ms + TOMBSTONE_EXTRA_MS


def time_of(milliseconds: int) -> datetime:
    """Milliseconds since 1970 as a time."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def milliseconds_of(time: datetime) -> int:
    """A time as milliseconds since 1970."""
    return round(time.timestamp() * 1000)


@dataclass(frozen=True, slots=True)
class LockLimits:
    """The server's bounds for locks. Times in milliseconds; `grace_ms` is that of Leases."""

    ttl_default_ms: int
    ttl_max_ms: int
    grace_ms: int
    extensions_max: int
    locks_per_user_max: int

    def granted_ms(self, wish_ms: int | None, book: Book) -> int:
        """The lifetime that is granted: the wish or the default, within book and server."""
        ttl_ms = wish_ms or book.default_lock_ttl_ms or self.ttl_default_ms
        return min(ttl_ms, book.max_lock_ttl_ms or self.ttl_max_ms, self.ttl_max_ms)
