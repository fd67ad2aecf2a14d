"""What there is to show of a lock: its history in the ledger, and its token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TypeAlias
from uuid import UUID

from coupon_service.errors import Contention, CouponServiceError, LockNotFound
from coupon_service.leases import IndexedLock, Leases, ReleaseRequest
from coupon_service.locks.limits import milliseconds_of, tombstone_until_ms
from coupon_service.locks.token import sign, verify
from coupon_service.model import Done, Event, LockClaims, LockState, LockView, Outcome
from coupon_service.rules import lock_view
from coupon_service.store.queries.reads import Reads

LockGrant: TypeAlias = tuple[LockView, str, bool]
"""A lock, its token, and whether it had been granted before."""


class LockTokens:
    """Signs lock tokens with the first secret and verifies them with any of them."""

    def __init__(self, secrets: Sequence[bytes]) -> None:
        self._secrets = tuple(secrets)

    def sign(self, lock: LockView) -> str:
        """The token of a lock."""
        return sign(
            LockClaims(
                lock_id=lock.lock_id,
                code=lock.code,
                book_id=lock.book_id,
                user_id=lock.user_id,
                fence=lock.fence,
                expire_ms=milliseconds_of(lock.expire_time),
            ),
            self._secrets[0],
        )

    def verify(self, token: str) -> LockClaims:
        """What the token proves. Raises LockTokenMismatch."""
        return verify(token, self._secrets)


class LockHistory:
    """Locks as the ledger tells of them. Raises DatabaseUnavailable."""

    def __init__(self, reads: Reads, tokens: LockTokens, now: Callable[[], datetime]) -> None:
        self._reads = reads
        self._tokens = tokens
        self._now = now

    async def events(self, lock_id: UUID) -> tuple[Sequence[Event], LockView | None]:
        """All events of a lock, and the lock as it is now; none when it is not recorded."""
        return await self._read(lock_id, "")

    async def get(self, lock_id: UUID, business_id: str, own_user_id: str = "") -> LockView:
        """A lock as it is now, of this business and user, empty = any. Raises LockNotFound."""
        _, view = await self._read(lock_id, business_id)
        if view is None or own_user_id not in ("", view.user_id):
            raise LockNotFound
        return view

    async def held(
        self, indexed: Sequence[IndexedLock], business_id: str
    ) -> list[tuple[IndexedLock, LockView]]:
        """Those of the locks that are held, and of this business."""
        if not indexed:
            return []
        histories = await self._reads.lock_events([UUID(it.lock_id) for it in indexed], business_id)
        now = self._now()
        views = [(it, lock_view(of_it, now)) for it, of_it in zip(indexed, histories, strict=True)]
        return [(it, view) for it, view in views if view and view.state is LockState.HELD]

    def grant(self, lock: LockView, *, replayed: bool = False) -> LockGrant:
        """What the holder of a lock is answered."""
        return lock, self._tokens.sign(lock), replayed

    async def granted(self, outcome: Outcome) -> LockGrant:
        """As `grant`, for a lock that was recorded or extended, now or before. Raises why it was
        not."""
        done = done_of(outcome)
        return self.grant(await self.lock_of(done), replayed=done.replayed)

    async def lock_of(self, done: Done) -> LockView:
        """The lock that an event is of, as it is now."""
        return done.lock or await self.get(done.event.lock_id or done.event.event_id, "")

    async def _read(
        self, lock_id: UUID, business_id: str
    ) -> tuple[Sequence[Event], LockView | None]:
        (events,) = await self._reads.lock_events([lock_id], business_id)
        return events, lock_view(events, self._now())


async def give_back(leases: Leases, locks: Sequence[LockView]) -> None:
    """Gives the places of locks that have ended back, for good. Raises LocksUnavailable."""
    await leases.release_each(
        [
            ReleaseRequest(
                lock.code,
                str(lock.book_id),
                lock.user_id,
                str(lock.lock_id),
                tombstone_until_ms=tombstone_until_ms(milliseconds_of(lock.expire_time)),
            )
            for lock in locks
        ]
    )


def done_of(outcome: Outcome) -> Done:
    """The outcome of a lock, or of its change, that is in its place. Raises why it is none."""
    if isinstance(outcome, Done):
        return outcome
    # Only while the lock policy of the book is changing it would need a place once more.
    raise outcome if isinstance(outcome, CouponServiceError) else Contention
