"""Handing assignments over, together with the lock of the giver where its token is shown."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from coupon_service.batching import CommandLanes, DetachedTasks
from coupon_service.errors import LocksUnavailable
from coupon_service.leases import Leases
from coupon_service.locks.release import give_back
from coupon_service.locks.token import LockTokens
from coupon_service.model import CommandGroup, Done, Transfer, done_of


class AssignmentTransfers:
    """Hands assignments over. A lock of the giver ends with it in the ledger, and then in Redis."""

    def __init__(
        self, lanes: CommandLanes, leases: Leases, tokens: LockTokens, detached: DetachedTasks
    ) -> None:
        self._lanes = lanes
        self._leases = leases
        self._tokens = tokens
        self._detached = detached

    async def transfer(self, command: Transfer, token: str) -> Done:
        """Hands a code over; `token`: of the lock that ends with it, if any.

        Raises why it is refused, LockTokenMismatch, and what CommandLanes.submit raises.
        """
        if token:
            command = replace(command, lock=self._tokens.verify(token))
        return await self._detached.run(self._transfer(command))

    async def _transfer(self, command: Transfer) -> Done:
        (outcome,) = await self._lanes.submit(CommandGroup((command,)))
        done = done_of(outcome)
        if done.lock is not None:
            with suppress(LocksUnavailable):  # its time ends it
                await give_back(self._leases, [done.lock])
        return done
