"""Bulk work takes turns, holds nothing while it waits, and rests while others are at work."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from time import perf_counter

import pytest
from support.store import BULK, opened

from coupon_service.store.bulk.lane import BulkLane
from coupon_service.store.database import Database
from coupon_service.store.pipeline import Connection

NAP_S = 0.02


@asynccontextmanager
async def new_lane(url: str) -> AsyncGenerator[BulkLane]:
    """The lane of a worker."""
    async with opened(url, **BULK) as database:
        yield BulkLane(database)


@pytest.fixture
async def lane(database_url: str) -> AsyncGenerator[BulkLane]:
    async with new_lane(database_url) as made:
        yield made


@pytest.fixture
async def others(database_url: str) -> AsyncGenerator[Database]:
    """The pool of the other callers."""
    async with opened(database_url) as database:
        yield database


class AtOnce:
    """Work of which is counted how much goes on at once."""

    def __init__(self) -> None:
        self.now = self.most = 0

    async def work(self, _: Connection) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(NAP_S)
        self.now -= 1


async def wait_until_queued(tasks: int = 8) -> None:
    """Lets what was just started run until it waits."""
    for _ in range(tasks):
        await asyncio.sleep(0)


# --- turns --------------------------------------------------------------------------------------


async def test_businesses_take_turns_and_so_do_the_calls_of_each(lane: BulkLane) -> None:
    done: list[str] = []

    async def call(name: str) -> None:
        for _ in range(2):
            async with lane.turn(name[0]):
                await asyncio.sleep(0)
                done.append(name)

    await asyncio.gather(*map(call, ("a1", "a2", "a3", "b1")))
    assert done == ["a1", "b1", "a2", "b1", "a3", "a1", "a2", "a3"]


async def test_whoever_waits_for_a_turn_and_is_cancelled_is_passed_over(lane: BulkLane) -> None:
    done: list[str] = []

    async def call(name: str) -> None:
        async with lane.turn(name[0]):
            done.append(name)

    async with lane.turn("a"):
        waiting = [asyncio.create_task(call(name)) for name in ("a1", "b1", "c1", "a2")]
        await wait_until_queued()
        waiting[0].cancel()
        waiting[1].cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert done == ["c1", "a2"]


async def test_a_piece_that_fails_leaves_its_turn_to_the_next(lane: BulkLane) -> None:
    with pytest.raises(ZeroDivisionError):
        async with lane.turn("a"):
            raise ZeroDivisionError
    async with asyncio.timeout(1), lane.turn("a"):
        pass


async def test_a_business_that_has_left_is_forgotten(lane: BulkLane) -> None:
    for number in range(10):
        async with lane.turn(f"business-{number}"):
            assert len(lane._businesses) == 1
    assert len(lane._businesses) == 0


# --- transactions -------------------------------------------------------------------------------


async def test_over_all_workers_one_bulk_transaction_goes_on_at_a_time(database_url: str) -> None:
    at_once = AtOnce()
    async with new_lane(database_url) as one, new_lane(database_url) as other:

        async def call(lane: BulkLane) -> None:
            for _ in range(3):
                async with lane.turn("a"):
                    await lane.transaction("nap", at_once.work)

        await asyncio.gather(*(call(lane) for lane in (one, other) * 3))
    assert at_once.most == 1


async def test_it_waits_for_another_worker_longer_than_others_wait_for_a_lock(
    lane: BulkLane, database_url: str
) -> None:
    let_go = asyncio.Event()

    async def hold(_: Connection) -> None:
        await let_go.wait()

    async def work(_: Connection) -> None:
        pass

    async with new_lane(database_url) as other:
        holder = asyncio.create_task(other.transaction("hold", hold))
        waiting = asyncio.create_task(lane.transaction("wait", work))
        await asyncio.sleep(BULK["lock_timeout_ms"] / 1000 * 6)
        let_go.set()
        await asyncio.gather(holder, waiting)


async def test_after_a_caller_that_left_the_next_one_waits_however_long_it_takes(
    lane: BulkLane,
) -> None:
    """The transaction goes on without its caller, for longer than the pool would let it wait."""
    at_once, let_go = AtOnce(), asyncio.Event()

    async def stay(connection: Connection) -> None:
        await at_once.work(connection)
        await let_go.wait()

    async def call() -> None:
        async with lane.turn("a"):
            await lane.transaction("nap", at_once.work)

    left = asyncio.create_task(lane.transaction("stay", stay))
    while not at_once.most:
        await asyncio.sleep(NAP_S)
    left.cancel()
    next_one = asyncio.create_task(call())
    await asyncio.sleep(BULK["pool_timeout_ms"] / 1000 + 0.2)
    was_done = next_one.done()
    let_go.set()
    await next_one
    assert not was_done
    assert at_once.most == 1


# --- rests --------------------------------------------------------------------------------------


async def time_of_steps(lane: BulkLane, steps: int = 10) -> float:
    """Seconds that steps of one nap each took."""

    async def work(connection: Connection) -> None:
        for _ in range(steps):
            async with lane.step(connection):
                await asyncio.sleep(NAP_S)

    began_s = perf_counter()
    await lane.transaction("steps", work)
    return perf_counter() - began_s


async def test_it_has_a_sixth_of_the_time_while_others_are_at_work(
    lane: BulkLane, others: Database
) -> None:
    at_work, done = asyncio.Event(), asyncio.Event()

    async def work(_: Connection) -> None:
        at_work.set()
        await done.wait()

    other = asyncio.create_task(others.transaction("others", work))
    try:
        await at_work.wait()
        busy_s = await time_of_steps(lane)
    finally:
        done.set()
    await other
    assert busy_s >= 10 * 6 * NAP_S
    assert lane._load > 0.9
    await time_of_steps(lane, 30)  # until it is known that they have left
    assert lane._load < 0.1


async def test_short_calls_of_others_make_it_rest_as_well(lane: BulkLane, others: Database) -> None:
    async def call(connection: Connection) -> None:
        await connection.execute("SELECT 1")

    async def calls() -> None:
        while True:
            await others.read("call", call)
            await asyncio.sleep(NAP_S / 4)

    await time_of_steps(lane, 30)  # until it is known that nobody is at work
    calling = asyncio.create_task(calls())
    try:
        busy_s = await time_of_steps(lane, 20)
    finally:
        calling.cancel()
    assert busy_s > 20 * 3 * NAP_S


async def test_bulk_work_of_another_worker_does_not_make_it_rest(
    lane: BulkLane, database_url: str
) -> None:
    at_work, done = asyncio.Event(), asyncio.Event()

    async def work(_: Connection) -> None:
        at_work.set()
        await done.wait()

    async with opened(database_url, **BULK) as of_another:
        other = asyncio.create_task(of_another.transaction("export", work))
        try:
            await at_work.wait()
            await time_of_steps(lane, 30)
        finally:
            done.set()
        await other
    assert lane._load < 0.1


async def test_a_rest_ends_long_before_postgresql_would_end_the_transaction(
    lane: BulkLane,
) -> None:
    began_s = perf_counter()
    await lane._rest(60)
    assert perf_counter() - began_s < 30
