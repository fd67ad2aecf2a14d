"""Refused attempts are written beside the calls: bounded, and never a reason to fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from integration.redemptions.test_refusals import attempt
from prometheus_client import CollectorRegistry
from support.store import opened

from coupon_service.embedded import EmbeddedPostgres
from coupon_service.maintenance import refusal_writer
from coupon_service.maintenance.refusal_writer import RefusalWriter
from coupon_service.model.refused_attempts import RefusedAttempt
from coupon_service.store import migrations
from coupon_service.store.database import Database
from coupon_service.store.refusals import RefusalFilter, select_refusals
from coupon_service.telemetry.metrics import Metrics

NOW_S = 0.01
NEVER_S = 3_600.0
GIVES_UP = {"pool_timeout_ms": 100, "attempts_max": 1}


class Writer:
    """A writer, and what its metrics say."""

    def __init__(self, database: Database, **settings: Any) -> None:
        self.registry = CollectorRegistry()
        self.database = database
        self.writer = RefusalWriter(database, Metrics(self.registry), **settings)

    def add(self, *numbers: int) -> None:
        """Attempts of these numbers."""
        for number in numbers:
            self.writer.add(partial(attempt, number))

    def dropped(self, reason: str) -> float | None:
        """So many were, for this reason."""
        return self.registry.get_sample_value("coupon_refusals_dropped_total", {"reason": reason})

    @property
    def written(self) -> float | None:
        """So many were written, as it says."""
        return self.registry.get_sample_value("coupon_refusals_written_total")

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait for it."""
        async with asyncio.timeout(60):
            while not holds():
                await asyncio.sleep(0.01)

    async def rows(self) -> list[RefusedAttempt]:
        """What is in the table."""
        found, _ = await self.database.transaction(
            "r", lambda it: select_refusals(it, RefusalFilter(), 1_000, None)
        )
        return found


@pytest.fixture
async def database(
    new_database: Callable[[], AbstractContextManager[str]],
) -> AsyncIterator[Database]:
    with new_database() as url:
        async with opened(url) as database:
            yield database


async def test_attempts_of_a_moment_are_written_together(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements: list[int] = []
    real = refusal_writer.insert_refusals

    async def insert(connection: Any, rows: list[RefusedAttempt], *arguments: Any) -> None:
        statements.append(len(rows))
        await real(connection, rows, *arguments)

    monkeypatch.setattr(refusal_writer, "insert_refusals", insert)
    writer = Writer(database, delay_s=0.2)
    few = refusal_writer.WRITTEN_MAX - 1
    writer.add(*range(few))
    await writer.until(lambda: writer.written == few)
    assert statements == [few]
    assert await writer.rows() == [attempt(it) for it in range(few)]
    writer.add(few)
    await writer.until(lambda: writer.written == few + 1)
    assert statements == [few, 1]


async def test_enough_for_a_statement_waits_no_longer(database: Database) -> None:
    writer = Writer(database, delay_s=NEVER_S)
    writer.add(*range(2 * refusal_writer.WRITTEN_MAX + 1))
    await writer.until(lambda: writer.written == 2 * refusal_writer.WRITTEN_MAX)
    writer.add(*range(1_000, 999 + refusal_writer.WRITTEN_MAX))
    await writer.until(lambda: writer.written == 3 * refusal_writer.WRITTEN_MAX)
    await writer.writer.drain()


async def test_few_that_come_while_others_are_written_wait_for_more(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Writer(database, delay_s=NEVER_S)
    statements = 0
    real = database.read

    async def read(*arguments: Any) -> Any:
        nonlocal statements
        statements += 1
        writer.add(1_000 + statements)
        return await real(*arguments)

    monkeypatch.setattr(database, "read", read)
    writer.add(*range(refusal_writer.WRITTEN_MAX))
    await writer.until(lambda: writer.written == refusal_writer.WRITTEN_MAX)
    await asyncio.sleep(0.3)
    assert statements == 1
    monkeypatch.undo()
    await writer.writer.drain()
    assert writer.written == refusal_writer.WRITTEN_MAX + 1


async def test_what_is_too_much_is_dropped_and_counted(database: Database) -> None:
    writer = Writer(database, delay_s=NEVER_S, waiting_max=5)
    writer.add(*range(8))
    assert writer.dropped("full") == 3
    await writer.writer.drain()
    assert await writer.rows() == [attempt(it) for it in range(5)]


async def test_a_stop_does_not_wait_for_the_moment(database: Database) -> None:
    writer = Writer(database, delay_s=NEVER_S)
    writer.add(1)
    await writer.writer.drain()
    assert await writer.rows() == [attempt(1)]
    await writer.writer.drain()


async def test_a_stop_waits_only_for_so_long(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asyncio.Event()

    async def hangs(*_: object) -> None:
        asked.set()
        await asyncio.sleep(NEVER_S)

    monkeypatch.setattr(refusal_writer, "DRAIN_S", NOW_S)
    writer = Writer(database, delay_s=NOW_S)
    with monkeypatch.context() as patch:
        patch.setattr(database, "read", hangs)
        writer.add(1, 2, 3)
        await asked.wait()
        await writer.writer.drain()
    assert writer.dropped("stopped") == 3
    assert not await writer.rows()


async def test_what_is_no_schema_of_ours_drops_them_at_once(
    new_database: Callable[[], AbstractContextManager[str]], database: Database
) -> None:
    await database.read("drop", lambda it: it.execute("DROP TABLE coupon_refusals"))
    writer = Writer(database, delay_s=NOW_S, retry_s=NEVER_S)
    writer.add(1, 2)
    await writer.until(lambda: writer.dropped("failed") == 2)


@asynccontextmanager
async def on_its_own(server: EmbeddedPostgres) -> AsyncGenerator[Database]:
    migrations.apply(server.url)
    async with opened(server.url, **GIVES_UP) as database:
        yield database


async def test_postgresql_may_be_away_for_a_moment(
    server_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusal_writer, "TRIES", 10_000)  # however slow the machine
    with EmbeddedPostgres(server_folder / "postgres-of-refusals", durable=False) as server:
        async with on_its_own(server) as database:
            writer = Writer(database, delay_s=NOW_S, retry_s=0.05)
            writer.add(0)
            await writer.until(lambda: writer.written == 1)
            server.kill()
            writer.add(1, 2)
            await asyncio.sleep(0.2)
            await asyncio.to_thread(server.start)
            await writer.until(lambda: writer.written == 3)
            assert await writer.rows() == [attempt(it) for it in range(3)]


async def test_when_postgresql_stays_away_they_are_dropped_and_later_ones_are_not(
    server_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EmbeddedPostgres(server_folder / "postgres-that-stays-away", durable=False) as server:
        async with on_its_own(server) as database:
            writer = Writer(database, delay_s=NOW_S, retry_s=NOW_S)
            server.kill()
            writer.add(1, 2)
            await writer.until(lambda: writer.dropped("failed") == 2)
            await asyncio.to_thread(server.start)
            monkeypatch.setattr(refusal_writer, "TRIES", 10_000)
            writer.add(3)
            await writer.until(lambda: writer.written == 1)
            assert await writer.rows() == [attempt(3)]
