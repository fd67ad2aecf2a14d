"""Extending locks: a new expiry in Redis first, then in the ledger."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime

from coupon_service.batching import DetachedTasks
from coupon_service.errors import CodeLocked, LockExpired, LocksUnavailable, LockTokenMismatch
from coupon_service.leases import AdmitStatus, LeaseKey, Leases
from coupon_service.locks.history import LockGrant, LockHistory
from coupon_service.locks.limits import LockLimits
from coupon_service.model import (
    Attempt,
    Call,
    ChangeLock,
    CommandGroup,
    Done,
    EventType,
    LockClaims,
    done_of,
    earlier_attempts,
    event_id,
    fingerprint,
)
from coupon_service.model.codes import bucket_of
from coupon_service.model.normalization import canonical_id
from coupon_service.model.times import milliseconds_of, time_of


class LockExtender:
    """Lets held locks end later."""

    def __init__(
        self,
        history: LockHistory,
        leases: Leases,
        limits: LockLimits,
        detached: DetachedTasks,
        now: Callable[[], datetime],
    ) -> None:
        self._history = history
        self._leases = leases
        self._limits = limits
        self._now = now
        self._detached = detached

    async def extend(self, lock: LockClaims, ttl_ms: int | None, call: Call) -> LockGrant:
        """Gives the lock of a token a new expiry, `ttl_ms` from now. It goes on to the end, also
        when its caller stops waiting."""
        return await self._detached.run(self._extend(lock, ttl_ms, call))

    async def _extend(self, lock: LockClaims, ttl_ms: int | None, call: Call) -> LockGrant:
        if call.end_user and not lock.is_of(call.caller):
            raise LockTokenMismatch

        def attempt(caller: str) -> Attempt:
            bucket, event = bucket_of(lock.code), EventType.LOCK_EXTENDED
            return (
                event_id(bucket, event, caller, call.request_id, lock.lock_id),
                fingerprint(lock.lock_id, ttl_ms),
            )

        named, parameters = attempt(call.caller)
        command = ChangeLock(
            call=call,
            type=EventType.LOCK_EXTENDED,
            code=lock.code,
            book_id=lock.book_id,
            event_id=named,
            fingerprint=parameters,
            earlier=earlier_attempts(attempt, (call.caller,)),
            user_id=canonical_id(lock.user_id),
            lock_id=lock.lock_id,
            extensions_max=self._limits.extensions_max,
        )
        (outcome,) = await self._history.preview(CommandGroup((command,), atomic=True))
        previewed = done_of(outcome)
        if not previewed.replayed:
            expire_ms = await self._extend_lease(lock, ttl_ms, previewed)
            command = replace(command, expire_time=time_of(expire_ms))
        return await self._history.granted(await self._history.record(command))

    async def _extend_lease(self, lock: LockClaims, ttl_ms: int | None, previewed: Done) -> int:
        """When the lock ends by Redis now, in milliseconds since 1970."""
        now_ms = milliseconds_of(self._now())
        if now_ms >= lock.expire_ms:
            raise LockExpired
        key = LeaseKey.of(lock)
        new_expire_ms = now_ms + self._limits.granted_ms(ttl_ms, previewed.book)
        expire_ms = await self._leases.extend(key, new_expire_ms)
        if expire_ms is None:
            await self._acquire_again(key, lock.expire_ms, previewed)
            expire_ms = await self._leases.extend(key, new_expire_ms)
        if expire_ms is None:
            raise LockExpired
        return expire_ms

    async def _acquire_again(self, key: LeaseKey, expire_ms: int, previewed: Done) -> None:
        """Acquires the permit of a lock again that Redis has lost, unless it is someone else's
        now."""
        admission = await self._leases.admit(key, expire_ms)
        limit = previewed.book.limits.max_redemptions_per_code
        code = previewed.code
        fits = not limit or code is None or code.redemptions + admission.permits_taken <= limit
        if admission.status is AdmitStatus.RETAKEN and not fits:
            with suppress(LocksUnavailable):  # its time ends it
                await self._leases.release(key)
            raise CodeLocked(retry_after_ms=admission.retry_after_ms or 0)
