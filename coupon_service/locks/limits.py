"""How long locks live, how many there may be, and how long their ends are remembered."""

from __future__ import annotations

from dataclasses import dataclass

from coupon_service.model import Book

TOMBSTONE_EXTRA_MS = 60_000
"""How much longer than its token a used lock is remembered: more than clocks can differ."""


def tombstone_until_ms(expire_ms: int) -> int:
    """Until when a lock has to be remembered as gone, in milliseconds since 1970."""
    return expire_ms + TOMBSTONE_EXTRA_MS


@dataclass(frozen=True, slots=True)
class LockLimits:
    """The server's bounds for locks. Times in milliseconds; `grace_ms` is that of Leases."""

    ttl_default_ms: int
    ttl_max_ms: int
    grace_ms: int
    extensions_max: int
    locks_per_user_max: int

    @property
    def life_max_ms(self) -> int:
        """The longest that a lock which is granted now keeps its permit."""
        return self.ttl_max_ms + self.grace_ms

    def granted_ms(self, requested_ms: int | None, book: Book) -> int:
        """The lifetime that is granted: what was requested or the default, within book and
        server."""
        ttl_ms = requested_ms or book.default_lock_ttl_ms or self.ttl_default_ms
        return min(ttl_ms, book.max_lock_ttl_ms or self.ttl_max_ms, self.ttl_max_ms)
