"""Statements that travel together, on connections that others use as well."""

from __future__ import annotations

from typing import LiteralString

import psycopg
import pytest
from stores import opened

from coupon_service.store.db import Database
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


async def look(connection: Connection) -> None:
    """Reads something with a statement that psycopg prepares, and forgets with a rollback."""
    await connection.execute("SELECT 1")


async def test_a_rollback_on_a_connection_does_not_break_its_next_batch(database_url: str) -> None:
    async def given_up(connection: Connection) -> None:
        await look(connection)
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
            await database.read("look", look)
            with pytest.raises(psycopg.errors.DivisionByZero):
                await numbers(database, "SELECT %s / 0")
