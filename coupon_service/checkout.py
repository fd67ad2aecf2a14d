"""Validate, redeem, adjust, roll back: where permits in Redis and decisions in PostgreSQL meet.

The order is always the same: acquire the permit in Redis, decide in PostgreSQL, give it back.
PostgreSQL has the last word.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final
from uuid import UUID, uuid4

from coupon_service.batching import CommandLanes, DetachedTasks, LazyCommand, MicroBatcher
from coupon_service.errors import (
    CodeLocked,
    Contention,
    CouponServiceError,
    ErasureInProgress,
    LockExpired,
    LocksUnavailable,
    LockTokenMismatch,
)
from coupon_service.leases import AdmitStatus, LeaseKey, Leases
from coupon_service.locks.limits import tombstone_until_ms
from coupon_service.locks.token import LockTokens
from coupon_service.model import (
    Adjust,
    Assignment,
    Benefit,
    Book,
    Code,
    CommandGroup,
    Done,
    Lease,
    LeaseNeeded,
    LockClaims,
    Money,
    Outcome,
    Redeem,
    Rollback,
    State,
)
from coupon_service.model.scopes import name_of_locks
from coupon_service.model.times import milliseconds_of
from coupon_service.rules import (
    discount_on_order,
    find_code,
    hidden_refusal,
    is_hidden,
    may_be_locked,
    redemption_refusals,
    refuse_all,
)

NO_CLAIMS: Final = LockClaims(
    UUID(int=0), code="", book_id=UUID(int=0), user_id="", fence=0, expire_ms=0
)
"""What a token proves that is not one of ours. The decision refuses it among the other reasons."""


@dataclass(frozen=True, slots=True)
class Validation:
    """What a redemption would come to. Without a code there is nothing but the problem."""

    problems: Sequence[CouponServiceError]
    book: Book | None = None
    code: Code | None = None
    assignment: Assignment | None = None
    discount: Money | None = None
    benefit: str = ""


class Checkout:
    """What a shop does with codes at a checkout.

    `transient_ttl_ms`: how long a redemption without a token may keep a permit in Redis, should it
    not come to giving it back: as long as its transaction can take.
    """

    def __init__(
        self,
        previews: MicroBatcher[CommandGroup, State],
        lanes: CommandLanes,
        leases: Leases,
        tokens: LockTokens,
        detached: DetachedTasks,
        transient_ttl_ms: int,
        now: Callable[[], datetime],
    ) -> None:
        self._previews = previews
        self._lanes = lanes
        self._leases = leases
        self._tokens = tokens
        self._transient_ttl_ms = transient_ttl_ms
        self._now = now
        self._detached = detached

    async def validate(self, command: Redeem, token: str) -> Validation:
        """Every reason why the redemption would be refused now, and what it would take off."""
        command = replace(command, lock=self._claims(token))
        return await self._validation(
            command, await self._previews.submit(CommandGroup((command,)))
        )

    async def qualify(self, commands: Sequence[Redeem]) -> list[Validation]:
        """As `validate`, for many codes of one user, on one look at all of them."""
        if not commands:
            return []
        state = await self._previews.submit(CommandGroup(tuple(commands)))
        return await asyncio.gather(*(self._validation(command, state) for command in commands))

    async def _validation(self, command: Redeem, state: State) -> Validation:
        found = find_code(command.code, command.book_id, command.call.business_id, state)
        if isinstance(found, CouponServiceError):
            return Validation([found])
        code, book = found
        if is_hidden(command, code, book, state, self._now()):
            return Validation([hidden_refusal(command, code, book, state, self._now())])
        unknown: list[CouponServiceError] = []
        if may_be_locked(book, self._now()):
            try:
                command = await self._peek_lease(command, book)
            except LocksUnavailable as error:
                if command.lock is None:
                    unknown.append(error)  # with a lock, its token is enough
        return Validation(
            problems=[*redemption_refusals(command, code, book, state, self._now()), *unknown],
            book=book,
            code=code,
            assignment=state.assignments.get((*code.key, command.user_id)),
            discount=discount_on_order(command, book, state),
            benefit=book.discount.description if isinstance(book.discount, Benefit) else "",
        )

    def _claims(self, token: str) -> LockClaims | None:
        """What the token proves; None without one."""
        try:
            return self._tokens.verify(token) if token else None
        except LockTokenMismatch:
            return NO_CLAIMS

    async def _peek_lease(self, command: Redeem, book: Book) -> Redeem:
        """The command with the permit that it would get, without acquiring it."""
        lock = command.lock
        peek = await self._leases.peek(
            _name_of_locks(command, book), command.user_id, str(lock.lock_id) if lock else ""
        )
        lease = Lease(
            permits_taken=0 if lock and peek.holds else peek.others + 1,
            retry_after_ms=peek.retry_after_ms or 0,
            gone=peek.gone,
        )
        return replace(command, lease=lease)

    async def redeem(
        self, items: Sequence[tuple[Redeem, str]], *, atomic: bool = False
    ) -> list[Outcome]:
        """Redeems each command, with its lock token where one was given; an outcome for each.

        Raises what CommandLanes.submit raises, which then holds for all of them.
        """
        commands = [command for command, _ in items]
        if any(token for _, token in items):
            return await self._detached.run(self._redeem_with_tokens(items, atomic))
        outcomes = await self._lanes.submit(CommandGroup(tuple(commands), atomic))
        if any(isinstance(outcome, LeaseNeeded) for outcome in outcomes):
            return await self._detached.run(
                self._redeem_with_permits(commands, outcomes, atomic=atomic)
            )
        return outcomes

    async def redeem_without_token(self, command: LazyCommand[Redeem]) -> Outcome:
        """As `redeem`, for one command."""
        (outcome,) = await self._lanes.submit(command)
        if isinstance(outcome, LeaseNeeded):
            (outcome,) = await self._detached.run(
                self._redeem_with_permits([command.command], [outcome], atomic=False)
            )
        return outcome

    async def rollback(self, command: Rollback) -> Outcome:
        """Undoes a redemption."""
        (outcome,) = await self._lanes.submit(CommandGroup((command,)))
        return outcome

    async def adjust(self, command: Adjust) -> Outcome:
        """Gives the order of a redemption another amount."""
        (outcome,) = await self._lanes.submit(CommandGroup((command,)))
        return outcome

    # --- with a lock token ----------------------------------------------------------------------

    async def _redeem_with_tokens(
        self, items: Sequence[tuple[Redeem, str]], atomic: bool
    ) -> list[Outcome]:
        commands = [self._with_claims(*item) for item in items]
        if len(commands) == 1:
            commands, outcomes = await self._redeem_while_admitted(commands[0], atomic)
        else:
            commands = await asyncio.gather(*map(self._admit, commands))
            outcomes = await self._lanes.submit(CommandGroup(tuple(commands), atomic))
        # First, so that a lock that was used keeps nobody out who comes without one.
        await asyncio.gather(*map(self._settle_lock, commands, outcomes))
        if any(isinstance(outcome, LeaseNeeded) for outcome in outcomes):
            outcomes = await self._redeem_with_permits(commands, outcomes, atomic=atomic)
            await asyncio.gather(*map(self._settle_lock, commands, outcomes))
        return outcomes

    async def _redeem_while_admitted(
        self, command: Redeem, atomic: bool
    ) -> tuple[list[Redeem], list[Outcome]]:
        """The command as it was decided, and its outcome.

        Redis is asked while the rows are loaded. They are locked until the decision, so that no
        count changes in between: it is as if Redis had been asked first. They are not kept locked
        for it: where its answer is late the command comes again with it.
        """
        admission = asyncio.ensure_future(self._admit(command))

        def completed() -> tuple[Redeem]:
            return (admission.result() if admission.done() else command,)

        try:
            outcomes = await self._lanes.submit(CommandGroup((command,), atomic, completed))
        finally:
            admitted = await admission
        if isinstance(outcomes[0], LeaseNeeded):
            outcomes = await self._lanes.submit(CommandGroup((admitted,), atomic))
        return [admitted], outcomes

    def _with_claims(self, command: Redeem, token: str) -> Redeem:
        """The command with what its token proves."""
        lock = self._claims(token)
        if lock is None:
            return command
        is_shown_for_another = lock.code != command.code or not lock.is_of(command.user_id)
        lease = Lease() if is_shown_for_another else None  # the decision refuses it
        return replace(command, lock=lock, lease=lease)

    async def _admit(self, command: Redeem) -> Redeem:
        """The command with what Redis says of its lock."""
        lock = command.lock
        if lock is None or command.lease is not None:
            return command
        admitted = replace(command, lease=Lease())
        try:
            admission = await self._leases.admit(LeaseKey.of(lock), lock.expire_ms)
        except LocksUnavailable:
            return admitted  # the signature is enough
        if admission.status is AdmitStatus.HELD:
            return admitted
        lease = Lease(
            permits_taken=admission.permits_taken,
            retry_after_ms=admission.retry_after_ms or 0,
            gone=admission.status is AdmitStatus.GONE,
        )
        return replace(admitted, lease=lease)

    async def _settle_lock(self, command: Redeem, outcome: Outcome) -> None:
        """Uses the lock up after its redemption; gives a permit back that was acquired again and
        did not fit, or whose lock has ended by the ledger."""
        lock, lease = command.lock, command.lease
        if lock is None or lease is None:
            return
        if isinstance(outcome, Done) and outcome.event.lock_id == lock.lock_id:
            released = self._release(LeaseKey.of(lock), tombstone_until_ms(lock.expire_ms))
            if _permits_count(outcome):
                await released
            else:  # the permit keeps nobody out, so that nobody has to wait
                self._detached.run(released)
        elif lease.permits_taken and (
            isinstance(outcome, (CodeLocked, ErasureInProgress))
            or (isinstance(outcome, LockExpired) and milliseconds_of(self._now()) < lock.expire_ms)
        ):
            await self._release(LeaseKey.of(lock))

    async def _release(self, key: LeaseKey, tombstone_until_ms: int = 0) -> None:
        with suppress(LocksUnavailable):  # its time ends it, and its fence is used up
            await self._leases.release(key, tombstone_until_ms=tombstone_until_ms)

    # --- without one ----------------------------------------------------------------------------

    async def _redeem_with_permits(
        self, commands: Sequence[Redeem], outcomes: Sequence[Outcome], *, atomic: bool
    ) -> list[Outcome]:
        """Once more for those that need a lease, each with a transient permit of its own.

        When `atomic`, all of them are to come again, also those that need none. Else those come
        again without one that only waited for others with the same order.
        """
        needed = {
            i: outcome.book
            for i, outcome in enumerate(outcomes)
            if isinstance(outcome, LeaseNeeded)
            and may_be_locked(outcome.book, self._now())
            and commands[i].lease is None
        }
        attempts = [uuid4() for _ in needed]
        try:
            leased = await asyncio.gather(
                *(
                    self._acquire(commands[i], book, it)
                    for (i, book), it in zip(needed.items(), attempts, strict=True)
                )
            )
            answers = list(outcomes)
            again = {
                i: commands[i]
                for i, outcome in enumerate(outcomes)
                if atomic or isinstance(outcome, LeaseNeeded)
            }
            for i, it in zip(needed, leased, strict=True):
                if isinstance(it, Redeem):
                    again[i] = it
                else:
                    answers[i] = it
                    again.pop(i)
            if atomic and any(isinstance(it, CouponServiceError) for it in leased):
                return refuse_all(answers)
            if again:
                group = CommandGroup(tuple(again.values()), atomic)
                decided = await self._submit_again(group, alone=len(again) == len(commands))
                for i, outcome in zip(again, decided, strict=True):
                    # A book whose lock policy is changing at this moment is worth another try.
                    answers[i] = Contention() if isinstance(outcome, LeaseNeeded) else outcome
        finally:
            await asyncio.gather(
                *(
                    self._give_back(commands[i], book, it)
                    for (i, book), it in zip(needed.items(), attempts, strict=True)
                )
            )
        await asyncio.gather(
            *(self._settle_own_lock(command, answers[i]) for i, command in again.items())
        )
        return answers

    async def _submit_again(self, group: CommandGroup, *, alone: bool) -> Sequence[Outcome]:
        """As CommandLanes.submit. Where the group is not `alone` in its call, an error is its own
        outcome and not that of the call, of which something may have been carried out.
        """
        try:
            return await self._lanes.submit(group)
        except CouponServiceError as error:
            if alone:
                raise
            return [error] * group.size

    async def _acquire(
        self, command: Redeem, book: Book, attempt: UUID
    ) -> Redeem | CouponServiceError:
        try:
            permit = await self._leases.acquire_transient(
                _name_of_locks(command, book), attempt.hex, command.user_id, self._transient_ttl_ms
            )
        except LocksUnavailable as error:
            return error
        lease = Lease(
            permits_taken=permit.permits_taken,
            retry_after_ms=permit.retry_after_ms or 0,
            held_lock_id=UUID(permit.own_lock_id) if permit.own_lock_id else None,
            held_expire_ms=permit.own_expire_ms or 0,
            book_id=book.book_id,
        )
        return replace(command, lease=lease)

    async def _give_back(self, command: Redeem, book: Book, attempt: UUID) -> None:
        name = _name_of_locks(command, book)
        with suppress(LocksUnavailable):  # it ends by itself
            await self._leases.release_transient(name, attempt.hex, command.user_id)

    async def _settle_own_lock(self, command: Redeem, outcome: Outcome) -> None:
        """A redemption without a token uses the user's own lock up, which made room for it."""
        lease = command.lease
        if lease is None or lease.held_lock_id is None or not isinstance(outcome, Done):
            return
        if outcome.event.lock_id == lease.held_lock_id:
            key = LeaseKey(
                command.code,
                str(outcome.book.book_id),
                command.user_id,
                str(lease.held_lock_id),
            )
            await self._release(key, tombstone_until_ms(lease.held_expire_ms))


def _permits_count(done: Done) -> bool:
    """Whether a permit of the code may keep somebody out: it has a limit, and uses are left."""
    limit = done.book.limits.max_redemptions_per_code
    return done.code is not None and bool(limit) and done.code.redemptions < limit


def _name_of_locks(command: Redeem, book: Book) -> str:
    return name_of_locks(command.code, str(book.book_id))
