"""Locks: lock, extend, unlock, and look at them.

The place is in Redis, its history in the ledger. A place is taken before it is promised in the
ledger, and given back after its end is recorded there; the ledger says what a repeat is answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import astuple, replace
from datetime import datetime
from functools import partial
from uuid import UUID

from coupon_service.coalesce import Changes, Coalescer, Later, ToTheEnd
from coupon_service.codes import bucket_of
from coupon_service.errors import (
    CodeLocked,
    Contention,
    CouponServiceError,
    DatabaseUnavailable,
    LockExpired,
    LockLimitExceeded,
    LockNotFound,
    LocksUnavailable,
    LockTokenMismatch,
)
from coupon_service.leases import AdmitStatus, IndexedLock, Leases, Taken, TakeStatus
from coupon_service.leases.token import sign, verify
from coupon_service.lock_times import LockTimes, milliseconds_of, time_of, tombstone_until_ms
from coupon_service.model import (
    Book,
    Call,
    ChangeLock,
    Code,
    Command,
    Done,
    Event,
    EventType,
    Lease,
    LeaseNeeded,
    Lock,
    LockClaims,
    LockPolicy,
    LockState,
    LockView,
    State,
    Unit,
    event_id,
    fingerprint,
)
from coupon_service.rules import decide, lock_view
from coupon_service.store.reads import Reads

LOCKS_ELSEWHERE_MAX = 1_000
"""Locks of a user that are looked through for those of other businesses."""

REQUESTS_REMEMBERED_MAX = 100
"""How many rows of a lock tell of requests that were answered with it: its history is read as a
whole. Whoever asks after them is answered with it as well, but only while it is held."""


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


class Locks:
    """The life of locks."""

    def __init__(
        self,
        looks: Coalescer[Unit, State],
        coalescer: Changes,
        reads: Reads,
        leases: Leases,
        tokens: LockTokens,
        times: LockTimes,
        now: Callable[[], datetime],
    ) -> None:
        self._looks = looks
        self._coalescer = coalescer
        self._reads = reads
        self._leases = leases
        self._tokens = tokens
        self._times = times
        self._now = now
        self._to_the_end = ToTheEnd()

    async def lock(self, wish: Later[Lock]) -> tuple[LockView, str, bool]:
        """Takes a lock: the lock, its token, and whether it was there before."""
        return await self._to_the_end.run(self._lock(wish))

    async def _lock(self, wish: Later[Lock]) -> tuple[LockView, str, bool]:
        state = await self._looks.submit(wish)
        command = wish.command
        seen = self._seen(command, state)
        if isinstance(seen, Done):
            return await self._answer(seen)
        taken = await self._acquire(command, seen)
        if taken.status is TakeStatus.HELD_BEFORE:
            events = await self._events(UUID(taken.lock_id), "")
            view = lock_view(events, self._now())
            if view is not None and view.state in (LockState.REDEEMED, LockState.RELEASED):
                # It is being given back at this moment, or Redis was not reached when it was to be.
                await self._release(view)
                taken = await self._acquire(command, seen)
            elif view is not None and len(events) > REQUESTS_REMEMBERED_MAX:
                self._refuse(taken)
                return view, self._tokens.sign(view), True
        if taken.status is TakeStatus.GONE:  # another attempt with this request_id was faster
            seen = await self._look(command)
            if isinstance(seen, Done):
                return await self._answer(seen)
        self._refuse(taken)
        placed = replace(
            command,
            lock_id=UUID(taken.lock_id),
            expire_time=time_of(taken.expire_ms),
            lease=Lease(taken.places_taken, taken.retry_after_ms or 0),
        )
        try:
            done = await self._carry_out(placed)
        except DatabaseUnavailable:
            raise  # it may have been recorded; if not, its time ends it
        except CouponServiceError:
            await self._give_up(placed, seen.book)
            raise
        if done.event.lock_id != placed.lock_id:
            # Another call with this request_id was answered with a lock that was over before this
            # one took a place.
            await self._give_up(placed, seen.book)
        return await self._answer(done)

    async def _give_up(self, placed: Lock, book: Book) -> None:
        """Leaves a place to the others that were told of it, or gives it back."""
        with suppress(LocksUnavailable):  # its time ends it
            await self._leases.give_up(
                placed.code, str(book.book_id), placed.user_id, str(placed.lock_id)
            )

    async def _acquire(self, command: Lock, seen: LeaseNeeded) -> Taken:
        """Takes a place. The limit of a user is a business's own: whoever has the same name
        elsewhere is somebody else."""
        taken = await self._take(command, seen)
        if taken.status is TakeStatus.LIMIT:
            elsewhere = await self._locks_elsewhere(command.user_id, seen.book)
            if elsewhere:
                taken = await self._take(command, seen, elsewhere)
        return taken

    async def _take(self, command: Lock, seen: LeaseNeeded, elsewhere: int = 0) -> Taken:
        return await self._leases.acquire(
            command.code,
            str(seen.book.book_id),
            command.user_id,
            str(command.lock_id),
            self._times.granted_ms(command.ttl_ms, seen.book),
            places_max=seen.uses_left,
            locks_elsewhere=elsewhere,
        )

    async def _locks_elsewhere(self, user_id: str, book: Book) -> int:
        """How many locks the user has on codes of other businesses."""
        locks = await self._leases.list_user(user_id, page_size=LOCKS_ELSEWHERE_MAX)
        books = {lock.book_id for lock in locks}
        if books <= {str(book.book_id)}:
            return 0
        own = await self._reads.known_books(books, book.business_id)
        return sum(lock.book_id not in own for lock in locks)

    async def extend(
        self, token: str, ttl_ms: int | None, call: Call
    ) -> tuple[LockView, str, bool]:
        """Gives a lock a new expiry, `ttl_ms` from now: the lock, its new token, and whether this
        had been done before."""
        return await self._to_the_end.run(self._extend(token, ttl_ms, call))

    async def _extend(
        self, token: str, ttl_ms: int | None, call: Call
    ) -> tuple[LockView, str, bool]:
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
        if isinstance(seen, Done) and not seen.replayed:
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
        return await self._answer(await self._carry_out(command))

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

    async def unlock(
        self, token: str | None, lock_id: UUID | None, call: Call
    ) -> tuple[LockView, bool]:
        """Ends a lock: the lock, and whether it had been released before."""
        return await self._to_the_end.run(self._unlock(token, lock_id, call))

    async def _unlock(
        self, token: str | None, lock_id: UUID | None, call: Call
    ) -> tuple[LockView, bool]:
        if token is not None:
            done = await self._carry_out(
                Later(partial(self._unlocking, token, call), call.deadline)
            )
        elif lock_id is not None:
            held = await self.get(lock_id, call.business_id, call.own_user_id)
            done = await self._carry_out(end_of_lock(held, EventType.UNLOCKED, call))
        else:
            raise LockNotFound
        view = await self._lock_of(done)
        # Only now: whoever gets the place next must not meet a redemption with this lock.
        with suppress(LocksUnavailable):  # its time ends it
            await self._release(view)
        return view, done.replayed

    def _unlocking(self, token: str, call: Call) -> ChangeLock:
        """The command to end the lock of the token. Raises LockTokenMismatch, LockNotFound."""
        held = self._tokens.verify(token)
        if call.own_user_id not in ("", held.user_id):
            raise LockNotFound
        return end_of_lock(held, EventType.UNLOCKED, call)

    async def _release(self, view: LockView) -> None:
        """Gives the place of a lock that has ended back, for good."""
        await self._leases.release(
            view.code,
            str(view.book_id),
            view.user_id,
            str(view.lock_id),
            tombstone_until_ms=tombstone_until_ms(milliseconds_of(view.expire_time)),
        )

    async def get(self, lock_id: UUID, business_id: str, own_user_id: str = "") -> LockView:
        """A lock as it is now, of this business and user, empty = any. Raises LockNotFound."""
        view = lock_view(await self._events(lock_id, business_id), self._now())
        if view is None or own_user_id not in ("", view.user_id):
            raise LockNotFound
        return view

    async def _events(self, lock_id: UUID, business_id: str) -> Sequence[Event]:
        """The history of a lock; empty when it is not recorded."""
        (events,) = await self._reads.lock_events([lock_id], business_id)
        return events

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
            found += await self._held(indexed, business_id)
            position = indexed[-1] if indexed else None
        page = found[:page_size]
        following = astuple(page[-1][0]) if len(found) > page_size else None
        return [view for _, view in page], following

    async def _held(
        self, indexed: Sequence[IndexedLock], business_id: str
    ) -> list[tuple[IndexedLock, LockView]]:
        """Those of the locks that are held, and of this business."""
        if not indexed:
            return []
        histories = await self._reads.lock_events([UUID(it.lock_id) for it in indexed], business_id)
        now = self._now()
        views = [(it, lock_view(of_it, now)) for it, of_it in zip(indexed, histories, strict=True)]
        return [(it, view) for it, view in views if view and view.state is LockState.HELD]

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

    async def _look(self, command: Command) -> Done | LeaseNeeded:
        """What the command would come to now, Redis left aside. Raises why not."""
        return self._seen(command, await self._looks.submit(Unit((command,))))

    def _seen(self, command: Command, state: State) -> Done | LeaseNeeded:
        """What the command would come to in this state, Redis left aside. Raises why not."""
        # An atomic unit is decided on a copy of the state, which others have as well. A lock
        # without a place changes nothing of it.
        placeless = isinstance(command, Lock) and command.lease is None
        unit = Unit((command,), atomic=not placeless)
        ((outcome,),), _ = decide([unit], state, self._now())
        if isinstance(outcome, CouponServiceError):
            raise outcome
        return outcome

    async def _carry_out(self, command: Command | Later[ChangeLock]) -> Done:
        unit = command if isinstance(command, Later) else Unit((command,))
        (outcome,) = await self._coalescer.submit(unit)
        if isinstance(outcome, Done):
            return outcome
        raise outcome if isinstance(outcome, CouponServiceError) else Contention

    async def _answer(self, done: Done) -> tuple[LockView, str, bool]:
        view = await self._lock_of(done)
        return view, self._tokens.sign(view), done.replayed

    async def _lock_of(self, done: Done) -> LockView:
        return done.lock or await self.get(done.event.lock_id or done.event.event_id, "")

    def _refuse(self, taken: Taken) -> None:
        match taken.status:
            case TakeStatus.FULL:
                raise CodeLocked(retry_after_ms=taken.retry_after_ms or 0)
            case TakeStatus.LIMIT:
                raise LockLimitExceeded(
                    "The user holds as many locks as is allowed.",
                    limit=self._times.locks_per_user_max,
                )
            case TakeStatus.GONE:
                raise LockExpired
            case TakeStatus.HELD_BEFORE:
                # One that ran out is no lock, but redemptions with it may still be on their way.
                over_ms = milliseconds_of(self._now()) - taken.expire_ms
                if over_ms >= 0:
                    raise CodeLocked(
                        "The lock of the user ran out just now; its place is not free yet.",
                        retry_after_ms=max(self._times.grace_ms - over_ms, 0),
                    )
            case TakeStatus.GRANTED:
                pass


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
