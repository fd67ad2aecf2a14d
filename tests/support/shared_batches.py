"""Calls that share a batch, for certain."""

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
    """Calls that share a batch of the owner: the reason of each, or OK.

    `step` is its method that has the commands of a batch first. As many others as there may be
    batches are held up in it until all calls have come.
    """
    sizes: list[int] = []
    begin = threading.Event()
    waiting = 0
    real: Any = getattr(owner, step)
    enqueue: Any = getattr(MicroBatcher, "_enqueue")  # noqa: B009 - of any type

    async def held_up(self: object, commands: Sequence[object]) -> object:
        sizes.append(len(commands))
        while not begin.is_set():
            await asyncio.sleep(0.002)
        return await real(self, commands)

    def counted(self: MicroBatcher[Any, Any], unit: Any) -> asyncio.Future[Any]:
        nonlocal waiting
        waiting += isinstance(unit, LazyCommand)
        return enqueue(self, unit)

    first = [others() for _ in range(BatchingSettings().lock_batches_in_flight)]
    with (
        mock.patch.object(owner, step, held_up),
        mock.patch.object(MicroBatcher, "_enqueue", counted),
        ThreadPoolExecutor(len(first) + len(calls)) as pool,
    ):
        for number, call in enumerate(first, 1):
            pool.submit(call)
            until(lambda number=number: len(sizes) == number)
        answers = [pool.submit(tried, call) for call in calls]
        until(lambda: waiting == len(first) + len(calls))
        begin.set()
        found = [answer.result() for answer in answers]
    assert max(sizes) > 1
    return found
