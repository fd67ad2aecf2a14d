"""No statement reads a whole table, also where the tables have a million rows."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from importlib import import_module
from itertools import count

import psycopg
import pytest

from coupon_service import store
from coupon_service.store.db import PLANNING

ROWS = 1_000_000

# An index is made from a million rows in a second, and takes a minute to grow to them.
FILL = f"""
UPDATE pg_index SET indisready = false
WHERE indrelid IN ('coupon_codes'::regclass, 'coupon_assignments'::regclass,
                   'redemption_audit'::regclass, 'coupon_user_counters'::regclass);
INSERT INTO coupon_codes (bucket, code, book_id, state)
SELECT n % 64, 'CODE' || n, '00000000-0000-0000-0000-000000000001', 1 + n % 4
FROM generate_series(1, {ROWS}) AS n;
INSERT INTO coupon_assignments (bucket, code, user_id, book_id, state, assign_time)
SELECT n % 64, 'CODE' || n, 'user-' || n % 10000, '00000000-0000-0000-0000-000000000001', 1, now()
FROM generate_series(1, {ROWS}) AS n;
INSERT INTO redemption_audit (
    event_id, bucket, type, event_time, book_id, code, user_id, order_id, lock_id, fingerprint,
    caller, peer, user_agent, request_id)
SELECT gen_random_uuid(), n % 64, 1 + n % 12, now(), '00000000-0000-0000-0000-000000000001',
    'CODE' || n, 'user-' || n % 10000, 'order-' || n, gen_random_uuid(), 0, '', '', '', ''
FROM generate_series(1, {ROWS}) AS n;
INSERT INTO coupon_user_counters (bucket, book_id, user_id)
SELECT n % 64, '00000000-0000-0000-0000-000000000001', 'user-' || n
FROM generate_series(1, {ROWS}) AS n;
UPDATE pg_index SET indisready = true;
REINDEX TABLE coupon_codes;
REINDEX TABLE coupon_assignments;
REINDEX TABLE redemption_audit;
REINDEX TABLE coupon_user_counters;
ANALYZE;
"""

LARGE = r"Seq Scan on (coupon_codes|coupon_assignments|redemption_audit|coupon_user_counters)"


def _statements() -> Iterator[tuple[str, str]]:
    """Every statement of the store that reads or changes rows."""
    for module in pkgutil.iter_modules(store.__path__):
        found = vars(import_module(f"coupon_service.store.{module.name}"))
        for name, value in found.items():
            begins = isinstance(value, str) and re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE)", value)
            if name.isupper() and begins:
                yield f"{module.name}.{name}", value


STATEMENTS = dict(_statements())


@pytest.fixture(scope="module")
def large_database_url(
    new_database: Callable[[], AbstractContextManager[str]],
) -> Iterator[str]:
    """A database with a million rows in each of the large tables."""
    with new_database() as url:
        memory = "-c maintenance_work_mem=512MB"
        with psycopg.connect(url, autocommit=True, options=memory) as connection:
            connection.execute(FILL.encode())
        yield url


@pytest.mark.parametrize("statement", STATEMENTS.values(), ids=STATEMENTS)
def test_no_statement_reads_a_whole_large_table(large_database_url: str, statement: str) -> None:
    assert not re.search(LARGE, _plan_of(large_database_url, statement))


def test_the_search_for_sequential_scans_finds_one(large_database_url: str) -> None:
    everything = "SELECT count(*) FROM redemption_audit WHERE request_id = %s"
    assert re.search(LARGE, _plan_of(large_database_url, everything))


def _plan_of(database_url: str, statement: str) -> str:
    """The plan that every session of the service uses."""
    numbers = count(1)
    names: dict[str, int] = {}

    def number(match: re.Match[str]) -> str:
        name = match[1]
        return f"${names.setdefault(name, next(numbers)) if name else next(numbers)}"

    numbered = re.sub(r"%(?:\((\w+)\))?s", number, statement)
    with psycopg.connect(database_url, options=PLANNING) as connection:
        rows = connection.execute(f"EXPLAIN (GENERIC_PLAN) {numbered}".encode()).fetchall()
    return "\n".join(line for (line,) in rows)
