"""Locks while Redis is down, frozen, restarted or emptied, and when callers go away."""

# redis-py leaves the type of its keyword arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from redis.asyncio import Redis
from support.lease_servers import ANN, BOB, acquire

from coupon_service.embedded import EmbeddedRedis
from coupon_service.errors import LocksUnavailable
from coupon_service.leases import AcquireStatus, AdmitStatus, LeaseKey, Leases

CODE = "SUMMER25"
BOOK = "book-1"
TTL_MS = 60_000
TIMEOUT_MS = 200
HANGS_S = 10  # redis-py by itself: 59 s on a frozen server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(tmp_path / "redis", durable=False) as server:
        yield server


@pytest.fixture
async def leases(server: EmbeddedRedis) -> AsyncIterator[Leases]:
    leases = Leases(server.url, timeout_ms=TIMEOUT_MS)
    yield leases
    await leases.close()


@pytest.fixture
async def redis(server: EmbeddedRedis) -> AsyncIterator[Redis]:
    client = Redis.from_url(server.url, decode_responses=True)
    yield client
    await client.aclose()


async def lock(leases: Leases, name: str) -> str:
    return (
        await acquire(leases, LeaseKey(CODE, BOOK, f"user-{name}", f"lock-{name}"), TTL_MS)
    ).lock_id


async def unavailable(leases: Leases) -> None:
    async with asyncio.timeout(HANGS_S):
        with pytest.raises(LocksUnavailable):
            await leases.ping()
        with pytest.raises(LocksUnavailable):
            await lock(leases, "x")
        with pytest.raises(LocksUnavailable):
            await leases.admit(ANN, 2**42)


async def test_a_redis_that_is_down_is_reported_at_once(
    leases: Leases, server: EmbeddedRedis
) -> None:
    await lock(leases, "before")
    server.kill()

    await unavailable(leases)


async def test_it_need_not_be_up_at_the_start(server: EmbeddedRedis) -> None:
    url = server.url
    server.kill()
    leases = Leases(url, timeout_ms=TIMEOUT_MS)
    await unavailable(leases)
    server.start()

    assert await lock(leases, "a") == "lock-a"
    await leases.close()


async def test_locks_go_on_when_redis_is_back_empty(leases: Leases, server: EmbeddedRedis) -> None:
    taken = await acquire(leases, ANN, TTL_MS)
    server.kill()
    await unavailable(leases)
    server.start()
    admission = await leases.admit(ANN, taken.expire_ms)

    assert admission.status is AdmitStatus.RETAKEN
    assert await lock(leases, "b") == "lock-b"


async def test_a_restart_between_two_calls_is_not_noticed(
    leases: Leases, server: EmbeddedRedis
) -> None:
    await lock(leases, "a")
    server.kill()
    await asyncio.to_thread(server.start)

    assert await lock(leases, "b") == "lock-b"


async def test_a_frozen_redis_is_reported_and_its_late_answers_go_to_no_one(
    leases: Leases, server: EmbeddedRedis
) -> None:
    await lock(leases, "before")
    server.pause()
    await unavailable(leases)
    server.resume()

    names = [str(i) for i in range(50)]
    assert await asyncio.gather(*(lock(leases, name) for name in names)) == [
        f"lock-{name}" for name in names
    ]


async def test_nobody_waits_for_the_silence_of_others_to_end(
    leases: Leases, server: EmbeddedRedis
) -> None:
    await lock(leases, "before")
    server.pause()
    started_s = time.monotonic()
    await unavailable(leases)  # three calls, one after the other
    alone_s = time.monotonic() - started_s

    started_s = time.monotonic()
    outcomes = await asyncio.gather(
        *(lock(leases, str(i)) for i in range(300)), return_exceptions=True
    )  # ten pipelines
    together_s = time.monotonic() - started_s
    server.resume()

    assert {type(outcome) for outcome in outcomes} == {LocksUnavailable}
    assert together_s < 2 * alone_s  # ten silences: more than three times


