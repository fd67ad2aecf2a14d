"""Locks: extend them and look at them; `locks/acquire.py` takes, `locks/release.py` releases them.

The place is in Redis, its history in the ledger. A place is taken before it is promised in the
ledger, and given back after its end is recorded there; the ledger says what a repeat is answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import astuple, replace
from datetime import datetime
from functools import partial
from uuid import UUID

from coupon_service.batching.batcher import CommandLanes, DetachedTasks, LazyCommand, MicroBatcher
from coupon_service.errors import (
    CodeLocked,
    LockExpired,
    LockNotFound,
    LocksUnavailable,
    LockTokenMismatch,
)
from coupon_service.leases import AdmitStatus, IndexedLock, Leases
from coupon_service.locks.history import LockGrant, LockHistory, LockTokens, done_of
from coupon_service.locks.limits import LockLimits, milliseconds_of, time_of
from coupon_service.locks.release import Released
from coupon_service.model import (
    Book,
    Call,
    ChangeLock,
    Code,
    CommandGroup,
    Done,
    EventType,
    Lock,
    LockClaims,
    LockPolicy,
    LockView,
    State,
    event_id,
    fingerprint,
)
from coupon_service.model.codes import bucket_of
from coupon_service.rules import decide
from coupon_service.store.queries.reads import Reads


class LockService:
    """The life of locks."""

    def __init__(
        self,
        take: Callable[[LazyCommand[Lock]], Awaitable[LockGrant]],
        release: Callable[[CommandGroup | LazyCommand[ChangeLock]], Awaitable[Released]],
        looks: MicroBatcher[CommandGroup, State],
        coalescer: CommandLanes,
        reads: Reads,
        leases: Leases,
        history: LockHistory,
        tokens: LockTokens,
        times: LockLimits,
        now: Callable[[], datetime],
    ) -> None:
        """`take` is LockAcquirer's and `release` LockReleaser's, joined."""
        self.lock = take
        """Takes a lock: the lock, its token, and whether it was there before."""
        self.get = history.get
        """A lock as it is now, of this business and user, empty = any. Raises LockNotFound."""
        self._release = release
        self._looks = looks
        self._coalescer = coalescer
        self._reads = reads
        self._leases = leases
        self._history = history
        self._tokens = tokens
        self._times = times
        self._now = now
        self._to_the_end = DetachedTasks()

    async def extend(self, token: str, ttl_ms: int | None, call: Call) -> LockGrant:
        """Gives a lock a new expiry, `ttl_ms` from now: the lock, its new token, and whether this
        had been done before."""
        return await self._to_the_end.run(self._extend(token, ttl_ms, call))

    async def _extend(self, token: str, ttl_ms: int | None, call: Call) -> LockGrant:
        claims = self._tokens.verify(token)
        if call.own_user_id not in ("", claims.user_id):
            raise LockTokenMismatch
        bucket = bucket_of(claims.code)
        command = ChangeLock(
            call=call,
            type=EventType.LOCK_EXTENDED,
            code=claims.code,
            event_id=event_id(
                bucket, EventType.LOCK_EXTENDED, call.caller, call.request_id, claims.lock_id
            ),
            fingerprint=fingerprint(claims.lock_id, ttl_ms),
            user_id=claims.user_id,
            lock_id=claims.lock_id,
            extensions_max=self._times.extensions_max,
        )
        seen = await self._look(command)
        if not seen.replayed:
            if milliseconds_of(self._now()) >= claims.expire_ms:
                raise LockExpired
            expire_ms = milliseconds_of(self._now()) + self._times.granted_ms(ttl_ms, seen.book)
            lease = (claims.code, str(claims.book_id), claims.user_id, str(claims.lock_id))
            held_until_ms = await self._leases.extend(*lease, expire_ms)
            if held_until_ms is None:
                await self._take_again(claims, seen)
                held_until_ms = await self._leases.extend(*lease, expire_ms)
            if held_until_ms is None:
                raise LockExpired
            command = replace(command, expire_time=time_of(held_until_ms))
        return await self._history.granted(await self._carry_out(command))

    async def _take_again(self, claims: LockClaims, seen: Done) -> None:
        """Takes the place of a lock again that Redis has lost, unless it is someone else's now."""
        lease = (claims.code, str(claims.book_id), claims.user_id, str(claims.lock_id))
        admission = await self._leases.admit(*lease, claims.expire_ms)
        limit = seen.book.limits.max_redemptions_per_code
        fits = (
            not limit
            or seen.code is None
            or (seen.code.redemptions + admission.places_taken <= limit)
        )
        if admission.status is AdmitStatus.RETAKEN and not fits:
            with suppress(LocksUnavailable):  # its time ends it
                await self._leases.release(*lease)
            raise CodeLocked(retry_after_ms=admission.retry_after_ms or 0)

    async def unlock(self, token: str | None, lock_id: UUID | None, call: Call) -> Released:
        """Ends a lock: the lock, and whether it had been released before."""
        if token is not None:
            return await self._release(
                LazyCommand(partial(self._unlocking, token, call), call.deadline)
            )
        if lock_id is None:
            raise LockNotFound
        held = await self.get(lock_id, call.business_id, call.own_user_id)
        return await self._release(CommandGroup((end_of_lock(held, EventType.UNLOCKED, call),)))

    def _unlocking(self, token: str, call: Call) -> ChangeLock:
        """The command to end the lock of the token. Raises LockTokenMismatch, LockNotFound."""
        held = self._tokens.verify(token)
        if call.own_user_id not in ("", held.user_id):
            raise LockNotFound
        return end_of_lock(held, EventType.UNLOCKED, call)

    async def list(
        self,
        user_id: str | None,
        book_id: UUID | None,
        business_id: str,
        page_size: int,
        after: Sequence[object] | None,
    ) -> tuple[list[LockView], Sequence[object] | None]:
        """Live locks of a user or of a book, the next to expire first, and where to go on."""
        position = IndexedLock(*after) if after is not None else None  # type: ignore[arg-type]
        found: list[tuple[IndexedLock, LockView]] = []
        more = book_id is None or await self._reads.has_book(book_id, business_id)
        # The index has locks of other businesses, and some that have ended: neither may count.
        while more and len(found) <= page_size:
            if user_id is not None:
                indexed = await self._leases.list_user(user_id, position, page_size + 1)
            else:
                indexed = await self._leases.list_book(str(book_id), position, page_size + 1)
            more = len(indexed) > page_size
            found += await self._history.held(indexed, business_id)
            position = indexed[-1] if indexed else None
        page = found[:page_size]
        following = astuple(page[-1][0]) if len(found) > page_size else None
        return [view for _, view in page], following

    async def locked_out(self, codes: Sequence[tuple[Code, Book]]) -> set[str]:
        """The codes whose every remaining use is locked. None of them while Redis is away."""
        open_codes = [
            (code, left)
            for code, book in codes
            if book.limits.max_redemptions_per_code
            and book.lock_policy is not LockPolicy.OFF
            and (left := book.limits.max_redemptions_per_code - code.redemptions) > 0
        ]
        try:
            seen = await asyncio.gather(
                *(self._leases.peek(code.code, "", "") for code, _ in open_codes)
            )
        except LocksUnavailable:
            return set()
        return {
            code.code
            for (code, left), peek in zip(open_codes, seen, strict=True)
            if peek.others >= left
        }

    async def _look(self, command: ChangeLock) -> Done:
        """What the command would come to now. Raises why not."""
        # An atomic unit is decided on a copy of the state, which others have as well.
        unit = CommandGroup((command,), atomic=True)
        ((outcome,),), _ = decide([unit], await self._looks.submit(unit), self._now())
        return done_of(outcome)

    async def _carry_out(self, command: ChangeLock) -> Done:
        (outcome,) = await self._coalescer.submit(CommandGroup((command,)))
        return done_of(outcome)


def end_of_lock(held: LockView | LockClaims, event: EventType, call: Call) -> ChangeLock:
    """The command that ends a lock; it happens once, whoever asks how often."""
    return ChangeLock(
        call=call,
        type=event,
        code=held.code,
        event_id=event_id(bucket_of(held.code), event, held.lock_id),
        fingerprint=fingerprint(held.lock_id),
        user_id=held.user_id,
        lock_id=held.lock_id,
    )
