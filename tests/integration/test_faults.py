"""Redis or PostgreSQL goes away and comes back: what is refused, what goes on, what is kept."""

# redis-py leaves the type of its keyword arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from redis import Redis
from service import (
    Api,
    ServerThread,
    all_at_once,
    books,
    codes,
    new_codes,
    redemptions,
    refused,
    settings_for,
    unique,
)
from steps import (
    ALL_OR_NOTHING,
    batch,
    extend,
    get_lock,
    item,
    locking_code,
    locks_of,
    outcomes_of,
    reason_or_ok,
    reasons_of,
    tried,
    until,
)

from coupon_service.embedded import EmbeddedPostgres, EmbeddedRedis
from coupon_service.store import migrations

OPTIONAL = books.LOCK_POLICY_OPTIONAL
REQUIRED = books.LOCK_POLICY_REQUIRED
NewDatabase = Callable[[], AbstractContextManager[str]]

SERVICES = ("", "coupon_service.v1.RedemptionService")


def is_serving(api: Api, service: str = "") -> bool:
    """What the health service says."""
    stub: Any = health_pb2_grpc.HealthStub(api.channel)
    answer = stub.Check(health_pb2.HealthCheckRequest(service=service))
    return answer.status == health_pb2.HealthCheckResponse.SERVING


# --- Redis --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def redis_server(server_folder: Path) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(server_folder / "redis-that-fails", durable=False) as server:
        yield server


@pytest.fixture(scope="module")
def redis_api(new_database: NewDatabase, redis_server: EmbeddedRedis) -> Iterator[Api]:
    """A client of a server whose Redis is `redis_server`."""
    with new_database() as database_url:
        with ServerThread(settings_for(database_url, redis_server.url)) as server:
            client = Api(server.address)
            yield client
            client.close()


@pytest.fixture
def api(redis_api: Api, redis_server: EmbeddedRedis) -> Api:
    """The same, with Redis running at first."""
    redis_server.start()
    until(lambda: locks_are_there(redis_api))
    return redis_api


def locks_are_there(api: Api) -> bool:
    return tried(lambda: locks_of(api, user_id="anybody")) == "OK"


def flush(server: EmbeddedRedis) -> None:
    """All locks are forgotten."""
    with Redis.from_url(server.url) as client:
        client.flushall()


def test_without_redis_there_are_no_locks_to_be_had(api: Api, redis_server: EmbeddedRedis) -> None:
    code, user = api.code(lock_policy=OPTIONAL), unique("user")
    held = api.lock(code, user)
    redis_server.kill()
    for call in (
        lambda: api.lock(code, unique("another")),
        lambda: api.lock(code, user),
        lambda: extend(api, held.lock_token),
        lambda: api.unlock(held.lock_token),
        lambda: locks_of(api, user_id=user),
        lambda: locks_of(api, book_id=held.lock.book_id),
    ):
        with refused("LOCKS_UNAVAILABLE", StatusCode.UNAVAILABLE) as it:
            call()
        assert it.retry_after_s
    # What is written down can be read, and who is locked out is not told.
    assert get_lock(api, held.lock.lock_id) == held.lock
    assert api.get_code(code).effective_state == codes.COUPON_CODE_STATE_AVAILABLE
    redis_server.start()
    until(lambda: locks_are_there(api))
    api.lock(api.code(lock_policy=OPTIONAL), unique("user"))


def test_without_redis_a_token_is_enough_to_redeem(api: Api, redis_server: EmbeddedRedis) -> None:
    limits = books.BookLimits(max_redemptions_per_code=3)
    code, user = api.code(lock_policy=REQUIRED, limits=limits), unique("user")
    held = api.lock(code, user)
    released = api.lock(code, unique("another"))
    redis_server.kill()
    assert api.validate(code, user, lock_token=held.lock_token).valid
    redeemed = api.redeem(code, user, lock_token=held.lock_token)
    assert redeemed.redemption.lock_id == held.lock.lock_id
    assert get_lock(api, held.lock.lock_id).state == redemptions.LOCK_STATE_REDEEMED
    with refused("LOCK_EXPIRED"):  # its fence is used up
        api.redeem(code, user, lock_token=held.lock_token)
    with refused("LOCK_TOKEN_MISMATCH"):
        api.redeem(code, user, lock_token=released.lock_token)
    api.rollback(redeemed.redemption.redemption_id)


