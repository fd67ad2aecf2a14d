"""Lock, extend, release and expire: the history of locks, whose permits are in Redis."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from coupon_service.errors import (
    Contention,
    CouponServiceError,
    InvalidStateTransition,
    LockExpired,
    LockLimitExceeded,
    LockNotFound,
    LockTokenMismatch,
)
from coupon_service.model import (
    Book,
    ChangeLock,
    Code,
    Done,
    Event,
    EventType,
    LeaseNeeded,
    Lock,
    LockPolicy,
    LockState,
    LockView,
    Outcome,
    Transfer,
    lock_end_attempt,
)
from coupon_service.rules.derived_states import lock_view
from coupon_service.rules.draft import Draft
from coupon_service.rules.refusals import extension_refusals, redemption_refusal


def lock(command: Lock, code: Code, book: Book, draft: Draft) -> Outcome:
    """Records a lock, or that the command is answered with the one that the user holds."""
    held = draft.state.events.get(command.lock_id)
    if held is not None:
        return _lock_held(command, held, code, book, draft)
    if book.lock_policy is LockPolicy.OFF:
        return _locking_off()
    refusal = redemption_refusal(command, code, book, draft) or _take_over_refusal(
        command, code, draft
    )
    if refusal is not None:
        return refusal
    if command.lease is None:
        limit = book.limits.max_redemptions_per_code
        return LeaseNeeded(book, limit - code.redemptions if limit else None)
    # The row has the id of the lock, which differs from the attempt's when an earlier attempt took
    # the permit in Redis and did not come to record it.
    if (taken := _taken(command, draft)) is not None:
        end_lock(taken, command, code, draft)
    first = command.event_id == command.lock_id
    recorded = command if first else replace(command, event_id=command.lock_id)
    event = Event(
        **draft.about(recorded, EventType.LOCKED, before=code, after=code),
        lock_id=command.lock_id,
        user_id=command.user_id,
        fence=draft.state.fences.pop(),
        expire_time=command.expire_time,
        metadata=command.metadata,
    )
    draft.record(event)
    if not first:
        _answer_with(event, command, code, draft)
    return Done(event, book, code, lock=lock_view([event], draft.now))


def _taken(command: Lock, draft: Draft) -> LockView | None:
    """The lock of another user that goes over, as it is now."""
    if command.taken_from is None:
        return None
    return lock_view(draft.state.lock_events.get(command.taken_from.lock_id, ()), draft.now)


def _take_over_refusal(command: Lock, code: Code, draft: Draft) -> CouponServiceError | None:
    """Why the lock of the token cannot go over to the user."""
    claims = command.taken_from
    if claims is None:
        return None
    if not claims.is_on(code.code, code.book_id):
        return LockTokenMismatch()
    taken = _taken(command, draft)
    held = taken is not None and taken.state is LockState.HELD
    over = draft.now.timestamp() * 1000 >= claims.expire_ms
    return None if held and not over else LockExpired()


def _locking_off() -> InvalidStateTransition:
    return InvalidStateTransition("The coupon book has locking off.", state="LOCK_POLICY_OFF")


def _lock_held(command: Lock, held: Event, code: Code, book: Book, draft: Draft) -> Outcome:
    """Answers with a lock that another attempt has recorded."""
    if (held.lock_id, held.user_id) != (command.lock_id, command.user_id):
        # The permit is of an attempt that was not recorded, and whose request_id was used then for
        # another user, or answered with another lock. It ends by itself.
        return Contention()
    view = lock_view(draft.state.lock_events.get(command.lock_id, ()), draft.now)
    if view is None or view.state is not LockState.HELD:
        return Contention()  # it ended at this moment, and its permit is being given back
    _answer_with(held, command, code, draft)
    return Done(held, book, code, replayed=True, lock=view)


def _answer_with(locked: Event, command: Lock, code: Code, draft: Draft) -> None:
    """Records that an attempt was answered with a lock that has the id of another attempt.

    A repeat finds it by its own id, also when the lock is over: else it would take a second one.
    The row says nothing of the lock's expiry, which is in the rows that gave it.
    """
    draft.record(
        Event(
            **draft.about(command, EventType.LOCKED, before=code, after=code),
            lock_id=locked.lock_id,
            user_id=command.user_id,
            fence=locked.fence,
            metadata=command.metadata,
        )
    )


def locks_of(user_id: str, code: Code, draft: Draft) -> Iterator[LockView]:
    """The locks of a user on a code that are, or of late were, held, by the ledger."""
    for events in draft.state.lock_events.values():
        view = lock_view(events, draft.now)
        if view is not None and (view.book_id, view.code, view.user_id) == (*code.key, user_id):
            yield view


def end_lock(held: LockView, command: Transfer | Lock, code: Code, draft: Draft) -> LockView:
    """Records that a lock is released by a command that is about more than it; as it is then."""
    about = draft.about(command, EventType.UNLOCKED, before=code, after=code)
    about["event_id"], about["fingerprint"] = lock_end_attempt(
        code.code, EventType.UNLOCKED, held.lock_id
    )
    draft.record(Event(**about, user_id=held.user_id, lock_id=held.lock_id, fence=held.fence))
    return replace(held, state=LockState.RELEASED)


def change_lock(command: ChangeLock, code: Code, book: Book, draft: Draft) -> Outcome:
    """Records that a lock was extended, released, or expired."""
    history = draft.state.lock_events.get(command.lock_id, ())
    view = lock_view(history, draft.now)
    if view is None:
        return LockNotFound()
    expected = LockState.EXPIRED if command.type is EventType.LOCK_EXPIRED else LockState.HELD
    if view.state is not expected:
        return LockExpired(state=view.state.name)
    if command.type is EventType.LOCK_EXTENDED:
        if book.lock_policy is LockPolicy.OFF:
            return _locking_off()
        for refusal in extension_refusals(view.user_id, code, book, draft.state, draft.now):
            return refusal
        limit = command.extensions_max
        if sum(it.type is EventType.LOCK_EXTENDED for it in history) >= limit:
            return LockLimitExceeded(
                "The lock has been extended as often as is allowed.", limit=limit
            )
    event = Event(
        **draft.about(command, command.type, before=code, after=code),
        user_id=view.user_id,
        lock_id=command.lock_id,
        fence=view.fence,
        expire_time=command.expire_time,
    )
    draft.record(event)
    return Done(event, book, code, lock=lock_view((*history, event), draft.now))
