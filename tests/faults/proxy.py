"""A TCP proxy that does to the lines between the service and its servers what networks do.

It has a thread and an event loop of its own. What it does now is its `rule`; a test sets another
one at any time, for the lines that are open and for new ones. It follows the protocol of PostgreSQL
(version 3, https://www.postgresql.org/docs/current/protocol-message-formats.html) just far enough
to know a COMMIT and its reply.
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
"""A socket that is closed with this sends RST."""

T = TypeVar("T")


class Commit(Enum):
    """Where a line is cut around a COMMIT."""

    BEFORE = auto()
    """PostgreSQL does not get it, and rolls back."""
    AFTER = auto()
    """PostgreSQL has committed, and nobody gets its reply."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What becomes of bytes; without arguments they pass.

    `hold_requests`, `hold_replies`: they wait for another rule, as packets that are sent again and
    again do. `delay_s`: each piece is late. `refuse`: new lines are reset. `cut_after_bytes`: a
    line is reset after so many bytes in both directions together, from now on or since it was
    opened. `commit`: the next line that commits is reset; that one only.
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
    """A connection of a client, and the one to the server that belongs to it.

    `half_open`: the end of one side is not passed on, and nothing is any more.
    """

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    bytes_left: int | None
    half_open: bool = False

    def reset(self) -> None:
        """Ends both sides with RST."""
        reset(self.client)
        reset(self.server)


class Proxy:
    """Passes what arrives at its `port` on to the port of a server, and back, by its `rule`.

    `commits_cut`: how often `Rule.commit` has struck.
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
        """The URL of the server, by way of this proxy."""
        parts = urlsplit(url)
        secret = parts.netloc.rpartition("@")[0]
        # PostgreSQL's clients would ask for encryption first, in messages of another form.
        query = "sslmode=disable&gssencmode=disable" if self._postgres else parts.query
        return parts._replace(netloc=f"{secret}@{HOST}:{self.port}", query=query).geturl()

    @property
    def lines(self) -> int:
        """Lines that are not ended on both sides."""
        return len(self._lines)

    @property
    def rule(self) -> Rule:
        """What becomes of bytes now."""
        return self._rule

    @rule.setter
    def rule(self, rule: Rule) -> None:
        def count_anew(line: Line) -> None:
            line.bytes_left = rule.cut_after_bytes

        self._rule = rule
        self._to_each(count_anew)

    def cut(self) -> None:
        """Resets all lines, on both sides."""
        self._to_each(Line.reset)

    def lose_servers(self) -> None:
        """The servers' sides of all lines are gone, and the clients are not told."""

        def lose(line: Line) -> None:
            line.half_open = True
            reset(line.server)

        self._to_each(lose)

    def lose_clients(self) -> None:
        """The clients' sides of all lines are gone, and the servers are not told."""

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
                self._pass_on(line, requests, server, Requests()),
                self._pass_on(line, replies, client, Replies()),
            )
        finally:
            line.reset()
            self._lines.discard(line)

    async def _pass_on(
        self,
        line: Line,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        messages: Requests | Replies,
    ) -> None:
        """One direction of a line, until the end of the side that sends."""
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
    """Finds where the messages of one direction begin."""

    def __init__(self, *, untyped_first: bool) -> None:
        self._type_bytes = 0 if untyped_first else 1
        self._rest = b""

    def split(self, data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
        """Position in `data` (negative: before it), type and body of each message that ends in
        it."""
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
    """Follows what a client of PostgreSQL sends."""

    cut: Final = Commit.BEFORE

    def __init__(self) -> None:
        self._messages = Messages(untyped_first=True)
        self._names: set[bytes] = set()

    def commit_in(self, data: bytes) -> int | None:
        """Where in `data` a message begins that PostgreSQL has to have in order to commit."""
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
    """Follows what PostgreSQL answers."""

    cut: Final = Commit.AFTER

    def __init__(self) -> None:
        self._messages = Messages(untyped_first=False)

    def commit_in(self, data: bytes) -> int | None:
        """Where in `data` the reply begins that says that something was committed."""
        found = [max(at, 0) for at, *it in self._messages.split(data) if it == [b"C", b"COMMIT\0"]]
        return found[0] if found else None


async def write(writer: asyncio.StreamWriter, data: bytes) -> None:
    """Sends, and waits while there is no room."""
    writer.write(data)
    await writer.drain()


def reset(writer: asyncio.StreamWriter) -> None:
    """Ends a connection with RST."""
    own = writer.get_extra_info("socket")
    if own is not None:
        with suppress(OSError):
            own.setsockopt(SOL_SOCKET, SO_LINGER, NO_LINGER)
    writer.transport.abort()
