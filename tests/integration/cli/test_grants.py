"""`coupon-service migrate grants`: what the role of the service needs, and no more.

That it is enough for all calls is shown by the tests that use the shared server, which runs as such
a role (tests/conftest.py).
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from support.command_line import run
from support.postgres_roles import new_role
from support.service import Api, ServerThread, books, lock_grace, new_codes, settings_for
from support.tour import take_tour
from support.waiting import until

from coupon_service.store import migrations
from coupon_service.store.privileges import PRIVILEGES, grant

TIMEOUT = "SELECT current_setting('statement_timeout'), current_setting('enable_seqscan')"


def test_grants_are_printed_and_only_applied_when_asked(database_url: str, tmp_path: Path) -> None:
    with new_role(database_url) as (role, url):
        printed = run(tmp_path, "migrate", "grants", role, DATABASE_URL=database_url)
        assert (printed.returncode, printed.stderr) == (0, "")
        assert f'GRANT SELECT, INSERT ON "public"."redemption_audit" TO "{role}";' in (
            printed.stdout.splitlines()
        )
        with psycopg.connect(url) as connection, pytest.raises(psycopg.Error, match="denied"):
            connection.execute("SELECT FROM coupon_books")
        applied = run(tmp_path, "migrate", "grants", role, "--apply", DATABASE_URL=database_url)
        assert (applied.returncode, applied.stdout) == (0, printed.stdout)
        with psycopg.connect(url) as connection:
            connection.execute("SELECT FROM coupon_books")
            assert connection.execute(TIMEOUT).fetchone() == ("0", "on")


def test_the_role_gets_the_parameters_of_its_sessions_when_they_come_from_it(
    database_url: str, tmp_path: Path
) -> None:
    with new_role(database_url) as (role, url):
        done = run(
            tmp_path,
            *("migrate", "grants", role, "--apply"),
            DATABASE_URL=database_url,
            COUPON_SESSION_PARAMETERS="role",
            COUPON_STATEMENT_TIMEOUT_MS="2500",
        )
        assert done.returncode == 0
        with psycopg.connect(url) as connection:
            assert connection.execute(TIMEOUT).fetchone() == ("2500ms", "off")


def test_the_role_can_do_the_work_in_the_background(database_url: str, redis_url: str) -> None:
    with new_role(database_url) as (role, url):
        grant(database_url, role, {}, execute=True)
        settings = settings_for(url, redis_url, **lock_grace(1_000), seal_interval_ms=100)
        with ServerThread(settings) as running, closing(Api(running.address)) as api:
            take_tour(api)
            (code,) = new_codes(1)
            optional = books.LOCK_POLICY_OPTIONAL
            book = api.book(codes=[code], low_threshold=1, lock_policy=optional)
            api.lock(code, "ann", ttl_s=1)
            until(lambda: "LOCK_EXPIRED" in api.event_names(code=code))
            until(lambda: "BOOK_RUNNING_LOW" in api.event_names(book_id=book.book_id))
            with psycopg.connect(database_url) as connection:
                seals = "SELECT FROM coupon_audit_seals"
                until(lambda: connection.execute(seals).fetchone() is not None)


def test_books_are_made_and_changed_before_what_is_new_is_granted(
    database_url: str, redis_url: str
) -> None:
    with new_role(database_url) as (role, url):
        grant(database_url, role, {}, execute=True)
        with psycopg.connect(database_url) as connection:
            revoke = sql.SQL("REVOKE ALL ON coupon_book_terms FROM {}")
            connection.execute(revoke.format(sql.Identifier(role)))
        with (
            ServerThread(settings_for(url, redis_url)) as running,
            closing(Api(running.address)) as api,
        ):
            book = api.draft()
            off = books.Discount(amount_off=books.AmountOff(amount_minor=5))
            assert api.update(book.book_id, discount=off).discount == off


def test_codes_are_redeemed_before_what_is_new_is_granted(
    database_url: str, redis_url: str
) -> None:
    while not migrations.rollback(database_url, count=1)[0].endswith(".erasures"):
        pass
    with new_role(database_url) as (role, url):
        with psycopg.connect(database_url) as connection:
            for relation, privileges in PRIVILEGES.items():
                if connection.execute("SELECT to_regclass(%s)", [relation]).fetchone() != (None,):
                    given = sql.SQL("GRANT {} ON {} {} TO {}").format(
                        sql.SQL(", ").join(map(sql.SQL, privileges)),
                        sql.SQL("SEQUENCE" if privileges == ("USAGE",) else ""),
                        sql.Identifier(relation),
                        sql.Identifier(role),
                    )
                    connection.execute(given)
        migrations.apply(database_url)
        with (
            ServerThread(settings_for(url, redis_url)) as running,
            closing(Api(running.address)) as api,
        ):
            limits = books.BookLimits(max_redemptions_per_user=1)
            api.redeem(api.code(limits=limits), "ann")


def test_the_role_of_the_service_cannot_change_the_ledger(server: ServerThread, api: Api) -> None:
    api.code()
    url = server.settings.database_url
    assert url is not None
    with psycopg.connect(url.get_secret_value(), autocommit=True) as connection:
        for statement in (
            "UPDATE redemption_audit SET caller = ''",
            "DELETE FROM redemption_audit",
            "TRUNCATE redemption_audit",
            "ALTER TABLE redemption_audit DISABLE TRIGGER ALL",
            "CREATE TABLE of_its_own ()",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match=r"denied|owner"):
                connection.execute(statement)


def test_every_table_of_the_schema_is_granted(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        rows = connection.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
            " AND relkind IN ('r', 'S') AND relname !~ 'yoyo'"
        ).fetchall()
    assert {name for (name,) in rows} == set(PRIVILEGES) - {"_yoyo_migration"}


def test_grants_need_the_schema_and_the_role(empty_database_url: str, tmp_path: Path) -> None:
    arguments = ("migrate", "grants", "nobody_there", "--apply")
    done = run(tmp_path, *arguments, DATABASE_URL=empty_database_url)
    assert (done.returncode, done.stdout) == (1, "")
    assert "run coupon-service migrate up" in done.stderr
    migrations.apply(empty_database_url)
    migrations.rollback(empty_database_url)
    done = run(
        tmp_path, "migrate", "grants", "pg_monitor", "--apply", DATABASE_URL=empty_database_url
    )
    assert "run coupon-service migrate up" in done.stderr
    migrations.apply(empty_database_url)
    done = run(tmp_path, *arguments, DATABASE_URL=empty_database_url)
    assert (done.returncode, done.stdout) == (1, "")
    assert 'role "nobody_there" does not exist' in done.stderr
