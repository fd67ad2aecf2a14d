"""What a repeat is answered: what its first call came to, as long as that is still so.

A repeat is never carried out again. What was undone or has ended since is told in place of the
recorded answer, so that nobody takes for done what is not.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from coupon_service.errors import (
    AlreadyRolledBack,
    AssignmentNotActive,
    CouponServiceError,
    InvalidStateTransition,
    LockExpired,
    RequestIdReused,
    UserErased,
)
from coupon_service.model import (
    Adjust,
    Assignment,
    AssignmentState,
    Book,
    Code,
    CodeState,
    Command,
    Done,
    Event,
    EventType,
    Lock,
    LockState,
    LockView,
    Rollback,
    State,
    receipt_id,
    rollback_id,
)
from coupon_service.rules.archived import archived_attempt
from coupon_service.rules.derived_states import adjusted, lock_view
from coupon_service.rules.draft import Draft
from coupon_service.rules.erasures import is_erased

LOCK_CHANGES: Final = frozenset(
    {
        EventType.LOCKED,
        EventType.LOCK_EXTENDED,
        EventType.UNLOCKED,
        EventType.LOCK_EXPIRED,
    }
)
"""Events of locks alone."""


def is_repeat(command: Command, state: State) -> bool:
    """Whether this command was carried out before."""
    recorded = state.events.get(command.event_id)
    return recorded is not None and _refusal(command, recorded) is None


def answer_repeat(
    command: Command, book: Book, code: Code | None, draft: Draft
) -> Done | CouponServiceError | None:
    """What is answered when the ledger has the row that this command would write; else None.

    `code`: None for a random assignment, whose command does not name one: that is in the ledger.
    """
    recorded = draft.state.events.get(command.event_id)
    if recorded is None:
        return archived_attempt(command, draft.state)
    refusal = _refusal(command, recorded)
    if refusal is not None:
        return refusal
    lock = _lock_of(recorded, draft)
    made = _assigned_by(recorded, draft.state)
    named = made.book_id, made.code or ""
    assignment = draft.state.assignments.get((*named, made.user_id or ""))
    undone = _undone_since(made, code, lock, assignment, draft.state)
    if undone is not None:
        return undone
    if made.type is EventType.ASSIGNED:
        assignment = _recorded_assignment(made)
    elif recorded.type is EventType.REVOKED:
        assignment = _recorded_revocation(recorded, assignment)
    elif recorded.type is EventType.REDEEMED:
        recorded = adjusted(recorded, draft.state.adjustments.get(recorded.event_id))
    elif isinstance(command, Adjust):
        redemption = command.redemption
        recorded = adjusted(redemption, draft.state.adjustments.get(redemption.event_id))
    if code is None:
        code = draft.state.codes.get(named)
    return Done(recorded, book, code, assignment, replayed=True, lock=lock)


def _assigned_by(recorded: Event, state: State) -> Event:
    """Of a transfer the row of the assignment that was received; of anything else its own."""
    if recorded.type is not EventType.ASSIGNMENT_TRANSFERRED:
        return recorded
    return state.events[receipt_id(recorded.event_id)]


def _undone_since(
    recorded: Event,
    code: Code | None,
    lock: LockView | None,
    assignment: Assignment | None,
    state: State,
) -> CouponServiceError | None:
    """Why the result of a change is no longer so, if it is not. Ends, revocations and roll-backs
    stay so."""
    match recorded.type:
        case EventType.REDEEMED | EventType.ADJUSTED:
            redemption_id = recorded.redemption_id or recorded.event_id
            rollback = state.events.get(rollback_id(redemption_id))
            return already_rolled_back(rollback) if rollback is not None else None
        case EventType.LOCKED | EventType.LOCK_EXTENDED:
            lock_state = lock.state if lock is not None else LockState.EXPIRED
            held = lock_state is LockState.HELD
            return None if held else LockExpired(state=lock_state.name)
        case EventType.ASSIGNED:
            assigned = _state_since(recorded, assignment)
            active = assigned is AssignmentState.ACTIVE
            return None if active else AssignmentNotActive(state=assigned.name)
        case EventType.CODE_DISABLED | EventType.CODE_ENABLED if code is not None:
            disabled = recorded.type is EventType.CODE_DISABLED
            if disabled is (code.state is CodeState.DISABLED):
                return None
            return InvalidStateTransition(
                f"The code was changed since, and is {code.state.name}.", state=code.state.name
            )
        case _:
            return None


def already_rolled_back(rollback: Event) -> AlreadyRolledBack:
    """The refusal that names the roll-back in the ledger."""
    return AlreadyRolledBack(
        redemption_id=rollback.redemption_id, rollback_time=rollback.event_time.isoformat()
    )


def _refusal(command: Command, recorded: Event) -> CouponServiceError | None:
    """Why the row is not of an earlier call of this command, if it is not.

    The id of a roll-back, and of the end of a lock, is the same whoever asks.
    """
    call = command.call
    if is_erased(recorded):
        own = (recorded.caller, recorded.request_id) == (call.caller, call.request_id)
        rolled_back = isinstance(command, Rollback) and not own
        return already_rolled_back(recorded) if rolled_back else UserErased()
    if (recorded.caller, recorded.request_id) == (call.caller, call.request_id):
        return RequestIdReused() if recorded.fingerprint != command.fingerprint else None
    if isinstance(command, Rollback):
        return already_rolled_back(recorded)
    if isinstance(command, Lock) and recorded.user_id != command.user_id:
        return RequestIdReused()  # another attempt of the first user has recorded its lock
    return None


def _lock_of(recorded: Event, draft: Draft) -> LockView | None:
    """The lock, as it is now, that was taken, extended or ended."""
    if recorded.type not in LOCK_CHANGES or recorded.lock_id is None:
        return None
    return lock_view(draft.state.lock_events.get(recorded.lock_id, ()), draft.now)


def _state_since(assigned: Event, assignment: Assignment | None) -> AssignmentState:
    """What has become of an assignment. One that was made anew is another: this one was revoked."""
    if assignment is None or assignment.assign_time != assigned.event_time:
        return AssignmentState.REVOKED
    return assignment.state


def _recorded_assignment(assigned: Event) -> Assignment:
    """The assignment as it was right after its ledger row, ASSIGNED, was written."""
    return Assignment(
        code=assigned.code or "",
        user_id=assigned.user_id or "",
        book_id=assigned.book_id,
        state=AssignmentState.ACTIVE,
        redemptions=assigned.user_code_redemptions or 0,
        assign_time=assigned.event_time,
        expire_time=assigned.expire_time,
        metadata=assigned.metadata,
    )


def _recorded_revocation(revoked: Event, assignment: Assignment | None) -> Assignment:
    """The assignment as it was right after its ledger row, REVOKED, was written.

    The row does not tell when the assignment was made, for how long and with what metadata, and
    nothing else does once the code was assigned to the user anew.
    """
    still_so = (
        assignment is not None
        and assignment.state is AssignmentState.REVOKED
        and assignment.assign_time is not None
        and assignment.assign_time <= revoked.event_time
    )
    if assignment is None or not still_so:
        assignment = Assignment(
            revoked.code or "", revoked.user_id or "", revoked.book_id, AssignmentState.REVOKED
        )
    return replace(assignment, redemptions=revoked.user_code_redemptions or 0)
