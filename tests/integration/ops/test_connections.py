"""How long connections stay, and that those without a call keep nobody out."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from typing import Any

import pytest
from support import http2_frames as frames
from support.calls import tried
from support.service import Api, ServerThread, books, codes, new_codes, settings_for

from coupon_service.rpc import listener

GOAWAY = 7
WATCH = "/grpc.health.v1.Health/Watch"
LONG_MS = 600_000
PATIENCE_S = 60
QUICKER = 50
"""By this a test of keepalive is faster than clients are."""


@contextmanager
def server(
    new_database: Callable[[], AbstractContextManager[str]], redis_url: str, **settings: Any
) -> Generator[ServerThread]:
    with (
        new_database() as database_url,
        ServerThread(settings_for(database_url, redis_url, **settings)) as running,
    ):
        yield running


def port_of(running: ServerThread) -> int:
    return int(running.address.rpartition(":")[2])


def wait_for_goaway(connection: socket.socket) -> None:
    """Until the server tells this client to leave."""
    assert any(kind == GOAWAY for kind, _, _ in frames.answers(connection, PATIENCE_S))


def test_a_connection_without_a_call_ends(
    new_database: Callable[[], AbstractContextManager[str]], redis_url: str
) -> None:
    with (
        server(new_database, redis_url, connection_idle_ms=500) as running,
        closing(frames.connect(port_of(running))) as watching,
    ):
        watching.sendall(frames.opening(1, WATCH) + frames.message(1))
        started = time.perf_counter()
        with closing(frames.connect(port_of(running))) as idle:
            wait_for_goaway(idle)
        assert time.perf_counter() - started > 0.3
        assert not [kind for kind, _, _ in frames.answers(watching, 1.5) if kind == GOAWAY]


def test_a_connection_has_an_age_and_its_calls_a_grace(
    new_database: Callable[[], AbstractContextManager[str]], redis_url: str
) -> None:
    age = {"connection_age_ms": 600, "connection_age_grace_ms": 600}
    with server(new_database, redis_url, **age) as running:
        started = time.perf_counter()
        with closing(frames.connect(port_of(running))) as watching:
            watching.sendall(frames.opening(1, WATCH) + frames.message(1))
            wait_for_goaway(watching)
            assert time.perf_counter() - started > 0.4
            for _ in frames.answers(watching, PATIENCE_S):
                pass  # until it is closed
        assert 1 < time.perf_counter() - started < PATIENCE_S


def test_clients_do_not_notice_that_connections_have_an_age(
    new_database: Callable[[], AbstractContextManager[str]], redis_url: str
) -> None:
    with (
        server(new_database, redis_url, connection_age_ms=300) as running,
        closing(Api(running.address)) as api,
    ):
        book = api.draft()
        end = time.perf_counter() + 3
        while time.perf_counter() < end:
            api.stats(book.book_id)


def test_keepalive_of_20_s_is_welcome_without_calls(
    new_database: Callable[[], AbstractContextManager[str]],
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quicker = [
        (name, value // QUICKER if name.endswith("without_data_ms") else value)
        for name, value in listener.HTTP2_OPTIONS
    ]
    monkeypatch.setattr(listener, "HTTP2_OPTIONS", quicker)
    with (
        server(new_database, redis_url) as running,
        closing(frames.connect(port_of(running))) as idle,
    ):
        frames.confirm_settings(idle)
        kinds: list[int] = []
        for _ in range(8):
            idle.sendall(frames.frame(frames.PING, 0, 0, bytes(8)))
            kinds += [kind for kind, _, _ in frames.answers(idle, 20 / QUICKER)]
        for kind, _, _ in frames.answers(idle, PATIENCE_S) if kinds.count(frames.PING) < 8 else ():
            kinds.append(kind)
            if kinds.count(frames.PING) == 8:
                break
    assert kinds.count(frames.PING) == 8
    assert GOAWAY not in kinds


@pytest.mark.parametrize("preface", [True, False], ids=["with preface", "silent"])
def test_connections_without_a_call_keep_nobody_out(
    new_database: Callable[[], AbstractContextManager[str]], redis_url: str, *, preface: bool
) -> None:
    with (
        server(new_database, redis_url, connections_max=40, connection_idle_ms=LONG_MS) as running,
        closing(Api(running.address)) as busy,
        ExitStack() as held,
    ):
        book = busy.draft()
        for _ in range(200):
            address = ("127.0.0.1", port_of(running))
            connection = held.enter_context(socket.create_connection(address, 10))
            if preface:
                connection.sendall(frames.PREFACE + frames.frame(frames.SETTINGS, 0, 0))
            busy.stats(book.book_id)  # on the one connection that it has
        for _ in range(5):
            with closing(Api(running.address)) as newcomer:
                assert within(PATIENCE_S, newcomer, book) == "OK"
        busy.stats(book.book_id)


def within(seconds: float, api: Api, book: books.CouponBook) -> str:
    """How a call ends that is repeated for so long, as one that waits until it is ready is."""
    request = books.GetCouponBookStatsRequest(book_id=book.book_id)
    call: Any = api.books.GetCouponBookStats
    return tried(lambda: call(request, timeout=seconds, wait_for_ready=True))


def test_a_call_that_takes_long_keeps_its_connection(
    new_database: Callable[[], AbstractContextManager[str]],
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("coupon_service.rpc.connections.RECENT_S", 0.2)
    with (
        server(new_database, redis_url, connections_max=20, connection_idle_ms=LONG_MS) as running,
        closing(Api(running.address)) as uploading,
        ExitStack() as held,
    ):
        book = uploading.draft()
        go_on = threading.Event()

        def requests() -> Iterator[codes.ImportCodesRequest]:
            header = codes.ImportHeader(book_id=book.book_id, request_id="held")
            yield codes.ImportCodesRequest(header=header)
            go_on.wait(60)
            chunk = codes.ImportChunk(chunk_number=1, codes=new_codes(3))
            yield codes.ImportCodesRequest(chunk=chunk)

        upload = uploading.codes.ImportCodes(requests())
        for _ in range(100):
            held.enter_context(closing(frames.connect(port_of(running))))
            time.sleep(0.02)
        with closing(Api(running.address)) as newcomer:
            assert within(PATIENCE_S, newcomer, book) == "OK"
        go_on.set()
        assert [answer.created_count for answer in upload] == [3]