def test_without_redis_nobody_redeems_past_a_lock_that_cannot_be_seen(
    api: Api, redis_server: EmbeddedRedis
) -> None:
    (code,), (plain,), (must,) = new_codes(1), new_codes(1), new_codes(1)
    api.book(codes=[code], lock_policy=OPTIONAL)
    api.book(codes=[plain])
    api.book(codes=[must], lock_policy=REQUIRED)
    redis_server.kill()
    with refused("LOCKS_UNAVAILABLE", StatusCode.UNAVAILABLE):
        api.redeem(code, "ann")
    with refused("LOCK_REQUIRED"):
        api.redeem(must, "ann")
    assert reasons_of(api.validate(code, "ann")) == ["LOCKS_UNAVAILABLE"]
    assert reasons_of(api.validate(must, "ann"))[0] == "LOCK_REQUIRED"
    answer = batch(api, [item(it, "ann") for it in (plain, code, must)], ALL_OR_NOTHING)
    assert outcomes_of(answer) == ["LOCK_REQUIRED", "LOCK_REQUIRED", "LOCK_REQUIRED"]
    answer = batch(api, [item(it, "ann") for it in (plain, code)], ALL_OR_NOTHING)
    assert outcomes_of(answer) == ["LOCKS_UNAVAILABLE"] * 2
    assert [it.error.metadata.get("item") for it in answer.results] == ["1", None]
    assert api.get_code(plain).redemption_count == 0
    # Books without locking do not depend on it.
    assert api.validate(plain, "ann").valid
    answer = batch(api, [item(it, "ann") for it in (plain, code, must)])
    assert outcomes_of(answer) == ["OK", "LOCKS_UNAVAILABLE", "LOCK_REQUIRED"]


def test_a_token_outlives_the_memory_of_redis(api: Api, redis_server: EmbeddedRedis) -> None:
    code, user = api.code(lock_policy=REQUIRED), unique("user")
    held = api.lock(code, user)
    flush(redis_server)
    assert api.validate(code, user, lock_token=held.lock_token).valid
    api.redeem(code, user, lock_token=held.lock_token)
    assert get_lock(api, held.lock.lock_id).state == redemptions.LOCK_STATE_REDEEMED


def test_a_token_is_good_until_someone_else_holds_the_code(
    api: Api, redis_server: EmbeddedRedis
) -> None:
    code, old, new = api.code(lock_policy=OPTIONAL), unique("old"), unique("new")
    lost = api.lock(code, old)
    flush(redis_server)
    held = api.lock(code, new)
    assert reasons_of(api.validate(code, old, lock_token=lost.lock_token)) == ["CODE_LOCKED"]
    for _ in range(2):  # and asking does not take the place from the one who has it
        with refused("CODE_LOCKED"):
            api.redeem(code, old, lock_token=lost.lock_token)
    api.unlock(held.lock_token)
    redeemed = api.redeem(code, old, lock_token=lost.lock_token).redemption
    api.rollback(redeemed.redemption_id)
    again = api.lock(code, new)
    api.redeem(code, new, lock_token=again.lock_token)
    with refused("CODE_ALREADY_REDEEMED"):
        api.redeem(code, old, lock_token=lost.lock_token)


def test_no_more_is_redeemed_than_the_code_allows_whatever_redis_forgets(
    api: Api, redis_server: EmbeddedRedis
) -> None:
    code = api.code(lock_policy=REQUIRED, limits=books.BookLimits(max_redemptions_per_code=2))
    held: list[redemptions.LockCodeResponse] = []
    for _ in range(4):
        held += [api.lock(code, unique("user")) for _ in range(2)]
        flush(redis_server)
    calls = [
        functools.partial(api.redeem, code, it.lock.user_id, lock_token=it.lock_token)
        for it in held
    ]
    all_at_once(calls)
    for call in calls:  # those who were in each other's way, one after the other
        with suppress(grpc.RpcError):
            call()
    assert api.get_code(code).redemption_count == 2
    assert api.event_names(code=code).count("REDEEMED") == 2


def test_an_older_lock_than_the_one_that_was_used_is_refused(
    api: Api, redis_server: EmbeddedRedis
) -> None:
    code = api.code(lock_policy=OPTIONAL, limits=books.BookLimits(max_redemptions_per_code=3))
    user = unique("user")
    older = api.lock(code, user)
    flush(redis_server)
    newer = api.lock(code, user)
    assert newer.lock.lock_id != older.lock.lock_id
    api.redeem(code, user, lock_token=newer.lock_token)
    flush(redis_server)
    with refused("LOCK_EXPIRED"):
        api.redeem(code, user, lock_token=older.lock_token)
    assert api.get_code(code).redemption_count == 1


