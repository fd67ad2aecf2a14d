"""Hot statements are planned by key from the first day, when every table is still empty."""

from __future__ import annotations

import re
from itertools import count

import psycopg
import pytest

from coupon_service.store import apply, chunks, events, load, lookups, picks
from coupon_service.store.db import PLANNING

STATEMENTS = {
    "lock codes": load.LOCK_CODES,
    "books of codes": load.SELECT_BOOKS,
    "assignments": load.SELECT_LINKS,
    "assignments of picked codes": load.SELECT_PICKED_LINKS,
    "events": load.SELECT_EVENTS,
    "orders": load.SELECT_ORDERS,
    "users": load.LOCK_USERS,
    "look at codes": lookups.SELECT_CODES,
    "coupons of users": lookups.LIST_ASSIGNMENTS,
    "codes of an upload": chunks.SELECT_CODES_OF,
    "change codes": apply.UPDATE_CODES,
    "change assignments": apply.UPDATE_ASSIGNMENTS,
    "change users": apply.UPDATE_USERS,
    "events by id": events.SELECT_EVENTS_BY_ID,
    "events of locks": events.SELECT_LOCK_EVENTS,
}

SCAN = re.compile(r"(?:Index (?:Only )?|Bitmap Index |Seq )Scan(?: using \w+)?(?: on \w+)+.*\n(.*)")
"""A scan of a table in a plan, and the line after it."""


PICKS = {
    "in a bucket": picks.PICK_IN_BUCKET,
    "after": picks.PICK_AFTER,
    "whether there are more": picks.MORE_AVAILABLE,
}


def plan_of(database_url: str, statement: str) -> str:
    """The plan that every session of the service uses."""
    numbers = count(1)
    explain = "EXPLAIN (GENERIC_PLAN) " + re.sub("%s", lambda _: f"${next(numbers)}", statement)
    with psycopg.connect(database_url, options=PLANNING) as connection:
        return "\n".join(line for (line,) in connection.execute(explain.encode()).fetchall())


@pytest.mark.parametrize("statement", STATEMENTS.values(), ids=STATEMENTS)
def test_a_hot_statement_looks_up_each_row_by_a_key_it_is_given(
    database_url: str, statement: str
) -> None:
    plan = plan_of(database_url, statement)
    conditions = SCAN.findall(plan)
    assert conditions
    for condition in conditions:
        key = re.search(r"Index Cond: .* = \(?(wanted|d|c)\.", condition)
        assert key, plan


@pytest.mark.parametrize("statement", PICKS.values(), ids=PICKS)
def test_random_codes_are_picked_by_the_state(database_url: str, statement: str) -> None:
    plan = plan_of(database_url, statement)
    assert "coupon_codes_by_state" in plan
    assert "Sort" not in plan


def test_orders_of_a_hot_code_are_found_by_the_order(database_url: str) -> None:
    assert "redemption_audit_by_order" in plan_of(database_url, load.SELECT_ORDERS)
