"""What the tests of leases share."""

# redis-py leaves the type of its keyword arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import asyncio
import time

from redis.asyncio import Redis

from coupon_service.leases import AcquireResult, LeaseRequest, Leases
from coupon_service.leases.commands import LOCKING_BOOKS

CODE = "SUMMER25"
BOOK = "book-1"
TTL_MS = 60_000
GRACE_MS = 40
PATIENT_MS = 5_000  # a busy machine is no silent Redis


def soon_ms(ms: int = TTL_MS) -> int:
    """The time in so many ms, by the clock that Redis reads as well."""
    return time.time_ns() // 1_000_000 + ms


async def time_passes(ms: int) -> None:
    """Until ``ms`` have passed by the clock that Redis reads as well."""
    end_ms = soon_ms(ms)
    while soon_ms(0) <= end_ms:
        await asyncio.sleep(0.002)


async def keys_of_locks(redis: Redis) -> list[str]:
    """All keys but the one that has all books."""
    return [str(key) for key in await redis.keys() if key != LOCKING_BOOKS]


def about(entry_ms: int, expire_ms: int) -> bool:
    """Whether an entry of an index ends with its lock, as near as is promised."""
    return abs(entry_ms - expire_ms) <= 10


async def acquire(
    leases: Leases,
    code: str,
    book_id: str,
    user_id: str,
    lock_id: str,
    ttl_ms: int,
    places_max: int | None = None,
) -> AcquireResult:
    """Takes a place on the code."""
    return await leases.acquire(LeaseRequest(code, book_id, user_id, lock_id, ttl_ms, places_max))
