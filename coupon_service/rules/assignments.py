"""Assign and revoke."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from coupon_service.errors import (
    AssignmentNotFound,
    Contention,
    InvalidStateTransition,
    NoCodesAvailable,
)
from coupon_service.model import (
    Assign,
    Assignment,
    AssignmentState,
    AssignRandom,
    Book,
    Code,
    CodeState,
    Done,
    Event,
    EventType,
    Outcome,
    Revoke,
)
from coupon_service.rules.draft import Draft
from coupon_service.rules.refusals import assignment_refusals, user_assignment_refusals
from coupon_service.rules.terms import book_of


def assign(command: Assign, code: Code, book: Book, draft: Draft) -> Outcome:
    """Gives the code to a user."""
    refusal = next(assignment_refusals(command.user_id, code, book, draft.state, draft.now), None)
    return refusal or _assign(command, code, book, draft)


def assign_random(command: AssignRandom, book: Book, draft: Draft) -> Outcome:
    """Assigns one of the candidates to a user."""
    state, now = draft.state, draft.now
    refusal = next(user_assignment_refusals(command, book, state, now), None)
    if refusal is not None:
        return refusal
    candidates = state.candidates.get(book.book_id, [])
    for index in reversed(range(len(candidates))):
        # A candidate may be of no use: an earlier command of the batch may have changed the
        # code, or the user may have used it up as a bearer.
        code = state.codes[book.book_id, candidates[index]]
        of_code = book_of(code, book)
        if code.state is CodeState.AVAILABLE and not any(
            assignment_refusals(command.user_id, code, of_code, state, now)
        ):
            del candidates[index]
            return _assign(command, code, of_code, draft)
    # Where a candidate was of no use there may be others.
    contended = candidates or book.book_id in state.candidates_contended
    return Contention() if contended else NoCodesAvailable()


def _assign(command: Assign | AssignRandom, code: Code, book: Book, draft: Draft) -> Done:
    after = draft.count_code(code, book, assignments=1)
    assignment = draft.state.assignments.get((*code.key, command.user_id))
    if assignment is None:
        assignment = Assignment(code.code, command.user_id, book.book_id, AssignmentState.ACTIVE)
    now = draft.now
    if assignment.assign_time is not None and now <= assignment.assign_time:
        # Its time distinguishes one assignment of the code to the user from the next.
        now = assignment.assign_time + timedelta.resolution
    validity_s = book.assigned_code_validity_s
    assignment = replace(
        assignment,
        state=AssignmentState.ACTIVE,
        assign_time=now,
        expire_time=now + timedelta(seconds=validity_s) if validity_s else None,
        metadata=command.metadata,
    )
    draft.put_assignment(assignment)
    draft.count_user(book, command.user_id, assignments=1)
    about = draft.about(command, EventType.ASSIGNED, before=code, after=after)
    about["event_time"] = now
    event = Event(
        **about,
        user_id=command.user_id,
        expire_time=assignment.expire_time,
        user_code_redemptions=assignment.redemptions,
        metadata=command.metadata,
    )
    draft.record(event)
    return Done(event, book, after, assignment)


def revoke(command: Revoke, code: Code, book: Book, draft: Draft) -> Outcome:
    """Takes the code from a user."""
    assignment = draft.state.assignments.get((*code.key, command.user_id))
    if assignment is None or assignment.state is AssignmentState.UNASSIGNED:
        return AssignmentNotFound()
    if assignment.state is not AssignmentState.ACTIVE:
        return InvalidStateTransition(
            f"The assignment is {assignment.state.name}.", state=assignment.state.name
        )
    after = draft.count_code(code, book, assignments=-1)
    assignment = replace(assignment, state=AssignmentState.REVOKED)
    draft.put_assignment(assignment)
    draft.count_user(book, command.user_id, assignments=-1)
    event = Event(
        **draft.about(command, EventType.REVOKED, before=code, after=after),
        user_id=command.user_id,
        user_code_redemptions=assignment.redemptions,
    )
    draft.record(event)
    return Done(event, book, after, assignment)
