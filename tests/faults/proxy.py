"""A TCP proxy that injects network faults between the service and its servers.

It runs in its own thread with its own event loop. Its `rule` says how it treats bytes; a test can
change it at any time, for open and for new lines. It parses the protocol of PostgreSQL (version 3,
https://www.postgresql.org/docs/current/protocol-message-formats.html) far enough to recognise a
COMMIT and its reply.
"""

from __future__ import annotations

import asyncio
import struct
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from socket import SO_LINGER, SOL_SOCKET
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

HOST: Final = "127.0.0.1"
CHUNK_BYTES: Final = 65_536
POLL_S: Final = 0.01

NO_LINGER: Final = struct.pack("ii", 1, 0)
"""A socket with this option sends RST when it is closed."""

T = TypeVar("T")


class Commit(Enum):
    """The point at which a line is cut around a COMMIT."""

    BEFORE = auto()
    """PostgreSQL does not receive it, and rolls back."""
    AFTER = auto()
    """PostgreSQL has committed, and its reply is lost."""


@dataclass(frozen=True, slots=True)
class Rule:
    """The treatment of bytes. Without arguments they pass.

    `hold_requests`, `hold_replies`: bytes wait for another rule, like packets that are
    retransmitted. `delay_s`: the delay of each chunk. `refuse`: new lines are reset.
    `cut_after_bytes`: a line is reset after so many bytes in both directions together, counted from
    now on or since it was opened. `commit`: the next line that commits is reset, and only that.
    """

    hold_requests: bool = False
    hold_replies: bool = False
    delay_s: float = 0
    refuse: bool = False
    cut_after_bytes: int | None = None
    commit: Commit | None = None


PASS: Final = Rule()
BLACK_HOLE: Final = Rule(hold_requests=True, hold_replies=True)


@dataclass(slots=True, eq=False)
class Line:
    """A connection of a client, and the matching connection to the server.

    `half_open`: one side has ended; the other is not told, and no bytes are forwarded any more.
    """

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    bytes_left: int | None
    half_open: bool = False

    def reset(self) -> None:
        """Close both sides with RST."""
        reset(self.client)
        reset(self.server)


