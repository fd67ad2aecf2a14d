"""Every hot statement finds its rows by an index, also on tables without statistics."""

from __future__ import annotations

import itertools
import re

import psycopg
import pytest

from coupon_service.store import apply, db, load, picks, rows

STATEMENTS = {
    "lock codes": load.LOCK_CODES,
    "select codes": load.SELECT_CODES,
    "books": load.SELECT_BOOKS,
    "assignments": load.SELECT_LINKS,
    "events": load.SELECT_EVENTS,
    "picked events": load.SELECT_PICKED_EVENTS,
    "picked assignments": load.SELECT_PICKED_LINKS,
    "events of locks": load.SELECT_LOCK_EVENTS,
    "orders": load.SELECT_ORDERS,
    "lock users": load.LOCK_USERS,
    "lock totals": load.LOCK_TOTALS,
    "pick in a bucket": picks.PICK_IN_BUCKET,
    "pick after": picks.PICK_AFTER,
    "more available": picks.MORE_AVAILABLE,
    "update codes": apply.UPDATE_CODES,
    "update assignments": apply.UPDATE_ASSIGNMENTS,
    "update users": apply.UPDATE_USERS,
    "update totals": apply.UPDATE_TOTALS,
    "insert events": rows.INSERT_EVENTS,
}


def plan_of(database_url: str, statement: str) -> str:
    """The plan that every session of the service uses."""
    numbers = itertools.count(1)
    numbered = re.sub("%s", lambda _: f"${next(numbers)}", statement)
    with psycopg.connect(database_url, options=db.PLANNING) as connection:
        lines = connection.execute(f"EXPLAIN (GENERIC_PLAN) {numbered}".encode()).fetchall()
    return "\n".join(str(line) for (line,) in lines)


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_hot_statement_reads_no_whole_table(database_url: str, name: str) -> None:
    assert "Seq Scan" not in plan_of(database_url, STATEMENTS[name])


def test_orders_of_a_hot_code_are_found_by_the_order(database_url: str) -> None:
    assert "redemption_audit_by_order" in plan_of(database_url, STATEMENTS["orders"])
