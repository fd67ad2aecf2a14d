"""When a server in this process has nothing more to do, and what it then keeps."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from support.service import ServerThread
from support.waiting import until

STANDING: Final = ("AioServer.", "AsyncConnectionPool.worker", "AsyncScheduler.run", "Event.wait")
"""What gRPC and the pool run as long as they are there."""

SETTLE_S: Final = 30
"""Longer than anything takes that goes on after its caller has stopped waiting."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What a server holds on to."""

    tasks: Counter[str]
    """By what they run."""
    connections: int
    idle_connections: int
    descriptors: int
    """Of the whole process."""
    waiting: int
    """Commands in a queue."""

    @property
    def others(self) -> int:
        """Descriptors beside the connections of the pool, which grows and shrinks when it likes."""
        return self.descriptors - self.connections

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way."""
        return not self.tasks and not self.waiting and self.connections == self.idle_connections


async def _kept(running: ServerThread) -> Kept:
    server: Any = running.server
    tasks: Counter[str] = Counter()
    for task in asyncio.all_tasks():
        if task in server._background or task is asyncio.current_task():
            continue
        coroutine: Any = task.get_coro()
        name: str = getattr(coroutine, "__qualname__", repr(coroutine))
        if not name.startswith(STANDING):
            tasks[name] += 1
    stats = server._database.pool.get_stats()
    return Kept(
        tasks,
        stats.get("pool_size", 0),
        stats.get("pool_available", 0),
        _descriptors(),
        sum(it._queued for it in (server._commands._single, server._commands._bulk)),
    )


def _descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def kept(running: ServerThread) -> Kept:
    """What the server holds on to now."""
    return running.run(_kept(running))


def settle(running: ServerThread) -> Kept:
    """Waits until nothing is under way any more; what the server still keeps."""
    # Not another look afterwards: what watches in the background may be at it again by then.
    found = kept(running)

    def is_idle() -> bool:
        nonlocal found
        found = kept(running)
        return found.is_idle

    until(is_idle, SETTLE_S, lambda: found)
    return found
