"""Lock, extend, release and expire: the history of locks, whose places are in Redis."""

from __future__ import annotations

from dataclasses import replace

from coupon_service.errors import (
    InvalidStateTransition,
    LockExpired,
    LockLimitExceeded,
    LockNotFound,
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
    Outcome,
)
from coupon_service.rules.derived import lock_view
from coupon_service.rules.draft import Draft
from coupon_service.rules.refusals import redemption_refusal


def lock(command: Lock, code: Code, book: Book, draft: Draft) -> Outcome:
    """Records a lock."""
    if book.lock_policy is LockPolicy.OFF:
        return InvalidStateTransition("The coupon book has locking off.", state="LOCK_POLICY_OFF")
    refusal = redemption_refusal(command, code, book, draft)
    if refusal is not None:
        return refusal
    if command.lease is None:
        limit = book.limits.max_redemptions_per_code
        return LeaseNeeded(book, limit - code.redemptions if limit else None)
    # The row has the id of the lock, which differs from the attempt's when an earlier attempt took
    # the place in Redis and did not come to record it.
    recorded = replace(command, event_id=command.lock_id)
    event = Event(
        **draft.about(recorded, EventType.LOCKED, before=code, after=code),
        lock_id=command.lock_id,
        user_id=command.user_id,
        fence=draft.state.fences.pop(),
        expire_time=command.expire_time,
        metadata=command.metadata,
    )
    draft.record(event)
    return Done(event, book, code)


def change_lock(command: ChangeLock, code: Code, book: Book, draft: Draft) -> Outcome:
    """Records that a lock was extended, released, or ran out."""
    history = draft.state.lock_events.get(command.lock_id, ())
    view = lock_view(history, draft.now)
    if view is None:
        return LockNotFound()
    expected = LockState.EXPIRED if command.type is EventType.LOCK_EXPIRED else LockState.HELD
    if view.state is not expected:
        return LockExpired(state=view.state.name)
    if command.type is EventType.LOCK_EXTENDED:
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
    return Done(event, book, code)
