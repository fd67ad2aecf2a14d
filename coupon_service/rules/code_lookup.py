"""Which code a caller means: by its name, in the business of the call, or in the book it names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TypeVar
from uuid import UUID

from coupon_service.errors import (
    BusinessRequired,
    CodeChecksumInvalid,
    CodeNotFound,
    CouponServiceError,
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
    Lock,
    Redeem,
    ReturnToPool,
    Revoke,
    Rollback,
    SetCodeEnabled,
    State,
    Transfer,
    receipt_id,
)
from coupon_service.model.scopes import is_scoped_event, scope_of_book, scoped_event_id
from coupon_service.rules.terms import book_of

C = TypeVar("C", bound=CodeCommand)


def book_named(command: CodeCommand) -> UUID | None:
    """The book whose code the command means; None: that of the business with a code of the name."""
    match command:
        case Redeem() | Lock() | Assign() | Revoke() | Transfer() | ReturnToPool() | ChangeLock():
            return command.book_id
        case Rollback() | Adjust():
            return command.redemption.book_id
        case _:
            return None


def in_scope(command: C, book_id: UUID) -> C:
    """The command with the ids of an attempt on a code of this book: see `scoped_event_id`."""
    scope = scope_of_book(book_id)
    if not scope or not has_scoped_id(command):
        return command
    named = scoped_event_id(command.event_id, scope)
    if isinstance(command, Lock) and command.lock_id == command.event_id:
        return replace(command, event_id=named, lock_id=named, earlier=())
    return replace(command, event_id=named, earlier=())


def has_scoped_id(command: Command) -> bool:
    """Whether the id of the attempt is another one where the code is of a scoped book. The others
    have ids that lead to a redemption, a lock or a book."""
    return isinstance(
        command, (Redeem, Lock, Assign, Revoke, Transfer, SetCodeEnabled)
    ) and not is_scoped_event(command.event_id)


def ids_of_attempt(command: CodeCommand, scope: int) -> Iterator[UUID]:
    """The ids of the rows that an earlier attempt may have written, where the code may be one of
    this scope, or one that is unique over all businesses."""
    ids = [command.event_id]
    if scope and has_scoped_id(command):
        ids.append(scoped_event_id(command.event_id, scope))
    for it in ids:
        yield it
        if isinstance(command, Transfer):
            yield receipt_id(it)


def as_attempted(commands: Sequence[Command], state: State) -> list[Command]:
    """The commands with the ids of their attempts, which depend on whose codes they mean."""
    if not any(map(scope_of_book, state.books)):
        return list(commands)
    return [_as_attempted(command, state) for command in commands]


def _as_attempted(command: Command, state: State) -> Command:
    if isinstance(command, AssignRandom) or not has_scoped_id(command):
        return command
    if command.event_id in state.archived:  # of a book of before, whose codes had other ids
        return command
    found = find_code(command.code, book_named(command), command.call.business_id, state)
    if isinstance(found, CouponServiceError) or in_earlier_book(command, found[1], state):
        return command
    return in_scope(command, found[1].book_id)


def find_code(
    code: str, book_id: UUID | None, business_id: str, state: State
) -> tuple[Code, Book] | CouponServiceError:
    """The code and the book as it holds for it, when the caller may see it and it is in the book
    that was named."""
    if state.several_businesses and book_id is None and not business_id:
        return BusinessRequired()
    owners = state.names.get(code, ()) if book_id is None else (book_id,)
    for owner in owners:
        found, book = state.codes.get((owner, code)), state.books.get(owner)
        if found is not None and book is not None and business_id in ("", book.business_id):
            return found, book if found.terms is None else book_of(found, book)
    return code_not_found(code, book_id, business_id, state)


def in_earlier_book(command: CodeCommand, book: Book, state: State) -> tuple[Code, Book] | None:
    """The code and the book in which the command was carried out before, where another book of the
    business has the code now.
    """
    recorded = state.events.get(command.event_id)
    if recorded is None or recorded.book_id == book.book_id:
        return None
    past = state.codes.get((recorded.book_id, command.code))
    earlier = state.books.get(recorded.book_id)
    if past is None or earlier is None or not past.is_past:
        return None
    if earlier.business_id != book.business_id:
        return None  # there the id of the attempt is another one
    return past, earlier if past.terms is None else book_of(past, earlier)


def code_not_found(
    code: str, book_id: UUID | None, business_id: str, state: State
) -> CouponServiceError:
    """CODE_NOT_FOUND, or that it was mistyped where the named book's check character tells: what is
    said of a code that does not exist, and, word for word, of one that is hidden."""
    book = state.books.get(book_id) if book_id is not None else None
    if book is not None and (not business_id or business_id == book.business_id):
        try:
            book.code_format.verify(code)
        except CodeChecksumInvalid as error:
            return error
    return CodeNotFound()
