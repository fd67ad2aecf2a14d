"""Rows: codes, assignments, counts, ledger events, and locks, which derive from events."""

from __future__ import annotations

from dataclasses import field
from datetime import datetime
from typing import TypeAlias
from uuid import UUID

from coupon_service.model.enums import AssignmentState, CodeState, EventType, LockState, OrderPolicy
from coupon_service.model.terms import CodeTerms
from coupon_service.model.values import value

CodeKey: TypeAlias = tuple[UUID, str]
"""A book and its code. Books of several businesses may have the same code."""

AssignmentKey: TypeAlias = tuple[UUID, str, str]
"""A book, its code, and a user."""


@value
class Code:
    """A row of coupon_codes. `assignments` counts those that were not revoked.

    `spelling`: as it was uploaded, where that differs from `code`; read only where it is shown.
    `terms`: what it says for itself, of coupon_code_terms; None where it says nothing. `is_past`:
    of a CLOSED book, in coupon_past_codes, while another book has the code.
    """

    code: str
    book_id: UUID
    state: CodeState
    redemptions: int
    assignments: int
    spelling: str = ""
    terms: CodeTerms | None = None
    is_past: bool = False

    @property
    def key(self) -> CodeKey:
        """What tells it from all other codes."""
        return self.book_id, self.code


@value
class Assignment:
    """A row of coupon_assignments. `fence`: the newest lock this user redeemed the code with."""

    code: str
    user_id: str
    book_id: UUID
    state: AssignmentState
    redemptions: int = 0
    fence: int = 0
    assign_time: datetime | None = None
    expire_time: datetime | None = None
    metadata: str | None = None

    @property
    def key(self) -> AssignmentKey:
        """What tells it from all other assignments."""
        return self.book_id, self.code, self.user_id


@value
class UserCounts:
    """Counts of one user in one book, kept where the book limits them."""

    redemptions: int = 0
    assignments: int = 0


@value
class BookTotals:
    """What the redemptions of a book come to, kept where the book limits it.

    `discount_minor`: where it limits that.
    """

    redemptions: int = 0
    discount_minor: int = 0


@value
class BookOnOrder:
    """How many redemptions of a book an order has, and what the book says of orders."""

    book_id: UUID
    redemptions: int
    order_policy: OrderPolicy
    exclusive_group: str


@value
class OrderCoupons:
    """What an order has of the coupons of books that are not INDEPENDENT.

    `discount_minor`: of all of them. `amount_minor`: of the order, when something was last taken
    off; None where that was not known. `currency_code`: empty where there is no coupon.
    `books`: also those that have none any more.
    """

    currency_code: str = ""
    discount_minor: int = 0
    amount_minor: int | None = None
    books: tuple[BookOnOrder, ...] = ()


@value
class Event:
    """A row of redemption_audit, from which a repeat of the call is answered as well.

    `state_before` and `state_after` are values of BookState or CodeState, depending on `type`.
    `metadata` is JSON text. `order_user_id`: the end user whose own order `order_id` is; None where
    it is one of the business. `other_user_id`: who received, or gave, the assignment of `user_id`.
    `book_version`: of a redemption, that of the book on whose terms it was made. `sequence`: its
    number in the ledger, drawn as it is written; None for events of before there were numbers.
    `adjustments`: how often it was given another amount; no column.
    """

    event_id: UUID
    type: EventType
    event_time: datetime
    book_id: UUID
    caller: str
    peer: str
    user_agent: str
    request_id: str
    fingerprint: int
    code: str | None = None
    user_id: str | None = None
    order_id: str | None = None
    state_before: int | None = None
    state_after: int | None = None
    order_amount_minor: int | None = None
    discount_minor: int | None = None
    currency_code: str | None = None
    benefit: str | None = None
    redemption_id: UUID | None = None
    lock_id: UUID | None = None
    fence: int | None = None
    code_redemptions: int | None = None
    code_redemption_limit: int | None = None
    user_code_redemptions: int | None = None
    expire_time: datetime | None = None
    metadata: str | None = None
    order_user_id: str | None = None
    other_user_id: str | None = None
    book_version: int | None = None
    sequence: int | None = field(default=None, compare=False)
    adjustments: int = 0


@value
class Adjustment:
    """What the order of a redemption comes to now, and the discount. `adjustments`: how often it
    got another amount. `currency_code`: of the order; None before it was recorded."""

    redemption_id: UUID
    book_id: UUID
    order_amount_minor: int
    discount_minor: int | None
    adjustments: int
    currency_code: str | None = None


@value
class LockView:
    """A lock, derived from its ledger events."""

    lock_id: UUID
    code: str
    book_id: UUID
    user_id: str
    state: LockState
    fence: int
    create_time: datetime
    expire_time: datetime
