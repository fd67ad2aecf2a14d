"""Wait until a server in this process is idle, and check for leaked resources."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from support.service import ServerThread
from support.waiting import until

STANDING: Final = ("AioServer.", "AsyncConnectionPool.worker", "AsyncScheduler.run", "Event.wait")
"""Tasks of gRPC and of the pool that run as long as they exist."""

SETTLE_S: Final = 30
"""Longer than any work that continues after its caller has stopped waiting."""


@dataclass(frozen=True, slots=True)
class Held:
    """The resources that a server holds."""

    tasks: Counter[str]
    """By the coroutine that they run."""
    connections: int
    idle_connections: int
    descriptors: int
    """Of the whole process."""
    waiting: int
    """Commands in a queue."""

    @property
    def others(self) -> int:
        """Descriptors other than connections of the pool, which grows and shrinks by itself."""
        return self.descriptors - self.connections

    @property
    def is_idle(self) -> bool:
        """Whether no work is in flight."""
        return not self.tasks and not self.waiting and self.connections == self.idle_connections


async def _held(running: ServerThread) -> Held:
    server: Any = running.server
    tasks: Counter[str] = Counter()
    for task in asyncio.all_tasks():
        if task in server._background or task is asyncio.current_task():
            continue
        coroutine: Any = task.get_coro()
        name: str = getattr(coroutine, "__qualname__", repr(coroutine))
        if not name.startswith(STANDING):
            tasks[name] += 1
    commands = [it.commands for it in server.shards]
    stats = [it.database.pool.get_stats() for it in server.shards]
    return Held(
        tasks,
        sum(it.get("pool_size", 0) for it in stats),
        sum(it.get("pool_available", 0) for it in stats),
        _descriptors(),
        sum(it._queued for each in commands for it in (each._single, each._bulk)),
    )


def _descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def held(running: ServerThread) -> Held:
    """The resources that the server holds now."""
    return running.run(_held(running))


def settle(running: ServerThread) -> Held:
    """Wait until no work is in flight; returns the resources that the server then holds."""
    # The reading that was idle is returned: a background task may be active again by now.
    latest = held(running)

    def is_idle() -> bool:
        nonlocal latest
        latest = held(running)
        return latest.is_idle

    until(is_idle, SETTLE_S, lambda: latest)
    return latest
