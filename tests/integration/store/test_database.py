"""What is done for one caller leaves connections to those who share one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
from support.store import opened

from coupon_service.store.database import Database
from coupon_service.store.pipeline import Connection, Pipeline


@pytest.fixture
async def database(database_url: str) -> AsyncGenerator[Database]:
    async with opened(database_url, pool_max_size=3, unbatched_max=2) as made:
        yield made


class Held:
    """Work that goes on until it is let go."""

    def __init__(self) -> None:
        self.begun = 0
        self.let_go = asyncio.Event()

    async def work(self, _: Connection) -> None:
        self.begun += 1
        await self.let_go.wait()

    async def until_begun(self, count: int) -> None:
        async with asyncio.timeout(30):
            while self.begun < count:
                await asyncio.sleep(0.01)


async def batch(database: Database) -> None:
    """As redemptions do."""

    async def work(pipeline: Pipeline) -> None:
        pipeline.add("SELECT 1")

    async with asyncio.timeout(10):
        await database.batch("commands", work)


async def test_lists_changes_and_reads_together_leave_a_connection_to_batches(
    database: Database,
) -> None:
    held = Held()
    calls = [database.transaction("list", held.work) for _ in range(4)]
    calls += [database.read("get", held.work) for _ in range(4)]
    tasks = [asyncio.ensure_future(call) for call in calls]
    await held.until_begun(2)
    await batch(database)
    assert held.begun == 2
    held.let_go.set()
    await asyncio.gather(*tasks)
    assert held.begun == 8


async def test_callers_that_leave_do_not_let_others_take_more_connections(
    database: Database,
) -> None:
    """What they began goes on, with its connection."""
    held = Held()
    left = [asyncio.ensure_future(database.read("get", held.work)) for _ in range(4)]
    await held.until_begun(2)
    for task in left:
        task.cancel()
    others = [asyncio.ensure_future(database.read("get", held.work)) for _ in range(2)]
    await batch(database)
    assert held.begun == 2
    held.let_go.set()
    await asyncio.gather(*others)
    assert held.begun == 4  # those who left while they waited are not begun
