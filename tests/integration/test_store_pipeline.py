"""Statements that travel together work on every connection, whatever was done on it before."""

from __future__ import annotations

import pytest
from stores import opened

from coupon_service.store.pipeline import Connection, Pipeline


async def count(pipeline: Pipeline) -> int:
    """Something that is prepared once a connection."""
    rows = pipeline.add("SELECT count(*) FROM coupon_books WHERE version = %s", (1,))
    await pipeline.run()
    return rows[0][0]


async def refused(connection: Connection) -> None:
    await connection.execute("SELECT count(*) FROM coupon_books WHERE version = %s", [1])
    raise ValueError("refused")


async def test_a_rollback_takes_prepared_statements_away_and_nobody_notices(
    database_url: str,
) -> None:
    async with opened(database_url) as database:
        for _ in range(3):
            assert await database.batch("count", count) == 0
            with pytest.raises(ValueError, match="refused"):
                # psycopg forgets what it has prepared then, and lets PostgreSQL forget everything.
                await database.transaction("refused", refused)
            await database.read("look", lambda connection: connection.execute("SELECT 1"))
            assert await database.read("look", lambda it: count(Pipeline(it))) == 0
