"""The schema goes up, down, and up again, whatever happened before."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, LiteralString
from urllib.parse import urlsplit
from uuid import UUID

import psycopg
import pytest
import sqlparse
from support.postgres_roles import new_role
from support.store import opened

from coupon_service.errors import Contention, DatabaseUnavailable
from coupon_service.model import BookStats, bucket_of_user
from coupon_service.store import counters, migrations
from coupon_service.store.migrations import schema_is_current

TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename"
OBJECTS = """
SELECT relname, relkind FROM pg_class WHERE relnamespace = 'public'::regnamespace
UNION ALL SELECT proname, 'f' FROM pg_proc WHERE pronamespace = 'public'::regnamespace
"""

INSERT_BOOK = """
INSERT INTO coupon_books (
    book_id, business_id, name, description, state, benefit, currency_code, min_order_amount_minor,
    max_redemptions, max_redemptions_per_code, max_redemptions_per_user_per_code,
    max_redemptions_per_user, max_assignments_per_user, assignment_policy, lock_policy,
    default_lock_ttl_ms, max_lock_ttl_ms, assigned_code_validity_s, code_length, code_alphabet,
    code_prefix, code_suffix, code_separator, code_group_size, code_check_character, version,
    create_time, update_time)
VALUES (gen_random_uuid(), %s, 'spring', '', 2, 'a gift', '', 0, 0, 3, 0, 0,
    0, 1, 1, 0, 0, 0, 12, 'AB', '', '', '', 0, false, 1, now(), now())
