"""Which code a caller means: by its name, in the business of the call, or in the book it names."""

from __future__ import annotations

from uuid import UUID

from coupon_service.errors import CodeChecksumInvalid, CodeNotFound, CouponServiceError
from coupon_service.model import (
    Adjust,
    Assign,
    Book,
    Code,
    CodeCommand,
    Lock,
    Redeem,
    ReturnToPool,
    Rollback,
    State,
    Transfer,
)
from coupon_service.rules.terms import book_of


def book_named(command: CodeCommand) -> UUID | None:
    """The book whose code the command means; None: that of the business with a code of the name."""
    match command:
        case Redeem() | Lock() | Assign() | Transfer() | ReturnToPool():
            return command.book_id
        case Rollback() | Adjust():
            return command.redemption.book_id
        case _:
            return None


def find_code(
    code: str, book_id: UUID | None, business_id: str, state: State
) -> tuple[Code, Book] | CouponServiceError:
    """The code and the book as it holds for it, when the caller may see it and it is in the book
    that was named."""
    for owner in state.names.get(code, ()):
        book = state.books[owner]
        if book_id in (None, owner) and business_id in ("", book.business_id):
            found = state.codes[owner, code]
            return found, book if found.terms is None else book_of(found, book)
    return code_not_found(code, book_id, business_id, state)


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
