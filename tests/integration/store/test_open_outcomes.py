"""A transaction whose line was cut may have been committed: nothing that a later try meets without
deciding makes its outcome definite.
"""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest
from psycopg import errors as pg
from psycopg_pool import PoolTimeout
from support.store import opened

from coupon_service.errors import (
    BookNotFound,
    Contention,
    CouponServiceError,
    DatabaseUnavailable,
    Overloaded,
)
from coupon_service.store.database import Database
from coupon_service.store.pipeline import Connection, Pipeline


async def cut(connection: Connection) -> None:
    """What a try meets whose line is cut."""
    await connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")


async def outcome(database: Database, *tries: Exception | None, cut_first: bool = True) -> object:
    """What a transaction ends with whose later tries meet these; None: it is done."""
    waiting = list(tries)
    if cut_first:
        waiting.insert(0, psycopg.OperationalError())

    async def work(connection: Connection) -> str:
        error = waiting.pop(0)
        if type(error) is psycopg.OperationalError:
            await cut(connection)
        if error is not None:
            raise error
        return "done"

    try:
        return await database.transaction("test", work)
    except (CouponServiceError, psycopg.Error) as error:
        return type(error)


@pytest.mark.parametrize(
    ("tries", "definite"),
    [
        ([pg.LockNotAvailable()] * 3, Contention),
        ([pg.DeadlockDetected()] * 3, Contention),
        ([pg.SerializationFailure()] * 3, Contention),
        ([pg.QueryCanceled()], Contention),
        ([PoolTimeout()], Overloaded),
        ([pg.LockNotAvailable(), PoolTimeout()], Overloaded),
        ([pg.UniqueViolation()], pg.UniqueViolation),
        ([pg.LockNotAvailable(), pg.InternalError_()], pg.InternalError_),
    ],
)
async def test_what_a_later_try_meets_leaves_the_outcome_open(
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    tries: list[Exception],
    definite: type[Exception],
) -> None:
    async with opened(database_url) as database:
        monkeypatch.setattr(database, "_in_use", 1)  # so that a pool without a line is a full one
        assert await outcome(database, *tries, cut_first=False) is definite
        assert await outcome(database, *tries) is DatabaseUnavailable


@pytest.mark.parametrize("decision", [None, BookNotFound()])
async def test_a_try_that_decides_settles_the_outcome(
    database_url: str, decision: Exception | None
) -> None:
    async with opened(database_url) as database:
        assert await outcome(database, pg.LockNotAvailable(), decision) == (
            "done" if decision is None else type(decision)
        )


async def test_the_outcome_of_a_batch_is_open_as_well(database_url: str) -> None:
    tries: list[Callable[[Pipeline], object]] = [
        lambda it: it.add("SELECT pg_terminate_backend(pg_backend_pid())"),
        lambda it: it.add("SELECT 1 / 0"),
    ]

    async def work(pipeline: Pipeline) -> None:
        tries.pop(0)(pipeline)

    async with opened(database_url) as database:
        with pytest.raises(DatabaseUnavailable):
            await database.batch("test", work)
        assert not tries
