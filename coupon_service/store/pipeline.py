"""Statements that travel to PostgreSQL together: libpq's pipeline mode, with little around it.

psycopg's own pipeline makes a cursor for each statement and polls the socket each time: that costs
several times the processor time, and on a busy event loop a batch waits for many turns of it where
this waits once a round trip.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import count
from time import perf_counter
from typing import Any, Final, LiteralString

import psycopg
from psycopg import pq
from psycopg.abc import PQGen
from psycopg.adapt import Transformer
from psycopg.rows import TupleRow
from psycopg.waiting import Ready, Wait

from coupon_service.store import citus
from coupon_service.store.sessions import DatabaseSettings

BINARY: Final = pq.Format.BINARY

WORDS_SHOWN: Final = 5
"""Of a statement, in the log."""

Exchange = Generator[Wait, Ready | int, list[pq.abc.PGresult]]


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """Statements that went to PostgreSQL and back together: it answers them all at once."""

    seconds: float = 0.0
    statements: Sequence[str] = ()

    def __str__(self) -> str:
        """How each of them begins. Values are never part of a statement."""
        return "; ".join(" ".join(it.split()[:WORDS_SHOWN]) for it in self.statements)


class Connection(psycopg.AsyncConnection[TupleRow]):
    """A connection that knows what was prepared on it, and is cut when PostgreSQL is silent.

    PostgreSQL itself ends what takes too long. When it is gone and the network does not say so (its
    machine lost power, a proxy between forgot the connection), nothing else would end the wait.
    `silence_max_s`: the longest wait for the answers of one round trip; None for ever.
    """

    silence_max_s: float | None = None
    place: DatabaseSettings | None = None
    """Where it leads to: a shard may be elsewhere by now."""
    prepares: bool = True
    """Whether the statements of pipelines are prepared once for the connection."""

    is_on_citus: bool = False

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.prepared: dict[str, bytes] = {}
        self.names = map(b"coupon_%d".__mod__, count())
        self.transformer = Transformer(self)
        self.slowest = RoundTrip()
        """Since the transaction began."""
        self.has_asked_elsewhere = False
        """Whether a node of Citus has passed a statement of the transaction on to another one."""

    def notice(self, notice: psycopg.errors.Diagnostic) -> None:
        """Takes a notice of Citus."""
        self.has_asked_elsewhere |= citus.has_asked_elsewhere(notice)

    def check_node(self) -> None:
        """Raises OnAnotherNodeError, once, when another node of Citus has been asked."""
        if self.has_asked_elsewhere:
            self.has_asked_elsewhere = False
            raise citus.OnAnotherNodeError("the schema is on another node")

    async def wait(self, gen: Any, *arguments: Any, **named: Any) -> Any:
        """As in psycopg: every round trip passes through here."""
        result = await self._wait(gen, *arguments, **named)
        if self.pgconn.pipeline_status == pq.PipelineStatus.OFF:
            self.check_node()
        return result

    async def _wait(self, gen: Any, *arguments: Any, **named: Any) -> Any:
        if self.silence_max_s is None:
            return await super().wait(gen, *arguments, **named)
        # Whoever waits gets libpq's own error, as for any line that is cut.
        loop = asyncio.get_running_loop()
        end = loop.call_later(self.silence_max_s, _cut, self.pgconn.socket)
        try:
            return await super().wait(gen, *arguments, **named)
        finally:
            end.cancel()

    def _deallocate(self, name: bytes | None) -> PQGen[None]:
        # After a ROLLBACK psycopg (3.3) has the server forget all statements, ours as well.
        if name is None:
            self.prepared.clear()
        return super()._deallocate(name)


def _cut(descriptor: int) -> None:
    """Ends a connection under whoever uses it."""
    with suppress(OSError), socket.fromfd(descriptor, socket.AF_INET, socket.SOCK_STREAM) as line:
        line.shutdown(socket.SHUT_RDWR)


class Rows(list[TupleRow]):
    """What a statement returned, once its pipeline has run."""


class Pipeline:
    """Statements for one connection, gathered and sent at once, as often as needed."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._waiting: list[tuple[LiteralString, Sequence[str | int], Rows]] = []
        self.ending: LiteralString = "COMMIT"
        """How the transaction ends, where there is one."""

    def add(self, statement: LiteralString, parameters: Sequence[str | int] = ()) -> Rows:
        """Sends the statement with the next `run`, which fills the rows that are returned.

        Parameters, marked %s, are in PostgreSQL's text form.
        """
        rows = Rows()
        self._waiting.append((statement, parameters, rows))
        return rows

    async def run(self) -> None:
        """Sends what was added and reads what it returns. Raises psycopg.Error of the first that
        failed; those after it were not executed.
        """
        if not self._waiting:
            return
        started_s = perf_counter()
        sent, self._waiting = self._waiting, []
        connection, pgconn = self.connection, self.connection.pgconn
        pgconn.enter_pipeline_mode()
        preparing = [self._send(*it) for it in sent]
        pgconn.pipeline_sync()
        results = iter(await connection.wait(_exchange(pgconn)))
        pgconn.exit_pipeline_mode()
        connection.check_node()
        seconds = perf_counter() - started_s
        if seconds > connection.slowest.seconds:
            connection.slowest = RoundTrip(seconds, [statement for statement, _, _ in sent])
        transformer = connection.transformer
        for (statement, _, rows), name in zip(sent, preparing, strict=True):
            if name is not None:
                self._check(next(results))
                connection.prepared[statement] = name
            result = next(results)
            self._check(result)
            if result.ntuples:
                transformer.set_pgresult(result)
                rows.extend(transformer.load_rows(0, result.ntuples, tuple))

    def _send(
        self, statement: LiteralString, parameters: Sequence[str | int], _: Rows
    ) -> bytes | None:
        """Queues a statement; returns its name if it is prepared only now."""
        pgconn, prepared = self.connection.pgconn, self.connection.prepared
        values = [str(it).encode() for it in parameters]
        if not self.connection.prepares:
            pgconn.send_query_params(_numbered(statement), values, result_format=BINARY)
            return None
        name = prepared.get(statement)
        new = None
        if name is None:
            name = new = next(self.connection.names)
            pgconn.send_prepare(name, _numbered(statement))
        pgconn.send_query_prepared(name, values, None, BINARY)
        return new

    def _check(self, result: pq.abc.PGresult) -> None:
        if result.status not in (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK):
            raise psycopg.errors.error_from_result(result)


@cache
def _numbered(statement: str) -> bytes:
    """The statement with the parameters as PostgreSQL wants them."""
    numbers = count(1)
    return re.sub("%s", lambda _: f"${next(numbers)}", statement).encode()


def _exchange(pgconn: pq.abc.PGconn) -> Exchange:
    """Sends everything and reads all results; says what it waits for."""
    while pgconn.flush():
        if (yield Wait.RW) & Ready.R:
            pgconn.consume_input()
    results: list[pq.abc.PGresult] = []
    while True:
        while pgconn.is_busy():
            if (yield Wait.R) & Ready.R:
                pgconn.consume_input()
        result = pgconn.get_result()
        if result is None:  # the end of what one statement returned
            continue
        if result.status == pq.ExecStatus.PIPELINE_SYNC:
            return results
        results.append(result)
