"""Back-pressure: calls beyond a full queue or pool are refused at once, without effect."""

from __future__ import annotations

import functools
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import psycopg
import pytest
from grpc import StatusCode
from support.calls import reason_or_ok, tried
from support.service import Api, ServerThread, books, refused, settings_for
from support.waiting import until

QUEUE = 5
CALLERS = 30


@pytest.fixture
def small(database_url: str, redis_url: str) -> Iterator[Api]:
    """A server with one connection and a short queue."""
    settings = settings_for(
        database_url,
        redis_url,
        pool_min_size=1,
        pool_max_size=1,
        pool_timeout_ms=300,
        batches_in_flight=1,
        batch_max_size=1,
        queue_max_size=QUEUE,
        sweep_interval_ms=3_600_000,
        lock_timeout_ms=20_000,
        statement_timeout_ms=30_000,
        default_deadline_ms=60_000,
    )
    with ServerThread(settings) as server, closing(Api(server.address)) as api:
        until(lambda: tried(api.draft) == "OK")
        yield api


@contextmanager
def held(database_url: str, code: str) -> Generator[None]:
    """Another session holds the row lock of a code."""
    with closing(psycopg.connect(database_url)) as holder:
        holder.execute("SELECT FROM coupon_codes WHERE code = %s FOR UPDATE", [code])
        yield
        holder.rollback()


def test_full_queue_refuses_further_calls_at_once(small: Api, database_url: str) -> None:
    limits = books.BookLimits(max_redemptions_per_code=0)
    code = small.code(limits=limits)

    def ended(calls: list[Future[Any]]) -> list[str]:
        return [reason_or_ok(it.exception() or it.result()) for it in calls if it.done()]

    with ThreadPoolExecutor(CALLERS) as callers:
        with held(database_url, code):
            calls = [
                callers.submit(functools.partial(small.redeem, code, f"user-{number}"))
                for number in range(CALLERS)
            ]
            full = CALLERS - QUEUE - 1  # one is in flight
            until(lambda: len(ended(calls)) == full)
            assert set(ended(calls)) == {"OVERLOADED"}
            with refused("OVERLOADED", StatusCode.RESOURCE_EXHAUSTED) as it:
                small.redeem(code, "one more")
            assert it.retry_after_s
    assert ended(calls).count("OK") == QUEUE + 1
    assert small.get_code(code).redemption_count == QUEUE + 1
    assert small.event_names(code=code) == ["REDEEMED"] * (QUEUE + 1)


def test_exhausted_pool_refuses_further_calls_at_once(small: Api, database_url: str) -> None:
    code, other = small.code(), small.code()
    with ThreadPoolExecutor() as callers:
        with held(database_url, code):
            first = callers.submit(functools.partial(small.redeem, code, "ann"))
            until(lambda: tried(lambda: small.get_code(other)) == "OVERLOADED")
            with refused("OVERLOADED", StatusCode.RESOURCE_EXHAUSTED) as it:
                small.get_code(other)
            assert it.retry_after_s
            assert not first.done()
        assert not first.result().replayed
    assert small.redeem(other, "bob").redemption
