"""Processes of the service die, freeze or are replaced under load."""

from __future__ import annotations

import functools
import signal
import subprocess
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path
from typing import Final

import psutil
import psycopg
import pytest
from faults.checks import assert_outcomes
from faults.load import Load
from faults.stack import DEADLINE_S, SETTINGS
from faults.survival import Survival, survive
from support.proof_sizes import times
from support.service import Api
from support.service_process import environment_of, fetch, serving, workers_of
from support.waiting import until

LINE_LOST: Final = frozenset({"UNAVAILABLE"})
"""The status of gRPC for a broken connection."""

PORT_CLOSED: Final = LINE_LOST | {"CANCELLED", "STREAM_ENDED"}
"""CANCELLED: gRPC had not read the call yet when it began to stop
(https://github.com/grpc/grpc/issues/41785)."""


class Service:
    """`coupon-service serve`, which can be restarted after it was killed."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self.environment = environment
        self._folder = folder
        self._stack = ExitStack()

    def start(self) -> None:
        """Start it, and wait until all workers serve."""
        process = serving(self.environment, self._folder)
        self.process: subprocess.Popen[bytes] = self._stack.enter_context(process)
        until(self.all_listen, 20)

    def stop(self) -> None:
        """Stop it, if it runs."""
        self._stack.close()

    @property
    def address(self) -> str:
        """The address that it listens on."""
        return f"127.0.0.1:{self.environment['COUPON_PORT']}"

    @property
    def workers(self) -> list[psutil.Process]:
        """Its worker processes."""
        return workers_of(self.process)

    def all_listen(self) -> bool:
        """Whether all workers listen."""
        configured = int(self.environment["COUPON_WORKERS"])
        return len([it for it in self.workers if self._listens(it)]) == configured

    def _listens(self, worker: psutil.Process) -> bool:
        port = int(self.environment["COUPON_PORT"])
        try:
            connections = worker.net_connections("tcp")
        except psutil.Error:
            return False
        return any(it.status == psutil.CONN_LISTEN and it.laddr.port == port for it in connections)

    def healthy(self) -> bool:
        """Whether all workers listen and `/healthz` is ok."""
        return self.all_listen() and fetch(self.environment, "healthz") == "ok\n"


@pytest.fixture(scope="module")
def service(
    new_database: Callable[[], AbstractContextManager[str]],
    redis_server_url: str,
    server_folder: Path,
) -> Iterator[Service]:
    folder = server_folder / "processes"
    folder.mkdir()
    with new_database() as database_url:
        environment = environment_of(database_url, redis_server_url) | {
            **{f"COUPON_{name.upper()}": str(value) for name, value in SETTINGS.items()},
            "COUPON_DRAIN_GRACE_MS": "200",
            "COUPON_LOG_LEVEL": "warning",
        }
        made = Service(environment, folder)
        made.start()
        yield made
        made.stop()


@pytest.fixture(scope="module")
def load(service: Service) -> Iterator[Load]:
    with closing(Api(service.address)) as api:
        made = Load(api, service.address, 1, DEADLINE_S)
    with made:
        until(lambda: len(made.account.seen) > 200)
        yield made


def survived(
    service: Service,
    load: Load,
    fault: Callable[[Service], Generator[None]],
    holds_s: float = 0.1,
    seen: frozenset[str] = LINE_LOST,
) -> Survival:
    """Survive the fault; then all workers serve, with no more connections than their pools."""
    url = service.environment["COUPON_DATABASE_URL"]

    def why_not_restored() -> str:
        if not service.healthy():
            return "not all workers serve"
        pids = {it.pid for it in service.workers}
        with psycopg.connect(url) as connection:
            (count,) = connection.execute(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE application_name LIKE 'coupon_service%' AND datname = current_database()"
            ).fetchone() or (0,)
        pool_max = 7 * len(pids)
        return "" if count <= pool_max else f"{count} connections of {len(pids)} workers"

    survival = survive(
        load,
        contextmanager(fault)(service),
        holds_s,
        functools.partial(psycopg.connect, url),
        why_not_restored,
    )
    assert_outcomes(survival.seen, seen)
    return survival


def one_worker_killed(service: Service) -> Generator[None]:
    service.workers[0].kill()
    yield


def all_workers_killed(service: Service) -> Generator[None]:
    for worker in service.workers:
        worker.kill()
    yield
    until(service.healthy, 20)


def one_worker_frozen(service: Service) -> Generator[None]:
    worker = service.workers[0]
    worker.suspend()
    yield
    worker.resume()


def supervisor_killed(service: Service) -> Generator[None]:
    """Its workers notice, and shut down; then it is started again."""
    workers = service.workers
    service.process.kill()
    yield
    psutil.wait_procs(workers, timeout=30)
    service.start()


def stopped_and_started(service: Service) -> Generator[None]:
    service.process.send_signal(signal.SIGTERM)
    yield
    service.process.wait(30)
    service.start()


@pytest.mark.parametrize(
    ("fault", "holds_s", "seen"),
    [
        (one_worker_killed, 0.1, LINE_LOST),
        (all_workers_killed, 0.1, LINE_LOST),
        (one_worker_frozen, DEADLINE_S + 0.5, LINE_LOST | {"DATABASE_UNAVAILABLE"}),
        (supervisor_killed, 0.1, PORT_CLOSED),
        (stopped_and_started, 0.1, PORT_CLOSED),
    ],
    ids=lambda it: getattr(it, "__name__", ""),
)
def test_lost_process_loses_no_effect(
    service: Service,
    load: Load,
    fault: Callable[[Service], Generator[None]],
    holds_s: float,
    seen: frozenset[str],
) -> None:
    for _ in range(times(1, 8)):
        survived(service, load, fault, holds_s, seen)


def rolled(service: Service) -> Generator[None]:
    """All workers are replaced in turn, as by `coupon-service restart`."""
    before = set(service.workers)
    service.process.send_signal(signal.SIGUSR2)
    until(lambda: not before & set(service.workers), 60)
    yield


def test_rolling_restart_needs_one_retry_at_most(service: Service, load: Load) -> None:
    for _ in range(times(1, 20)):
        before = {it.pid for it in service.workers}
        survival = survived(service, load, rolled, seen=PORT_CLOSED)
        assert not before & {it.pid for it in service.workers}
        twice = [it for it in survival.seen if it.attempt > 2]
        assert not twice
