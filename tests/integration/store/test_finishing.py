"""`migrate finish`: codes become unique within their business, and back, while others go on."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg import sql
from support.proof_sizes import times

from coupon_service.errors import DatabaseUnavailable
from coupon_service.model.scopes import scope_of_business, scoped_book_id
from coupon_service.store import finishing, migrations
from coupon_service.store.finishing import CannotFinishError

CODES = times(20_000, 1_000_000)
STEP = "0020.code_scopes"

OLD_COPY = "COPY coupon_codes (book_id, bucket, source_tag, code) FROM STDIN"
OLD_INSERT = "INSERT INTO coupon_codes (book_id, source_tag, bucket, code) VALUES (%s, 1, 1, %s)"
OLD_SPELLING = "INSERT INTO coupon_code_spellings (bucket, code, spelling) VALUES (1, %s, %s)"
OLD_LOCK = """
SELECT code, book_id, state, redemptions, assignments
FROM unnest(%s::smallint[], %s::text[]) AS wanted (bucket, code)
JOIN coupon_codes AS c USING (bucket, code)
ORDER BY c.bucket, c.code FOR NO KEY UPDATE OF c
"""
"""Statements of the version before."""


def keys_of(connection: psycopg.Connection[Any], table: str) -> str:
    row = connection.execute(
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = %s", [f"{table}_pkey"]
    ).fetchone()
    assert row is not None
    return row[0]


def keys(database_url: str) -> list[str]:
    with psycopg.connect(database_url) as connection:
        return [keys_of(connection, table) for table, _ in finishing.NEW_KEYS]


NEW = [f"PRIMARY KEY ({columns})" for _, columns in finishing.NEW_KEYS]
OLD = [f"PRIMARY KEY ({columns})" for _, columns in finishing.OLD_KEYS]


def make_book(connection: psycopg.Connection[Any], book_id: object) -> None:
    connection.execute(
        """
        INSERT INTO coupon_books (
            book_id, business_id, name, description, state, benefit, currency_code,
            min_order_amount_minor, max_redemptions, max_redemptions_per_code,
            max_redemptions_per_user_per_code, max_redemptions_per_user, max_assignments_per_user,
            assignment_policy, lock_policy, default_lock_ttl_ms, max_lock_ttl_ms,
            assigned_code_validity_s, code_length, code_alphabet, code_prefix, code_suffix,
            code_separator, code_group_size, code_check_character, version, create_time,
            update_time)
        VALUES (%s, 'ours', 'b', '', 2, 'gift', '', 0, 0, 1, 0, 0, 0, 1, 1, 0, 0, 0, 12, 'ABC', '',
            '', '', 0, false, 1, now(), now())
        """,
        [book_id],
    )


def make_codes(connection: psycopg.Connection[Any], count: int) -> None:
    connection.execute(
        """
        INSERT INTO coupon_codes (book_id, bucket, code)
        SELECT gen_random_uuid(), n %% 64, 'CODE' || n FROM generate_series(1, %s) AS n
        """,
        [count],
    )


def test_the_version_before_goes_on_until_then(database_url: str) -> None:
    with psycopg.connect(database_url, application_name="coupon_service") as connection:
        book_id = "00000000-0000-8000-8000-000000000001"
        connection.execute(OLD_INSERT, [book_id, "AB"])
        connection.execute(OLD_SPELLING, ["AB", "a-b"])
        with connection.cursor().copy(OLD_COPY) as copy:
            copy.write_row((book_id, 1, 1, "CD"))
        rows = connection.execute(OLD_LOCK, [[1, 1], ["AB", "CD"]]).fetchall()
        assert [row[0] for row in rows] == ["AB", "CD"]
        found = connection.execute("SELECT DISTINCT scope FROM coupon_codes").fetchall()
        assert found == [(0,)]
        with pytest.raises(psycopg.errors.UniqueViolation):
            connection.execute(OLD_INSERT, [book_id, "AB"])


@pytest.mark.parametrize("name", ["coupon_service", "coupon_service bulk"])
def test_it_is_refused_while_the_version_before_is_connected(name: str, database_url: str) -> None:
    with (
        psycopg.connect(database_url, application_name=name),
        pytest.raises(CannotFinishError, match=name),
    ):
        list(finishing.finish(database_url))
    assert keys(database_url) == OLD


def test_who_connects_at_the_last_moment_is_seen(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = finishing._build  # pyright: ignore[reportPrivateUsage]
    opened: list[psycopg.Connection[Any]] = []

    def build_while_it_connects(*arguments: Any) -> None:
        build(*arguments)
        if not opened:
            opened.append(psycopg.connect(database_url, application_name="coupon_service"))

    monkeypatch.setattr(finishing, "_build", build_while_it_connects)
    with pytest.raises(CannotFinishError):
        list(finishing.finish(database_url))
    assert keys(database_url) == OLD
    opened[0].close()
    list(finishing.finish(database_url))
    assert keys(database_url) == NEW


def test_steps_have_to_be_applied_before(empty_database_url: str) -> None:
    with pytest.raises(CannotFinishError, match=STEP):
        list(finishing.finish(empty_database_url))


def test_many_codes_are_switched_over_and_back_beside_others(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        make_codes(connection, CODES)
    with beside(database_url) as done:
        assert len(list(finishing.finish(database_url))) == 4
        assert keys(database_url) == NEW
        assert list(finishing.finish(database_url)) == []
        assert list(finishing.unfinish(database_url))
        assert keys(database_url) == OLD
    assert done
    with psycopg.connect(database_url) as connection:
        count = connection.execute("SELECT count(*) FROM coupon_codes WHERE scope = 0").fetchone()
    assert count == (CODES,)


@contextmanager
def beside(database_url: str) -> Generator[list[int]]:
    """A service that locks and changes codes all the while: how often it did."""
    stop, done = threading.Event(), list[int]()
    failures: list[Exception] = []

    def change() -> None:
        with psycopg.connect(database_url, application_name="coupon_service/2") as connection:
            while not stop.is_set():
                try:
                    connection.execute(OLD_LOCK, [[1, 2], ["CODE1", "CODE2"]])
                    connection.execute(
                        "UPDATE coupon_codes SET assignments = assignments + 1"
                        " WHERE bucket = 1 AND code = 'CODE1' AND scope = 0"
                    )
                    connection.commit()
                except psycopg.Error as error:
                    failures.append(error)
                    return
                done.append(1)

    worker = threading.Thread(target=change)
    worker.start()
    try:
        yield done
    finally:
        stop.set()
        worker.join()
    assert not failures


def test_it_waits_for_the_tables(database_url: str) -> None:
    with psycopg.connect(database_url) as holder:
        make_codes(holder, 10)
        holder.commit()
        build = finishing._build  # pyright: ignore[reportPrivateUsage]
        with pytest.MonkeyPatch.context() as patch:

            def build_then_lock(*arguments: Any) -> None:
                build(*arguments)
                if arguments[1] == "coupon_assignments":
                    holder.execute("SELECT FROM coupon_codes FOR UPDATE")
                    threading.Timer(1.2, holder.rollback).start()

            patch.setattr(finishing, "_build", build_then_lock)
            list(finishing.finish(database_url))
    assert keys(database_url) == NEW


def test_what_was_cut_off_is_begun_anew(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        for table, _ in finishing.NEW_KEYS:
            statement = sql.SQL("CREATE UNIQUE INDEX {} ON {} (bucket, code)").format(
                sql.Identifier(f"{table}_next_key"), sql.Identifier(table)
            )
            connection.execute(statement)
    list(finishing.finish(database_url))
    assert keys(database_url) == NEW


class TestBack:
    def test_it_lists_what_is_in_the_way(self, database_url: str) -> None:
        list(finishing.finish(database_url))
        with psycopg.connect(database_url) as connection:
            book_id = scoped_book_id(finishing.FIRST_SCOPED_BOOK, "ours")
            make_book(connection, book_id)
            connection.execute(
                "INSERT INTO coupon_codes (book_id, bucket, code, scope) VALUES (%s, 1, 'AB', %s)",
                [book_id, scope_of_business("ours")],
            )
            connection.execute(
                "INSERT INTO coupon_book_counters VALUES (%s, 1, 0, 0, 0, 0, 0, 0, 0, 1)", [book_id]
            )
        with pytest.raises(CannotFinishError, match=r"1 coupon books .* with 1 codes"):
            list(finishing.unfinish(database_url))
        assert keys(database_url) == NEW
        with pytest.raises(DatabaseUnavailable, match="unique within their business"):
            migrations.rollback(database_url, count=steps_from(database_url, STEP))

    def test_steps_go_back_after_it(self, database_url: str) -> None:
        list(finishing.finish(database_url))
        list(finishing.unfinish(database_url))
        assert STEP in migrations.rollback(database_url, count=steps_from(database_url, STEP))
        assert STEP in migrations.apply(database_url)
        list(finishing.finish(database_url))
        assert keys(database_url) == NEW

    def test_what_was_not_finished_needs_no_way_back(self, database_url: str) -> None:
        assert list(finishing.unfinish(database_url)) == []


def steps_from(database_url: str, step: str) -> int:
    names = [name for name, _ in migrations.status(database_url)]
    return len(names) - names.index(step)


def test_codes_of_closed_books_that_are_in_use_again_are_not_lost(database_url: str) -> None:
    insert = """
        INSERT INTO coupon_past_codes (
            book_id, next_book_id, reuse_time, redemptions, redemption_limit, assignments,
            source_tag, bucket, state, code)
        VALUES (gen_random_uuid(), gen_random_uuid(), now(), 1, 1, 0, 0, 7, 3, 'AGAIN')
    """
    with psycopg.connect(database_url) as connection:
        connection.execute(insert)
    with pytest.raises(DatabaseUnavailable, match="1 codes of 1 CLOSED books"):
        migrations.rollback(database_url)
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT count(*) FROM coupon_past_codes").fetchone() == (1,)
