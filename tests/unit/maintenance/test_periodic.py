"""Work that is done again and again, whatever becomes of it."""

from __future__ import annotations

import asyncio

from structlog.testing import capture_logs

from coupon_service.errors import DatabaseUnavailable
from coupon_service.maintenance.periodic import run_periodically


async def run_times(times: int, outcomes: list[Exception], *, at_once: bool = False) -> list[int]:
    """The runs before each interval when the work is done so often, and raises these first."""
    done = asyncio.Event()
    waited: list[int] = []
    runs = 0

    async def work() -> None:
        nonlocal runs
        runs += 1
        if runs == times:
            done.set()
            await asyncio.Event().wait()
        if outcomes:
            raise outcomes.pop(0)

    def interval_s() -> float:
        waited.append(runs)
        return 0

    task = asyncio.ensure_future(
        run_periodically(work, interval_s, failed="test failed", at_once=at_once)
    )
    await asyncio.wait_for(done.wait(), 5)
    task.cancel()
    await asyncio.wait([task])
    return waited


async def test_an_interval_passes_before_the_first_time() -> None:
    assert await run_times(2, []) == [0, 1]


async def test_work_that_is_due_at_once_is_done_first() -> None:
    assert await run_times(2, [], at_once=True) == [1]


async def test_work_that_failed_is_done_again() -> None:
    with capture_logs() as logged:
        assert await run_times(3, [ValueError("no schema"), DatabaseUnavailable()]) == [0, 1, 2]
    assert [(it["event"], it["cause"]) for it in logged] == [
        ("test failed", "ValueError('no schema')")
    ]
