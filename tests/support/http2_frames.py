"""HTTP/2 by hand (RFC 9113, RFC 7541), for what no client library would send."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence

DATA, HEADERS, RST_STREAM, SETTINGS, PING = 0, 1, 3, 4, 6
CONTINUATION = 9

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
PIECE_BYTES = 16_000


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return (
        len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
    )


def connect(port: int, timeout_s: float = 30) -> socket.socket:
    """A connection that has said hello, and never confirms what the server wants of it."""
    connection = socket.create_connection(("127.0.0.1", port), timeout_s)
    connection.sendall(PREFACE + frame(SETTINGS, 0, 0))
    return connection


def confirm_settings(connection: socket.socket) -> None:
    """Accepts what the server has said that it wants."""
    connection.recv(1 << 16)
    connection.sendall(frame(SETTINGS, 1, 0))


def opening(stream: int, path: str | bytes, metadata: Sequence[tuple[str, str]] = ()) -> bytes:
    """The frames that open a call, without its message."""
    entries = [
        (":path", path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        *metadata,
    ]
    # :method POST and :scheme http are in the table of the protocol.
    block = b"\x83\x86" + b"".join(b"\0" + _text(name) + _text(value) for name, value in entries)
    pieces = [block[at : at + PIECE_BYTES] for at in range(0, len(block), PIECE_BYTES)]
    return b"".join(
        frame(CONTINUATION if index else HEADERS, 4 * (index == len(pieces) - 1), stream, piece)
        for index, piece in enumerate(pieces)
    )


def message(stream: int, payload: bytes = b"") -> bytes:
    """The only message of a call."""
    return frame(DATA, 1, stream, b"\0" + len(payload).to_bytes(4, "big") + payload)


def answers(connection: socket.socket, silence_s: float) -> Iterator[tuple[int, int, bytes]]:
    """Kind, stream and payload of what comes, until nothing does for so long, or it is closed."""
    connection.settimeout(silence_s)
    received = b""
    while True:
        try:
            data = connection.recv(1 << 16)
        except (TimeoutError, ConnectionError):
            return
        if not data:
            return
        received += data
        while len(received) >= 9:
            size = int.from_bytes(received[:3], "big")
            if len(received) < 9 + size:
                break
            yield received[3], int.from_bytes(received[5:9], "big"), received[9 : 9 + size]
            received = received[9 + size :]


def _text(text: str | bytes) -> bytes:
    value = text if isinstance(text, bytes) else text.encode()
    size, length = len(value), b""
    if size < 127:
        return bytes([size]) + value
    size -= 127
    while size >= 128:
        length += bytes([size % 128 | 128])
        size //= 128
    return b"\x7f" + length + bytes([size]) + value
