"""The two databases of a move, and what the move is called in them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import monotonic, sleep
from typing import Any, Final, TypeAlias, TypeVar

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow

from coupon_service.store.migrations import lock_of
from coupon_service.store.placement import address_of
from coupon_service.store.sessions import MOVE_PARAMETER, ShardPlace, options, url_parts

Connection: TypeAlias = psycopg.Connection[TupleRow]

Result = TypeVar("Result")

APPLICATION_NAME: Final = "coupon_service move"
"""Of its connections, in pg_stat_activity."""

SESSION: Final = {
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "synchronous_commit": "on",
    "timezone": "UTC",
    "datestyle": "ISO",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "search_path": "pg_catalog",
}
"""Of its sessions: rows are compared as text, and all names are whole. The COMMIT that ends the use
of the old place is on its disk before anybody writes at the new one."""

CONNECT_TIMEOUT_S: Final = 5

KEEPALIVES: Final = {
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "25000",
}
"""Of its connections: a server that is gone is not waited for, while the other one keeps WAL."""

TOLD_EVERY_S: Final = 2.0
"""Between two lines of progress."""

AGAIN_S: Final = 10.0
"""For a session to end, or a server to answer again, before what was done is left undone."""

MOVE_LOCK: Final = 1 << 47
"""Added to the advisory lock of a schema's migrations: that of who moves it."""

KEPT_TABLES: Final = ("_yoyo_log", "_yoyo_migration", "_yoyo_version", "yoyo_lock")
FINISHED_STEPS: Final = "coupon_finished_steps"
"""Tables whose rows are not copied: each schema has its own, and both are at the same step."""


class CannotMoveError(Exception):
    """The shard is not moved; one or more sentences."""


@dataclass(frozen=True, slots=True)
class Names:
    """What a move is called. There is one of a schema at a time."""

    schema: str

    @property
    def move(self) -> str:
        """The publication, and the subscription to it."""
        return f"{self.schema}_move"

    @property
    def retired(self) -> str:
        """What the schema is called where it was, until it is dropped."""
        return f"{self.schema}_moved"

    def slot(self, source: Connection) -> str:
        """The replication slot: slots of all databases of a server have different names."""
        row = source.execute(SELECT_DATABASE).fetchone()
        return f"{self.move}_{row[0] if row else 0}"

    def table(self, name: str) -> sql.Identifier:
        """A table, or another relation, of the schema."""
        return sql.Identifier(self.schema, name)


SELECT_DATABASE: Final = "SELECT oid FROM pg_database WHERE datname = current_database()"


def connect(url: str, token: str = "", **more: Any) -> Connection:
    """A session in autocommit mode. `token`: of the move, so that it may write before others."""
    parameters = SESSION | ({MOVE_PARAMETER: token} if token else {})
    parts: dict[str, Any] = {
        **url_parts(url),
        "application_name": APPLICATION_NAME,
        "client_encoding": "UTF8",
        "options": options(url, parameters),
        "connect_timeout": str(CONNECT_TIMEOUT_S),
        **KEEPALIVES,
        **more,
    }
    return psycopg.connect(make_conninfo(**parts), autocommit=True, prepare_threshold=None)


TRY_LOCK: Final = "SELECT pg_try_advisory_lock(%s)"


def take_locks(connection: Connection, shard: ShardPlace, *, migrations: bool) -> None:
    """Keeps out, until the session ends, other moves of the shard, and changes of its schema.

    Raises CannotMoveError.
    """
    locks = [(lock_of(shard) + MOVE_LOCK, "moving the shard")]
    locks += [(lock_of(shard), "changing the schema")] if migrations else []
    for lock, what in locks:
        if connection.execute(TRY_LOCK, [lock]).fetchone() != (True,):
            raise CannotMoveError(f"Another process is {what}.")


SELECT_TABLES: Final = """
SELECT relname::text FROM pg_class WHERE relnamespace = to_regnamespace(%s) AND relkind = 'r'
ORDER BY relname <> 'coupon_codes', relname
"""


def tables_of(connection: Connection, schema: str) -> list[str]:
    """The tables that are copied: first the one whose rows most transactions lock first."""
    found = connection.execute(SELECT_TABLES, [schema]).fetchall()
    return [name for (name,) in found if name not in (*KEPT_TABLES, FINISHED_STEPS)]


HAS_TABLES: Final = "SELECT to_regclass(%s) IS NOT NULL"


def has_tables(connection: Connection, schema: str) -> bool:
    """Whether the schema is that of a shard."""
    found = connection.execute(HAS_TABLES, [f"{schema}.coupon_books"]).fetchone()
    return found == (True,)


def lock_tables(connection: Connection, names: Names, tables: Sequence[str], mode: str) -> None:
    """In a transaction, in this order."""
    listed = sql.SQL(", ").join(map(names.table, tables))
    statement = sql.SQL("LOCK TABLE {} IN {} MODE")
    connection.execute(statement.format(listed, sql.SQL(mode)))  # pyright: ignore[reportArgumentType]


SET_TIMEOUT: Final = "SELECT set_config(%s, %s, true)"


def set_timeout(connection: Connection, name: str, value_ms: int) -> None:
    """For the rest of the transaction."""
    connection.execute(SET_TIMEOUT, [name, str(value_ms)])


def told_while(
    work: Callable[[], Result], doing: str, *used: Connection
) -> Generator[str, None, Result]:
    """Does the work, and says at times that it is going on. `used`: what it does there is cancelled
    when nobody waits for it any more."""
    with ThreadPoolExecutor(1) as thread:
        result = thread.submit(work)
        try:
            while wait([result], TOLD_EVERY_S).not_done:
                yield doing
        except BaseException:
            for connection in used:
                with suppress(psycopg.Error):
                    connection.cancel()
            raise
        return result.result()


def until(holds: Callable[[], bool], within_s: float, poll_s: float = 0.02) -> bool:
    """Waits until it holds; says whether it does."""
    deadline_s = monotonic() + within_s
    while not holds():
        if monotonic() > deadline_s:
            return False
        sleep(poll_s)
    return True


@contextmanager
def connect_again(url: str, shard: ShardPlace) -> Generator[Connection]:
    """A new session with the locks, once one of before has ended. Raises CannotMoveError."""
    sessions: list[Connection] = []

    def is_there() -> bool:
        try:
            session = connect(url)
        except psycopg.Error:
            return False
        try:
            take_locks(session, shard, migrations=False)
        except CannotMoveError:
            session.close()
            return False
        sessions.append(session)
        return True

    if not until(is_there, AGAIN_S, 0.1):
        raise CannotMoveError(f"{address_of(url)} does not answer, or another process moves there.")
    with sessions[0] as session:
        yield session
