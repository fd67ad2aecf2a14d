"""The heart: what a batch of commands does to the state that was loaded for it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from coupon_service.errors import (
    AlreadyRolledBack,
    BookNotFound,
    CodeNotFound,
    CouponServiceError,
    LockNotFound,
    RedemptionNotFound,
    RequestIdReused,
)
from coupon_service.model import (
    Assign,
    AssignRandom,
    Book,
    ChangeLock,
    Code,
    CodeCommand,
    Command,
    CommandGroup,
    Done,
    EventType,
    LeaseNeeded,
    Lock,
    Outcome,
    Redeem,
    Revoke,
    Rollback,
    State,
    WriteSet,
)
from coupon_service.rules.assignments import assign, assign_random, recorded_assignment, revoke
from coupon_service.rules.code_states import switch
from coupon_service.rules.derived_states import lock_view
from coupon_service.rules.draft import Draft
from coupon_service.rules.locks import change_lock, lock
from coupon_service.rules.redemptions import redeem, rollback
from coupon_service.rules.refusals import find_code, is_hidden


def decide(
    units: Sequence[CommandGroup], state: State, now: datetime
) -> tuple[list[list[Outcome]], WriteSet]:
    """Decides commands in order, each seeing the effects of those before it.

    Returns an outcome for each command, unit by unit, and what has to be written. `state` is used
    up. In an atomic unit one refusal refuses all: the others get the same error, with metadata
    `item`, the index of the first command that was refused.
    """
    draft = Draft(state, now)
    outcomes: list[list[Outcome]] = []
    for unit in units:
        attempt = draft.fork() if unit.atomic else draft
        decided = [_decide_one(command, attempt) for command in unit.commands]
        if unit.atomic and not all(isinstance(outcome, Done) for outcome in decided):
            decided = refuse_all(decided)
        else:
            draft = attempt
        outcomes.append(decided)
    return outcomes, draft.effects()


def refuse_all(decided: list[Outcome]) -> list[Outcome]:
    """What an atomic unit answers when not all of it can be done.

    The first error, for every command that has none of its own; without an error some commands need
    a lease, and then all of them are to come again.
    """
    for index, outcome in enumerate(decided):
        if isinstance(outcome, CouponServiceError):
            error = type(outcome)(outcome.message, **{**outcome.metadata, "item": index})
            return [it if isinstance(it, CouponServiceError) else error for it in decided]
    return [LeaseNeeded(it.book) if isinstance(it, Done) else it for it in decided]


def _decide_one(command: Command, draft: Draft) -> Outcome:
    if not isinstance(command, AssignRandom):
        return _decide_on_code(command, draft)
    book = draft.state.books.get(command.book_id)
    business_id = command.call.business_id
    if book is None or (business_id and business_id != book.business_id):
        return BookNotFound()
    return _replay(command, draft, book) or assign_random(command, book, draft)


def _decide_on_code(command: CodeCommand, draft: Draft) -> Outcome:
    book_id = command.book_id if isinstance(command, (Redeem, Lock, Assign)) else None
    found = find_code(command.code, book_id, command.call.business_id, draft.state)
    if isinstance(found, CouponServiceError):
        match command:
            case Rollback():
                return RedemptionNotFound()
            case ChangeLock():
                return LockNotFound()
            case _:
                return found
    code, book = found
    replay = _replay(command, draft, book, code)
    if replay is not None:
        return replay
    if isinstance(command, (Redeem, Lock)) and is_hidden(
        command, code, book, draft.state, draft.now
    ):
        return CodeNotFound()
    return _carry_out(command, code, book, draft)


def _carry_out(command: CodeCommand, code: Code, book: Book, draft: Draft) -> Outcome:
    match command:
        case Redeem():
            return redeem(command, code, book, draft)
        case Rollback():
            return rollback(command, code, book, draft)
        case Lock():
            return lock(command, code, book, draft)
        case ChangeLock():
            return change_lock(command, code, book, draft)
        case Assign():
            return assign(command, code, book, draft)
        case Revoke():
            return revoke(command, code, book, draft)
        case _:
            return switch(command, code, book, draft)


def _replay(
    command: Command, draft: Draft, book: Book, code: Code | None = None
) -> Done | CouponServiceError | None:
    """What is answered when the ledger has the row that this command would write."""
    state = draft.state
    recorded = state.events.get(command.event_id)
    if recorded is None:
        return None
    call = command.call
    if (recorded.caller, recorded.request_id) == (call.caller, call.request_id):
        if recorded.fingerprint != command.fingerprint:
            return RequestIdReused()
    elif isinstance(command, Rollback):
        return AlreadyRolledBack()
    elif isinstance(command, Lock) and recorded.user_id != command.user_id:
        return RequestIdReused()  # another attempt of the first user has recorded its lock
    if recorded.type is EventType.ASSIGNED:
        link = recorded_assignment(recorded)
    else:
        link = state.assignments.get((recorded.code or "", recorded.user_id or ""))
    held = None
    if isinstance(command, ChangeLock):
        held = lock_view(state.lock_events.get(command.lock_id, ()), draft.now)
    return Done(recorded, book, code, link, replayed=True, lock=held)
