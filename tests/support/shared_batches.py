"""Calls that are guaranteed to share a batch."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

from support.calls import tried
from support.waiting import until

from coupon_service.batching import BatchingSettings, LazyCommand, MicroBatcher

Call = Callable[[], object]


def answered_together(
    owner: type, step: str, others: Callable[[], Call], calls: Sequence[Call]
) -> list[str]:
    """Make calls that share a batch of `owner`; returns the reason of each, or OK.

    `step`: the method of `owner` that gets the commands of a batch first. Batches of other calls,
    as many as may be in flight, are blocked in it until all calls are queued.
    """
    sizes: list[int] = []
    begin = threading.Event()
    queued = 0
    real: Any = getattr(owner, step)
    enqueue: Any = getattr(MicroBatcher, "_enqueue")  # noqa: B009 - of any type

    async def blocked(self: object, commands: Sequence[object], *others: object) -> object:
        sizes.append(len(commands))
        while not begin.is_set():
            await asyncio.sleep(0.002)
        return await real(self, commands, *others)

    def counted(self: MicroBatcher[Any, Any], command: Any) -> asyncio.Future[Any]:
        nonlocal queued
        queued += isinstance(command, LazyCommand)
        return enqueue(self, command)

    first = [others() for _ in range(BatchingSettings().lock_batches_in_flight)]
    with (
        mock.patch.object(owner, step, blocked),
        mock.patch.object(MicroBatcher, "_enqueue", counted),
        ThreadPoolExecutor(len(first) + len(calls)) as pool,
    ):
        for number, call in enumerate(first, 1):
            pool.submit(call)
            until(lambda number=number: len(sizes) == number)
        answers = [pool.submit(tried, call) for call in calls]
        until(lambda: queued == len(first) + len(calls))
        begin.set()
        reasons = [answer.result() for answer in answers]
    assert max(sizes) > 1
    return reasons
