"""The columns of the tables: for each what it is called, its type, and where its value is.

Nothing else lists them: statements, what they write and what a row becomes are made of these.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from coupon_service.model import (
    Adjustment,
    AmountOff,
    Assignment,
    AssignmentPolicy,
    AssignmentState,
    Benefit,
    Book,
    BookLimits,
    BookState,
    BookStats,
    Code,
    CodeState,
    Discount,
    Event,
    EventType,
    LockPolicy,
    OrderPolicy,
    PercentOff,
    Terms,
    TieredDiscount,
    bucket_of_event,
)
from coupon_service.model.codes import CodeFormat, bucket_of
from coupon_service.model.normalization import canonical_id
from coupon_service.store.columns import Column, Columns, Nested, Row, member_of
from coupon_service.store.schedules import (
    period_limits_json,
    period_limits_of,
    schedule_json,
    schedule_of,
)
from coupon_service.store.terms import terms_from_json
from coupon_service.store.tiers import tiers_json, tiers_of_json

# --- books --------------------------------------------------------------------------------------

_DISCOUNT: Final = Columns[Discount](
    Column(
        "percent_off_basis_points",
        "integer",
        lambda it: it.basis_points if isinstance(it, PercentOff) else None,
    ),
    Column(
        "max_discount_minor",
        "bigint",
        lambda it: it.max_discount_minor if isinstance(it, PercentOff) else 0,
    ),
    Column(
        "amount_off_minor",
        "bigint",
        lambda it: it.amount_minor if isinstance(it, AmountOff) else None,
    ),
    Column("benefit", "text", lambda it: it.description if isinstance(it, Benefit) else None),
    Column(
        "discount_tiers",
        "jsonb",
        lambda it: tiers_json(it) if isinstance(it, TieredDiscount) else None,
    ),
)


def _discount(
    basis_points: int | None,
    cap_minor: int,
    amount_minor: int | None,
    benefit: str | None,
    tiers: str | None,
) -> Discount:
    if basis_points is not None:
        return PercentOff(basis_points, cap_minor)
    if amount_minor is not None:
        return AmountOff(amount_minor)
    return tiers_of_json(tiers) if tiers is not None else Benefit(benefit or "")


LIMITS: Final = Columns[BookLimits](
    Column("max_redemptions", "bigint"),
    Column("max_redemptions_per_code", "integer"),
    Column("max_redemptions_per_user_per_code", "integer"),
    Column("max_redemptions_per_user", "integer"),
    Column("max_assignments_per_user", "integer"),
    Column("budget_minor", "bigint"),
    Column("max_redemptions_per_order", "integer"),
)

CODE_FORMAT: Final = Columns[CodeFormat](
    Column("length", "smallint"),
    Column("alphabet", "text"),
    Column("prefix", "text"),
    Column("suffix", "text"),
    Column("separator", "text"),
    Column("group_size", "smallint"),
    Column("check_character", "boolean"),
)

BOOKS: Final = Columns[Book](
    Column("book_id", "uuid"),
    Column("business_id", "text"),
    Column("name", "text"),
    Nested("discount", _discount, _DISCOUNT),
    Column("create_time", "timestamptz"),
    Column("update_time", "timestamptz"),
    Column("description", "text"),
    Column("state", "smallint", read=member_of(BookState)),
    Column("currency_code", "text"),
    Column("min_order_amount_minor", "bigint"),
    Nested("limits", BookLimits, LIMITS),
    Column("assignment_policy", "smallint", read=member_of(AssignmentPolicy)),
    Column("lock_policy", "smallint", read=member_of(LockPolicy)),
    Column("default_lock_ttl_ms", "bigint"),
    Column("max_lock_ttl_ms", "bigint"),
    Column("start_time", "timestamptz"),
    Column("end_time", "timestamptz"),
    Column("assigned_code_validity_s", "bigint"),
    Nested("code_format", CodeFormat, CODE_FORMAT, prefix="code_"),
    Column("metadata", "jsonb"),
    Column("low_threshold", "bigint"),
    Column("min_code_length", "smallint"),
    Column("order_policy", "smallint", read=member_of(OrderPolicy)),
    Column("exclusive_group", "text"),
    Column("version", "integer"),
    Column("locks_until", "timestamptz"),
    Column(
        "period_limits",
        "jsonb",
        lambda it: it.period_limits and period_limits_json(it.period_limits),
        period_limits_of,
    ),
    Column("schedule", "jsonb", lambda it: it.schedule and schedule_json(it.schedule), schedule_of),
    Column("codes_have_terms", "boolean"),
    Column("return_to_pool", "boolean"),
    Column("archived_until", "bigint"),
)

book_from_row: Final = BOOKS.reader(Book)

TERMS: Final = Columns[Terms](
    Nested("discount", _discount, _DISCOUNT),
    Column("currency_code", "text"),
    Column("min_order_amount_minor", "bigint"),
)
"""Those of coupon_book_terms that say what a book takes off."""

terms_from_row: Final = TERMS.reader(Terms)

COUNTERS: Final = Columns[BookStats](
    Column("available", "bigint"),
    Column("assigned", "bigint"),
    Column("redeemed", "bigint"),
    Column("disabled", "bigint"),
    Column("assignments", "bigint"),
    Column("redemptions", "bigint"),
    Column("rollbacks", "bigint"),
    Column("discount_minor", "numeric", read=int),
)

# --- codes and assignments ----------------------------------------------------------------------

_STORED: Final[tuple[Column[Code], ...]] = (
    Column("code", "text"),
    Column("book_id", "uuid"),
    Column("state", "smallint", read=member_of(CodeState)),
    Column("redemptions", "integer"),
    Column("assignments", "integer"),
)

CODES: Final = Columns[Code](*_STORED)

code_from_row: Final = CODES.reader(Code)

SHOWN_CODES: Final = Columns[Code](
    *_STORED,
    Column("spelling", "text", read=lambda spelling: spelling or ""),
    Column("terms", "text", read=terms_from_json),
)
"""Those of coupon_codes, and those of coupon_code_spellings and coupon_code_terms."""

shown_code_from_row: Final = SHOWN_CODES.reader(Code)


def past_code_from_row(row: Row) -> Code:
    """As `shown_code_from_row`, of a row of coupon_past_codes."""
    return replace(shown_code_from_row(row), is_past=True)


ASSIGNMENTS: Final = Columns[Assignment](
    Column("code", "text"),
    Column("user_id", "text"),
    Column("book_id", "uuid"),
    Column("state", "smallint", read=member_of(AssignmentState)),
    Column("redemptions", "integer"),
    Column("fence", "bigint"),
    Column("assign_time", "timestamptz"),
    Column("expire_time", "timestamptz"),
    Column("metadata", "jsonb"),
)

assignment_from_row: Final = ASSIGNMENTS.reader(Assignment)

ADJUSTMENTS: Final = Columns[Adjustment](
    Column("redemption_id", "uuid"),
    Column("book_id", "uuid"),
    Column("order_amount_minor", "bigint"),
    Column("discount_minor", "bigint"),
    Column("adjustments", "integer"),
    Column("currency_code", "text"),
)

adjustment_from_row: Final = ADJUSTMENTS.reader(Adjustment)

# --- the ledger ---------------------------------------------------------------------------------


def _canonical(text: str | None) -> str | None:
    """An id that was written before ids were compared in NFC may have another spelling."""
    return text and canonical_id(text)


WRITTEN: Final[tuple[Column[Event], ...]] = (
    Column("event_id", "uuid"),
    Column("type", "smallint", read=member_of(EventType)),
    Column("event_time", "timestamptz"),
    Column("book_id", "uuid"),
    Column("caller", "text", read=_canonical),
    Column("peer", "text"),
    Column("user_agent", "text"),
    Column("request_id", "text"),
    Column("fingerprint", "bigint"),
    Column("code", "text"),
    Column("user_id", "text", read=_canonical),
    Column("order_id", "text", read=_canonical),
    Column("state_before", "smallint"),
    Column("state_after", "smallint"),
    Column("order_amount_minor", "bigint"),
    Column("discount_minor", "bigint"),
    Column("currency_code", "text"),
    Column("benefit", "text"),
    Column("redemption_id", "uuid"),
    Column("lock_id", "uuid"),
    Column("fence", "bigint"),
    Column("code_redemptions", "integer"),
    Column("code_redemption_limit", "integer"),
    Column("user_code_redemptions", "integer"),
    Column("expire_time", "timestamptz"),
    Column("metadata", "jsonb"),
    Column("order_user_id", "text"),
    Column("other_user_id", "text"),
    Column("book_version", "integer"),
)

EVENTS: Final = Columns[Event](*WRITTEN, Column("sequence", "bigint"))
"""Those that are read: PostgreSQL draws the number of an event itself."""

event_from_row: Final = EVENTS.reader(Event)


def bucket_of_event_row(event: Event) -> int:
    """The bucket of an event's row: that of its code, or else the one its id leads to.

    They differ for a code that was picked at random: its id is known before the code is.
    """
    return bucket_of_event(event.event_id) if event.code is None else bucket_of(event.code)