class Proxy:
    """Forwards between its `port` and the port of a server, subject to its `rule`.

    `commits_cut`: the number of lines that `Rule.commit` has cut.
    """

    def __init__(self, target_port: int, *, postgres: bool = False) -> None:
        self.target_port = target_port
        self.port = 0
        self.commits_cut = 0
        self._postgres = postgres
        self._rule = PASS
        self._lines: set[Line] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Proxy:
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._serve, HOST, 0))
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._refuse_all())
        self.rule = PASS
        self.cut()
        self._run(self._ended())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def url(self, url: str) -> str:
        """The URL of the server through this proxy."""
        parts = urlsplit(url)
        secret = parts.netloc.rpartition("@")[0]
        # Otherwise clients of PostgreSQL would send an SSLRequest first, which has another format.
        query = "sslmode=disable&gssencmode=disable" if self._postgres else parts.query
        return parts._replace(netloc=f"{secret}@{HOST}:{self.port}", query=query).geturl()

    @property
    def lines(self) -> int:
        """The number of lines that are open on at least one side."""
        return len(self._lines)

    @property
    def rule(self) -> Rule:
        """The current treatment of bytes."""
        return self._rule

    @rule.setter
    def rule(self, rule: Rule) -> None:
        def restart_count(line: Line) -> None:
            line.bytes_left = rule.cut_after_bytes

        self._rule = rule
        self._to_each(restart_count)

    def cut(self) -> None:
        """Reset all lines, on both sides."""
        self._to_each(Line.reset)

    def lose_servers(self) -> None:
        """Make all lines half-open: their servers are gone, and the clients do not notice."""

        def lose(line: Line) -> None:
            line.half_open = True
            reset(line.server)

        self._to_each(lose)

    def lose_clients(self) -> None:
        """Make all lines half-open: their clients are gone, and the servers do not notice."""

        def lose(line: Line) -> None:
            line.half_open = True
            reset(line.client)

        self._to_each(lose)

    def _to_each(self, action: Callable[[Line], None]) -> None:
        async def act() -> None:
            for line in tuple(self._lines):
                action(line)

        self._run(act())

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    # --- in its own loop ------------------------------------------------------------------------

    async def _refuse_all(self) -> None:
        self._server.close()

    async def _ended(self) -> None:
        while self._lines:
            await asyncio.sleep(POLL_S)

    async def _serve(self, requests: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        try:
            if self._rule.refuse:
                raise ConnectionRefusedError
            replies, server = await asyncio.open_connection(HOST, self.target_port)
        except OSError:
            reset(client)
            return
        line = Line(client, server, self._rule.cut_after_bytes)
        self._lines.add(line)
        try:
            await asyncio.gather(
                self._forward(line, requests, server, Requests()),
                self._forward(line, replies, client, Replies()),
            )
        finally:
            line.reset()
            self._lines.discard(line)

    async def _forward(
        self,
        line: Line,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        messages: Requests | Replies,
    ) -> None:
        """Forward one direction of a line, until its sender closes."""
        with suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                at = messages.commit_in(data) if self._postgres else None
                await asyncio.sleep(self._rule.delay_s)
                while self._holds(messages) and not reader.at_eof():
                    await asyncio.sleep(POLL_S)
                if line.half_open:
                    continue
                if at is not None and self._rule.commit is messages.cut:
                    self._rule = PASS
                    self.commits_cut += 1
                    await write(writer, data[:at])
                    line.reset()
                    return
                if line.bytes_left is not None and line.bytes_left <= len(data):
                    await write(writer, data[: line.bytes_left])
                    line.reset()
                    return
                if line.bytes_left is not None:
                    line.bytes_left -= len(data)
                await write(writer, data)
        if not line.half_open:
            writer.close()

    def _holds(self, messages: Requests | Replies) -> bool:
        rule = self._rule
        return rule.hold_requests if isinstance(messages, Requests) else rule.hold_replies


class Messages:
    """Splits the bytes of one direction into messages."""

    def __init__(self, *, untyped_first: bool) -> None:
        self._type_bytes = 0 if untyped_first else 1
        self._rest = b""

    def split(self, data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
        """Start in `data` (negative: before it), type and body of each message that ends in it."""
        before, data = len(self._rest), self._rest + data
        start = 0
        while len(data) >= start + self._type_bytes + 4:
            head = start + self._type_bytes
            end = head + int.from_bytes(data[head : head + 4], "big")
            if len(data) < end:
                break
            yield start - before, data[start:head], data[head + 4 : end]
            start, self._type_bytes = end, 1
        self._rest = data[start:]


class Requests:
    """Recognises a COMMIT in the messages of a client of PostgreSQL."""

    cut: Final = Commit.BEFORE

    def __init__(self) -> None:
        self._messages = Messages(untyped_first=True)
        self._names: set[bytes] = set()

    def commit_in(self, data: bytes) -> int | None:
        """The start in `data` of a message without which PostgreSQL does not commit."""
        found = [max(at, 0) for at, *it in self._messages.split(data) if self._commits(*it)]
        return found[0] if found else None

    def _commits(self, kind: bytes, body: bytes) -> bool:
        match kind:
            case b"Q":
                return body == b"COMMIT\0"
            case b"P":
                name, query, _ = body.split(b"\0", 2)
                (self._names.add if query == b"COMMIT" else self._names.discard)(name)
                return query == b"COMMIT"
            case b"B":
                return body.split(b"\0", 2)[1] in self._names
            case _:
                return False


class Replies:
    """Recognises the reply to a COMMIT in the messages of PostgreSQL."""

    cut: Final = Commit.AFTER

    def __init__(self) -> None:
        self._messages = Messages(untyped_first=False)

    def commit_in(self, data: bytes) -> int | None:
        """The start in `data` of a reply that reports a commit."""
        found = [max(at, 0) for at, *it in self._messages.split(data) if it == [b"C", b"COMMIT\0"]]
        return found[0] if found else None


async def write(writer: asyncio.StreamWriter, data: bytes) -> None:
    """Send, and wait while the buffer is full."""
    writer.write(data)
    await writer.drain()


def reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection with RST."""
    own = writer.get_extra_info("socket")
    if own is not None:
        with suppress(OSError):
            own.setsockopt(SOL_SOCKET, SO_LINGER, NO_LINGER)
    writer.transport.abort()
