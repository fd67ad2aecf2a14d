"""The proxy applies its rules, so that the fault tests inject what they claim."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest
from faults.proxy import BLACK_HOLE, HOST, PASS, Proxy, Rule

PATIENCE_S = 20
SILENCE_S = 0.1


class Echo(socketserver.BaseRequestHandler):
    """Echoes what it receives."""

    def handle(self) -> None:
        """Serve one connection."""
        with suppress(ConnectionResetError):
            while data := self.request.recv(1_000):
                self.request.sendall(data)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    socketserver.ThreadingTCPServer.daemon_threads = True
    with socketserver.ThreadingTCPServer((HOST, 0), Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with Proxy(server.server_address[1]) as made:
            yield made
        server.shutdown()


@pytest.fixture
def client(proxy: Proxy) -> Iterator[socket.socket]:
    with socket.create_connection((HOST, proxy.port), timeout=PATIENCE_S) as made:
        echoes(made, b"first")
        yield made


def echoes(client: socket.socket, data: bytes) -> None:
    """Assert that sent bytes come back."""
    client.sendall(data)
    assert client.recv(1_000) == data


def hears_nothing(client: socket.socket) -> None:
    """Assert that neither bytes nor an end arrive."""
    client.settimeout(SILENCE_S)
    with pytest.raises(TimeoutError):
        client.recv(1_000)
    client.settimeout(PATIENCE_S)


def test_held_bytes_arrive_after_release(proxy: Proxy, client: socket.socket) -> None:
    for rule in (BLACK_HOLE, Rule(hold_requests=True), Rule(hold_replies=True)):
        proxy.rule = rule
        client.sendall(b"late")
        hears_nothing(client)
        proxy.rule = PASS
        assert client.recv(1_000) == b"late"


def test_cut_line_is_reset(proxy: Proxy, client: socket.socket) -> None:
    proxy.cut()
    with pytest.raises(ConnectionResetError):
        client.recv(1_000)


def test_line_is_cut_at_the_exact_byte(proxy: Proxy, client: socket.socket) -> None:
    proxy.rule = Rule(cut_after_bytes=7)
    client.sendall(b"12345")  # two bytes are left for the reply
    assert client.recv(1_000) == b"12"
    with pytest.raises(ConnectionResetError):
        client.recv(1_000)


def test_half_open_line_stays_silent(proxy: Proxy, client: socket.socket) -> None:
    proxy.lose_servers()
    client.sendall(b"unanswered")
    hears_nothing(client)
    assert proxy.lines == 1
    with socket.create_connection((HOST, proxy.port), timeout=PATIENCE_S) as another:
        echoes(another, b"new line")


def test_new_lines_are_refused_and_open_ones_stay(proxy: Proxy, client: socket.socket) -> None:
    proxy.rule = Rule(refuse=True)
    with (
        pytest.raises(ConnectionResetError),
        socket.create_connection((HOST, proxy.port), timeout=PATIENCE_S) as another,
    ):
        another.recv(1_000)
    echoes(client, b"open line")
