"""Work that outlives its caller."""

from __future__ import annotations

import asyncio

import pytest

from coupon_service.batching import DetachedTasks


async def test_work_goes_on_when_its_caller_stops_waiting() -> None:
    detached, steps = DetachedTasks(), list[str]()
    begun, proceed = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        steps.append("first")
        begun.set()
        await proceed.wait()
        steps.append("last")

    async def call() -> None:
        await detached.run(work())

    caller = asyncio.ensure_future(call())
    await begun.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    proceed.set()
    await detached.drain()
    assert steps == ["first", "last"]


async def test_draining_waits_for_work_that_begins_meanwhile() -> None:
    detached, done = DetachedTasks(), list[str]()

    async def second() -> None:
        await asyncio.sleep(0.01)
        done.append("second")

    async def first() -> None:
        await asyncio.sleep(0.01)
        detached.run(second())

    detached.run(first())
    await detached.drain()
    assert done == ["second"]


async def test_work_that_fails_fails_its_caller_and_not_the_drain() -> None:
    detached = DetachedTasks()

    async def work() -> None:
        raise ValueError("wrong")

    answer = detached.run(work())
    await detached.drain()
    with pytest.raises(ValueError, match="wrong"):
        await answer
