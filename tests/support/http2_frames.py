"""Raw frames of HTTP/2 (RFC 9113, RFC 7541), for requests that client libraries refuse to send."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hpack import Decoder, Encoder

DATA, HEADERS, RST_STREAM, SETTINGS, PING, CONTINUATION = 0, 1, 3, 4, 6, 9
ACK, END_STREAM, END_HEADERS = 1, 1, 4

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD_BYTES = 9
Text = str | bytes

CALL: Mapping[str, Text] = {
    ":method": "POST",
    ":scheme": "http",
    ":path": "/Service/Method",
    ":authority": "localhost",
    "content-type": "application/grpc",
    "te": "trailers",
}
"""The header fields of a call."""
PIECE_BYTES = 16_000


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame, valid or not."""
    return (
        len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
    )


def connect(port: int, timeout_s: float = 30) -> socket.socket:
    """A connection that has sent preface and settings, and does not acknowledge the server's."""
    connection = socket.create_connection(("127.0.0.1", port), timeout_s)
    connection.sendall(PREFACE + frame(SETTINGS, 0, 0))
    return connection


def confirm_settings(connection: socket.socket) -> None:
    """Acknowledge the settings of the server."""
    connection.recv(1 << 16)
    connection.sendall(frame(SETTINGS, ACK, 0))


def opening(stream: int, path: Text, metadata: Sequence[tuple[Text, Text]] = ()) -> bytes:
    """The frames that open a call, without its message."""
    fields = {**CALL, ":path": path}
    return headers(stream, [*fields.items(), *metadata])


def headers(stream: int, fields: Sequence[tuple[Text, Text]]) -> bytes:
    """The frames with these header fields, valid or not."""
    encoder = Encoder()
    encoder.header_table_size = 0  # no state between calls
    block = encoder.encode(fields, huffman=False)
    pieces = [block[at : at + PIECE_BYTES] for at in range(0, len(block), PIECE_BYTES)]
    last = len(pieces) - 1
    return b"".join(
        frame(CONTINUATION if index else HEADERS, END_HEADERS * (index == last), stream, piece)
        for index, piece in enumerate(pieces)
    )


def message(stream: int, payload: bytes = b"") -> bytes:
    """The only message of a call."""
    return frame(DATA, END_STREAM, stream, b"\0" + len(payload).to_bytes(4, "big") + payload)


def answers(connection: socket.socket, silence_s: float) -> Iterator[tuple[int, int, bytes]]:
    """Kind, stream and payload of received frames, until silence for so long, or the close."""
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
        while len(received) >= HEAD_BYTES:
            size = int.from_bytes(received[:3], "big")
            if len(received) < HEAD_BYTES + size:
                break
            payload = received[HEAD_BYTES : HEAD_BYTES + size]
            yield received[3], int.from_bytes(received[5:HEAD_BYTES], "big"), payload
            received = received[HEAD_BYTES + size :]


def statuses(connection: socket.socket, count: int, silence_s: float = 5) -> list[str]:
    """The grpc-status of each of so many calls, as they end; of fewer when nothing comes."""
    decoder = Decoder()
    found: list[str] = []
    for kind, _, payload in answers(connection, silence_s):
        if kind == HEADERS:
            fields: dict[Any, Any] = dict(decoder.decode(payload, raw=True))
            if status := fields.get(b"grpc-status"):
                found.append(status.decode())
                if len(found) == count:
                    break
    return found
