"""What a server does for a call: that two take the same is shown without measuring time."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, cast
from unittest import mock

import grpc
from support.service import ServerThread

from coupon_service.rpc.context import CURRENT
from coupon_service.store.commands import codes
from coupon_service.store.pipeline import Pipeline, Rows


class WorkDone:
    """Everything that a server asked of PostgreSQL and Redis, in order: statements, round trips,
    and the books that it got."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    def of(self, call: Callable[[], object]) -> tuple[object, list[str]]:
        """All that the caller is told, and what was done for it."""
        self.steps.clear()
        try:
            answer = call()
        except grpc.RpcError as caught:
            error: Any = caught
            answer = error.code(), error.details(), list(error.trailing_metadata())
        return answer, list(self.steps)


@contextmanager
def work_done(server: ServerThread) -> Generator[WorkDone]:
    """Record what the server does for calls, but for the round trip before a COMMIT that only
    Citus needs."""
    work = WorkDone()
    redis = cast("Any", server.server)._leases._redis
    add, run, ask_redis = Pipeline.add, Pipeline.run, redis.replies
    books_read: list[Rows] = []

    def of_a_call() -> bool:
        return CURRENT.get(None) is not None  # and not of what goes on beside them

    def record(*steps: str) -> None:
        if of_a_call():
            work.steps.extend(steps)

    def recorded_add(pipeline: Pipeline, statement: Any, parameters: Any = ()) -> Rows:
        if statement == pipeline.ending and pipeline.connection.is_on_citus and of_a_call():
            assert work.steps.pop() == "round trip"
        record(statement)
        rows = add(pipeline, statement, parameters)
        if statement == codes.SELECT_BOOKS and of_a_call():
            books_read.append(rows)
        return rows

    async def recorded_run(pipeline: Pipeline) -> None:
        record("round trip")
        await run(pipeline)
        if of_a_call():
            record(*("book" for rows in books_read for _ in rows))
            books_read.clear()

    async def recorded_replies(*commands: Any) -> Any:
        record(*("redis" for _ in commands))
        return await ask_redis(*commands)

    with (
        mock.patch.object(Pipeline, "add", recorded_add),
        mock.patch.object(Pipeline, "run", recorded_run),
        mock.patch.object(redis, "replies", recorded_replies),
    ):
        yield work
