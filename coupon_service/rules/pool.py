"""Codes that their users let expire go back to the pool."""

from __future__ import annotations

from dataclasses import replace

from coupon_service.errors import CodeLocked, InvalidStateTransition
from coupon_service.model import (
    Assignment,
    AssignmentState,
    Book,
    Code,
    Done,
    Event,
    EventType,
    LockState,
    Outcome,
    ReturnToPool,
)
from coupon_service.rules.draft import Draft
from coupon_service.rules.locks import locks_of


def returns_to_pool(assignment: Assignment, book: Book) -> bool:
    """Whether the code goes back to the pool of the book once the assignment has expired."""
    return (
        book.return_to_pool
        and assignment.state is AssignmentState.ACTIVE
        and assignment.redemptions == 0
        and assignment.expire_time is not None
    )


def return_to_pool(command: ReturnToPool, code: Code, book: Book, draft: Draft) -> Outcome:
    """Ends an assignment that has expired, unless it was used, or a lock of the user could be."""
    assignment = draft.state.assignments.get((*code.key, command.user_id))
    if assignment is None or not _is_due(command, assignment, book):
        state = assignment.state if assignment is not None else AssignmentState.UNASSIGNED
        return InvalidStateTransition("The assignment goes on.", state=state.name)
    for lock in locks_of(command.user_id, code, draft):
        expired = lock.state is LockState.EXPIRED and lock.expire_time > command.unlocked_by
        if lock.state is LockState.HELD or expired:
            return CodeLocked()
    after = draft.count_code(code, book, assignments=-1)
    assignment = replace(assignment, state=AssignmentState.REVOKED)
    draft.put_assignment(assignment)
    draft.count_user(book, command.user_id, assignments=-1)
    event = Event(
        **draft.about(command, EventType.ASSIGNMENT_EXPIRED, before=code, after=after),
        user_id=command.user_id,
        expire_time=assignment.expire_time,
        user_code_redemptions=assignment.redemptions,
    )
    draft.record(event)
    return Done(event, book, after, assignment)


def _is_due(command: ReturnToPool, assignment: Assignment, book: Book) -> bool:
    end = assignment.expire_time
    return (
        returns_to_pool(assignment, book)
        and assignment.assign_time == command.assign_time
        and end is not None
        and end <= command.ended_by
    )
