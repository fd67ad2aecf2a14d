"""Work that outlives the call that began it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class DetachedTasks:
    """Work of several steps that goes on, and tidies up, also when its caller stops waiting."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    def run(self, work: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
        """What the work returns or raises."""
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        task = asyncio.ensure_future(_run(work, answer))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return answer

    async def drain(self) -> None:
        """Returns when all of it has ended, also what began meanwhile."""
        while self._running:
            await asyncio.wait(self._running)


async def _run(work: Coroutine[Any, Any, T], answer: asyncio.Future[T]) -> None:
    try:
        value = await work
    except BaseException as error:
        if not answer.done():
            answer.set_exception(error)
        if not isinstance(error, Exception):
            raise
    else:
        if not answer.done():
            answer.set_result(value)
