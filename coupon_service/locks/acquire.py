"""Acquiring locks: those that are requested at the same time are acquired together.

Each step is one for all of them: what their commands would come to, their permits in Redis, their
rows in the ledger.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Final, TypeAlias, cast
from uuid import UUID

from coupon_service.batching import DetachedTasks
from coupon_service.errors import (
    Background,
    CodeLocked,
    Contention,
    CouponServiceError,
    DatabaseUnavailable,
    LockExpired,
    LockLimitExceeded,
    LocksUnavailable,
)
from coupon_service.leases import (
    AcquireResult,
    AcquireStatus,
    LeaseKey,
    LeaseRequest,
    Leases,
    Predecessor,
)
from coupon_service.locks.history import LockGrant, LockHistory
from coupon_service.locks.limits import LockLimits
from coupon_service.locks.permits import BatchPermits, with_lease
from coupon_service.locks.release import give_back, lock_end
from coupon_service.model import (
    Book,
    CommandGroup,
    Done,
    EventType,
    LeaseNeeded,
    Lock,
    LockClaims,
    LockState,
    LockView,
    Outcome,
)
from coupon_service.model.times import milliseconds_of
from coupon_service.rules import in_scope

LOCKS_LISTED_MAX: Final = 1_000
"""Locks of a user that are searched for those that do not count."""

ROWS_LOCKED_MAX_S: Final = 0.025
"""How long rows stay locked for an answer of Redis, which takes a millisecond or two. What comes
later is recorded in another transaction, so that a silent Redis stands in no redemption's way."""

REQUESTS_REMEMBERED_MAX: Final = 100
"""How many rows of a lock say which requests were answered with it: its history is read as a whole.
Later requests are answered with it as well, but only while it is held."""

Awaited: TypeAlias = "asyncio.Future[LockGrant]"


