"""Requests whose path is not UTF-8: each of them ends gRPC's serving loop, and nothing else."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import grpc
import pytest
from support import http2_frames as frames
from support.service import Api, unique
from support.service_process import PATIENCE_S, environment_of, events_in, serving, workers_of

PATHS = (b"/\xff", b"/\xc0\xaf", b"/\xed\xa0\x80", b"/\xe2\x82", b"\xff" * 4_000)

REQUESTS = 60
CLIENTS = 4
"""On connections of their own, so that each of the workers has some."""


@pytest.fixture
def environment(database_url: str, redis_url: str) -> dict[str, str]:
    return {**environment_of(database_url, redis_url), "COUPON_REFLECTION": "true"}


@pytest.fixture
def service(environment: dict[str, str], tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A service with two workers."""
    with serving(environment, tmp_path) as running:
        yield running


def request(port: int, path: bytes) -> None:
    """Opens a call of this path on a connection of its own, and waits for its end."""
    with frames.connect(port) as connection:
        connection.sendall(frames.opening(1, path))
        for kind, stream, _ in frames.answers(connection, PATIENCE_S):
            if (kind, stream) == (frames.RST_STREAM, 1):
                return
    raise AssertionError("the call has not ended")


class Client(threading.Thread):
    """Makes calls on one connection, one after the other, and repeats none."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self._address = address
        self.failures: list[str] = []
        self.durations_s: list[float] = []
        self.stopped = threading.Event()

    def run(self) -> None:
        with closing(Api(self._address)) as api:
            book = api.book(codes=1, name=unique("name"))
            while not self.stopped.is_set():
                started = time.perf_counter()
                try:
                    api.stats(book.book_id)
                except grpc.RpcError as error:
                    self.failures.append(str(error))
                self.durations_s.append(time.perf_counter() - started)

    def end(self) -> None:
        self.stopped.set()
        self.join()


def calls_beside(address: str, port: int, paths: Sequence[bytes]) -> list[Client]:
    """Clients that went on while these paths were requested."""
    clients = [Client(address) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    try:
        for path in paths:
            request(port, path)
    finally:
        for client in clients:
            client.end()
    return clients


def test_no_worker_ends_and_no_call_fails(
    service: subprocess.Popen[bytes], environment: dict[str, str], tmp_path: Path
) -> None:
    port = int(environment["COUPON_PORT"])
    before = workers_of(service)
    paths = [PATHS[number % len(PATHS)] for number in range(REQUESTS)]
    clients = calls_beside(f"127.0.0.1:{port}", port, paths)
    assert workers_of(service) == before
    assert [failure for client in clients for failure in client.failures] == []
    assert max(duration for client in clients for duration in client.durations_s) < 1.5
    assert len(events_in(tmp_path / "log", "a path is not UTF-8")) == REQUESTS
    assert b"Traceback" not in (tmp_path / "log").read_bytes()


def test_it_still_stops_in_order(
    service: subprocess.Popen[bytes], environment: dict[str, str]
) -> None:
    port = int(environment["COUPON_PORT"])
    for _ in range(20):
        request(port, b"/\xff")
    service.terminate()
    assert service.wait(20) == 0
