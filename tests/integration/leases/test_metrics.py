"""How Redis does is counted, with what went wrong by its kind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis
from support.lease_servers import acquire

from coupon_service.embedded import EmbeddedRedis
from coupon_service.errors import LocksUnavailable
from coupon_service.leases import LeaseKey, Leases
from coupon_service.telemetry.metrics import Metrics

TTL_MS = 60_000


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(tmp_path / "redis", durable=False) as server:
        yield server


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
async def leases(server: EmbeddedRedis, registry: CollectorRegistry) -> AsyncIterator[Leases]:
    leases = Leases(server.url, timeout_ms=200, metrics=Metrics(registry))
    yield leases
    await leases.close()


def errors(registry: CollectorRegistry) -> dict[str, float]:
    """How many errors there were of each kind that there were any of."""
    (family,) = (it for it in registry.collect() if it.name == "coupon_redis_errors")
    return {
        it.labels["kind"]: it.value
        for it in family.samples
        if it.name.endswith("_total") and it.value
    }


async def test_each_pipeline_is_timed(leases: Leases, registry: CollectorRegistry) -> None:
    await asyncio.gather(*(leases.ping() for _ in range(50)))
    await leases.ping()
    pipelines = registry.get_sample_value("coupon_redis_duration_seconds_count")
    assert pipelines is not None
    assert 2 <= pipelines < 51
    assert errors(registry) == {}


async def test_errors_are_distinguished(
    leases: Leases, registry: CollectorRegistry, server: EmbeddedRedis
) -> None:
    client = Redis.from_url(server.url)  # pyright: ignore[reportUnknownMemberType]
    await client.set("coupon:user:{ann}:locks", "not an index")
    await client.aclose()
    with pytest.raises(LocksUnavailable):
        await acquire(leases, LeaseKey("CODE", "book", "ann", "lock-a"), TTL_MS)
    assert errors(registry) == {"refused": 1}

    server.pause()
    with pytest.raises(LocksUnavailable):
        await leases.ping()
    server.resume()
    assert errors(registry) == {"refused": 1, "silent": 1}

    server.kill()
    with pytest.raises(LocksUnavailable):
        await leases.ping()
    assert errors(registry) == {"refused": 1, "silent": 1, "unreachable": 1}


async def test_a_lock_that_redis_lost_is_counted_once(
    leases: Leases, registry: CollectorRegistry, server: EmbeddedRedis
) -> None:
    taken = await acquire(leases, LeaseKey("CODE", "book", "ann", "lock-a"), TTL_MS)
    server.kill()
    await asyncio.to_thread(server.start)
    for _ in range(3):
        await leases.admit(LeaseKey("CODE", "book", "ann", "lock-a"), taken.expire_ms)
    assert registry.get_sample_value("coupon_locks_lost_total") == 1
