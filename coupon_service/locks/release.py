"""Releasing locks: those whose holders let go of them at the same time are released together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import TypeAlias

from coupon_service.batching.batcher import CommandLanes, DetachedTasks
from coupon_service.errors import LocksUnavailable
from coupon_service.leases import Leases
from coupon_service.locks.history import LockHistory, done_of, give_back
from coupon_service.model import Command, CommandGroup, Done, LockView, Outcome

Released: TypeAlias = tuple[LockView, bool]
"""A lock that has ended, and whether it had been released before."""


class LockReleaser:
    """Releases locks, many at once: their rows in the ledger, then their places in Redis.

    A place is given back only when its release is recorded: whoever gets it next must not meet a
    redemption with this lock. Whatever is not simply released goes on by itself, to the end.
    """

    def __init__(self, coalescer: CommandLanes, leases: Leases, history: LockHistory) -> None:
        self._coalescer = coalescer
        self._leases = leases
        self._history = history
        self._to_the_end = DetachedTasks()

    async def release(
        self, units: Sequence[CommandGroup]
    ) -> list[Released | asyncio.Future[Released]]:
        """Releases the lock of each unit, which is one ChangeLock."""
        outcomes = await self._record([unit.commands[0] for unit in units])
        released = {
            i: (outcome.lock, outcome.replayed)
            for i, outcome in enumerate(outcomes)
            if isinstance(outcome, Done) and outcome.lock is not None
        }
        await self._give_back([lock for lock, _ in released.values()])
        return [
            released.get(i) or self._to_the_end.run(self._conclude(outcome))
            for i, outcome in enumerate(outcomes)
        ]

    async def _record(self, commands: Sequence[Command]) -> Sequence[Outcome]:
        """Writes the ends of locks to the ledger."""
        return await self._coalescer.submit_joined(CommandGroup(tuple(commands)))

    async def _conclude(self, outcome: Outcome) -> Released:
        """Answers with a lock that the ledger has to be asked for. Raises why it stays."""
        done = done_of(outcome)
        lock = await self._history.lock_of(done)
        await self._give_back([lock])
        return lock, done.replayed

    async def _give_back(self, locks: Sequence[LockView]) -> None:
        with suppress(LocksUnavailable):  # their time ends them
            await give_back(self._leases, locks)
