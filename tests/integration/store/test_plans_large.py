"""No statement reads a whole table, also where there are a million codes and events."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from importlib import import_module

import psycopg
import pytest
from support.plans import plan_of

from coupon_service import store

ROWS = {
    "coupon_codes": 1_000_000,
    "coupon_code_spellings": 200_000,
    "coupon_code_terms": 200_000,
    "redemption_audit": 1_000_000,
    "coupon_assignments": 200_000,
    "coupon_user_counters": 200_000,
}
TABLES = ", ".join(f"'{table}'::regclass" for table in ROWS)
BOOK = "'00000000-0000-0000-0000-000000000001'"

# An index is made from a million rows in a second, and takes a minute to grow to them. Ids that
# grow need no sorting. What is not logged is written once.
FILL = f"""
{"".join(f"ALTER TABLE {table} SET UNLOGGED;" for table in ROWS)}
UPDATE pg_index SET indisready = false WHERE indrelid IN ({TABLES});
INSERT INTO coupon_codes (bucket, code, book_id, state)
SELECT n % 64, 'CODE' || n, {BOOK}, 1 + n % 4
FROM generate_series(1, {ROWS["coupon_codes"]}) AS n;
INSERT INTO coupon_code_spellings (bucket, code, spelling)
SELECT n % 64, 'CODE' || n, 'code-' || n
FROM generate_series(1, {ROWS["coupon_code_spellings"]}) AS n;
INSERT INTO coupon_code_terms (bucket, code, book_id, max_redemptions)
SELECT n % 64, 'CODE' || n, {BOOK}, 2
FROM generate_series(1, {ROWS["coupon_code_terms"]}) AS n;
INSERT INTO redemption_audit (
    event_id, bucket, type, event_time, book_id, code, user_id, order_id, lock_id, fingerprint,
    caller, peer, user_agent, request_id)
SELECT lpad(n::text, 32, '0')::uuid, n % 64, 1 + n % 16, now(), {BOOK}, 'CODE' || n,
    'user-' || n % 10000, CASE WHEN n % 8 = 0 THEN 'order-' || n END,
    CASE WHEN n % 8 = 0 THEN lpad(n::text, 32, '0')::uuid END, 0, '', '', '', ''
FROM generate_series(1, {ROWS["redemption_audit"]}) AS n;
INSERT INTO coupon_assignments (bucket, code, user_id, book_id, state, assign_time)
SELECT n % 64, 'CODE' || n, 'user-' || n % 10000, {BOOK}, 1, now()
FROM generate_series(1, {ROWS["coupon_assignments"]}) AS n;
INSERT INTO coupon_user_counters (bucket, book_id, user_id)
SELECT n % 64, {BOOK}, 'user-' || n
FROM generate_series(1, {ROWS["coupon_user_counters"]}) AS n;
UPDATE pg_index SET indisready = true WHERE indrelid IN ({TABLES});
{"".join(f"REINDEX TABLE {table};" for table in ROWS)}
ANALYZE;
"""

LARGE = rf"Seq Scan on ({'|'.join(ROWS)})"


def _statements() -> Iterator[tuple[str, str]]:
    """Every statement of the store that reads or changes rows."""
    for module in pkgutil.walk_packages(store.__path__, "coupon_service.store."):
        found = vars(import_module(module.name))
        for name, value in found.items():
            begins = isinstance(value, str) and re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE)", value)
            if name.isupper() and begins:
                yield f"{module.name.removeprefix('coupon_service.store.')}.{name}", value


STATEMENTS = dict(_statements())


@pytest.fixture(scope="module")
def large_database_url(
    new_database: Callable[[], AbstractContextManager[str]],
) -> Iterator[str]:
    """A database in which the large tables are large."""
    with new_database() as url:
        memory = "-c maintenance_work_mem=512MB"
        with psycopg.connect(url, autocommit=True, options=memory) as connection:
            connection.execute(FILL.encode())
        yield url


@pytest.mark.parametrize("statement", STATEMENTS.values(), ids=STATEMENTS)
def test_no_statement_reads_a_whole_large_table(large_database_url: str, statement: str) -> None:
    assert not re.search(LARGE, plan_of(large_database_url, statement))


def test_the_search_for_sequential_scans_finds_one(large_database_url: str) -> None:
    everything = "SELECT count(*) FROM redemption_audit WHERE request_id = %s"
    assert re.search(LARGE, plan_of(large_database_url, everything))
