"""The life of locks: acquire, extend, release, and read them.

The permit is in Redis, its history in the ledger. A permit is acquired before it is promised in the
ledger, and given back after its end is recorded there; the ledger says what a repeat is answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from functools import partial
from typing import TypeAlias
from uuid import UUID

from coupon_service.batching import LazyCommand, MicroBatcher
from coupon_service.errors import LockNotFound, LocksUnavailable
from coupon_service.leases import IndexedLock, LeaseKey, Leases
from coupon_service.locks.extend import LockExtender
from coupon_service.locks.history import LockGrant, LockHistory
from coupon_service.locks.release import LockRelease, lock_end
from coupon_service.locks.token import LockTokens
from coupon_service.model import (
    Book,
    Call,
    ChangeLock,
    Code,
    CodeKey,
    CommandGroup,
    EventType,
    Lock,
    LockClaims,
    LockView,
)
from coupon_service.model.scopes import name_of_locks
from coupon_service.rules import may_be_locked

Held: TypeAlias = Callable[
    [Sequence[IndexedLock], str], Awaitable[Sequence[tuple[IndexedLock, LockView]]]
]
"""See LockHistory.held."""


class LockService:
    """The life of locks."""

    def __init__(
        self,
        acquirer: MicroBatcher[CommandGroup, LockGrant],
        releaser: MicroBatcher[CommandGroup, LockRelease],
        extender: LockExtender,
        history: LockHistory,
        leases: Leases,
        tokens: LockTokens,
        take_over: Callable[[Lock, LockClaims], Awaitable[LockGrant]],
    ) -> None:
        """`acquirer` joins the calls of a LockAcquirer, `releaser` those of a LockReleaser;
        `take_over` is the acquirer's."""
        self._acquirer = acquirer
        self._releaser = releaser
        self._extender = extender
        self._history = history
        self._leases = leases
        self._tokens = tokens
        self._take_over = take_over
        self.held: Held = history.held
        """Which locks of an index are held. The index of a user has those in all shards."""

    async def acquire(self, command: LazyCommand[Lock]) -> LockGrant:
        """Takes a lock, or answers with the one that the user holds on the code."""
        return await self._acquirer.submit(command)

    async def take_over(self, command: Lock, token: str) -> LockGrant:
        """As `acquire`, with the token of a lock on the code: that of another user goes over to
        the user of the command. Raises LockTokenMismatch."""
        taken = self._tokens.verify(token)
        if taken.is_of(command.user_id):
            return await self._acquirer.submit(CommandGroup((command,)))
        return await self._take_over(command, taken)

    async def extend(self, token: str, ttl_ms: int | None, call: Call) -> LockGrant:
        """Gives a lock a new expiry, `ttl_ms` from now. Raises LockTokenMismatch."""
        return await self._extender.extend(self._tokens.verify(token), ttl_ms, call)

    async def release(self, token: str | None, lock_id: UUID | None, call: Call) -> LockRelease:
        """Ends a lock, named by its token or else its id. Raises LockNotFound,
        LockTokenMismatch."""
        if token is not None:
            command = LazyCommand(partial(self._command_of, token, call), call.deadline)
            return await self._releaser.submit(command)
        if lock_id is None:
            raise LockNotFound
        held = await self._history.get(lock_id, call.business_id, call.own_user_id)
        return await self._releaser.submit(
            CommandGroup((lock_end(held, EventType.UNLOCKED, call),))
        )

    def _command_of(self, token: str, call: Call) -> ChangeLock:
        """The command that releases the lock of the token."""
        held = self._tokens.verify(token)
        if call.end_user and not held.is_of(call.caller):
            raise LockNotFound
        return lock_end(held, EventType.UNLOCKED, call)

    async def get(self, lock_id: UUID, business_id: str, own_user_id: str = "") -> LockView:
        """A lock as it is now, of this business and user, empty = any. Raises LockNotFound."""
        return await self._history.get(lock_id, business_id, own_user_id)

    async def list(
        self,
        user_id: str | None,
        book_id: UUID | None,
        business_id: str,
        page_size: int,
        after: Sequence[object] | None,
    ) -> tuple[list[LockView], Sequence[object] | None]:
        """Live locks of a user or of a book, the next to expire first, and where to go on."""
        position = _indexed(*after) if after is not None else None  # type: ignore[arg-type]
        found: list[tuple[IndexedLock, LockView]] = []
        more = book_id is None or bool(await self._history.own_books([str(book_id)], business_id))
        # The index has locks of other businesses, and some that have ended: neither may count.
        while more and len(found) <= page_size:
            if user_id is not None:
                indexed = await self._leases.list_user(user_id, position, page_size + 1)
            else:
                indexed = await self._leases.list_book(str(book_id), position, page_size + 1)
            more = len(indexed) > page_size
            found += await self.held(indexed, business_id)
            position = indexed[-1] if indexed else None
        page = found[:page_size]
        last = page[-1][0] if len(found) > page_size else None
        return [view for _, view in page], last and (*last.key, last.expire_ms)

    async def locked_out(self, codes: Sequence[tuple[Code, Book]], now: datetime) -> set[CodeKey]:
        """The codes whose every remaining use is locked. None of them while Redis is away."""
        open_codes = [
            (code, left)
            for code, book in codes
            if book.limits.max_redemptions_per_code
            and may_be_locked(book, now)
            and (left := book.limits.max_redemptions_per_code - code.redemptions) > 0
        ]
        try:
            seen = await asyncio.gather(
                *(self._leases.peek(_name(code), "", "") for code, _ in open_codes)
            )
        except LocksUnavailable:
            return set()
        return {
            code.key
            for (code, left), peek in zip(open_codes, seen, strict=True)
            if peek.others >= left
        }


def _name(code: Code) -> str:
    return name_of_locks(code.code, str(code.book_id))


def _indexed(code: str, book_id: str, user_id: str, lock_id: str, expire_ms: int) -> IndexedLock:
    """Where a page goes on, as its token has it."""
    return IndexedLock(LeaseKey(code, book_id, user_id, lock_id), expire_ms)
