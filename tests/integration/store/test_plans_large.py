"""No statement reads a whole table, also with a million codes and three million events."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from importlib import import_module
from typing import Any
from uuid import UUID

import psycopg
import pytest
from support.plans import plan_of
from support.store import opened

from coupon_service import store
from coupon_service.model import EventType
from coupon_service.store import citus, moving
from coupon_service.store.events import AuditFilter, select_events
from coupon_service.store.pipeline import Connection
from coupon_service.store.placement import MAKE_PLACES
from coupon_service.store.refusals import RefusalFilter, select_refusals

ROWS = {
    "coupon_codes": 1_000_000,
    "coupon_code_spellings": 200_000,
    "coupon_code_terms": 200_000,
    "redemption_audit": 3_000_000,
    "coupon_assignments": 200_000,
    "coupon_user_counters": 200_000,
    "coupon_refusals": 500_000,
}
TABLES = ", ".join(f"'{table}'::regclass" for table in ROWS)
BOOK = "'00000000-0000-0000-0000-000000000001'"

BEGIN = "'2026-01-01T00:00:00Z'::timestamptz"

# An index is made from a million rows in a second, and takes a minute to grow to them. Ids that
# grow need no sorting. What is not logged is written once.
FILL = f"""
{"".join(f"ALTER TABLE {table} SET UNLOGGED;" for table in ROWS)}
UPDATE pg_index SET indisready = false WHERE indrelid IN ({TABLES});
INSERT INTO coupon_books (
    book_id, business_id, name, description, state, benefit, currency_code, min_order_amount_minor,
    max_redemptions, max_redemptions_per_code, max_redemptions_per_user_per_code,
    max_redemptions_per_user, max_assignments_per_user, assignment_policy, lock_policy,
    default_lock_ttl_ms, max_lock_ttl_ms, assigned_code_validity_s, code_length, code_alphabet,
    code_prefix, code_suffix, code_separator, code_group_size, code_check_character, version,
    create_time, update_time)
VALUES ({BOOK}, 'baker', 'spring', '', 2, 'a gift', '', 0, 0, 3, 0, 0, 0, 1, 1, 0, 0, 0, 12, 'AB',
    '', '', '', 0, false, 1, {BEGIN}, {BEGIN});
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
SELECT lpad(n::text, 32, '0')::uuid, n % 64, 1 + n % 16, {BEGIN} + n / 20 * interval '1 ms',
    {BOOK}, 'CODE' || CASE WHEN n % 4 = 0 THEN 0 ELSE n END,
    'user-' || CASE WHEN n % 4 = 0 THEN 0 ELSE n % 10000 END,
    CASE WHEN n % 8 = 0 THEN 'order-' || n END,
    CASE WHEN n % 8 = 0 THEN lpad(n::text, 32, '0')::uuid END, 0, '', '', '', ''
FROM generate_series(1, {ROWS["redemption_audit"]}) AS n;
INSERT INTO coupon_assignments (bucket, code, user_id, book_id, state, assign_time)
SELECT n % 64, 'CODE' || n, 'user-' || n % 10000, {BOOK}, 1, now()
FROM generate_series(1, {ROWS["coupon_assignments"]}) AS n;
INSERT INTO coupon_user_counters (bucket, book_id, user_id)
SELECT n % 64, {BOOK}, 'user-' || n
FROM generate_series(1, {ROWS["coupon_user_counters"]}) AS n;
INSERT INTO coupon_refusals (
    refusal_id, refuse_time, book_id, kind, business_id, code, user_id, order_id, caller,
    request_id, told)
SELECT lpad(n::text, 32, '0')::uuid, {BEGIN} + n / 20 * interval '1 ms', {BOOK}, 1,
    CASE WHEN n % 4 < 3 THEN 'baker' ELSE 'shop-' || n % 20 END,
    'CODE' || CASE WHEN n % 4 = 0 THEN 0 ELSE n % 1000 END,
    'user-' || CASE WHEN n % 4 = 0 THEN 0 ELSE n % 1000 END,
    'order-' || n % 1000, '', '', '[]'
