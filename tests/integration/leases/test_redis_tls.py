"""A Redis Cluster, and Redis behind Sentinels, that take TLS alone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from support.certificates import Authority
from support.lease_servers import ANN, TTL_MS, acquire
from support.redis_cluster import redis_cluster
from support.redis_sentinels import watched_redis
from support.redis_tls import needs_redis_with_tls, redis_tls
from support.service import Api, ServerThread, settings_for
from support.tour import take_tour

from coupon_service.errors import LocksUnavailable
from coupon_service.leases import AcquireStatus, LeaseKey, Leases

pytestmark = needs_redis_with_tls

TIMEOUT_MS = 10_000


@pytest.fixture(params=["cluster", "sentinels"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    tls = redis_tls(tmp_path)
    if request.param == "cluster":
        with redis_cluster(tmp_path / "cluster", tls=tls) as cluster:
            yield cluster.url
    else:
        with watched_redis(tmp_path / "watched", tls) as watched:
            yield watched.url()


def test_the_service_works(url: str, database_url: str) -> None:
    assert url.startswith("rediss+")
    with (
        ServerThread(settings_for(database_url, url)) as running,
        closing(Api(running.address)) as api,
    ):
        take_tour(api)


async def test_servers_of_an_unknown_authority_are_refused(url: str, tmp_path: Path) -> None:
    other = Authority(tmp_path, "other")
    leases = Leases(url.replace("authority.pem", other.path.name), timeout_ms=TIMEOUT_MS)
    with pytest.raises(LocksUnavailable) as raised:
        await leases.check()
    assert "certificate verify failed" in str(raised.value.__cause__)
    await leases.close()


async def test_a_dead_master_of_a_cluster_fails_the_codes_of_its_slots_only(
    tmp_path: Path,
) -> None:
    with redis_cluster(tmp_path / "cluster", tls=redis_tls(tmp_path)) as cluster:
        leases = Leases(cluster.url, timeout_ms=TIMEOUT_MS)
        assert await leases.check() == {}
        codes = [cluster.code_at(it) for it in cluster.nodes]
        cluster.nodes[2].kill()
        granted = [await is_granted(leases, code) for code in codes]
        await leases.close()
    assert granted == [True, True, False]


async def test_a_master_that_sentinels_name_anew_is_used(tmp_path: Path) -> None:
    with watched_redis(tmp_path / "watched", redis_tls(tmp_path)) as watched:
        leases = Leases(watched.url(), timeout_ms=TIMEOUT_MS)
        assert await leases.check() == {}
        assert (await acquire(leases, ANN, TTL_MS)).status is AcquireStatus.GRANTED
        old = watched.master
        old.kill()
        await asyncio.to_thread(watched.await_switch, old)
        async with asyncio.timeout(60):
            while not await is_granted(leases, "ANOTHER"):
                await asyncio.sleep(0.01)
        await leases.close()


async def is_granted(leases: Leases, code: str) -> bool:
    with suppress(LocksUnavailable):
        taken = await acquire(leases, LeaseKey(code, "book", "user", "lock"), TTL_MS)
        return taken.status is AcquireStatus.GRANTED or taken.status is AcquireStatus.HELD_BEFORE
    return False
