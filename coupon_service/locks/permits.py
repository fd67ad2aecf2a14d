"""The permits of the locks of a batch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from uuid import UUID

from coupon_service.errors import LocksUnavailable
from coupon_service.leases import AcquireResult, AcquireStatus, LeaseRequest, Leases
from coupon_service.model import Book, CommandGroup, Lease, LeaseNeeded, Lock, Outcome
from coupon_service.model.times import time_of
from coupon_service.rules import in_scope


class BatchPermits:
    """The permits of the locks of a batch. Each is asked for once, however often the transaction of
    the batch is tried.

    `needed`: by index, the locks that need one, and what they came to without it. The commands get
    the ids that they have in their books.
    """

    def __init__(
        self,
        commands: list[Lock],
        request: Callable[[Lock, LeaseNeeded], LeaseRequest],
        leases: Leases,
    ) -> None:
        self.needed: dict[int, LeaseNeeded] = {}
        self._commands = commands
        self._request = request
        self._leases = leases
        self._asked: dict[int, asyncio.Task[dict[int, AcquireResult | LocksUnavailable]]] = {}

    async def leased(
        self, outcomes: Sequence[Sequence[Outcome]], within_s: float | None = None
    ) -> list[CommandGroup]:
        """The commands, with the permits that were granted within that time."""
        new = {
            i: outcome
            for i, (outcome,) in enumerate(outcomes)
            if isinstance(outcome, LeaseNeeded) and i not in self.needed
        }
        if new:
            self.needed |= new
            for i, outcome in new.items():
                self._commands[i] = in_scope(self._commands[i], outcome.book.book_id)
            asked = asyncio.ensure_future(self._acquire(new))
            self._asked |= dict.fromkeys(new, asked)
            await asyncio.wait({asked}, timeout=within_s)
        return [CommandGroup((self._with_permit(i),)) for i in range(len(self._commands))]

    async def of(self, index: int) -> AcquireResult | LocksUnavailable:
        """The answer to one of those that need a permit."""
        return (await self._asked[index])[index]

    async def _acquire(
        self, needed: Mapping[int, LeaseNeeded]
    ) -> dict[int, AcquireResult | LocksUnavailable]:
        requests = [self._request(self._commands[i], it) for i, it in needed.items()]
        return dict(zip(needed, await self._leases.acquire_each(requests), strict=True))

    def _with_permit(self, index: int) -> Lock:
        command, asked = self._commands[index], self._asked.get(index)
        permit = asked.result()[index] if asked is not None and asked.done() else None
        if isinstance(permit, AcquireResult) and permit.status is AcquireStatus.GRANTED:
            return with_lease(command, permit, self.needed[index].book)
        return command


def with_lease(command: Lock, result: AcquireResult, book: Book) -> Lock:
    """The command to record the lock, with the permit that it got for a code of the book."""
    return replace(
        command,
        lock_id=UUID(result.lock_id),
        expire_time=time_of(result.expire_ms),
        lease=Lease(result.permits_taken, result.retry_after_ms or 0, book_id=book.book_id),
    )
