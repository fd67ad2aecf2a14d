"""Hot statements are planned by key from the first day, when every table is still empty."""

from __future__ import annotations

import re
from typing import Any

import psycopg
import pytest

from coupon_service.store import apply, chunks, events, load, reads
from coupon_service.store.db import PLANNING

STATEMENTS = {
    "lock codes": load.LOCK_CODES,
    "books of codes": load.SELECT_BOOKS,
    "assignments": load.SELECT_LINKS,
    "events": load.SELECT_EVENTS,
    "orders": load.SELECT_ORDERS,
    "users": load.LOCK_USERS,
    "look at codes": reads.SELECT_CODES,
    "codes of an upload": chunks.SELECT_CODES_OF,
    "change codes": apply.UPDATE_CODES,
    "change assignments": apply.UPDATE_ASSIGNMENTS,
    "change users": apply.UPDATE_USERS,
    "events by id": events.SELECT_EVENTS_BY_ID,
    "events of locks": events.SELECT_LOCK_EVENTS,
}

SCAN = re.compile(r"(?:Index (?:Only )?|Bitmap Index |Seq )Scan(?: using \w+)?(?: on \w+)+.*\n(.*)")
"""A scan of a table in a plan, and the line after it."""


@pytest.mark.parametrize("statement", STATEMENTS.values(), ids=STATEMENTS)
def test_a_hot_statement_looks_up_each_row_by_a_key_it_is_given(
    database_url: str, statement: Any
) -> None:
    numbers = iter(range(1, 100))
    explain: Any = "EXPLAIN (GENERIC_PLAN) " + re.sub(
        "%s", lambda _: f"${next(numbers)}", statement
    )
    with psycopg.connect(database_url, options=PLANNING) as connection:
        plan = "\n".join(line for (line,) in connection.execute(explain).fetchall())
    conditions = SCAN.findall(plan)
    assert conditions
    for condition in conditions:
        key = re.search(r"Index Cond: .* = \(?(wanted|d|c)\.", condition)
        assert key, plan
