"""The service behind a pooler in transaction mode, where a session is not its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from psycopg import sql
from support.calls import reason_or_ok
from support.pgbouncer import Pooler, needs_pgbouncer, needs_preparing_pgbouncer, pgbouncer
from support.postgres_roles import new_role
from support.service import Api, ServerThread, all_at_once, new_codes, settings_for
from support.store import opened
from support.tour import take_tour
from support.work_done import work_done

from coupon_service.errors import Contention
from coupon_service.store import migrations
from coupon_service.store.database import SET_PARAMETERS, Database
from coupon_service.store.migrations import MIGRATION_LOCK, TRY_LOCK
from coupon_service.store.pipeline import Connection, Pipeline
from coupon_service.store.privileges import grant
from coupon_service.store.server_check import check_server, connection_problem
from coupon_service.telemetry.readiness import Readiness
from coupon_service.wiring import database_settings

POOLED: Final[dict[str, Any]] = {
    "parameters_from": "transaction",
    "prepared_statements": False,
}

EFFECTIVE: Final = (
    "SELECT current_setting('lock_timeout'), current_setting('statement_timeout'),"
    " current_setting('idle_in_transaction_session_timeout'), current_setting('timezone'),"
    " current_setting('plan_cache_mode'), current_setting('enable_seqscan'),"
    " current_setting('enable_hashjoin'), current_setting('enable_mergejoin')"
)
SESSIONS: Final = 4

AS_SET: Final = ("2s", "5s", "10s", "UTC", "force_generic_plan", "off", "off", "off")


@pytest.fixture
def pooler(database_url: str, tmp_path: Path) -> Iterator[Pooler]:
    with pgbouncer(tmp_path, database_url) as running:
        yield running


async def problems(database: Database) -> dict[Readiness, str]:
    async def work(connection: Connection) -> dict[Readiness, str]:
        return await check_server(connection, database.settings)

    return await database.read_at_once("check", work)


def left_behind(pooled_url: str) -> set[Any]:
    """The settings of the sessions that the pooler gives to other clients."""
    with ExitStack() as stack:
        others = [
            stack.enter_context(psycopg.connect(pooled_url, prepare_threshold=None))
            for _ in range(SESSIONS)
        ]
        return {other.execute(EFFECTIVE).fetchone() for other in others}


@needs_pgbouncer
async def test_a_pooler_that_refuses_options_is_told(database_url: str, pooler: Pooler) -> None:
    async with opened(pooler.url(database_url), pool_timeout_ms=200) as database:
        error = await database.connection_error()
    assert error is not None
    flags, cause = connection_problem(error)
    assert flags == Readiness(0)
    assert "unsupported startup parameter" in cause
    assert "COUPON_SESSION_PARAMETERS=transaction" in cause


@needs_pgbouncer
async def test_a_pooler_that_drops_options_makes_the_session_unsafe(
    database_url: str, tmp_path: Path
) -> None:
    with pgbouncer(tmp_path, database_url, ignore_startup_parameters="options") as pooler:
        url = pooler.url(database_url)
        async with opened(url, prepared_statements=False) as database:
            found = await problems(database)
    assert set(found) == {Readiness.UNSAFE_SETTINGS}
    sentence = found[Readiness.UNSAFE_SETTINGS]
    assert "statement_timeout is off, not 5000 ms" in sentence
    assert "enable_seqscan is on, not off" in sentence
    assert "COUPON_SESSION_PARAMETERS=transaction" in sentence


@needs_pgbouncer
async def test_each_transaction_and_read_has_the_parameters_and_leaves_none_behind(
    database_url: str, pooler: Pooler
) -> None:
    async def work(connection: Connection) -> Any:
        return await (await connection.execute(EFFECTIVE)).fetchone()

    async def batch(pipeline: Pipeline) -> Any:
        rows = pipeline.add(EFFECTIVE)
        await pipeline.run()
        return rows[0]

    url = pooler.url(database_url)
    before = left_behind(url)
    async with opened(url, **POOLED) as database:
        assert await problems(database) == {}
        assert await database.read("read", work) == AS_SET
        assert await database.read_at_once("read at once", work) == AS_SET
        assert await database.transaction("transaction", work) == AS_SET
        assert await database.batch("batch", batch) == AS_SET
    assert left_behind(url) == before != {AS_SET}


@needs_pgbouncer
async def test_the_role_can_have_the_parameters(database_url: str, tmp_path: Path) -> None:
    with new_role(database_url) as (role, role_url):
        with pgbouncer(tmp_path, role_url) as pooler:
            url = pooler.url(role_url)
            settings: dict[str, Any] = {"parameters_from": "role", "prepared_statements": False}
            async with opened(url, **settings) as database:
                grant(database_url, role, {}, execute=True)
                assert set(await problems(database)) == {Readiness.UNSAFE_SETTINGS}
                grant(database_url, role, database.settings.role_parameters, execute=True)
        with pgbouncer(tmp_path, role_url) as pooler:
            async with opened(pooler.url(role_url), **settings) as database:
                assert await problems(database) == {}
            assert left_behind(pooler.url(role_url)) == {AS_SET}


@needs_pgbouncer
def test_the_service_works_through_a_pooler(
    database_url: str, redis_url: str, pooler: Pooler
) -> None:
    settings = settings_for(
        pooler.url(database_url),
        redis_url,
        session_parameters="transaction",
        prepared_statements=False,
    )
    with ServerThread(settings) as running, closing(Api(running.address)) as api:
        take_tour(api)


@needs_preparing_pgbouncer
@pytest.mark.parametrize("parameters", ["transaction", "role"])
def test_the_service_works_through_a_pooler_with_prepared_statements(
    database_url: str, redis_url: str, tmp_path: Path, parameters: str
) -> None:
    with new_role(database_url) as (role, role_url), ExitStack() as stack:
        # Few, so that the pooler prepares the same ones again and again.
        kept = {"max_prepared_statements": "10", "default_pool_size": "2"}
        pooler = stack.enter_context(pgbouncer(tmp_path, role_url, **kept))
        url = pooler.url(role_url)
        settings = settings_for(
            url, redis_url, session_parameters=parameters, prepared_statements=True
        )
        grant(database_url, role, database_settings(url, settings).role_parameters, execute=True)
        running = stack.enter_context(ServerThread(settings, owner_url=database_url))
        api = stack.enter_context(closing(Api(running.address)))
        take_tour(api)
        codes = new_codes(100)
        api.book(codes=codes)
        redeemed = all_at_once([partial(api.redeem, it, "ann") for it in codes])
        session = stack.enter_context(psycopg.connect(url, prepare_threshold=None))
        (kept_now,) = session.execute("SELECT count(*) FROM pg_prepared_statements").fetchall()
    assert set(map(reason_or_ok, redeemed)) == {"OK"}
    assert kept_now != (0,)


@needs_pgbouncer
def test_migrations_through_a_pooler_leave_no_lock_behind(
    empty_database_url: str, tmp_path: Path
) -> None:
    with pgbouncer(tmp_path, empty_database_url) as pooler:
        url = pooler.url(empty_database_url)
        before = left_behind(url)
        steps = migrations.apply(url, pooled=True)
        with psycopg.connect(empty_database_url) as direct:
            locks = direct.execute("SELECT pid FROM pg_locks WHERE locktype = 'advisory'")
            assert locks.fetchall() == []
        assert migrations.status(url, pooled=True) == [(step, True) for step in steps]
        assert migrations.rollback(url, pooled=True) == steps[::-1]
        assert left_behind(url) == before


@needs_pgbouncer
def test_a_migration_that_was_killed_holds_no_lock_in_a_pooler(
    empty_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrations, "LOCK_TIMEOUT_MS", 5_000)
    with pgbouncer(tmp_path, empty_database_url) as pooler:
        url = pooler.url(empty_database_url)
        other = psycopg.connect(url)
        try_lock = TRY_LOCK.format(lock=sql.Literal(MIGRATION_LOCK))
        assert other.execute(try_lock).fetchone() == (True, "0")
        other.close()
        assert migrations.apply(url, pooled=True)


def test_who_changes_the_schema_is_told(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrations, "LOCK_TIMEOUT_MS", 100)
    with psycopg.connect(empty_database_url, application_name="a deployment") as other:
        other.execute("SELECT pg_advisory_lock(%s)", [MIGRATION_LOCK])
        pid = other.info.backend_pid
        with pytest.raises(Contention, match=f"backend {pid} of PostgreSQL, a deployment, role"):
            migrations.apply(empty_database_url)


def test_a_redemption_makes_the_same_round_trips_and_no_more_statements_without_a_pooler(
    new_database: Callable[[], AbstractContextManager[str]], redis_url: str
) -> None:
    def steps(**changes: object) -> tuple[list[str], list[str]]:
        """Of a redemption, and of a look at a code."""
        with (
            new_database() as url,
            ServerThread(settings_for(url, redis_url, **changes)) as running,
            closing(Api(running.address)) as api,
            work_done(running) as work,
        ):
            code = api.code()
            _, redeeming = work.of(lambda: api.redeem(code, "ann"))
            _, reading = work.of(lambda: api.get_code(code))
        return redeeming, reading

    redeeming, reading = steps()
    assert redeeming.count("round trip") == 2
    assert not [it for it in redeeming if "set_config" in it]
    pooled, pooled_reading = steps(session_parameters="transaction", prepared_statements=False)
    assert [it for it in pooled if it != SET_PARAMETERS] == redeeming
    assert pooled.count(SET_PARAMETERS) == 1
    assert pooled_reading.count("round trip") == reading.count("round trip") + 2
