"""Other callers beside bulk work, and bulk calls that wait for their turn."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import grpc
import psycopg
import pytest
from grpc import StatusCode
from support import citus
from support.service import Api, ServerThread, books, codes, new_codes, settings_for, unique
from support.waiting import PATIENCE, until

from coupon_service.store.bulk.lane import BULK_LOCK
from coupon_service.v1 import redemption_service_pb2 as redemptions

STREAMS = 12
SHORT_S = 1.0
BUSY = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
WAITING = f"{BUSY} AND application_name = 'coupon_service/2 bulk' AND wait_event_type = 'Lock'"
OF_BULK = f"{BUSY} AND application_name = 'coupon_service/2 bulk'"
OF_OTHERS = f"{BUSY} AND application_name = 'coupon_service/2' AND state <> 'idle'"


@pytest.fixture
def server(database_url: str, redis_url: str) -> Iterator[ServerThread]:
    # No sweeper and no monitor at work while a test counts who is.
    settings = settings_for(
        database_url, redis_url, sweep_interval_ms=600_000, stock_interval_ms=600_000
    )
    with ServerThread(settings) as running:
        yield running


@pytest.fixture
def api(server: ServerThread) -> Iterator[Api]:
    with closing(Api(server.address)) as made:
        yield made


@pytest.fixture
def database(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@contextmanager
def bulk_work_elsewhere(database_url: str) -> Generator[None]:
    """A chunk of another worker, during which no other one is stored."""
    if citus.is_used():
        pytest.skip("each node of Citus has locks of its own")
    with psycopg.connect(database_url) as connection:
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [BULK_LOCK])
        yield


def generate(
    api: Api, book_id: str, count: int, request_id: str, timeout_s: float | None = None
) -> int | StatusCode:
    """How many codes there are in the end, or how the call failed."""
    request = codes.GenerateCodesRequest(book_id=book_id, count=count, request_id=request_id)
    try:
        return list(api.codes.GenerateCodes(request, timeout=timeout_s))[-1].generated_count
    except grpc.RpcError as error:
        return error.code()  # type: ignore[attr-defined, no-any-return]


def upload(api: Api, book_id: str) -> int:
    """How many codes became of an upload of two chunks."""
    answers = api.import_codes(book_id, new_codes(10), new_codes(10))
    return sum(answer.created_count for answer in answers)


def count(database: psycopg.Connection[Any], query: str) -> int:
    (row,) = database.execute(query.encode()).fetchall()
    return row[0]


def test_callers_are_served_while_bulk_calls_wait_which_hold_nothing(
    api: Api, database: psycopg.Connection[Any], database_url: str
) -> None:
    code = api.code(limits=books.BookLimits(max_redemptions_per_code=0))
    made = [api.draft().book_id for _ in range(STREAMS)]
    with ThreadPoolExecutor(STREAMS) as pool:
        with bulk_work_elsewhere(database_url):
            calls: list[Future[Any]] = [
                pool.submit(upload, api, book_id)
                if number % 3 == 0
                else pool.submit(generate, api, book_id, 20, unique("request"))
                for number, book_id in enumerate(made)
            ]
            until(lambda: count(database, WAITING) == 1)
            for number in range(20):
                request = api.redeem_request(code, f"user-{number}")
                api.redemptions.RedeemCode(request, timeout=SHORT_S * PATIENCE)
            listed = api.redemptions.ListRedemptions(
                redemptions.ListRedemptionsRequest(code=code), timeout=SHORT_S * PATIENCE
            )
            assert len(listed.redemptions) == 20
            until(lambda: count(database, OF_OTHERS) == 0)
            assert count(database, OF_BULK) == 1
            assert not any(call.done() for call in calls)
        assert [call.result() for call in calls] == [20] * STREAMS


def test_a_generation_that_runs_out_of_time_while_it_waits_goes_on_later(
    api: Api, database: psycopg.Connection[Any], database_url: str
) -> None:
    first, second, third = (api.draft().book_id for _ in range(3))
    with ThreadPoolExecutor(2) as pool:
        with bulk_work_elsewhere(database_url):
            ahead = pool.submit(generate, api, first, 10, "r")
            until(lambda: count(database, WAITING) == 1)
            assert generate(api, second, 10, "r", timeout_s=0.3) is StatusCode.DEADLINE_EXCEEDED
            behind = pool.submit(generate, api, third, 10, "r")
        assert (ahead.result(), behind.result()) == (10, 10)
    assert api.stats(second).available_count == 0
    assert generate(api, second, 10, "r") == 10
    assert api.stats(second).available_count == 10


def test_a_worker_that_stops_does_not_wait_for_the_turns_of_generations(
    database: psycopg.Connection[Any], database_url: str, redis_url: str
) -> None:
    settings = settings_for(database_url, redis_url, shutdown_timeout_ms=300)
    with ThreadPoolExecutor(5) as pool, ExitStack() as elsewhere:
        elsewhere.enter_context(bulk_work_elsewhere(database_url))
        with ServerThread(settings) as server, closing(Api(server.address)) as api:
            made = [api.draft().book_id for _ in range(4)]
            calls = [pool.submit(generate, api, book_id, 10, "r") for book_id in made]
            until(lambda: count(database, WAITING) == 1)
            pool.submit(lambda: (wait(calls), elsewhere.close()))
        ends = {call.result() for call in calls}
    assert ends <= {StatusCode.UNAVAILABLE, StatusCode.CANCELLED}
    with ServerThread(settings) as other, closing(Api(other.address)) as api:
        for book_id in made:
            assert generate(api, book_id, 10, "r") == 10
            assert api.stats(book_id).available_count == 10
