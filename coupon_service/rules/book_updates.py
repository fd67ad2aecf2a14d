"""What may be changed of a coupon book, and when: pure functions of the book."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from datetime import datetime
from typing import Any, Final

from coupon_service.errors import FieldViolation, InvalidArgument, InvalidStateTransition
from coupon_service.model import (
    AssignmentPolicy,
    Benefit,
    Book,
    BookLimits,
    BookState,
    EventType,
    LockPolicy,
    OrderPolicy,
    PeriodLimits,
)
from coupon_service.model.codes import DEFAULT_ALPHABET, EARLIER_DEFAULT_ALPHABET

TRANSITIONS: Final[Mapping[EventType, tuple[frozenset[BookState], BookState]]] = {
    EventType.BOOK_ACTIVATED: (
        frozenset({BookState.DRAFT, BookState.PAUSED}),
        BookState.ACTIVE,
    ),
    EventType.BOOK_PAUSED: (
        frozenset({BookState.ACTIVE}),
        BookState.PAUSED,
    ),
    EventType.BOOK_CLOSED: (
        frozenset({BookState.DRAFT, BookState.ACTIVE, BookState.PAUSED}),
        BookState.CLOSED,
    ),
}
"""From which states each verb leads, and where to."""


ONLY_ON_ORDERS: Final = "expected none in a book whose order_policy is INDEPENDENT"

NAMES_IN_CONTRACT: Final[Mapping[str, str]] = {"budget_minor": "max_discount_minor"}
"""Limits that BookLimits calls otherwise than the contract."""


def state_after(book: Book, event: EventType) -> BookState:
    """The state of the book after BOOK_ACTIVATED, BOOK_PAUSED or BOOK_CLOSED.

    Raises InvalidStateTransition, metadata `state`.
    """
    allowed, target = TRANSITIONS[event]
    if book.state not in allowed:
        raise InvalidStateTransition(
            f"The coupon book is {book.state.name} and cannot become {target.name}.",
            state=book.state.name,
        )
    return target


def check_repeat(book: Book, event: EventType) -> None:
    """Nothing, when the book is still in the state that an earlier call with this event gave it.

    Raises InvalidStateTransition, metadata `state`, when it was changed since.
    """
    transition = TRANSITIONS.get(event)
    if transition is not None and book.state is not transition[1]:
        raise InvalidStateTransition(
            f"The coupon book was changed since, and is {book.state.name}.", state=book.state.name
        )


def updated(book: Book, changes: Mapping[str, Any], locks_until: datetime) -> Book:
    """The book with other values of the fields (of Book) that `changes` names.

    `locks_until`: when every lock is over that is held now. A code format without an alphabet gets
    the default.

    Raises:
        InvalidStateTransition: the book's state does not allow it; metadata `state`, and `field`
            (as in the contract) unless it allows no change at all.
        InvalidArgument: the fields of the changed book do not go together.
    """
    if book.state is BookState.CLOSED:
        raise InvalidStateTransition(
            "The coupon book is CLOSED and cannot be changed.", state=book.state.name
        )
    after = replace(book, **changes)
    if after.lock_policy is not book.lock_policy:
        held = after.lock_policy is LockPolicy.OFF and book.state is not BookState.DRAFT
        after = replace(after, locks_until=locks_until if held else None)
    if not after.code_format.alphabet:
        alphabet = default_alphabet(book)
        after = replace(after, code_format=replace(after.code_format, alphabet=alphabet))
    if book.codes_have_terms and after.currency_code != book.currency_code:
        field = "currency_code"
        raise InvalidStateTransition(
            f"{field}: cannot be changed since codes have discounts of their own",
            state=book.state.name,
            field=field,
        )
    if book.state is not BookState.DRAFT:
        for field, reason in _fixed_by_use(book, after):
            raise InvalidStateTransition(f"{field}: {reason}", state=book.state.name, field=field)
    bad = tuple(violations(after))
    if bad:
        raise InvalidArgument(bad)
    return after


def default_alphabet(book: Book) -> str:
    """The alphabet of a code format that names none: for a book of before the earlier default."""
    earlier = book.code_format.alphabet == EARLIER_DEFAULT_ALPHABET
    return EARLIER_DEFAULT_ALPHABET if earlier else DEFAULT_ALPHABET


def violations(book: Book) -> Iterator[FieldViolation]:
    """What is wrong with fields of the book that are right one by one."""
    if book.start_time and book.end_time and book.end_time <= book.start_time:
        yield FieldViolation("coupon_book.end_time", "expected a time after start_time")
    if isinstance(book.discount, Benefit) and book.limits.budget_minor:
        yield FieldViolation(
            "coupon_book.limits.max_discount_minor", "expected 0: a benefit takes no amount off"
        )
    if book.return_to_pool and book.assignment_policy is not AssignmentPolicy.REQUIRED:
        yield FieldViolation(
            "coupon_book.return_to_pool", "expected false: the book requires no assignment"
        )
    if book.order_policy is OrderPolicy.INDEPENDENT:
        if book.exclusive_group:
            yield FieldViolation("coupon_book.exclusive_group", ONLY_ON_ORDERS)
        if book.limits.max_redemptions_per_order:
            yield FieldViolation("coupon_book.limits.max_redemptions_per_order", ONLY_ON_ORDERS)
    money = not isinstance(book.discount, Benefit) or book.min_order_amount_minor > 0
    if money and not book.currency_code:
        yield FieldViolation(
            "coupon_book.currency_code",
            "expected an ISO 4217 code, for the discount and the least order amount",
        )


def _fixed_by_use(before: Book, after: Book) -> Iterator[tuple[str, str]]:
    """What cannot change any more once the book was active: codes were made and used by it."""
    if after.currency_code != before.currency_code:
        yield "currency_code", "cannot be changed after the first activation"
    if after.code_format != before.code_format:
        yield "code_format", "cannot be changed after the first activation"
    if after.limits.max_redemptions_per_code != before.limits.max_redemptions_per_code:
        yield "limits.max_redemptions_per_code", "cannot be changed after the first activation"
    independent = OrderPolicy.INDEPENDENT
    if (after.order_policy is independent) is not (before.order_policy is independent):
        reason = "whether it is INDEPENDENT cannot be changed after the first activation"
        yield "order_policy", reason
    for limit in fields(BookLimits):
        if limit.name == "max_redemptions_per_order":
            continue  # counted in all books that may have it
        if getattr(after.limits, limit.name) and not getattr(before.limits, limit.name):
            yield (
                f"limits.{NAMES_IN_CONTRACT.get(limit.name, limit.name)}",
                "there was no limit while the book was active, so that nothing was counted for one",
            )
    if after.return_to_pool and not before.return_to_pool:
        yield "return_to_pool", "cannot be switched on after the first activation"
    for field in _fixed_of_periods(before.period_limits, after.period_limits):
        yield field, "cannot be changed or introduced, since nothing was counted for it until now"


def _fixed_of_periods(before: PeriodLimits | None, after: PeriodLimits | None) -> Iterator[str]:
    """Which fields of the limits of periods cannot change like this once the book was active."""
    if after is None:
        return
    if before is None:
        yield "period_limits"
    else:
        for name in ("period", "time_zone"):
            if getattr(after, name) != getattr(before, name):
                yield f"period_limits.{name}"
        for name in ("max_redemptions", "max_redemptions_per_user"):
            if getattr(after, name) and not getattr(before, name):
                yield f"period_limits.{name}"
