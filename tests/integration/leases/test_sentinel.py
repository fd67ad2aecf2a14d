"""Locks on a Redis that Sentinels watch."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from support.lease_servers import ANN, BOB, TTL_MS, acquire
from support.redis_sentinels import SENTINEL_PASSWORD, Watched, watched_redis
from support.waiting import PATIENCE

from coupon_service.embedded.machine import HOST, free_port
from coupon_service.errors import LocksUnavailable
from coupon_service.leases import AcquireStatus, LeaseKey, Leases
from coupon_service.ratelimit.windows import Windows
from coupon_service.telemetry.readiness import Readiness

TIMEOUT_MS = 1_000
AGAIN_S_MAX = 2.0


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    with watched_redis(tmp_path) as watched:
        yield watched


@pytest.fixture
async def leases(watched: Watched) -> AsyncIterator[Leases]:
    leases = Leases(watched.url(), timeout_ms=TIMEOUT_MS)
    yield leases
    await leases.close()


async def locked_again_s(leases: Leases) -> float:
    """When a new lock was granted after a switch."""
    while True:
        key = LeaseKey(f"CODE{time.monotonic_ns()}", "book", "user", "lock")
        try:
            assert (await acquire(leases, key, TTL_MS)).status is AcquireStatus.GRANTED
            await leases.release(key)
        except LocksUnavailable:
            await asyncio.sleep(0.01)
        else:
            return time.monotonic()


async def test_locks_are_held_by_the_master_that_the_sentinels_name(
    watched: Watched, leases: Leases
) -> None:
    assert await leases.check() == {}
    assert (await acquire(leases, ANN, TTL_MS)).status is AcquireStatus.GRANTED
    assert [it.key for it in await leases.list_user("ann")] == [ANN]


@pytest.mark.parametrize("how", ["killed", "frozen", "asked to"])
async def test_after_a_switch_of_the_master_locks_work_within_two_seconds(
    watched: Watched, leases: Leases, how: str
) -> None:
    await acquire(leases, ANN, TTL_MS)
    old = watched.master
    match how:
        case "killed":
            old.kill()
        case "frozen":
            old.pause()
        case _:
            watched.fail_over()
    # Calls go on meanwhile, as they do in a service.
    calls = asyncio.create_task(_keep_trying(leases))
    switched_s = await asyncio.to_thread(watched.await_switch, old)
    again_s = await locked_again_s(leases)
    calls.cancel()
    if how == "frozen":
        old.resume()

    assert again_s - switched_s < AGAIN_S_MAX * PATIENCE
    assert (await acquire(leases, BOB, TTL_MS)).status is AcquireStatus.GRANTED
    assert await leases.check() == {}


async def _keep_trying(leases: Leases) -> None:
    while True:
        await locked_again_s(leases)


async def test_sentinels_that_are_down_or_silent_do_not_matter(watched: Watched) -> None:
    with socket.socket() as silent:
        silent.bind((HOST, 0))
        silent.listen()
        watched.sentinels[1].kill()
        dead = f"{HOST}:{free_port()}", f"{HOST}:{silent.getsockname()[1]}"
        leases = Leases(watched.url(*dead), timeout_ms=TIMEOUT_MS)
        assert (await acquire(leases, ANN, TTL_MS)).status is AcquireStatus.GRANTED
        await leases.close()


async def test_rate_limits_are_counted_in_the_master(watched: Watched) -> None:
    windows = Windows(watched.url(), TIMEOUT_MS)
    assert await windows.left_ms(["key"]) == -2
    await windows.close()


async def test_a_name_that_no_sentinel_knows_is_told(watched: Watched) -> None:
    leases = Leases(watched.url().replace("/coupons?", "/others?"), timeout_ms=TIMEOUT_MS)
    with pytest.raises(LocksUnavailable) as raised:
        await leases.check()
    assert "others" in str(raised.value.__cause__)
    assert "it watches coupons" in str(raised.value.__cause__)
    await leases.close()


async def test_a_plain_url_of_a_sentinel_is_told(watched: Watched) -> None:
    url = f"redis://:{SENTINEL_PASSWORD}@{HOST}:{watched.sentinels[0].port}"
    leases = Leases(url, timeout_ms=TIMEOUT_MS)
    assert set(await leases.check()) == {Readiness.REDIS_SENTINEL}
    await leases.close()
