"""The heart: what a batch of commands does to the state that was loaded for it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from coupon_service.errors import (
    Background,
    BookNotFound,
    Contention,
    CouponServiceError,
    LockNotFound,
    RedemptionNotFound,
)
from coupon_service.model import (
    Adjust,
    Assign,
    AssignRandom,
    Book,
    ChangeLock,
    Code,
    CodeCommand,
    Command,
    CommandGroup,
    Done,
    LeaseNeeded,
    Lock,
    OrderPolicy,
    OrderRef,
    Outcome,
    Redeem,
    ReturnToPool,
    Revoke,
    Rollback,
    State,
    Transfer,
    WriteSet,
)
from coupon_service.rules.adjustments import adjust
from coupon_service.rules.archived import archived_redemption
from coupon_service.rules.assignments import assign, assign_random, revoke
from coupon_service.rules.code_lookup import (
    as_attempted,
    book_named,
    find_code,
    in_earlier_book,
)
from coupon_service.rules.code_states import set_enabled
from coupon_service.rules.draft import Draft
from coupon_service.rules.erasures import erasure_refusal
from coupon_service.rules.locks import change_lock, lock
from coupon_service.rules.orders import order_of
from coupon_service.rules.pool import return_to_pool
from coupon_service.rules.redemptions import redeem, rollback
from coupon_service.rules.refusals import hidden_refusal, is_hidden
from coupon_service.rules.repeats import answer_repeat, is_repeat
from coupon_service.rules.transfers import transfer


def decide(
    groups: Sequence[CommandGroup], state: State, now: datetime
) -> tuple[list[list[Outcome]], WriteSet]:
    """Decides commands in order, each seeing the effects of those before it.

    Returns an outcome for each command, group by group, and what has to be written. `state` is used
    up. In an atomic group one refusal refuses all: the others get the same error, with metadata
    `item`, the index of the first command that was refused. Where all of it was carried out before,
    each command answers for itself, since what is refused now was undone by itself.
    """
    draft = Draft(state, now)
    outcomes: list[list[Outcome]] = []
    for group in groups:
        attempt = draft.fork() if group.atomic else draft
        commands = as_attempted(group.commands, state)
        decided = _decide_in_order(commands, attempt)
        if not group.atomic or all(isinstance(outcome, Done) for outcome in decided):
            draft = attempt
        elif not all(is_repeat(command, draft.state) for command in commands):
            decided = refuse_all(decided)
        outcomes.append(decided)
    return outcomes, draft.write_set()


def _decide_in_order(commands: Sequence[Command], draft: Draft) -> list[Outcome]:
    """An outcome for each. What comes for an order after a redemption that needs a lease waits for
    it, and needs one as well, so that it sees what that one leaves on the order."""
    if len(commands) == 1:  # nearly always
        return [_decide_one(commands[0], draft)]
    outcomes: list[Outcome] = []
    waiting: set[OrderRef] = set()
    for command in commands:
        waits = _waits(command, draft, waiting) if waiting else None
        outcome = waits if waits is not None else _decide_one(command, draft)
        if isinstance(outcome, LeaseNeeded) and isinstance(command, Redeem):
            waiting.update(_orders_of(command, outcome.book))
        outcomes.append(outcome)
    return outcomes


def _waits(command: Command, draft: Draft, waiting: set[OrderRef]) -> LeaseNeeded | None:
    if not isinstance(command, Redeem):
        return None
    found = find_code(command.code, command.book_id, command.call.business_id, draft.state)
    if isinstance(found, CouponServiceError) or waiting.isdisjoint(_orders_of(command, found[1])):
        return None
    return LeaseNeeded(found[1])


def _orders_of(command: Redeem, book: Book) -> tuple[OrderRef, ...]:
    """The order of a redemption, where it matters to the book."""
    if book.order_policy is OrderPolicy.INDEPENDENT or not command.order_id:
        return ()
    return (order_of(book, command.order_id, command.order_user_id),)


def refuse_all(decided: list[Outcome]) -> list[Outcome]:
    """What an atomic group answers when not all of it can be done.

    The first error, for every command that has none of its own; without an error some commands need
    a lease, and then all of them are to come again.
    """
    for index, outcome in enumerate(decided):
        if isinstance(outcome, CouponServiceError):
            return [
                it if isinstance(it, CouponServiceError) else _refused_with(outcome, index, it.book)
                for it in decided
            ]
    return [LeaseNeeded(it.book) if isinstance(it, Done) else it for it in decided]


def _refused_with(other: CouponServiceError, index: int, book: Book) -> CouponServiceError:
    """The refusal of another command of the group, for one on a code of this book."""
    refusal = type(other)(other.message, **{**other.metadata, "item": index})
    refusal.background = Background(book.book_id, book.business_id)
    return refusal


def _decide_one(command: Command, draft: Draft) -> Outcome:
    if draft.state.pseudonyms and (refusal := erasure_refusal(command, draft.state)) is not None:
        return refusal
    if not isinstance(command, AssignRandom):
        return _decide_on_code(command, draft)
    book = draft.state.books.get(command.book_id)
    business_id = command.call.business_id
    if book is None or (business_id and business_id != book.business_id):
        return BookNotFound()
    return answer_repeat(command, book, None, draft) or assign_random(command, book, draft)


def _decide_on_code(command: CodeCommand, draft: Draft) -> Outcome:
    book_id = book_named(command)
    found = find_code(command.code, book_id, command.call.business_id, draft.state)
    if isinstance(found, CouponServiceError):
        match command:
            case Rollback() | Adjust():
                return RedemptionNotFound()
            case ChangeLock():
                return LockNotFound()
            case _:
                return found
    code, book = in_earlier_book(command, found[1], draft.state) or found
    outcome = _decide_on_found(command, code, book, draft)
    if isinstance(outcome, CouponServiceError) and outcome.background is None:
        outcome.background = Background(book.book_id, book.business_id)
    return outcome


def _decide_on_found(command: CodeCommand, code: Code, book: Book, draft: Draft) -> Outcome:
    repeated = answer_repeat(command, book, code, draft)
    if repeated is None:
        repeated = archived_redemption(command, draft.state)
    if repeated is not None:
        return repeated
    if isinstance(command, (Redeem, Lock)):
        if is_hidden(command, code, book, draft.state, draft.now):
            return hidden_refusal(command, code, book, draft.state, draft.now)
        if command.lease is not None and command.lease.book_id not in (None, book.book_id):
            return Contention()  # another book got the code after its permit was taken
    return _carry_out(command, code, book, draft)


def _carry_out(command: CodeCommand, code: Code, book: Book, draft: Draft) -> Outcome:
    match command:
        case Redeem():
            return redeem(command, code, book, draft)
        case Rollback():
            return rollback(command, code, book, draft)
        case Adjust():
            return adjust(command, code, book, draft)
        case Lock():
            return lock(command, code, book, draft)
        case ChangeLock():
            return change_lock(command, code, book, draft)
        case Assign():
            return assign(command, code, book, draft)
        case Revoke():
            return revoke(command, code, book, draft)
        case Transfer():
            return transfer(command, code, book, draft)
        case ReturnToPool():
            return return_to_pool(command, code, book, draft)
        case _:
            return set_enabled(command, code, book, draft)
