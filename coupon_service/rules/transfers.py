"""Hand the code of one user over to another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

from coupon_service.errors import (
    AssignmentNotActive,
    AssignmentNotFound,
    CodeExpired,
    CodeLocked,
    CouponServiceError,
    LockTokenMismatch,
)
from coupon_service.model import (
    Assignment,
    AssignmentState,
    Book,
    Code,
    Done,
    Event,
    EventType,
    LockState,
    LockView,
    Outcome,
    Transfer,
    receipt_id,
)
from coupon_service.rules.draft import Draft
from coupon_service.rules.locks import end_lock, locks_of
from coupon_service.rules.refusals import assignment_refusals


def transfer(command: Transfer, code: Code, book: Book, draft: Draft) -> Outcome:
    """Ends the assignment of the giver, with the lock of the token, and makes one of the receiver.

    Each of them keeps what they have redeemed of the code.
    """
    given = draft.state.assignments.get((*code.key, command.from_user_id))
    if given is None or given.state is AssignmentState.UNASSIGNED:
        return AssignmentNotFound()
    locks = locks_of(command.from_user_id, code, draft)
    held = next((it for it in locks if it.state is LockState.HELD), None)
    refusal = next(_refusals(command, given, held, code, book, draft), None)
    if refusal is not None:
        return refusal
    ended = end_lock(held, command, code, draft) if held is not None else None
    received = _received(command, given, draft)
    draft.put_assignment(replace(given, state=AssignmentState.REVOKED))
    draft.put_assignment(received)
    draft.count_user(book, given.user_id, assignments=-1)
    draft.count_user(book, received.user_id, assignments=1)
    about = draft.about(command, EventType.ASSIGNMENT_TRANSFERRED, before=code, after=code)
    about["event_time"] = received.assign_time or draft.now
    event = Event(
        **about,
        user_id=given.user_id,
        other_user_id=received.user_id,
        user_code_redemptions=given.redemptions,
        metadata=command.metadata,
    )
    draft.record(event)
    draft.record(
        replace(
            event,
            event_id=receipt_id(command.event_id),
            type=EventType.ASSIGNED,
            user_id=received.user_id,
            other_user_id=given.user_id,
            expire_time=received.expire_time,
            user_code_redemptions=received.redemptions,
        )
    )
    return Done(event, book, code, received, lock=ended)


def _received(command: Transfer, given: Assignment, draft: Draft) -> Assignment:
    """The assignment of the receiver, which ends when that of the giver would have."""
    before = draft.state.assignments.get((given.book_id, given.code, command.to_user_id))
    if before is None:
        before = Assignment(
            given.code, command.to_user_id, given.book_id, AssignmentState.UNASSIGNED
        )
    now = draft.now
    if before.assign_time is not None and now <= before.assign_time:
        # Its time distinguishes one assignment of the code to the user from the next.
        now = before.assign_time + timedelta.resolution
    return replace(
        before,
        state=AssignmentState.ACTIVE,
        assign_time=now,
        expire_time=given.expire_time,
        metadata=command.metadata,
    )


def _refusals(
    command: Transfer,
    given: Assignment,
    held: LockView | None,
    code: Code,
    book: Book,
    draft: Draft,
) -> Iterator[CouponServiceError]:
    """Why the giver cannot give the code away now, or the receiver cannot have it."""
    state, now = draft.state, draft.now
    if given.state is not AssignmentState.ACTIVE:
        yield AssignmentNotActive(state=given.state.name)
    if given.expire_time is not None and now >= given.expire_time:
        yield CodeExpired(expire_time=given.expire_time.isoformat())
    lock = command.lock
    if lock is not None and not (
        lock.is_on(code.code, code.book_id) and lock.is_of(command.from_user_id)
    ):
        yield LockTokenMismatch()
    if held is not None and (lock is None or lock.lock_id != held.lock_id):
        left = held.expire_time - now
        yield CodeLocked(retry_after_ms=-(-left // timedelta(milliseconds=1)))
    without_giver = replace(code, assignments=code.assignments - 1)
    yield from assignment_refusals(command.to_user_id, without_giver, book, state, now)