async def test_a_silence_that_ends_is_the_error_of_few(
    leases: Leases, server: EmbeddedRedis
) -> None:
    await lock(leases, "before")
    server.pause()
    calls = [asyncio.create_task(lock(leases, str(i))) for i in range(300)]
    await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    server.resume()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)

    assert 0 < sum(isinstance(outcome, LocksUnavailable) for outcome in outcomes) < 100


async def test_scripts_that_redis_forgot_are_sent_again(leases: Leases, redis: Redis) -> None:
    for _ in range(2):
        taken = await acquire(leases, ANN, TTL_MS)
        await redis.script_flush()
        later_ms = taken.expire_ms + 1_000
        ends_ms = await leases.extend(ANN, later_ms)
        await redis.script_flush()

        assert ends_ms == later_ms
        assert await leases.release(ANN)


async def test_calls_of_one_moment_share_a_pipeline(leases: Leases, redis: Redis) -> None:
    async def reads() -> int:
        return int((await redis.info("stats"))["total_reads_processed"])

    await lock(leases, "first")
    before = await reads()
    async with asyncio.TaskGroup() as callers:
        for i in range(100):
            callers.create_task(leases.admit(LeaseKey(CODE, BOOK, f"user-{i}", "lock"), 2**42))

    assert await reads() - before < 50


async def test_a_command_that_redis_refuses_is_the_error_of_its_caller_alone(
    leases: Leases, redis: Redis
) -> None:
    await redis.set("coupon:{BAD}:places", "no zset")
    bad, good = await asyncio.gather(
        acquire(leases, LeaseKey("BAD", BOOK, "ann", "lock-a"), TTL_MS),
        acquire(leases, BOB, TTL_MS),
        return_exceptions=True,
    )

    assert isinstance(bad, LocksUnavailable)
    assert not isinstance(good, BaseException)
    assert good.status is AcquireStatus.GRANTED


async def test_callers_that_go_away_leave_no_reply_to_others(leases: Leases, redis: Redis) -> None:
    chance = random.Random(7)

    async def caller(name: str) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(chance.choice([0, 0.0005, 0.002, 1])):
                assert await lock(leases, name) == f"lock-{name}"

    for round_ in range(10):
        async with asyncio.TaskGroup() as callers:
            for i in range(100):
                callers.create_task(caller(f"{round_}-{i}"))

    assert await lock(leases, "last") == "lock-last"
    clients = [client for client in await redis.client_list() if client["name"] == ""]
    assert len(clients) == 2  # the lease module's and this test's


async def test_a_caller_that_went_away_before_its_call_was_sent_takes_no_permit(
    leases: Leases,
) -> None:
    await lock(leases, "first")
    gone = asyncio.create_task(lock(leases, "gone"))
    await asyncio.sleep(0)
    gone.cancel()

    taken = await acquire(leases, ANN, TTL_MS)

    assert taken.permits_taken == 2


async def test_a_busy_process_does_not_take_its_own_delay_for_silence(leases: Leases) -> None:
    await lock(leases, "first")
    call = asyncio.create_task(lock(leases, "a"))
    for _ in range(3):
        await asyncio.sleep(0)
    time.sleep(3 * TIMEOUT_MS / 1_000)  # noqa: ASYNC251

    assert await call == "lock-a"


async def test_while_the_process_is_late_itself_redis_may_be_as_well(
    leases: Leases, server: EmbeddedRedis
) -> None:
    await lock(leases, "first")
    server.pause()
    call = asyncio.create_task(lock(leases, "a"))
    for _ in range(2):
        time.sleep(TIMEOUT_MS / 1_000)  # noqa: ASYNC251
        await asyncio.sleep(0.001)
    server.resume()

    assert await call == "lock-a"


async def test_close_waits_for_what_is_on_its_way(server: EmbeddedRedis) -> None:
    leases = Leases(server.url, timeout_ms=HANGS_S * 1_000)
    await leases.ping()
    server.pause()
    call = asyncio.create_task(leases.acquire_transient(CODE, "attempt", "ann", TTL_MS))
    await asyncio.sleep(0.01)
    closing = asyncio.create_task(leases.close())
    await asyncio.sleep(0.01)
    server.resume()
    await closing

    assert (await call).permits_taken == 1
