"""Each check of the invariants detects a violation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from support.invariants import RULES, RULES_OF_TIME, SUMS, assert_adds_up
from support.service import Api, ServerThread, books, euros
from support.time_zones import zone_at_noon

from coupon_service.model import CodeState, EventType

UNKNOWN_ID = "00000000-0000-4000-8000-000000000000"


def again(order: str | None, event: EventType = EventType.REDEEMED, **changes: object) -> str:
    """The statement that copies a row of the ledger with these changes."""
    of_order = "order_id IS NULL" if order is None else f"order_id = '{order}'"
    return f"""
        INSERT INTO redemption_audit
        SELECT (jsonb_populate_record(it, jsonb_build_object(
            'event_id', gen_random_uuid(), 'sequence', nextval('redemption_audit_numbers'))
            || '{json.dumps(changes)}'::jsonb)).*
        FROM redemption_audit AS it
        WHERE book_id = %s AND type = {event:d} AND {of_order}
    """


BREAKS = {
    "counts of codes": "UPDATE coupon_codes SET assignments = 7 WHERE book_id = %s",
    "counts of users of codes": "DELETE FROM coupon_assignments WHERE book_id = %s",
    "counts of users of books": "DELETE FROM coupon_user_counters WHERE book_id = %s",
    "counts of periods": "DELETE FROM coupon_period_counters WHERE user_id = '' AND book_id = %s",
    "totals of books": "UPDATE coupon_book_totals SET redemptions = 0 WHERE book_id = %s",
    "totals of discounts": "UPDATE coupon_book_totals SET discount_minor = 7 WHERE book_id = %s",
    "books on orders": "UPDATE coupon_order_books SET redemptions = 7 WHERE book_id = %s",
    "discounts on orders": again("kept"),
    "archived redemptions on orders": """
        INSERT INTO coupon_audit_archives (
            archive, book_id, state, file_name, create_time, on_orders)
        SELECT 1 << 30, book_id, 4, 'lost', now(), 1 FROM coupon_books WHERE book_id = %s
    """,
    "statistics": "UPDATE coupon_book_counters SET discount_minor = 7 WHERE book_id = %s",
    "statistics of states": "UPDATE coupon_book_counters SET redeemed = 7 WHERE book_id = %s",
    "a code's state follows from its counts": (
        "UPDATE coupon_codes SET state = 1 WHERE book_id = %s"
    ),
    "no code is redeemed beyond its limit": (
        "UPDATE coupon_codes SET redemption_limit = 9, redemptions = 9 WHERE book_id = %s"
    ),
    "a book says whether its codes have terms": """
        INSERT INTO coupon_code_terms (book_id, bucket, code, max_redemptions)
        SELECT book_id, bucket, code, 9 FROM coupon_codes WHERE book_id = %s
    """,
    "a code of the past is one of another book of the business now": """
        INSERT INTO coupon_past_codes (
            book_id, next_book_id, reuse_time, redemptions, redemption_limit, assignments,
            source_tag, bucket, state, code)
        SELECT book_id, book_id, now(), 0, 0, 0, 0, bucket, 1, code
        FROM coupon_codes WHERE book_id = %s
    """,
    "terms are those of a code": """
        INSERT INTO coupon_code_terms (book_id, bucket, code, max_redemptions)
        VALUES (%s, 0, 'NO-CODE', 1)
    """,
    "no book takes off more than its budget was": """
        UPDATE coupon_book_totals SET discount_minor = 1, discount_limit_minor = 1
        WHERE book_id = %s
    """,
    "an event of a code begins where the one before has left it": again(
        "kept", state_before=CodeState.DISABLED
    ),
    "an order has, or had, coupons": """
        INSERT INTO coupon_orders (business_id, order_id, order_user_id)
        SELECT business_id, 'unused', '' FROM coupon_books WHERE book_id = %s
    """,
    "coupons take off an order no more than its amount": again("kept", discount_minor=1_001),
    "no redemption exceeded the limit of its time": again("kept", code_redemptions=9),
    "an order has one live redemption of a code": again("kept"),
    "a request has one effect": again("kept"),
    "a rollback has a redemption, which is rolled back once": (
        again("undone", EventType.ROLLED_BACK)
    ),
    "what was handed over was received by the other user at the same moment": (
        again("kept", type=EventType.ASSIGNMENT_TRANSFERRED, other_user_id="bob")
    ),
    "an adjusted redemption has the amounts of its last adjustment": (
        "UPDATE coupon_adjustments SET order_amount_minor = 7 WHERE book_id = %s"
    ),
    "a rollback takes back what the discount was": (
        "UPDATE coupon_adjustments SET discount_minor = 7 WHERE book_id = %s"
    ),
    "seals follow each other without a gap": """
        INSERT INTO coupon_audit_seals
        SELECT 1::bigint << 40, 1::bigint << 41, 1::bigint << 41, now(), 0, 1, '', '', '', ''
        WHERE %s::text <> ''
    """,
    "the head is the newest seal": (
        "UPDATE coupon_audit_head SET number = number + 7 WHERE %s::text <> ''"
    ),
    "no row is left out of the seals": (
        "WITH moved AS (UPDATE coupon_audit_head SET last_sequence = 1::bigint << 40)"
        + again("kept", sequence=1 << 39)
    ),
    "a lock redeems once": again("kept"),
    "a request has one lock": again(None, EventType.LOCKED, lock_id=UNKNOWN_ID),
    "a lock that answers a request was acquired for its user": (
        again(None, EventType.LOCKED, request_id="another", lock_id=UNKNOWN_ID)
    ),
    "a book says that its codes have terms": (
        "INSERT INTO coupon_code_terms (book_id, bucket, code, max_redemptions)"
        " SELECT book_id, bucket, code, 1 FROM coupon_codes WHERE book_id = %s"
    ),
    "a code that its user had redeemed did not go back to the pool": again(
        "kept", type=EventType.ASSIGNMENT_EXPIRED, event_time="2100-01-01T00:00:00Z"
    ),
    "fences of redemptions increase": (again("kept", fence=0, event_time="2100-01-01T00:00:00Z")),
}


@pytest.fixture(scope="module")
def book_id(api: Api) -> str:
    """A book with some of everything that is counted."""
    limits = books.BookLimits(
        max_redemptions=5,
        max_redemptions_per_code=2,
        max_redemptions_per_user_per_code=2,
        max_redemptions_per_user=5,
        max_discount_minor=1_000,
    )
    period = books.PeriodLimits(
        period=books.PERIOD_DAY, time_zone=zone_at_noon(), max_redemptions=5
    )
    book = api.book(
        codes=1,
        limits=limits,
        period_limits=period,
        lock_policy=books.LOCK_POLICY_OPTIONAL,
        order_policy=books.ORDER_POLICY_COMBINABLE,
    )
    code = api.assign_random(book.book_id, "ann").assignment.code
    token, amount = api.lock(code, "ann").lock_token, euros(1_000)
    api.redeem(code, "ann", order_id="kept", lock_token=token, order_amount=amount)
    undone = api.redeem(code, "ann", order_id="undone", order_amount=amount).redemption
    api.adjust(undone.redemption_id, euros(100))
    api.rollback(undone.redemption_id)
    return book.book_id


@pytest.fixture
def connection(server: ServerThread) -> Iterator[psycopg.Connection[Any]]:
    """A connection whose changes are rolled back."""
    with psycopg.connect(server.database_url) as opened:
        yield opened
        opened.rollback()


def test_untouched_rows_add_up(connection: psycopg.Connection[Any], book_id: str) -> None:
    assert_adds_up(connection, [book_id])


@pytest.mark.parametrize("check", [*SUMS, *RULES, *RULES_OF_TIME])
def test_broken_rule_is_reported(
    connection: psycopg.Connection[Any], book_id: str, check: str
) -> None:
    assert connection.execute(BREAKS[check].encode(), [book_id]).rowcount
    with pytest.raises(AssertionError, match=f"broken: {check}: "):
        assert_adds_up(connection, [book_id])
