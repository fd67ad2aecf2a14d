"""Releasing locks: those whose holders release them at the same time go together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from coupon_service.batching import DetachedTasks
from coupon_service.errors import LocksUnavailable
from coupon_service.leases import LeaseKey, Leases, ReleaseRequest
from coupon_service.locks.history import LockHistory
from coupon_service.locks.limits import tombstone_until_ms
from coupon_service.model import (
    Call,
    ChangeLock,
    CommandGroup,
    Done,
    EventType,
    LockClaims,
    LockView,
    Outcome,
    done_of,
    lock_end_attempt,
)
from coupon_service.model.normalization import canonical_id
from coupon_service.model.times import milliseconds_of


@dataclass(frozen=True, slots=True)
class LockRelease:
    """A lock that has ended. `replayed`: it had been released before."""

    lock: LockView
    replayed: bool


class LockReleaser:
    """Releases locks, many at once: their rows in the ledger, then their permits in Redis.

    A permit is given back only when its release is recorded: whoever gets it next must not meet a
    redemption with this lock. Whatever is not simply released goes on by itself, to the end.
    """

    def __init__(self, history: LockHistory, leases: Leases, detached: DetachedTasks) -> None:
        self._history = history
        self._leases = leases
        self._detached = detached

    async def release(
        self, groups: Sequence[CommandGroup]
    ) -> list[LockRelease | asyncio.Future[LockRelease]]:
        """Releases the lock of each group, which is one ChangeLock."""
        outcomes = await self._history.record_joined([group.commands[0] for group in groups])
        released = {
            i: LockRelease(outcome.lock, outcome.replayed)
            for i, outcome in enumerate(outcomes)
            if isinstance(outcome, Done) and outcome.lock is not None
        }
        await self._give_back([it.lock for it in released.values()])
        return [
            released.get(i) or self._detached.run(self._conclude(outcome))
            for i, outcome in enumerate(outcomes)
        ]

    async def _conclude(self, outcome: Outcome) -> LockRelease:
        """Answers with a lock that has to be read from the ledger. Raises why it stays."""
        done = done_of(outcome)
        lock = await self._history.lock_of(done)
        await self._give_back([lock])
        return LockRelease(lock, done.replayed)

    async def _give_back(self, locks: Sequence[LockView]) -> None:
        with suppress(LocksUnavailable):  # their time ends them
            await give_back(self._leases, locks)


async def give_back(leases: Leases, locks: Sequence[LockView]) -> None:
    """Gives the permits of locks that have ended back, for good. Raises LocksUnavailable."""
    await leases.release_each(
        [
            ReleaseRequest(
                LeaseKey.of(lock),
                tombstone_until_ms=tombstone_until_ms(milliseconds_of(lock.expire_time)),
            )
            for lock in locks
        ]
    )


def lock_end(held: LockView | LockClaims, event: EventType, call: Call) -> ChangeLock:
    """The command that ends a lock."""
    named, parameters = lock_end_attempt(held.code, event, held.lock_id)
    return ChangeLock(
        call=call,
        type=event,
        code=held.code,
        book_id=held.book_id,
        event_id=named,
        fingerprint=parameters,
        user_id=canonical_id(held.user_id),
        lock_id=held.lock_id,
    )
