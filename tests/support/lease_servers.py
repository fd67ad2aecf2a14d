"""Keys, times and calls for tests of leases."""

# redis-py does not type its keyword arguments.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import asyncio
import time

from redis.asyncio import Redis

from coupon_service.leases import AcquireResult, LeaseKey, LeaseRequest, Leases
from coupon_service.leases.scripts import LOCKING_BOOKS

CODE = "SUMMER25"
BOOK = "book-1"
ANN = LeaseKey(CODE, BOOK, "ann", "lock-a")
BOB = LeaseKey(CODE, BOOK, "bob", "lock-b")
CY = LeaseKey(CODE, BOOK, "cy", "lock-c")
TTL_MS = 60_000
GRACE_MS = 40
PATIENT_MS = 5_000  # a timeout that a busy machine does not exceed


def soon_ms(ms: int = TTL_MS) -> int:
    """The time in so many ms, by the clock that Redis uses as well."""
    return time.time_ns() // 1_000_000 + ms


async def time_passes(ms: int) -> None:
    """Wait until ``ms`` have passed by the clock that Redis uses as well."""
    end_ms = soon_ms(ms)
    while soon_ms(0) <= end_ms:
        await asyncio.sleep(0.002)


CHECKED = "coupon:{a check "
"""What keys of a check of Redis begin with; they end by themselves."""


async def keys_of(redis: Redis) -> list[str]:
    """All keys except those with which services that use the same Redis check it."""
    return [key for key in map(str, await redis.keys()) if not key.startswith(CHECKED)]


async def keys_of_locks(redis: Redis) -> list[str]:
    """As `keys_of`, without that of all books."""
    return [key for key in await keys_of(redis) if key != LOCKING_BOOKS]


def about(entry_ms: int, expire_ms: int) -> bool:
    """Whether an entry of an index expires with its lock, within the promised tolerance."""
    return abs(entry_ms - expire_ms) <= 10


async def acquire(
    leases: Leases, key: LeaseKey, ttl_ms: int, permits_max: int | None = None
) -> AcquireResult:
    """Acquire a permit of the code."""
    return await leases.acquire(LeaseRequest(key, ttl_ms, permits_max))
