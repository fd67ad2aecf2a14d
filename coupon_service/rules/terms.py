"""What codes say for themselves: their limit and discount in place of the book's, and their window
beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime

from coupon_service.errors import (
    CodeExpired,
    CodeNotStarted,
    CouponServiceError,
    FieldViolation,
)
from coupon_service.model import Benefit, Book, Code, CodeTerms

Reasons = tuple[CouponServiceError, ...]


def book_of(code: Code, book: Book) -> Book:
    """The book as it holds for the code: with the limit and the discount of the code, where it has
    its own. Its window stays the book's."""
    terms = code.terms
    if terms is None or not (terms.max_redemptions or terms.discount):
        return book
    limits = book.limits
    if terms.max_redemptions:
        limits = replace(limits, max_redemptions_per_code=terms.max_redemptions)
    return replace(book, limits=limits, discount=terms.discount or book.discount)


def code_not_started(code: Code, now: datetime) -> Reasons:
    """CODE_NOT_STARTED, before the code's own window."""
    terms = code.terms
    if terms is None or terms.start_time is None or now >= terms.start_time:
        return ()
    return (CodeNotStarted(start_time=terms.start_time.isoformat()),)


def code_ended(code: Code, time: datetime) -> Reasons:
    """CODE_EXPIRED, after the code's own window."""
    terms = code.terms
    if terms is None or terms.end_time is None or time < terms.end_time:
        return ()
    return (CodeExpired("The code is past its end.", expire_time=terms.end_time.isoformat()),)


def terms_violations(terms: CodeTerms, currency_code: str, book: Book) -> Iterator[FieldViolation]:
    """What is wrong with terms for codes of this book that are right by themselves.

    `currency_code`: of their amounts, empty = the book's.
    """
    if currency_code and currency_code != book.currency_code:
        yield FieldViolation(
            "currency_code", f"expected {book.currency_code or 'none'}, the book's"
        )
    if _is_money(terms) and not book.currency_code:
        yield FieldViolation("terms.discount", "expected no amount: the book has no currency_code")


def _is_money(terms: CodeTerms) -> bool:
    """Whether the discount is an amount, or a share of one."""
    return terms.discount is not None and not isinstance(terms.discount, Benefit)