# --- PostgreSQL ---------------------------------------------------------------------------------


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
    answer = api.redemptions.RedeemCode(request)
    assert not answer.replayed
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
    halfway = threading.Event()

    def redeem(n: int) -> redemptions.RedeemCodeResponse:
        if n == 20:
            halfway.set()
        return api.redemptions.RedeemCode(requests[n])

    def crash() -> None:
        halfway.wait()
        postgres_server.kill()
        time.sleep(1.2)  # longer than anybody waits for a connection
        postgres_server.start()

    crashing = threading.Thread(target=crash)
    crashing.start()
    outcomes: list[Any] = []
    for start in range(0, len(names), 40):
        outcomes += all_at_once([functools.partial(redeem, n) for n in range(start, start + 40)])
    crashing.join()
    until(lambda: is_serving(api))

    assert {reason_or_ok(it) for it in outcomes} == {"OK", "DATABASE_UNAVAILABLE"}
    for request, outcome in zip(requests, outcomes, strict=True):
        settled = api.redemptions.RedeemCode(request)
        if not isinstance(outcome, grpc.RpcError):
            assert settled.replayed
            assert settled.redemption == outcome.redemption
    stats = api.stats(book.book_id)
    assert (stats.redeemed_count, stats.redemption_count) == (120, 120)
    assert api.event_names(book_id=book.book_id).count("REDEEMED") == 120


HOLD = "SELECT FROM coupon_codes WHERE code = %s FOR UPDATE"
WAITING = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = 'postgres'"


def test_a_lock_whose_outcome_is_open_stays_its_users(
    postgres_api: Api, postgres_server: EmbeddedPostgres
) -> None:
    api, url = postgres_api, postgres_server.url
    code, user = locking_code(api), unique("user")
    request = redemptions.LockCodeRequest(code=code, user_id=user, request_id=unique("request"))
    lock = functools.partial(api.redemptions.LockCode, request)
    with (
        ThreadPoolExecutor() as pool,
        closing(psycopg.connect(url)) as holder,
        closing(psycopg.connect(url, autocommit=True)) as observer,
    ):
        holder.execute(HOLD, [code])
        outcome = pool.submit(tried, lock)  # has its place, and waits for the row
        until(lambda: observer.execute(WAITING).rowcount == 1)
        postgres_server.kill()
        assert outcome.result() == "DATABASE_UNAVAILABLE"
    postgres_server.start()
    until(lambda: is_serving(api))
    with refused("CODE_LOCKED"):
        api.lock(code, unique("another"))
    api.redeem(code, user, lock_token=lock().lock_token)


def test_a_lock_that_was_not_written_down_gives_its_place_back(
    postgres_api: Api, postgres_server: EmbeddedPostgres, redis_server_url: str
) -> None:
    code = locking_code(postgres_api)
    settings = settings_for(postgres_server.url, redis_server_url, lock_timeout_ms=50)
    with ServerThread(settings) as server, psycopg.connect(postgres_server.url) as holder:
        impatient = Api(server.address)
        holder.execute(HOLD, [code])
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
                " WHERE application_name = 'coupon_service'"
            )
        request = api.redeem_request(code, "ann")
        redeem = functools.partial(api.redemptions.RedeemCode, request)
        while (outcome := tried(redeem)) != "OK":
            assert outcome == "DATABASE_UNAVAILABLE"
    assert api.get_code(code).redemption_count == 5


def test_a_server_waits_for_its_schema(empty_database_url: str, redis_server_url: str) -> None:
    ahead = timedelta()
    settings = settings_for(empty_database_url, redis_server_url)
    with ServerThread(settings, lambda: datetime.now(UTC) + ahead) as server:
        api = Api(server.address)
        assert not any(is_serving(api, service) for service in SERVICES)
        with refused("INTERNAL", StatusCode.INTERNAL) as it:
            api.draft()
        assert it.metadata.keys() == {"error_id"}

        migrations.apply(empty_database_url)
        until(lambda: all(is_serving(api, service) for service in SERVICES))
        # All of it is there now, also who records that locks ran out.
        code = api.code(lock_policy=OPTIONAL)
        api.lock(code, unique("user"))
        ahead = timedelta(days=1)
        until(lambda: api.event_names(code=code) == ["LOCKED", "LOCK_EXPIRED"])
        api.close()
