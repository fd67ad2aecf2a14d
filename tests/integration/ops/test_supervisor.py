"""`coupon-service serve`: workers behind one port, watched, replaced and stopped together."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.service import Api, unique
from support.service_process import PATIENCE_S, environment_of, fetch, is_ready, serving, workers_of
from support.waiting import until


@pytest.fixture
def environment(database_url: str, redis_url: str) -> dict[str, str]:
    """Settings of a service with two workers."""
    return environment_of(database_url, redis_url)


@pytest.fixture
def service(environment: dict[str, str], tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A service with two workers."""
    with serving(environment, tmp_path) as running:
        yield running


def book_on_a_new_connection(environment: dict[str, str]) -> None:
    """One call that whichever worker takes the connection answers."""
    client = Api(f"127.0.0.1:{environment['COUPON_PORT']}")
    client.draft()
    client.close()


def test_all_workers_answer_and_are_counted_together(
    service: subprocess.Popen[bytes], environment: dict[str, str]
) -> None:
    for _ in range(20):
        book_on_a_new_connection(environment)
    assert len(workers_of(service)) == 2
    counted = (
        'coupon_rpcs_total{method="CouponBookService/CreateCouponBook",reason="",status="OK",'
        'transport="call"} 20.0'
    )
    until(lambda: counted in fetch(environment, "metrics"))


def test_a_worker_that_is_killed_is_replaced_and_nothing_is_lost(
    service: subprocess.Popen[bytes], environment: dict[str, str]
) -> None:
    client = Api(f"127.0.0.1:{environment['COUPON_PORT']}")
    book = client.book(codes=1, name=unique("name"))
    before = workers_of(service)
    for worker in before:
        worker.kill()
    until(lambda: len(set(workers_of(service)) - set(before)) == 2)
    until(lambda: is_ready(environment))
    client.close()
    client = Api(f"127.0.0.1:{environment['COUPON_PORT']}")
    assert client.stats(book.book_id).available_count == 1
    client.close()


def test_workers_keep_their_memory_in_few_heaps(
    environment: dict[str, str], tmp_path: Path
) -> None:
    environment.pop("MALLOC_ARENA_MAX", None)
    with serving(environment, tmp_path) as service:
        assert [it.environ()["MALLOC_ARENA_MAX"] for it in workers_of(service)] == ["2", "2"]


def test_sigterm_ends_it_in_order(
    service: subprocess.Popen[bytes], environment: dict[str, str]
) -> None:
    workers = workers_of(service)
    service.send_signal(signal.SIGTERM)
    assert service.wait(PATIENCE_S) == 0
    assert not any(worker.is_running() for worker in workers)
    assert fetch(environment, "healthz") == ""


def test_sigterm_to_all_its_processes_ends_it_when_the_last_worker_has_ended(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """As systemd does it."""
    environment["COUPON_DRAIN_GRACE_MS"] = "1000"
    with serving(environment, tmp_path) as service:
        workers = workers_of(service)
        processes = psutil.Process(service.pid).children(recursive=True)
        service.send_signal(signal.SIGTERM)
        for process in processes:
            process.send_signal(signal.SIGTERM)
        assert service.wait(PATIENCE_S) == 0
        assert not any(worker.is_running() for worker in workers)


def test_workers_end_when_their_supervisor_is_killed(service: subprocess.Popen[bytes]) -> None:
    workers = workers_of(service)
    service.kill()
    service.wait(PATIENCE_S)
    until(lambda: not any(worker.is_running() for worker in workers))


def test_a_port_in_use_is_one_clear_sentence(
    service: subprocess.Popen[bytes], environment: dict[str, str], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "coupon_service", "serve"]
    second = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert second.returncode == 1
    (sentence,) = second.stderr.splitlines()
    assert f"port {environment['COUPON_PORT']}" in sentence
    assert "in use" in sentence


@pytest.mark.parametrize(
    "name", ["COUPON_DATABASE_URL", "COUPON_REDIS_URL", "COUPON_LOCK_TOKEN_SECRET"]
)
def test_a_missing_setting_is_one_clear_sentence(
    environment: dict[str, str], tmp_path: Path, name: str
) -> None:
    environment = {key: value for key, value in environment.items() if key != name}
    command = [sys.executable, "-m", "coupon_service", "serve"]
    ended = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    (sentence,) = ended.stderr.splitlines()
    assert sentence.startswith(f"{name}: has to be set, to ")
