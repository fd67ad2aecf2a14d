"""A service that runs: asked how it is, told to reload, restarted without a break, drained."""

from __future__ import annotations

import itertools
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.command_line import run, run_apart
from support.service import Api, books, new_codes, unique
from support.service_process import (
    PATIENCE_S,
    environment_of,
    events_in,
    fetch,
    is_ready,
    readyz,
    serving,
    workers_of,
)
from support.waiting import until

from coupon_service.embedded import EmbeddedRedis
from coupon_service.process.supervisor import REPLACE_PAUSE_S
from coupon_service.store import migrations

MOMENT_S = 0.5

MANY = books.BookLimits(
    max_redemptions_per_code=1_000_000, max_redemptions_per_user_per_code=1_000_000
)


@pytest.fixture
def environment(database_url: str, redis_url: str) -> dict[str, str]:
    """Settings of a service with two workers."""
    return environment_of(database_url, redis_url)


@pytest.fixture
def service(environment: dict[str, str], tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A service with two workers, whose log is `tmp_path / "log"`."""
    environment["COUPON_PID_FILE"] = str(tmp_path / "pid")
    with serving(environment, tmp_path) as running:
        yield running


@pytest.fixture
def client(environment: dict[str, str], service: subprocess.Popen[bytes]) -> Iterator[Api]:
    """A client of the service."""
    assert service.poll() is None
    with closing(Api(f"127.0.0.1:{environment['COUPON_PORT']}")) as api:
        yield api


def health_of(api: Api) -> str:
    """What the health service says of all of it."""
    stub: Any = health_pb2_grpc.HealthStub(api.channel)
    status = stub.Check(health_pb2.HealthCheckRequest()).status
    return health_pb2.HealthCheckResponse.ServingStatus.Name(status)


# --- replacing the workers ----------------------------------------------------------------------


class Load:
    """Customers who redeem without a pause, each on a connection of its own, and every other one
    over Checkout streams.

    A call that fails is repeated once, with the same request_id, a moment later: gRPC refuses what
    reaches a worker that ends a little before it tells the client to go elsewhere. The repeat waits
    for a connection: one that the ending worker had not taken yet was dropped, and for a second
    the client would not try another.
    """

    def __init__(self, address: str, codes: list[str], customers: int) -> None:
        self._address = address
        self._codes = codes
        self._ends = threading.Event()
        self._pool = ThreadPoolExecutor(customers)
        self._customers = [
            self._pool.submit(self._buy, unique("user"), number % 2) for number in range(customers)
        ]

    def end(self) -> Counter[int]:
        """How many redemptions were acknowledged after no or one repeat. Raises what was left."""
        self._ends.set()
        with self._pool:
            return sum((customer.result() for customer in self._customers), Counter[int]())

    def _buy(self, user_id: str, streamed: int) -> Counter[int]:
        acknowledged = Counter[int]()
        with closing(Api(self._address, streamed=streamed)) as api:
            for code in itertools.cycle(self._codes):
                if self._ends.is_set():
                    break
                request = api.redeem_request(code, user_id)
                try:
                    api.redemptions.RedeemCode(request, timeout=20)
                    acknowledged[0] += 1
                except grpc.RpcError:
                    time.sleep(MOMENT_S)
                    api.redemptions.RedeemCode(request, timeout=20, wait_for_ready=True)
                    acknowledged[1] += 1
        return acknowledged


def test_replacing_the_workers_under_load_costs_nobody_more_than_one_repeat(
    service: subprocess.Popen[bytes], environment: dict[str, str], client: Api, tmp_path: Path
) -> None:
    codes = new_codes(20)
    book = client.book(codes=codes, limits=MANY)
    load = Load(f"127.0.0.1:{environment['COUPON_PORT']}", codes, customers=8)
    log = tmp_path / "log"
    for times in range(1, 4):
        before = workers_of(service)
        done = run(tmp_path, "restart", COUPON_PID_FILE=environment["COUPON_PID_FILE"])
        assert (done.returncode, done.stdout) == (0, f"Signalled process {service.pid}.\n")
        until(lambda times=times: len(events_in(log, "all workers replaced")) == times)
        after = workers_of(service)
        assert len(after) == 2
        assert set(before).isdisjoint(after)
    acknowledged = load.end()
    assert acknowledged.total() > 100
    assert acknowledged[1] < acknowledged.total() / 10
    redeemed = sum(client.get_code(code).redemption_count for code in codes)
    assert redeemed == acknowledged.total() == client.stats(book.book_id).redemption_count
    replaced = [datetime.fromisoformat(it["timestamp"]) for it in events_in(log, "worker replaced")]
    for first, second in zip(replaced[::2], replaced[1::2], strict=True):
        assert (second - first).total_seconds() > REPLACE_PAUSE_S


def test_a_worker_that_dies_before_its_turn_is_replaced_once(
    service: subprocess.Popen[bytes], client: Api, tmp_path: Path
) -> None:
    before = workers_of(service)
    log = tmp_path / "log"
    service.send_signal(signal.SIGUSR2)
    until(lambda: events_in(log, "worker replaced"))
    (replaced,) = events_in(log, "worker replaced")
    (waits,) = [it for it in before if it.pid != replaced["pid"]]
    waits.kill()
    until(lambda: events_in(log, "all workers replaced"))
    until(lambda: len(workers_of(service)) == 2)
    assert set(before).isdisjoint(workers_of(service))
    assert health_of(client) == "SERVING"


def test_workers_that_would_not_serve_do_not_replace_those_that_do(
    service: subprocess.Popen[bytes], client: Api, tmp_path: Path
) -> None:
    before = workers_of(service)
    (tmp_path / ".env").write_text("COUPON_TLS_CERTIFICATE_FILE=none.pem\nCOUPON_TLS_KEY_FILE=none")
    service.send_signal(signal.SIGUSR2)
    log = tmp_path / "log"
    until(lambda: events_in(log, "the new worker does not serve; the others stay as they are"))
    assert workers_of(service) == before
    assert health_of(client) == "SERVING"


# --- reloading ----------------------------------------------------------------------------------


def test_a_reload_takes_up_the_log_level(
    service: subprocess.Popen[bytes], client: Api, environment: dict[str, str], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    client.draft()
    until(lambda: events_in(log, "rpc"))
    workers = workers_of(service)
    (tmp_path / ".env").write_text("COUPON_LOG_LEVEL=warning\n")
    done = run(tmp_path, "reload", COUPON_PID_FILE=environment["COUPON_PID_FILE"])
    assert done.returncode == 0
    until(lambda: len(events_in(log, "reloaded")) == 2)
    logged = len(events_in(log, "rpc"))
    client.draft()

    (tmp_path / ".env").write_text("COUPON_LOG_LEVEL=loud\n")
    service.send_signal(signal.SIGHUP)
    until(lambda: events_in(log, "the settings stay as they were"))
    assert len(events_in(log, "rpc")) == logged
    assert workers_of(service) == workers


def test_a_service_that_does_not_run_here_is_not_told_anything(tmp_path: Path) -> None:
    left_behind = tmp_path / "pid"
    left_behind.write_text("1\n")
    for command in ("reload", "restart"):
        done = run(tmp_path, command, COUPON_PID_FILE=str(left_behind))
        assert done.returncode == 1
        assert done.stderr.startswith(f"No service runs with {left_behind}.")


def test_two_services_do_not_share_a_pid_file(
    service: subprocess.Popen[bytes], environment: dict[str, str], tmp_path: Path
) -> None:
    second = {**environment, "COUPON_PORT": "0", "COUPON_METRICS_PORT": "0"}
    done = run_apart(tmp_path, "serve", **second)
    assert done.returncode == 1
    assert done.stderr.startswith(f"Another service runs with {tmp_path / 'pid'}.")
    assert service.poll() is None


# --- health -------------------------------------------------------------------------------------


def test_without_redis_it_is_degraded_and_goes_on(database_url: str, tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path / "redis", durable=False) as redis:
        environment = environment_of(database_url, redis.url)
        with serving(environment, tmp_path):
            assert readyz(environment) == {
                "status": "SERVING",
                "postgresql": "ok",
                "schema": "ok",
                "redis": "ok",
                "postgresql_warnings": [],
                "redis_warnings": [],
                "workers": 2,
                "workers_serving": 2,
            }
            redis.stop()
            until(lambda: readyz(environment)["redis"] == "unreachable")
            assert readyz(environment)["status"] == "SERVING"
            assert fetch(environment, "readyz")
            until(lambda: 'coupon_reaches{what="redis"} 0.0' in fetch(environment, "metrics"))
            assert 'coupon_reaches{what="postgresql"} 2.0' in fetch(environment, "metrics")
            with closing(Api(f"127.0.0.1:{environment['COUPON_PORT']}")) as api:
                assert health_of(api) == "SERVING"
                assert api.redeem(api.code(), "ann").redemption
            assert any(line["redis"] is False for line in events_in(tmp_path / "log", "readiness"))


def test_without_its_schema_it_lives_but_is_not_ready(
    empty_database_url: str, redis_url: str, tmp_path: Path
) -> None:
    environment = environment_of(empty_database_url, redis_url)
    port = environment["COUPON_PORT"]
    with serving(environment, tmp_path, ready=False):
        until(lambda: readyz(environment)["schema"] == "too old")
        assert readyz(environment)["status"] == "NOT_SERVING"
        (line, *_) = events_in(tmp_path / "log", "schema missing or too old")
        assert (line["level"], line["run"]) == ("warning", "coupon-service migrate up")
        assert fetch(environment, "readyz") == ""
        assert fetch(environment, "healthz") == "ok\n"
        done = run(tmp_path, "health", COUPON_PORT=port)
        assert (done.returncode, done.stdout) == (1, "NOT_SERVING\n")
        migrations.apply(empty_database_url)
        until(lambda: is_ready(environment))
        assert fetch(environment, "readyz")
        done = run(tmp_path, "health", "coupon_service.v1.RedemptionService", COUPON_PORT=port)
        assert (done.returncode, done.stdout) == (0, "SERVING\n")
    done = run(tmp_path, "health", "--timeout", "1", COUPON_PORT=port)
    assert done.returncode == 1
    assert done.stderr.startswith("UNAVAILABLE")


# --- draining -----------------------------------------------------------------------------------


def test_on_sigterm_it_notifies_the_load_balancer_and_finishes_what_is_under_way(
    environment: dict[str, str], database_url: str, tmp_path: Path
) -> None:
    environment |= {"COUPON_DRAIN_GRACE_MS": "1500", "COUPON_LOCK_TIMEOUT_MS": "20000"}
    environment |= {"COUPON_STATEMENT_TIMEOUT_MS": "25000", "COUPON_DEFAULT_DEADLINE_MS": "30000"}
    environment |= {"COUPON_SHUTDOWN_TIMEOUT_MS": "30000", "COUPON_WORKERS": "1"}
    with (
        serving(environment, tmp_path) as service,
        closing(Api(f"127.0.0.1:{environment['COUPON_PORT']}")) as api,
        psycopg.connect(database_url, autocommit=True) as database,
    ):
        code = api.code()
        with psycopg.connect(database_url) as other:
            other.execute("SELECT FROM coupon_codes WHERE code = %s FOR UPDATE", [code])
            under_way = api.redemptions.RedeemCode.future(api.redeem_request(code, "ann"))
            waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            until(lambda: database.execute(waiting).fetchone() != (0,))
            service.send_signal(signal.SIGTERM)
            until(lambda: health_of(api) == "NOT_SERVING")
            assert readyz(environment)["status"] == "NOT_SERVING"
            assert api.draft().book_id  # who has not noticed yet is answered
            until(lambda: not listens(environment))
            assert not under_way.done()
        assert under_way.result(PATIENCE_S).redemption.code == code
        assert service.wait(PATIENCE_S) == 0
    assert not events_in(tmp_path / "log", "worker died")


def listens(environment: dict[str, str]) -> bool:
    """Whether the service takes new connections."""
    with closing(Api(f"127.0.0.1:{environment['COUPON_PORT']}")) as api:
        try:
            health_of(api)
        except grpc.RpcError:
            return False
    return True
