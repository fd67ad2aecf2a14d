"""What several files of tests begin with."""

# redis-py leaves the type of its keyword arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis
from support.lease_servers import GRACE_MS, PATIENT_MS
from support.redis_clients import looking_at
from support.two_businesses import Shop, new_shop

from coupon_service.leases import Leases


@pytest.fixture
async def leases(redis_url: str) -> AsyncIterator[Leases]:
    leases = Leases(redis_url, timeout_ms=PATIENT_MS, grace_ms=GRACE_MS, locks_per_user_max=3)
    yield leases
    await leases.close()


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = looking_at(redis_url)
    yield client
    await client.aclose()


@pytest.fixture
async def shop(database_url: str) -> AsyncIterator[Shop]:
    """Two books in a store of their own."""
    async with new_shop(database_url) as made:
        yield made
