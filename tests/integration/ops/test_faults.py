"""PostgreSQL goes away and comes back, or has no schema: what was promised is kept."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import grpc
import psycopg
import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.calls import locking_code, reason_or_ok, tried
from support.service import (
    Api,
    ServerThread,
    all_at_once,
    books,
    new_codes,
    redemptions,
    refused,
    settings_for,
    unique,
)
from support.waiting import until

from coupon_service.embedded import EmbeddedPostgres
from coupon_service.store import migrations

OPTIONAL = books.LOCK_POLICY_OPTIONAL
T = TypeVar("T")

SERVICES = ("", "coupon_service.v1.RedemptionService")


def is_serving(api: Api, service: str = "") -> bool:
    """What the health service says."""
    stub: Any = health_pb2_grpc.HealthStub(api.channel)
    answer = stub.Check(health_pb2.HealthCheckRequest(service=service))
    return answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.fixture(scope="module")
def postgres_server(server_folder: Path) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(server_folder / "postgres-that-fails", durable=False) as server:
        migrations.apply(server.url)
        yield server


@pytest.fixture(scope="module")
def postgres_api(postgres_server: EmbeddedPostgres, redis_server_url: str) -> Iterator[Api]:
    """A client of a server whose PostgreSQL is `postgres_server`."""
    with ServerThread(settings_for(postgres_server.url, redis_server_url)) as server:
        client = Api(server.address)
        until(lambda: is_serving(client))
        yield client
        client.close()


def insist(call: Callable[[], T]) -> T:
    """Makes a call as a client does that waits for PostgreSQL: the same once more."""
    until(lambda: tried(call) != "DATABASE_UNAVAILABLE")
    return call()


def test_without_postgresql_nothing_is_promised(
    postgres_api: Api, postgres_server: EmbeddedPostgres
) -> None:
    api = postgres_api
    first, second = new_codes(2)
    book = api.book(codes=[first, second], lock_policy=OPTIONAL)
    held = api.lock(first, unique("user"))
    acknowledged = api.redeem(second, "ann").redemption
    request = api.redeem_request(first, held.lock.user_id, lock_token=held.lock_token)
    postgres_server.kill()
    calls: list[Callable[[], Any]] = [
        lambda: api.redemptions.RedeemCode(request),
        lambda: api.lock(second, "ann"),
        lambda: api.validate(first, "ann"),
        lambda: api.stats(book.book_id),
        lambda: api.rollback(acknowledged.redemption_id),
    ]
    assert [reason_or_ok(it) for it in all_at_once(calls)] == ["DATABASE_UNAVAILABLE"] * 5
    until(lambda: not any(is_serving(api, service) for service in SERVICES))
    with refused("DATABASE_UNAVAILABLE", StatusCode.UNAVAILABLE) as it:
        api.redemptions.RedeemCode(request)
    assert it.retry_after_s

    postgres_server.start()
    until(lambda: all(is_serving(api, service) for service in SERVICES))
    answer = insist(lambda: api.redemptions.RedeemCode(request))
    assert answer.redemption.lock_id == held.lock.lock_id
    assert api.get_code(second).redemption_count == 1
    assert api.stats(book.book_id).redemption_count == 2


def test_what_was_acknowledged_is_kept_and_a_repeat_settles_the_rest(
    postgres_api: Api, postgres_server: EmbeddedPostgres
) -> None:
    api = postgres_api
    names = new_codes(120)
    book = api.book(codes=names)
    requests = [api.redeem_request(code, "ann") for code in names]

    def redeem(first: int) -> list[Any]:
        calls = [functools.partial(api.redemptions.RedeemCode, it) for it in requests[first:]]
        return all_at_once(calls[:40])

    outcomes = redeem(0)
    crash = threading.Thread(target=postgres_server.kill)
    crash.start()
    outcomes += redeem(40)  # some before, some while it crashes
    crash.join()
    outcomes += redeem(80)
    postgres_server.start()

    reasons = list(map(reason_or_ok, outcomes))
    assert set(reasons[:40]) == {"OK"}
    assert set(reasons) == {"OK", "DATABASE_UNAVAILABLE"}
    assert "OK" not in reasons[80:]
    for request, outcome in zip(requests, outcomes, strict=True):
        settled = insist(functools.partial(api.redemptions.RedeemCode, request))
        if not isinstance(outcome, grpc.RpcError):
            assert settled.replayed
            assert settled.redemption == outcome.redemption
    stats = api.stats(book.book_id)
    assert (stats.redeemed_count, stats.redemption_count) == (120, 120)
    assert api.event_names(book_id=book.book_id).count("REDEEMED") == 120


HOLD_LEDGER = "LOCK TABLE redemption_audit IN SHARE MODE"
"""What is to be recorded waits, and has been decided and got its permit by then."""
WAITING = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = 'postgres'"


def test_a_lock_whose_outcome_is_open_stays_its_users(
    postgres_api: Api, postgres_server: EmbeddedPostgres
) -> None:
    api, url = postgres_api, postgres_server.url
    code, user, another = locking_code(api), unique("user"), unique("another")
    request = redemptions.LockCodeRequest(code=code, user_id=user, request_id=unique("request"))
    lock = functools.partial(api.redemptions.LockCode, request)
    with (
        ThreadPoolExecutor() as pool,
        closing(psycopg.connect(url)) as holder,
        closing(psycopg.connect(url, autocommit=True)) as observer,
    ):
        holder.execute(HOLD_LEDGER)
        outcome = pool.submit(tried, lock)
        until(lambda: observer.execute(WAITING).rowcount == 1)
        postgres_server.kill()
        assert outcome.result() == "DATABASE_UNAVAILABLE"
    postgres_server.start()
    with refused("CODE_LOCKED"):
        insist(lambda: api.lock(code, another))
    api.redeem(code, user, lock_token=insist(lock).lock_token)


def test_a_lock_that_was_not_recorded_gives_its_permit_back(
    postgres_api: Api, postgres_server: EmbeddedPostgres, redis_server_url: str
) -> None:
    code = locking_code(postgres_api)
    settings = settings_for(postgres_server.url, redis_server_url, lock_timeout_ms=50)
    with ServerThread(settings) as server, psycopg.connect(postgres_server.url) as holder:
        impatient = Api(server.address)
        until(lambda: is_serving(impatient))
        holder.execute(HOLD_LEDGER)
        with refused("CONTENTION", StatusCode.ABORTED):
            impatient.lock(code, unique("user"))
        holder.rollback()
        impatient.lock(code, unique("another"))
        impatient.close()


def test_connections_that_are_cut_are_replaced(
    postgres_api: Api, postgres_server: EmbeddedPostgres
) -> None:
    api = postgres_api
    code = api.code(limits=books.BookLimits(max_redemptions_per_code=0))
    for _ in range(5):
        with psycopg.connect(postgres_server.url) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'coupon_service/2'"
            )
        request = api.redeem_request(code, "ann")
        insist(functools.partial(api.redemptions.RedeemCode, request))
    assert api.get_code(code).redemption_count == 5


def test_a_server_waits_for_its_schema(empty_database_url: str, redis_server_url: str) -> None:
    ahead = timedelta()
    settings = settings_for(empty_database_url, redis_server_url)
    with ServerThread(settings, lambda: datetime.now(UTC) + ahead) as server:
        api = Api(server.address)
        assert not any(is_serving(api, service) for service in SERVICES)
        until(lambda: tried(api.draft) == "DATABASE_UNAVAILABLE")

        migrations.apply(empty_database_url)
        until(lambda: all(is_serving(api, service) for service in SERVICES))
        # All of it is there now, also who records that locks expired.
        code = api.code(lock_policy=OPTIONAL)
        api.lock(code, unique("user"))
        ahead = timedelta(days=1)
        until(lambda: api.event_names(code=code) == ["LOCKED", "LOCK_EXPIRED"])
        api.close()
