"""Deadlines that share a timer."""

from __future__ import annotations

import asyncio
from time import perf_counter

import pytest

from coupon_service.errors import DeadlineExceeded
from coupon_service.rpc.deadlines import Deadlines


async def sleeping(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "done"


async def test_work_in_time_is_answered() -> None:
    deadlines = Deadlines()
    assert await deadlines.within(perf_counter() + 5, sleeping(0)) == "done"


async def test_work_that_takes_too_long_ends_soon_after_its_deadline() -> None:
    deadlines = Deadlines()
    started = perf_counter()
    with pytest.raises(DeadlineExceeded):
        await deadlines.within(started + 0.1, sleeping(60))
    assert 0.1 <= perf_counter() - started < 30


async def test_a_deadline_that_has_passed_ends_work_that_waits() -> None:
    deadlines = Deadlines()
    with pytest.raises(DeadlineExceeded):
        await deadlines.within(perf_counter() - 7, sleeping(60))
    assert await deadlines.within(perf_counter() - 7, sleeping(0)) == "done"


async def test_each_has_its_own_deadline() -> None:
    deadlines = Deadlines()
    now = perf_counter()

    async def outcome(seconds: float) -> str:
        try:
            return await deadlines.within(now + seconds, sleeping(1))
        except DeadlineExceeded:
            return "late"

    delays = [60, 0.05, 0.1, 86_400, 0.05]
    assert await asyncio.gather(*map(outcome, delays)) == ["done", "late", "late", "done", "late"]


async def test_the_task_goes_on_after_its_deadline() -> None:
    deadlines = Deadlines()
    with pytest.raises(DeadlineExceeded):
        await deadlines.within(perf_counter() + 0.03, sleeping(60))
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    assert await deadlines.within(perf_counter() + 5, sleeping(0.05)) == "done"


async def test_a_task_that_somebody_else_cancels_is_cancelled() -> None:
    deadlines = Deadlines()
    task = asyncio.ensure_future(deadlines.within(perf_counter() + 5, sleeping(60)))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_nothing_is_remembered_of_work_that_has_ended() -> None:
    deadlines = Deadlines()
    now = perf_counter()
    await asyncio.gather(*(deadlines.within(now + 60 * n, sleeping(0.01)) for n in range(1, 51)))
    assert deadlines.open == 0
