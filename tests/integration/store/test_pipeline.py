"""Statements that travel together, on connections that others use as well."""

from __future__ import annotations

import json
from typing import LiteralString

import psycopg
import pytest
import structlog
from support.secret_scan import Log
from support.store import opened

from coupon_service.store.database import Database
from coupon_service.store.pipeline import Connection, Pipeline


class GivenUpError(Exception):
    """A transaction is rolled back."""


async def numbers(database: Database, statement: LiteralString = "SELECT %s::int") -> list[int]:
    """What a batch of one statement returns."""

    async def batch(pipeline: Pipeline) -> list[int]:
        rows = pipeline.add(statement, [7])
        await pipeline.run()
        return [int(value) for (value,) in rows]

    return await database.batch("numbers", batch)


async def read_one(connection: Connection) -> None:
    """Reads something with a statement that psycopg prepares, and forgets with a rollback."""
    await connection.execute("SELECT 1")


async def test_a_rollback_on_a_connection_does_not_break_its_next_batch(database_url: str) -> None:
    async def given_up(connection: Connection) -> None:
        await read_one(connection)
        raise GivenUpError

    async with opened(database_url, pool_max_size=1) as database:
        for _ in range(3):
            assert await numbers(database) == [7]
            with pytest.raises(GivenUpError):
                await database.transaction("rolled back", given_up)


async def test_a_batch_that_fails_does_not_break_the_next_on_its_connection(
    database_url: str,
) -> None:
    async with opened(database_url, pool_max_size=1) as database:
        for _ in range(3):
            assert await numbers(database) == [7]
            await database.read("read", read_one)
            with pytest.raises(psycopg.errors.DivisionByZero):
                await numbers(database, "SELECT %s / 0")


async def test_the_line_about_a_slow_transaction_names_its_slowest_statements(
    database_url: str, service_log: Log
) -> None:
    async def batch(pipeline: Pipeline) -> None:
        pipeline.add("SELECT 1")
        await pipeline.run()
        pipeline.add("SELECT  pg_sleep(0.05)")
        await pipeline.run()
        pipeline.add("SELECT 2")

    async with opened(database_url, pool_max_size=1, slow_ms=40) as database:
        service_log.take()
        await database.batch("nap", batch)
    (line,) = [json.loads(it) for it in service_log.take().splitlines() if "slow" in it]
    assert (line["name"], line["slowest_trip"]) == ("nap", "SELECT pg_sleep(0.05)")
    assert 0.04 < line["slowest_trip_seconds"] <= line["seconds"]


async def test_the_log_of_an_error_has_no_values_of_rows(
    database_url: str, service_log: Log
) -> None:
    async def batch(pipeline: Pipeline) -> None:
        pipeline.add("CREATE TEMP TABLE unique_codes (code text PRIMARY KEY)")
        pipeline.add("INSERT INTO unique_codes VALUES ('SUMMER99'), ('SUMMER99')")

    async with opened(database_url) as database:
        try:
            await database.batch("twice", batch)
        except psycopg.errors.UniqueViolation as error:
            structlog.get_logger().exception("failed", cause=repr(error))
    log = service_log.take()
    assert "DETAIL:" in log
    assert "SUMMER99" not in log