FROM generate_series(1, {ROWS["coupon_refusals"]}) AS n;
UPDATE pg_index SET indisready = true WHERE indrelid IN ({TABLES});
{"".join(f"REINDEX TABLE {table};" for table in ROWS)}
ANALYZE;
"""

BLOCKS_OF_A_PAGE_MAX = 2_000
"""Also where each event is in a block of its own: of the ledger there are thirty times as many."""

BLOCKS = """
SELECT heap_blks_read + heap_blks_hit + idx_blks_read + idx_blks_hit
FROM pg_statio_user_tables WHERE relname = %s
"""


async def blocks_read(connection: Connection, table: str = "redemption_audit") -> int:
    """Blocks of the table and of its indexes that were read."""
    await connection.execute("SELECT pg_stat_force_next_flush()")
    (row,) = await (await connection.execute(BLOCKS, [table])).fetchall()
    return row[0]


LARGE = rf"Seq Scan on ({'|'.join(ROWS)})"


def _statements() -> Iterator[tuple[str, str]]:
    """Every statement of the store that reads or changes rows. Those of Citus need its tables, and
    a move reads all rows of all tables."""
    for module in pkgutil.walk_packages(store.__path__, "coupon_service.store."):
        if module.name.startswith((citus.__name__, moving.__name__)):
            continue
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
            connection.execute(MAKE_PLACES)
        yield url


@pytest.mark.parametrize("statement", STATEMENTS.values(), ids=STATEMENTS)
def test_no_statement_reads_a_whole_large_table(large_database_url: str, statement: str) -> None:
    assert not re.search(LARGE, plan_of(large_database_url, statement))


HOT = {"code": "CODE0", "user_id": "user-0"}
"""Of a quarter of the events, where others have few."""

LATER = datetime(2026, 1, 1, 0, 0, 5, tzinfo=UTC)
"""Some events and refusals are older, and most are not."""


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"types": (EventType.REDEEMED,)},
        {"code": HOT["code"]},
        {"user_id": HOT["user_id"]},
        {"user_id": "user-7"},
        {"user_id": HOT["user_id"], "own": True},
        {"book_id": UUID(BOOK.strip("'"))},
        {"book_id": UUID(BOOK.strip("'")), "types": (EventType.REDEEMED,)},
        {"business_id": "baker"},
        {"business_id": "baker", "types": (EventType.REDEEMED,)},
        {"end_time": LATER},
        {"user_id": HOT["user_id"], "end_time": LATER},
    ],
    ids=str,
)
async def test_a_page_of_a_large_ledger_is_read_from_few_of_its_blocks(
    large_database_url: str, wanted: dict[str, Any]
) -> None:
    async with opened(large_database_url) as database, database.pool.connection() as connection:
        after = None
        for _ in range(2):
            before = await blocks_read(connection)
            async with connection.transaction():
                events, after = await select_events(connection, AuditFilter(**wanted), 50, after)
            assert len(events) == 50
            assert await blocks_read(connection) - before <= BLOCKS_OF_A_PAGE_MAX
            assert after is not None


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"end_time": LATER},
        {"user_id": HOT["user_id"]},
        {"user_id": "user-7"},
        {"user_id": HOT["user_id"], "end_time": LATER},
        {"codes": (HOT["code"], "CODE7")},
        {"codes": (HOT["code"],), "end_time": LATER},
        {"order_id": "order-7"},
        {"business_id": "baker"},
        {"business_id": "baker", "end_time": LATER},
        {"business_id": "baker", "book_id": UUID(BOOK.strip("'"))},
    ],
    ids=str,
)
async def test_a_page_of_many_refusals_is_read_from_few_of_their_blocks(
    large_database_url: str, wanted: dict[str, Any]
) -> None:
    async with opened(large_database_url) as database, database.pool.connection() as connection:
        after = None
        for _ in range(2):
            before = await blocks_read(connection, "coupon_refusals")
            async with connection.transaction():
                filters = RefusalFilter(**wanted)
                refusals, after = await select_refusals(connection, filters, 50, after)
            assert len(refusals) == 50
            assert await blocks_read(connection, "coupon_refusals") - before <= BLOCKS_OF_A_PAGE_MAX
            assert after is not None


def test_the_search_for_sequential_scans_finds_one(large_database_url: str) -> None:
    everything = "SELECT count(*) FROM redemption_audit WHERE request_id = %s"
    assert re.search(LARGE, plan_of(large_database_url, everything))
