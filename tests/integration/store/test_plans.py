"""Hot statements are planned by key from the first day, when every table is still empty."""

from __future__ import annotations

import re

import psycopg
import pytest
from support.plans import plan_of

from coupon_service.store import business_events, events, finishing, spellings, stock
from coupon_service.store.bulk import new_codes
from coupon_service.store.commands import (
    apply,
    assignments,
    codes,
    limit_counters,
    orders,
    random_codes,
    user_locks,
)
from coupon_service.store.commands import events as recorded
from coupon_service.store.queries import assignment_pages, due_returns, lookups

STATEMENTS = {
    "lock codes": codes.LOCK_CODES,
    "books of codes": codes.SELECT_BOOKS,
    "assignments": assignments.SELECT_ASSIGNMENTS,
    "assignments of candidates": assignments.SELECT_CANDIDATE_ASSIGNMENTS,
    "events": recorded.SELECT_EVENTS,
    "orders": orders.SELECT_ORDERS,
    "users": limit_counters.LOCK_USERS,
    "codes to show": spellings.SELECT_SHOWN_CODES,
    "spellings": spellings.SELECT_SPELLINGS,
    "coupons of users": lookups.LIST_ASSIGNMENTS,
    "codes of an upload": new_codes.SELECT_EXISTING,
    "change codes": apply.UPDATE_CODES,
    "change assignments": apply.UPDATE_ASSIGNMENTS,
    "change users": apply.UPDATE_USERS,
    "events by id": events.SELECT_EVENTS_BY_ID,
    "events of locks": events.SELECT_LOCK_EVENTS,
}

SCAN = re.compile(r"(?:Index (?:Only )?|Bitmap Index |Seq )Scan(?: using \w+)?(?: on \w+)+.*\n(.*)")
"""A scan of a table in a plan, and the line after it."""


CANDIDATES = {
    "in a bucket": random_codes.CANDIDATES_IN_BUCKET,
    "after": random_codes.CANDIDATES_AFTER,
    "whether there are more": random_codes.MORE_AVAILABLE,
}


@pytest.mark.parametrize("statement", STATEMENTS.values(), ids=STATEMENTS)
def test_a_hot_statement_looks_up_each_row_by_a_key_it_is_given(
    database_url: str, statement: str
) -> None:
    plan = plan_of(database_url, statement)
    # Any book stands for that of a code that does not exist: the first one of the index. Whether
    # there are several businesses, the first and the last one tell; who is being erased, all of
    # those, of whom there is hardly ever one.
    once = re.compile(" on (coupon_books any_(book|of)|coupon_finished_steps|coupon_erased_users)")
    rows = [line for line in plan.splitlines() if not once.search(line)]
    conditions = SCAN.findall("\n".join(rows))
    assert conditions
    for condition in conditions:
        # Before version 17 a subplan has what it is given as $0.
        key = re.search(r"Index Cond: .* = \(*(COALESCE\()?((wanted\w*|d|c)\.|\$0)", condition)
        assert key, plan


@pytest.mark.parametrize(
    "statement",
    [codes.LOCK_CODES, codes.SELECT_BOOKS, spellings.SELECT_SHOWN_CODES, apply.UPDATE_CODES],
    ids=["lock codes", "books of codes", "codes to show", "change codes"],
)
def test_a_code_that_many_businesses_have_is_found_by_its_scope(
    database_url: str, statement: str
) -> None:
    assert list(finishing.finish(database_url))
    scans = re.findall(
        r"using coupon_codes_pkey .*\n *Index Cond: (.*)", plan_of(database_url, statement)
    )
    assert scans
    assert all("scope" in it for it in scans)


@pytest.mark.parametrize("statement", CANDIDATES.values(), ids=CANDIDATES)
def test_candidates_are_found_by_their_state(database_url: str, statement: str) -> None:
    plan = plan_of(database_url, statement)
    assert "coupon_codes_by_state" in plan
    assert "Sort" not in plan


