"""Statements that travel together, on connections that others use as well."""

from __future__ import annotations

import pytest
from stores import opened

from coupon_service.store.pipeline import Connection, Pipeline


class GivenUpError(Exception):
    """A transaction is rolled back."""


async def test_a_rollback_on_a_connection_does_not_break_its_next_batch(database_url: str) -> None:
    async def batch(pipeline: Pipeline) -> list[tuple[int]]:
        rows = pipeline.add("SELECT %s::int", [7])
        await pipeline.run()
        return [(int(value),) for (value,) in rows]

    async def given_up(connection: Connection) -> None:
        await connection.execute("SELECT 1")  # prepared by psycopg
        raise GivenUpError

    async with opened(database_url, pool_max_size=1) as database:
        assert await database.batch("first", batch) == [(7,)]
        with pytest.raises(GivenUpError):
            await database.transaction("rolled back", given_up)
        assert await database.batch("second", batch) == [(7,)]
