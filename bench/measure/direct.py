"""Throughput of PostgreSQL with the service's own statements, without the service.

The statements of batches of redemptions are recorded while the service's code executes them in a
transaction that is rolled back. Then they are timed: each batch in a transaction and a pipeline, on
as many connections as the workers of the service have batches in flight.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from time import perf_counter
from typing import Any, Final, LiteralString

from bench.loads.prepare import BATCH_SIZE, batch_request
from coupon_service.model import CommandGroup
from coupon_service.rpc.context import RequestContext
from coupon_service.rpc.convert.redemptions import read_batch
from coupon_service.rules import decide
from coupon_service.store.commands.apply import apply
from coupon_service.store.commands.load import load
from coupon_service.store.pipeline import Connection, Pipeline, Rows
from coupon_service.store.scopes import LoadMemory
from coupon_service.store.sessions import PLANNING

Statement = tuple[LiteralString, Sequence[str | int]]
BATCHES_IN_FLIGHT: Final = 2
SETTINGS: Final = "-c timezone=UTC " + " ".join(
    f"-c {name}={value}" for name, value in PLANNING.items()
)


class RecordingPipeline(Pipeline):
    """A pipeline that records its statements."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self.recorded: list[Statement] = []

    def add(self, statement: LiteralString, parameters: Sequence[str | int] = ()) -> Rows:
        """Record the statement, and add it."""
        self.recorded.append((statement, parameters))
        return super().add(statement, parameters)


@dataclass(frozen=True, slots=True)
class Work:
    """The share of one process: batches to redeem, by the number of their first code."""

    database_url: str
    starts: Sequence[int]


async def _record(database_url: str, start: int) -> list[Statement]:
    request = batch_request(start)
    redeems = [command for command, _ in read_batch(request, RequestContext(peer="direct"))[0]]
    async with await Connection.connect(
        database_url, autocommit=True, options=SETTINGS
    ) as connection:
        async with connection.transaction(force_rollback=True):
            pipeline = RecordingPipeline(connection)
            now = datetime.now(UTC)
            state = await load(pipeline, redeems, now, lock=True, memory=LoadMemory())
            _, write_set = decide([CommandGroup(tuple(redeems))], state, now)
            apply(pipeline, write_set, state.books)
            await pipeline.run()
            return pipeline.recorded


async def _replay(database_url: str, batches: list[list[Statement]]) -> None:
    left = iter(batches)

    async def one_connection() -> None:
        async with await Connection.connect(
            database_url, autocommit=True, options=SETTINGS
        ) as connection:
            for batch in left:
                pipeline = Pipeline(connection)
                pipeline.add("BEGIN")
                for statement, parameters in batch:
                    pipeline.add(statement, parameters)
                pipeline.add("COMMIT")
                await pipeline.run()

    await asyncio.gather(*(one_connection() for _ in range(BATCHES_IN_FLIGHT)))


def _work(work: Work, ready: Any, done: Any) -> None:
    async def run() -> None:
        batches = [await _record(work.database_url, start) for start in work.starts]
        await asyncio.to_thread(ready.wait)
        await _replay(work.database_url, batches)
        await asyncio.to_thread(done.wait)

    asyncio.run(run())


def redeem_directly(database_url: str, batches: int, codes: int, processes: int) -> float:
    """Codes per second with so many processes. Each batch redeems 1,000 codes of `batch_book`."""
    context = multiprocessing.get_context("spawn")
    ready, done = context.Barrier(processes + 1), context.Barrier(processes + 1)
    starts = [number * BATCH_SIZE % codes for number in range(batches)]
    workers = [
        context.Process(
            target=_work,
            args=(Work(database_url, starts[part::processes]), ready, done),
            daemon=True,
        )
        for part in range(processes)
    ]
    for worker in workers:
        worker.start()
    ready.wait(120)
    started = perf_counter()
    done.wait(120)
    seconds = perf_counter() - started
    for worker in workers:
        worker.join()
    return batches * BATCH_SIZE / seconds


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("database_url")
    arguments = parser.parse_args()
    print(f"{redeem_directly(arguments.database_url, 20, 20_000, 2):,.0f} codes/s")
