"""Which connections make room for new ones, with sockets that no gRPC knows of."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from coupon_service.ratelimit.callers import address_of, socket_address
from coupon_service.rpc import connections
from coupon_service.rpc.connections import Connections

MAX = 10


class Port:
    """A port, and connections to it: what was accepted, and who connected."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._stack = ExitStack()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listening = self._stack.enter_context(socket.socket(family))
        self._listening.bind((host, 0))
        self._listening.listen(100)
        self.number: int = self._listening.getsockname()[1]
        self.host = host
        self.clients: list[socket.socket] = []

    def connect(self, count: int) -> None:
        """Connects so many more."""
        for _ in range(count):
            client = socket.create_connection((self.host, self.number), 5)
            accepted, _ = self._listening.accept()
            self._stack.enter_context(client)
            self._stack.enter_context(accepted)
            client.setblocking(False)
            self.clients.append(client)

    def closed(self) -> list[int]:
        """Which of them the server has closed."""
        return [index for index, client in enumerate(self.clients) if has_ended(client)]

    def peer(self, index: int) -> str:
        """A client, as gRPC names it."""
        host, port, *_ = self.clients[index].getsockname()
        return f"ipv6:%5B{host}%5D:{port}" if ":" in host else f"ipv4:{host}:{port}"

    def close(self) -> None:
        self._stack.close()


def has_ended(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False


@pytest.fixture
def port() -> Iterator[Port]:
    made = Port()
    yield made
    made.close()


def test_looking_for_room_leaves_no_descriptor_open(port: Port) -> None:
    port.connect(9)
    before = len(list(connections.DESCRIPTORS.iterdir()))
    room(Connections(MAX), port, 5)
    assert len(list(connections.DESCRIPTORS.iterdir())) <= before


def room(of: Connections, port: Port, times: int = 2) -> list[int]:
    """How many are closed each time that there is a check for room."""
    return [of.make_room(port.number) for _ in range(times)]


def test_nobody_goes_while_there_is_room(port: Port) -> None:
    port.connect(8)
    assert room(Connections(MAX), port) == [0, 0]
    assert port.closed() == []


def test_those_without_a_call_go_until_there_is_room_again(port: Port) -> None:
    port.connect(9)
    assert room(Connections(MAX), port) == [0, 2]  # at first nobody is known
    assert len(port.closed()) == 2


def test_new_ones_stay(port: Port) -> None:
    of = Connections(MAX)
    port.connect(9)
    of.make_room(port.number)
    port.connect(6)
    assert of.make_room(port.number) == 8
    assert all(index < 9 for index in port.closed())


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_those_with_calls_stay(host: str) -> None:
    port = Port(host)
    try:
        of = Connections(MAX)
        port.connect(12)
        for index in range(10):
            of.called(port.peer(index))
        assert room(of, port) == [0, 2]
        assert port.closed() == [10, 11]
    finally:
        port.close()


def test_after_a_while_their_calls_count_no_more(
    port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = Connections(MAX)
    port.connect(10)
    for index in range(10):
        of.called(port.peer(index))
    assert room(of, port) == [0, 0]
    monkeypatch.setattr(connections, "RECENT_S", -1)
    assert room(of, port) == [0, 3]


async def test_a_call_that_takes_long_holds_its_connection(port: Port) -> None:
    of = Connections(3)
    port.connect(3)
    held = asyncio.Event()

    class Context:
        def peer(self) -> str:
            return port.peer(1)

    async def work(given: object, context: Any) -> bytes:
        await held.wait()
        return b"done"

    context: Any = Context()
    call = asyncio.ensure_future(of.holding(work)(None, context))
    await asyncio.sleep(0)
    assert room(of, port) == [0, 1]
    assert 1 not in port.closed()
    held.set()
    assert await call == b"done"


def test_only_connections_that_were_accepted_at_the_port_go(port: Port) -> None:
    other = Port()
    try:
        other.connect(20)
        port.connect(10)
        assert room(Connections(MAX), port) == [0, 3]
        assert other.closed() == []
        assert len(port.closed()) == 3
    finally:
        other.close()


def test_descriptors_are_a_bound_too(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = connections.OTHER_DESCRIPTORS_MAX + MAX

    def getrlimit(_: int) -> tuple[int, int]:
        return limit, limit

    monkeypatch.setattr("resource.getrlimit", getrlimit)
    port.connect(10)
    assert room(Connections(5_000), port) == [0, 3]


def test_without_a_list_of_descriptors_nothing_is_done(
    port: Port, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(connections, "DESCRIPTORS", tmp_path / "none")
    port.connect(10)
    assert room(Connections(MAX), port) == [0, 0]


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:192.0.2.7:5", "192.0.2.7"),
        ("ipv4:192.0.2.7:5", "::ffff:192.0.2.7"),
        ("ipv6:%5B2001:db8::1%5D:5", "2001:db8:0::1"),
        ("ipv6:[fe80::1%25eth0]:5", "fe80::1%eth0"),
    ],
)
def test_a_peer_is_the_same_to_grpc_and_to_the_system(peer: str, host: str) -> None:
    assert address_of(peer) == socket_address(host, 5)


def test_a_peer_may_have_no_address() -> None:
    assert address_of("unix:/run/coupon") is None