RETURNING book_id
"""

INDEXES = "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'"


def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(query.encode()).fetchall()


def names(url: str, query: str) -> set[str]:
    return {row[0] for row in rows(url, query)}


async def is_current(url: str) -> bool:
    async with opened(url) as database:
        return await database.read("test", schema_is_current)


async def test_a_new_database_is_brought_up_to_date_once(empty_database_url: str) -> None:
    assert not await is_current(empty_database_url)
    steps = migrations.apply(empty_database_url)
    assert steps[0] == "0001.core"
    assert migrations.apply(empty_database_url) == []
    assert migrations.status(empty_database_url) == [(step, True) for step in steps]
    assert await is_current(empty_database_url)


async def test_it_goes_down_to_nothing_and_up_again(empty_database_url: str) -> None:
    steps = migrations.apply(empty_database_url)
    full = names(empty_database_url, OBJECTS)
    assert migrations.rollback(empty_database_url) == steps[::-1]
    left = names(empty_database_url, OBJECTS)
    assert {name for name in left if "yoyo" not in name} == set()
    assert migrations.status(empty_database_url) == [(step, False) for step in steps]
    assert not await is_current(empty_database_url)
    assert migrations.apply(empty_database_url) == steps
    assert names(empty_database_url, OBJECTS) == full


async def test_the_last_step_alone_can_be_taken_back(database_url: str) -> None:
    steps = [step for step, _ in migrations.status(database_url)]
    assert migrations.rollback(database_url, count=1) == steps[-1:]
    assert migrations.status(database_url)[-1] == (steps[-1], False)
    assert not await is_current(database_url)


def test_books_outlive_the_step_of_running_low_both_ways(empty_database_url: str) -> None:
    migrations.apply(empty_database_url)
    while migrations.rollback(empty_database_url, count=1) != ["0002.running_low"]:
        pass
    with psycopg.connect(empty_database_url) as connection:
        connection.execute(INSERT_BOOK, ["bakery"])
    migrations.apply(empty_database_url)
    thresholds = "SELECT low_threshold FROM coupon_books"
    assert names(empty_database_url, thresholds) == {0}
    migrations.rollback(empty_database_url, count=1)
    assert names(empty_database_url, "SELECT name FROM coupon_books") == {"spring"}


def test_a_step_without_a_transaction_that_was_cut_off_is_done_anew(
    empty_database_url: str,
) -> None:
    steps = migrations.apply(empty_database_url)
    full = names(empty_database_url, INDEXES)
    step = next(it for it in steps if it.endswith(".order_users"))
    while migrations.rollback(empty_database_url, count=1) != [step]:
        pass
    with psycopg.connect(empty_database_url) as connection:  # what it may leave behind
        connection.execute("ALTER TABLE redemption_audit ADD COLUMN order_user_id text")
        connection.execute(
            "CREATE INDEX redemption_audit_by_order_and_user ON redemption_audit (order_id)"
        )
    assert migrations.apply(empty_database_url)[0] == step
    assert names(empty_database_url, INDEXES) == full


@pytest.mark.parametrize("done", [0, 3, 5, 6, 8, 10])
def test_smaller_indexes_of_the_ledger_are_made_wherever_that_was_cut_off(
    empty_database_url: str, done: int
) -> None:
    steps = migrations.apply(empty_database_url)
    full = names(empty_database_url, INDEXES)
    step = next(it for it in steps if it.endswith(".ledger_indexes"))
    while migrations.rollback(empty_database_url, count=1) != [step]:
        pass
    before = names(empty_database_url, INDEXES)
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        for statement in _statements(f"{step}.sql")[:done]:
            connection.execute(statement.encode())
        # What a build that was cut off leaves.
        connection.execute("CREATE INDEX redemption_audit_unfinished ON redemption_audit (caller)")
        connection.execute(
            "UPDATE pg_index SET indisvalid = false"
            " WHERE indexrelid = 'redemption_audit_unfinished'::regclass"
        )
    assert migrations.apply(empty_database_url)[0] == step
    assert names(empty_database_url, INDEXES) == full
    while migrations.rollback(empty_database_url, count=1) != [step]:
        pass
    assert names(empty_database_url, INDEXES) == before


def _statements(file: str) -> list[str]:
    text = next(Path(migrations.__file__).parents[2].glob(f"**/migrations/{file}")).read_text()
    return [it for it in sqlparse.split(text, strip_semicolon=True) if it.strip()]


async def test_a_schema_that_is_newer_is_new_enough(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "INSERT INTO _yoyo_migration (migration_hash, migration_id) VALUES ('x', '9999.later')"
        )
    assert await is_current(database_url)


def test_a_migration_that_was_killed_does_not_lock_out_the_next_one(
    empty_database_url: str,
) -> None:
    migrations.status(empty_database_url)
    with psycopg.connect(empty_database_url) as connection:
        connection.execute("INSERT INTO yoyo_lock (locked, ctime, pid) VALUES (1, now(), 1)")
    assert migrations.apply(empty_database_url)


def test_migrating_from_several_places_at_once_applies_each_step_once(
    empty_database_url: str,
) -> None:
    with ThreadPoolExecutor(4) as pool:
        applied = list(pool.map(migrations.apply, [empty_database_url] * 4))
    assert sorted(applied)[:3] == [[], [], []]
    assert sorted(applied)[3][0] == "0001.core"


def test_a_schema_that_others_keep_busy_is_not_waited_for_without_end(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrations, "LOCK_TIMEOUT_MS", 50)
    with psycopg.connect(empty_database_url) as other:
        other.execute("SELECT pg_advisory_lock(%s)", [migrations.MIGRATION_LOCK])
        with pytest.raises(Contention):
            migrations.apply(empty_database_url)
    assert migrations.apply(empty_database_url)


def test_a_database_that_cannot_hold_every_letter_is_refused(empty_database_url: str) -> None:
    latin = urlsplit(empty_database_url)._replace(path="/coupon_test_latin").geturl()
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute(
            "CREATE DATABASE coupon_test_latin TEMPLATE template0 ENCODING 'LATIN1'"
            " LOCALE_PROVIDER libc LOCALE 'C'"
        )
        try:
            with pytest.raises(DatabaseUnavailable, match="LATIN1"):
                migrations.apply(latin)
        finally:
            connection.execute("DROP DATABASE coupon_test_latin WITH (FORCE)")


def test_codes_outlive_the_step_of_spellings_both_ways(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO coupon_codes (book_id, bucket, code) VALUES (gen_random_uuid(), 1, 'AB')"
        )
        connection.execute("INSERT INTO coupon_code_spellings VALUES (1, 'AB', 'a-b')")
    while "0006.spellings" not in migrations.rollback(database_url, count=1):
        pass
    migrations.apply(database_url)
    assert names(database_url, "SELECT code FROM coupon_codes") == {"AB"}
    assert names(database_url, "SELECT code FROM coupon_code_spellings") == set()


COMPOSED, DECOMPOSED = "jos\u00e9", "jose\u0301"
MERGED = {
    "SELECT business_id FROM coupon_books": {(COMPOSED,)},
    "SELECT code, assignments FROM coupon_codes": {("ONE", 1), ("TWO", 1)},
    "SELECT code, user_id, state, redemptions, redemption_limit, fence FROM coupon_assignments": {
        ("ONE", COMPOSED, 2, 3, 3, 7),
        ("ONE", "ann", 1, 0, 0, 0),
        ("TWO", COMPOSED, 1, 0, 0, 0),
    },
    "SELECT user_id, bucket, redemptions, redemption_limit, assignments, assignment_limit"
    " FROM coupon_user_counters": {
        (COMPOSED, bucket_of_user(COMPOSED), 3, 3, 2, 2),
        ("ann", bucket_of_user("ann"), 1, 1, 0, 0),
    },
    "SELECT assignments FROM coupon_book_counters": {(2,)},
    "SELECT type, code, user_id, order_id, metadata->>'same_user_as' FROM redemption_audit": {
        (16, "ONE", DECOMPOSED, DECOMPOSED, None),
        (11, "ONE", COMPOSED, None, COMPOSED),
    },
}
"""What there is after the step of names. The sums are above the limits, which were 2."""


def test_the_step_of_names_merges_what_was_counted_under_two_spellings(database_url: str) -> None:
    while "0008.names" not in migrations.rollback(database_url, count=1):
        pass
    with psycopg.connect(database_url, autocommit=True) as connection:
        ((book_id,),) = connection.execute(INSERT_BOOK, [DECOMPOSED]).fetchall()
        for code, assigned in (("ONE", 2), ("TWO", 1)):
            connection.execute(
                "INSERT INTO coupon_codes (book_id, bucket, code, state, assignments)"
                " VALUES (%s, 3, %s, 2, %s)",
                [book_id, code, assigned],
            )
        for row in (
            ("ONE", COMPOSED, 1, 1, 2, 5, "2026-01-01"),
            ("ONE", DECOMPOSED, 2, 2, 2, 7, "2026-01-02"),
            ("ONE", "ann", 1, 0, 0, 0, None),
            ("TWO", DECOMPOSED, 1, 0, 0, 0, "2026-01-01"),
        ):
            connection.execute(
                "INSERT INTO coupon_assignments (book_id, bucket, code, user_id, state,"
                " redemptions, redemption_limit, fence, assign_time)"
                " VALUES (%s, 3, %s, %s, %s, %s, %s, %s, %s)",
                [book_id, *row],
            )
        for user_id, counts in ((COMPOSED, (1, 2, 1, 2)), (DECOMPOSED, (2, 2, 2, 2))):
            connection.execute(
                "INSERT INTO coupon_user_counters (book_id, bucket, user_id, redemptions,"
                " redemption_limit, assignments, assignment_limit)"
                " VALUES (%s, %s, %s, %s, %s, %s, %s)",
                [book_id, bucket_of_user(user_id), user_id, *counts],
            )
        connection.execute(
            "INSERT INTO coupon_user_counters (book_id, bucket, user_id, redemptions,"
            " redemption_limit) VALUES (%s, %s, 'ann', 1, 1)",
            [book_id, bucket_of_user("ann")],
        )
        connection.execute(
            "INSERT INTO coupon_book_counters VALUES (%s, 0, 0, 0, 0, 3, 0, 0, 0, 3)", [book_id]
        )
        connection.execute(
            "INSERT INTO redemption_audit (event_id, book_id, event_time, fingerprint, bucket,"
            " type, caller, peer, user_agent, request_id, code, user_id, order_id)"
            " VALUES (gen_random_uuid(), %s, now(), 0, 3, 16, '', '', '', '', 'ONE', %s, %s)",
            [book_id, DECOMPOSED, DECOMPOSED],
        )
    for _ in range(2):  # what is merged stays so, down and up again
        assert migrations.apply(database_url)[0] == "0008.names"
        for query, wanted in MERGED.items():
            assert set(rows(database_url, query)) == wanted, query
        while "0008.names" not in migrations.rollback(database_url, count=1):
            pass


def test_the_step_of_names_goes_on_where_it_was_cut_off(database_url: str) -> None:
    code = "INSERT INTO coupon_codes (book_id, bucket, code) VALUES (gen_random_uuid(), %s, 'AB')"
    assignment = (
        "INSERT INTO coupon_assignments (book_id, bucket, code, user_id, state)"
        " VALUES (gen_random_uuid(), %s, 'AB', %s, 0)"
    )
    find = "SELECT bucket, user_id FROM coupon_assignments ORDER BY bucket"
    with (
        psycopg.connect(database_url, autocommit=True) as connection,
        psycopg.connect(database_url) as other,
    ):
        for bucket in (1, 2):
            connection.execute(code, [bucket])
            connection.execute(assignment, [bucket, DECOMPOSED])
        other.execute("SELECT FROM coupon_codes WHERE bucket = 2 FOR UPDATE")
        connection.execute("SET lock_timeout = 100")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            connection.execute("CALL coupon_merge_names()")
        assert rows(database_url, find) == [(1, COMPOSED), (2, DECOMPOSED)]
        other.rollback()
        connection.execute("CALL coupon_merge_names()")
    assert rows(database_url, find) == [(1, COMPOSED), (2, COMPOSED)]


def test_the_step_of_names_finds_the_bucket_of_a_user(database_url: str) -> None:
    for user_id in ("ann", COMPOSED, DECOMPOSED, "東京", "x" * 128):
        with psycopg.connect(database_url) as connection:
            found = connection.execute("SELECT coupon_name_bucket(%s)", [user_id]).fetchone()
        assert found == (bucket_of_user(user_id),)


@pytest.mark.parametrize("sums", ["bigint", "numeric"])
def test_discounts_are_added_up_before_and_after_the_step_of_their_sums(
    database_url: str, sums: LiteralString
) -> None:
    """By this version, and by the one before, on connections that stay."""
    add = counters.ADD_TO_COUNTERS.replace("numeric", sums)
    given = "SELECT discount_minor FROM coupon_book_counters"
    while "0009.discount_sums" not in migrations.rollback(database_url, count=1):
        pass
    with psycopg.connect(database_url, autocommit=True, prepare_threshold=0) as connection:

        def redeemed(discount_minor: int) -> set[str]:
            row = (UUID(int=1), 1, BookStats(redemptions=1, discount_minor=discount_minor))
            connection.execute(add, counters.counter_parameters([row]))
            return names(database_url, given)

        assert redeemed(2**63 - 2) == {2**63 - 2}
        migrations.apply(database_url)
        assert redeemed(10**15) == {2**63 - 2 + 10**15}
        while "0009.discount_sums" not in migrations.rollback(database_url, count=1):
            pass
        assert names(database_url, given) == {2**63 - 1}, "the greatest that fits"
        assert redeemed(-5) == {2**63 - 6}
        migrations.apply(database_url)
        assert redeemed(5) == {2**63 - 1}


TIERS = """[[5000, {"percent": 1000, "max": 0}]]"""


def test_a_book_has_tiers_in_place_of_another_discount_and_keeps_the_step_of_tiers(
    database_url: str,
) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(INSERT_BOOK, ["bakery"])
        with pytest.raises(psycopg.errors.CheckViolation, match="one_discount"):
            connection.execute("UPDATE coupon_books SET discount_tiers = %s", [TIERS])
        connection.execute("UPDATE coupon_books SET benefit = NULL, discount_tiers = %s", [TIERS])
    while migrations.rollback(database_url, count=1) != ["0011.assignments_by_book"]:
        pass
    with pytest.raises(DatabaseUnavailable, match="coupon_books_check1"):
        migrations.rollback(database_url, count=1)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("UPDATE coupon_books SET benefit = 'a gift', discount_tiers = NULL")
    assert migrations.rollback(database_url, count=1) == ["0010.discount_tiers"]


async def test_discounts_of_one_batch_may_come_to_more_than_an_amount_can_be(
    database_url: str,
) -> None:
    book_id = UUID(int=1)
    row = (book_id, 1, BookStats(redemptions=10_000, discount_minor=10**19))
    async with opened(database_url) as database:
        for _ in range(2):
            await database.transaction("add", lambda it: counters.add_to_counters(it, row))
        found = await database.read("sum", lambda it: counters.select_stats(it, book_id))
    assert found == BookStats(redemptions=20_000, discount_minor=2 * 10**19)


INSERT_EVENT = """
INSERT INTO redemption_audit (event_id, book_id, event_time, fingerprint, bucket, type, caller,
    peer, user_agent, request_id)
