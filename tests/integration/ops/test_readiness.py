"""Readiness says what is wrong with PostgreSQL: once as a warning, and in `/readyz`."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from prometheus_client import CollectorRegistry
from psycopg import sql
from support.postgres_roles import encoded_database, execute, new_role
from support.secret_scan import Log
from support.store import opened

from coupon_service.embedded import EmbeddedPostgres
from coupon_service.embedded.machine import free_port
from coupon_service.errors import DatabaseUnavailable
from coupon_service.leases import Leases
from coupon_service.maintenance import readiness_monitor
from coupon_service.maintenance.readiness_monitor import ReadinessMonitor
from coupon_service.store.pipeline import Connection
from coupon_service.telemetry.metrics import Metrics
from coupon_service.telemetry.readiness import Readiness, report

FURTHER_CHECKS_S = 0.6
IMPATIENT = {"pool_timeout_ms": 1_000}
"""Where there is no connection. Elsewhere a busy machine takes its time for one."""


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness_monitor, "INTERVAL_S", 0.05)


async def found(
    url: str, leases: Leases, log: Log, **changes: Any
) -> tuple[dict[str, object], list[dict[str, Any]]]:
    """What `/readyz` says after some checks, and the warnings until then."""
    reports: list[Readiness] = []

    async def notify(readiness: Readiness, _: Sequence[Readiness]) -> None:
        reports.append(readiness)

    async with opened(url, **changes) as database:
        metrics = Metrics(CollectorRegistry())
        log.take()
        running = asyncio.ensure_future(ReadinessMonitor([database], leases, metrics, notify).run())
        while not reports:
            await asyncio.sleep(0.01)
        await asyncio.sleep(FURTHER_CHECKS_S)
        running.cancel()
    lines = [json.loads(line) for line in log.take().splitlines()]
    warnings = [it for it in lines if it["event"] == "readiness" and it["level"] == "warning"]
    return report(reports[-1:]), warnings


async def assert_told(
    url: str, leases: Leases, log: Log, state: str, *words: str, **changes: Any
) -> None:
    """The state is in the report, and the words are in the only warning."""
    body, warnings = await found(url, leases, log, **changes)
    assert (body["status"], body["postgresql"]) == ("NOT_SERVING", state)
    assert body["redis"] == "ok"
    (warning,) = warnings
    assert warning["postgresql"] is False
    for word in words:
        assert word in warning["cause"]


async def test_a_server_that_will_do_is_told_without_a_warning(
    database_url: str, leases: Leases, service_log: Log
) -> None:
    body, warnings = await found(database_url, leases, service_log)
    assert (body["status"], body["postgresql"], body["schema"]) == ("SERVING", "ok", "ok")
    assert warnings == []


async def test_a_read_only_server_is_not_serving(
    database_url: str, leases: Leases, service_log: Log
) -> None:
    name = sql.Identifier(urlsplit(database_url).path.removeprefix("/"))
    statement = sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on")
    execute(database_url, statement.format(name))
    await assert_told(
        database_url, leases, service_log, "read-only", "standby", "target_session_attrs"
    )


@pytest.mark.parametrize(
    ("take", "words"),
    [
        ("REVOKE ALL ON redemption_audit FROM {}", "INSERT on redemption_audit"),
        ("REVOKE ALL ON lock_fences FROM {}", "USAGE on lock_fences"),
        ("REVOKE SELECT ON _yoyo_migration FROM {}", "SELECT on _yoyo_migration"),
    ],
)
async def test_a_privilege_that_is_missing_is_named(
    take: Any, words: str, database_url: str, leases: Leases, service_log: Log
) -> None:
    with new_role(database_url) as (role, url):
        name = sql.Identifier(role)
        execute(
            database_url,
            sql.SQL("GRANT ALL ON ALL TABLES IN SCHEMA public TO {}").format(name),
            sql.SQL("GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {}").format(name),
        )
        body, _ = await found(url, leases, service_log)
        assert body["status"] == "SERVING"
        execute(database_url, sql.SQL(take).format(name))
        await assert_told(url, leases, service_log, "no privilege", words, "migrate grants")


async def test_a_schema_that_may_not_be_used_is_no_old_schema(
    database_url: str, leases: Leases, service_log: Log
) -> None:
    execute(database_url, "REVOKE USAGE ON SCHEMA public FROM PUBLIC")
    with new_role(database_url) as (_, url):
        await assert_told(url, leases, service_log, "no privilege", "USAGE on schema public")


async def test_a_database_in_another_encoding_is_not_serving(
    postgres_url: str, leases: Leases, service_log: Log
) -> None:
    with encoded_database(postgres_url, "LATIN1") as url:
        await assert_told(url, leases, service_log, "wrong encoding", "LATIN1", "UTF8")


@pytest.mark.parametrize("url_options", ["", "?options=-csearch_path%3Delsewhere"])
async def test_calls_to_a_database_that_cannot_be_used_are_unavailable(
    url_options: str, database_url: str, leases: Leases, service_log: Log
) -> None:
    """Work in the background, which repeats, has nothing to add to what readiness has said."""
    if not url_options:
        execute(database_url, "REVOKE USAGE ON SCHEMA public FROM PUBLIC")
    reports: list[Readiness] = []

    async def notify(readiness: Readiness, _: Sequence[Readiness]) -> None:
        reports.append(readiness)

    async def work(connection: Connection) -> None:
        await connection.execute("SELECT 1 FROM coupon_books")

    with new_role(database_url) as (_, url):
        async with opened(url + url_options) as database:
            metrics = Metrics(CollectorRegistry())
            monitor = ReadinessMonitor([database], leases, metrics, notify)
            checks = asyncio.ensure_future(monitor.run())
            while not reports:
                await asyncio.sleep(0.01)
            with pytest.raises(DatabaseUnavailable):
                await database.transaction("a call", work)
            with pytest.raises(DatabaseUnavailable):
                await database.read("a call", work)
            checks.cancel()


class Recovering(EmbeddedPostgres):
    """A server that does not come to an end with its recovery."""

    def _answers(self) -> bool:
        with socket.socket() as line:
            return line.connect_ex(("127.0.0.1", self.port)) == 0


@contextmanager
def recovering(folder: Path) -> Generator[str]:
    settings = {"restore_command": "sleep 600"}
    EmbeddedPostgres(folder, durable=False).__enter__().stop()
    server = Recovering(folder, durable=False, settings=settings)
    (folder / "data" / "recovery.signal").touch(mode=0o644)
    with server:
        yield server.url


async def test_a_server_that_starts_up_is_told_from_one_that_is_not_there(
    leases: Leases, service_log: Log, tmp_path: Path
) -> None:
    with recovering(tmp_path / "postgres") as url:
        await assert_told(url, leases, service_log, "starting up", "starting up", **IMPATIENT)


async def test_why_there_is_no_connection_is_told(
    database_url: str, leases: Leases, service_log: Log
) -> None:
    parts = urlsplit(database_url)
    nobody = parts._replace(netloc=f"nobody@{parts.hostname}:{parts.port}").geturl()
    await assert_told(
        nobody, leases, service_log, "unreachable", "no password supplied", **IMPATIENT
    )
    nowhere = parts._replace(netloc=f"nobody@127.0.0.1:{free_port()}").geturl()
    await assert_told(nowhere, leases, service_log, "unreachable", "refused", **IMPATIENT)


async def test_a_transaction_that_never_had_a_connection_is_not_called_slow(
    database_url: str, service_log: Log
) -> None:
    nowhere = urlsplit(database_url)._replace(netloc=f"nobody@127.0.0.1:{free_port()}").geturl()

    async def work(connection: object) -> None:
        raise AssertionError(connection)

    async with opened(nowhere, pool_timeout_ms=50, slow_ms=0) as database:
        with pytest.raises(DatabaseUnavailable):
            await database.read("nothing", work)
    assert "slow transaction" not in service_log.take()