class LockAcquirer:
    """Acquires locks, many at once.

    A permit in Redis is acquired before it is promised in the ledger. Whatever is not simply
    granted goes on by itself, to the end, and keeps none of the others waiting.
    """

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

    async def acquire(self, groups: Sequence[CommandGroup]) -> list[LockGrant | Awaited]:
        """Acquires the lock of each group, which is one Lock."""
        commands = [cast("Lock", group.commands[0]) for group in groups]
        permits = BatchPermits(commands, self._request, self._leases)
        if len(groups) == 1 and self._history.is_idle:
            outcomes = await self._acquire_alone(groups, permits)
        else:
            outcomes = await self._acquire_joined(commands, permits)
        answers: list[LockGrant | Awaited] = []
        for i, outcome in enumerate(outcomes):
            if isinstance(outcome, Done) and outcome.lock is not None and not outcome.replayed:
                answers.append(self._history.grant(outcome.lock))
            elif i in permits.needed:
                rest = self._go_on_with(commands[i], permits.needed[i], permits.of(i), outcome)
                answers.append(self._detached.run(rest))
            else:
                answers.append(self._detached.run(self._history.granted(outcome)))
        return answers

    async def take_over(self, command: Lock, taken: LockClaims) -> LockGrant:
        """Acquires the lock of another user, whose token is good, for the user of the command, with
        the expiry that it has. It goes on to the end, also when its caller stops waiting."""
        command = replace(command, taken_from=taken)
        return await self._detached.run(self._take_over(command, taken))

    async def _acquire_alone(
        self, groups: Sequence[CommandGroup], permits: BatchPermits
    ) -> list[Outcome]:
        """In one transaction, which asks Redis while the row of the code is locked: what was read
        of it stays so until the lock is recorded."""
        leased = partial(permits.leased, within_s=ROWS_LOCKED_MAX_S)
        try:
            return await self._history.record_leased(groups, leased)
        except CouponServiceError as error:
            return [error] * len(groups)

    async def _acquire_joined(
        self, commands: Sequence[Lock], permits: BatchPermits
    ) -> list[Outcome]:
        """On a look, which locks no rows, and in the transaction of the next batch of commands:
        where there are many, fewer transactions cost less, and nobody's rows wait for Redis."""
        outcomes = await self._history.preview(CommandGroup(tuple(commands)))
        decided = await permits.leased([[outcome] for outcome in outcomes])
        leased = {
            i: command
            for i, group in enumerate(decided)
            if isinstance(command := group.commands[0], Lock) and command.lease is not None
        }
        recorded = await self._record(tuple(leased.values()))
        for i, outcome in zip(leased, recorded, strict=True):
            outcomes[i] = outcome
        return outcomes

    async def _go_on_with(
        self,
        command: Lock,
        previewed: LeaseNeeded,
        permit: Awaitable[AcquireResult | LocksUnavailable],
        outcome: Outcome,
    ) -> LockGrant:
        """Answers a lock that was not simply granted, now that Redis has answered."""
        result = await permit
        if isinstance(result, LocksUnavailable) or result.status is not AcquireStatus.GRANTED:
            return await self._go_on(command, previewed, result)
        leased = with_lease(command, result, previewed.book)
        if isinstance(outcome, LeaseNeeded):  # the permit came too late for its transaction
            (outcome,) = await self._record((leased,))
        return await self._conclude(leased, previewed.book, outcome)

    def _request(
        self, command: Lock, previewed: LeaseNeeded, locks_not_counted: int = 0
    ) -> LeaseRequest:
        request = LeaseRequest(
            _lease_key(command, previewed.book),
            self._limits.granted_ms(command.ttl_ms, previewed.book),
            permits_max=previewed.uses_left,
            locks_not_counted=locks_not_counted,
        )
        if command.taken_from is None or command.expire_time is None:
            return request
        expire_ms = milliseconds_of(command.expire_time)
        taken = Predecessor(LeaseKey.of(command.taken_from), expire_ms)
        left_ms = max(1, expire_ms - milliseconds_of(self._now()))
        return replace(request, ttl_ms=left_ms, takes_over=taken)

    async def _record(self, leased: tuple[Lock, ...]) -> Sequence[Outcome]:
        """Writes locks that have a permit to the ledger."""
        if not leased:
            return ()
        try:
            return await self._history.record_joined(leased)
        except CouponServiceError as error:
            return [error] * len(leased)

    async def _conclude(self, leased: Lock, book: Book, outcome: Outcome) -> LockGrant:
        """Answers with what was recorded; a permit that is not needed then is given back."""
        if isinstance(outcome, DatabaseUnavailable):
            raise outcome  # it may have been recorded; if not, its time ends it
        # Another call with this request_id may have been answered with a lock that was over before
        # this one acquired a permit.
        if not isinstance(outcome, Done) or outcome.event.lock_id != leased.lock_id:
            await self._abandon(leased, book)
        return await self._history.granted(outcome)

    async def _abandon(self, leased: Lock, book: Book) -> None:
        """Leaves a permit to the others that were answered with it, or gives it back."""
        with suppress(LocksUnavailable):  # its time ends it
            await self._leases.abandon(_lease_key(leased, book))

    # --- what goes over from another user --------------------------------------------------------

    async def _take_over(self, command: Lock, taken: LockClaims) -> LockGrant:
        (previewed,) = await self._history.preview(CommandGroup((command,)))
        if not isinstance(previewed, LeaseNeeded):
            return await self._history.granted(previewed)
        held = await self._history.get(taken.lock_id, "")
        scoped = in_scope(command, previewed.book.book_id)
        command = replace(scoped, expire_time=held.expire_time)
        result = await self._leases.acquire(self._request(command, previewed))
        result = await self._within_limit(command, previewed, result)
        if result.status is AcquireStatus.HELD_BEFORE:
            _, own = await self._history.events(UUID(result.lock_id))
            if own is not None or self._is_over(result, own):
                return await self._acquire_own(command)
        self._refuse(result, previewed.book)
        leased = with_lease(command, result, previewed.book)
        (outcome,) = await self._record((leased,))
        if isinstance(outcome, DatabaseUnavailable):
            raise outcome  # as in `_conclude`
        with suppress(LocksUnavailable):  # its time ends it
            if isinstance(outcome, Done) and outcome.event.lock_id == leased.lock_id:
                await give_back(self._leases, [held])
            else:
                key = _lease_key(leased, previewed.book)
                await self._leases.hand_back(key, LeaseKey.of(taken))
        return await self._history.granted(outcome)

    async def _acquire_own(self, command: Lock) -> LockGrant:
        """The lock that the user has already, or the one that follows it."""
        own = replace(command, taken_from=None, expire_time=None)
        (answer,) = await self.acquire([CommandGroup((own,))])
        return answer if isinstance(answer, LockGrant) else await answer

    # --- what is not simply granted --------------------------------------------------------------

    async def _go_on(
        self, command: Lock, previewed: LeaseNeeded, result: AcquireResult | LocksUnavailable
    ) -> LockGrant:
        """Answers a lock whose permit is another's, or that the user has already."""
        if isinstance(result, LocksUnavailable):
            raise result
        result = await self._within_limit(command, previewed, result)
        if result.status is AcquireStatus.HELD_BEFORE:
            events, view = await self._history.events(UUID(result.lock_id))
            if self._is_over(result, view):
                result = await self._follow(command, previewed, result, view)
            elif view is not None and len(events) > REQUESTS_REMEMBERED_MAX:
                return self._history.grant(view, replayed=True)
        if result.status is AcquireStatus.GONE:  # another attempt with this request_id was faster
            (again,) = await self._history.preview(CommandGroup((command,)))
            if not isinstance(again, LeaseNeeded):
                return await self._history.granted(again)
        self._refuse(result, previewed.book)
        leased = with_lease(command, result, previewed.book)
        (outcome,) = await self._record((leased,))
        return await self._conclude(leased, previewed.book, outcome)

    def _is_over(self, result: AcquireResult, view: LockView | None) -> bool:
        """Whether the user's lock, which still has its permit, is over: by the ledger, or by its
        time where it was never recorded."""
        if view is not None:
            return view.state is not LockState.HELD
        return milliseconds_of(self._now()) >= result.expire_ms

    async def _follow(
        self,
        command: Lock,
        previewed: LeaseNeeded,
        result: AcquireResult,
        view: LockView | None,
    ) -> AcquireResult:
        """Acquires the permit of the user's lock that is over, for the lock that follows it.

        Nobody is in their own way: the grace keeps a permit for redemptions in flight, which are
        decided under the code's lock. Once the end is recorded under it they are refused, so that
        the permit is free at once.
        """
        if view is not None and view.state is LockState.EXPIRED:
            end = lock_end(view, EventType.LOCK_EXPIRED, command.call)
            if not isinstance(await self._history.record(end), Done):
                raise Contention  # it was extended or redeemed at this moment
        request = replace(self._request(command, previewed), follows=result.lock_id)
        following = await self._within_limit(
            command, previewed, await self._leases.acquire(request)
        )
        if view is not None:
            await give_back(self._leases, [view])
        return following

    async def _within_limit(
        self, command: Lock, previewed: LeaseNeeded, result: AcquireResult
    ) -> AcquireResult:
        """Acquires the permit after all when some of the user's locks do not count: those of other
        businesses, where whoever has the same name is somebody else, and those that were used a
        moment ago, whose permits are on their way back."""
        if result.status is not AcquireStatus.LIMIT:
            return result
        not_counted = await self._locks_not_counted(command.user_id, previewed.book)
        if not not_counted:
            return result
        return await self._leases.acquire(self._request(command, previewed, not_counted))

    async def _locks_not_counted(self, user_id: str, book: Book) -> int:
        """How many locks the user has on codes of other businesses, or that are over."""
        locks = await self._leases.list_user(user_id, page_size=LOCKS_LISTED_MAX)
        books = {lock.key.book_id for lock in locks}
        own = await self._history.own_books(books, book.business_id)
        own_locks = [lock for lock in locks if lock.key.book_id in own]
        ended = await self._history.ended(own_locks)
        return len(locks) - len(own_locks) + len(ended)

    def _refuse(self, result: AcquireResult, book: Book) -> None:
        refusal = self._refusal(result)
        if refusal is not None:
            refusal.background = Background(book.book_id, book.business_id)
            raise refusal

    def _refusal(self, result: AcquireResult) -> CouponServiceError | None:
        match result.status:
            case AcquireStatus.FULL:
                return CodeLocked(retry_after_ms=result.retry_after_ms or 0)
            case AcquireStatus.LIMIT:
                return LockLimitExceeded(
                    "The user holds as many locks as is allowed.",
                    limit=self._limits.locks_per_user_max,
                )
            case AcquireStatus.GONE:
                return LockExpired()
            case AcquireStatus.GRANTED | AcquireStatus.HELD_BEFORE:
                return None


def _lease_key(command: Lock, book: Book) -> LeaseKey:
    return LeaseKey(command.code, str(book.book_id), command.user_id, str(command.lock_id))