VALUES (gen_random_uuid(), gen_random_uuid(), now(), 0, 0, 1, %s, '', '', '')
"""
SEQUENCES = "SELECT sequence FROM redemption_audit ORDER BY sequence NULLS FIRST"


def test_events_are_numbered_from_their_step_on_by_a_version_of_before_as_well(
    database_url: str,
) -> None:
    """On a connection that prepared its statement before, with a role of before."""
    while not migrations.rollback(database_url, count=1)[0].endswith(".ledger_sequence"):
        pass
    with new_role(database_url) as (role, url):
        with psycopg.connect(database_url, autocommit=True) as owner:
            owner.execute(f"GRANT INSERT ON redemption_audit TO {role}".encode())
        with psycopg.connect(url, autocommit=True, prepare_threshold=0) as connection:
            connection.execute(INSERT_EVENT, ["before"])
            migrations.apply(database_url)
            for _ in range(3):
                connection.execute(INSERT_EVENT, ["after"])
            assert rows(database_url, SEQUENCES) == [(None,), (1,), (2,), (3,)]
            while not migrations.rollback(database_url, count=1)[0].endswith(".ledger_sequence"):
                pass
            connection.execute(INSERT_EVENT, ["taken back"])
        migrations.apply(database_url)
    assert rows(database_url, SEQUENCES) == [(None,)] * 5


async def test_a_ledger_that_was_copied_without_its_sequence_is_refused_and_repaired(
    database_url: str,
) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        for _ in range(3):
            connection.execute(INSERT_EVENT, ["copied"])
        connection.execute("SELECT setval('redemption_audit_numbers', 1, false)")
        assert not await is_current(database_url)
        with pytest.raises(psycopg.errors.UniqueViolation):
            connection.execute(INSERT_EVENT, ["late"])
        assert migrations.apply(database_url) == []
        assert await is_current(database_url)
        connection.execute(INSERT_EVENT, ["late"])
    assert rows(database_url, SEQUENCES) == [(1,), (2,), (3,), (4,)]


def test_the_ledger_is_append_only(database_url: str) -> None:
    for statement in (
        "UPDATE redemption_audit SET caller = 'x'",
        "DELETE FROM redemption_audit",
        "TRUNCATE redemption_audit",
    ):
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute(
                "INSERT INTO redemption_audit (event_id, book_id, event_time, fingerprint, bucket,"
                " type, caller, peer, user_agent, request_id)"
                " VALUES (gen_random_uuid(), gen_random_uuid(), now(), 0, 0, 1, '', '', '', '')"
            )
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
                connection.execute(statement.encode())


def test_seals_are_append_only(database_url: str) -> None:
    for statement in (
        "UPDATE coupon_audit_seals SET row_count = 0",
        "DELETE FROM coupon_audit_seals",
        "TRUNCATE coupon_audit_seals",
    ):
        with psycopg.connect(database_url) as connection:
            connection.execute(
                "INSERT INTO coupon_audit_seals VALUES (1, 1, 1, now(), 0, 1, '', '', '', '')"
            )
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
                connection.execute(statement.encode())


def test_a_database_that_cannot_be_reached_is_said_to_be(database_url: str) -> None:
    with pytest.raises(DatabaseUnavailable):
        migrations.apply("postgresql://nobody@127.0.0.1:1/nowhere")


def test_a_url_that_cannot_be_read_is_said_without_its_password() -> None:
    with pytest.raises(DatabaseUnavailable, match="can read") as raised:
        migrations.status("postgresql://coupon:p%zz@localhost/coupon")
    assert "zz" not in str(raised.value)