def test_orders_of_a_hot_code_are_found_by_the_order_and_whose_it_is(database_url: str) -> None:
    plan = plan_of(database_url, orders.SELECT_ORDERS)
    assert plan.count("redemption_audit_by_order_and_user") == 2
    for whose in ("order_user_id IS NULL", "order_user_id = wanted.user_id"):
        assert re.search(rf"Index Cond: .*order_id = wanted.order_id.*{whose}.*code = ", plan), plan


# So many codes were assigned, and nobody has redeemed or locked one yet.
ASSIGNED = """
INSERT INTO redemption_audit (
    event_id, bucket, type, event_time, book_id, code, user_id, fingerprint, caller, peer,
    user_agent, request_id)
SELECT gen_random_uuid(), n % 64, 9, now(), gen_random_uuid(), 'CODE' || n, 'user-' || n, 0, '', '',
    '', n
FROM generate_series(1, 10000) AS n
"""


@pytest.mark.parametrize(
    ("statement", "index"),
    [
        (orders.SELECT_ORDERS, "redemption_audit_by_order"),
        (events.SELECT_LOCK_EVENTS, "redemption_audit_by_lock"),
    ],
    ids=["orders", "locks"],
)
def test_the_first_orders_and_locks_of_many_codes_are_found_by_their_keys(
    database_url: str, statement: str, index: str
) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(ASSIGNED)
        connection.execute("ANALYZE redemption_audit")
    plan = plan_of(database_url, statement)
    assert index in plan
    assert re.search("Index Cond: .* = wanted.", plan), plan


def test_postgresql_looks_at_a_table_that_grows_only_when_there_is_something_to_see(
    database_url: str,
) -> None:
    with psycopg.connect(database_url) as connection:
        rows = connection.execute(
            "SELECT relname, option_name, option_value"
            " FROM pg_class, pg_options_to_table(reloptions) WHERE option_name ~ 'threshold'"
        ).fetchall()
    tables = (
        "coupon_assignments",
        "coupon_code_spellings",
        "coupon_code_terms",
        "coupon_codes",
        "coupon_past_codes",
        "coupon_period_counters",
        "coupon_user_counters",
        "redemption_audit",
    )
    kinds = ("analyze", "vacuum", "vacuum_insert")
    assert set(rows) == {
        (table, f"autovacuum_{kind}_threshold", "10000") for table in tables for kind in kinds
    }


def test_locks_of_a_user_are_found_among_the_latest_of_that_user(database_url: str) -> None:
    plan = plan_of(database_url, user_locks.SELECT_USER_LOCKS)
    by_user = re.search(r"redemption_audit_by_user.*\n(.*)", plan)
    assert by_user, plan
    assert "(user_id = wanted.of_user) AND (event_time > " in by_user[1]
    assert "redemption_audit_by_lock" in plan


def test_codes_that_go_back_are_found_among_those_alone(database_url: str) -> None:
    plan = plan_of(database_url, due_returns.SELECT_DUE)
    due = re.search(r"coupon_assignments_to_return.*\n(.*)", plan)
    assert due, plan
    assert "(book_id = book.book_id) AND (expire_time <= " in due[1]
    assert "coupon_books_returning" in plan


def test_assignments_of_a_book_are_read_in_the_order_of_the_page(database_url: str) -> None:
    plan = plan_of(database_url, assignment_pages.SELECT_ASSIGNMENTS_OF_BOOK)
    assert "coupon_assignments_by_book" in plan
    assert "Index Cond: ((book_id = " in plan, plan


def test_times_of_events_of_books_are_read_from_the_index_alone(database_url: str) -> None:
    plan = plan_of(database_url, business_events.SELECT_TIMES)
    assert "Index Only Scan Backward using redemption_audit_by_book_and_time" in plan, plan


def test_only_books_with_a_threshold_are_looked_at_for_what_they_have_left(
    database_url: str,
) -> None:
    plan = plan_of(database_url, stock.SELECT_STOCKS)
    assert "Seq Scan" not in plan
    for table in ("coupon_books_watched", "coupon_book_counters_pkey", "coupon_book_totals_pkey"):
        assert table in plan, plan
