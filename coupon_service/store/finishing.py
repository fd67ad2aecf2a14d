"""The second step of a change that a service of the version before cannot go along with.

`migrate up` adds what is needed, the new version is deployed, and `migrate finish` switches over
once nobody of before is connected. It builds the new keys of the tables while the service goes on,
without rewriting a row; the switch itself takes a moment.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Final, LiteralString

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow

from coupon_service.errors import Contention, DatabaseUnavailable
from coupon_service.model.scopes import FIRST_SCOPED_BOOK, LAST_SCOPED_BOOK
from coupon_service.store.migrations import APPLICATION_NAME, Steps, lock_of, status
from coupon_service.store.scopes import STEP
from coupon_service.store.sessions import (
    APPLICATION_NAMES_BEFORE,
    ONLY_SHARD,
    ShardPlace,
    options,
    sentence_of,
    url_parts,
)

COMPLETED_STEP: Final = "0020.code_scopes"
"""The step of the schema that is completed here."""

WAIT_SHORTLY: Final = "SET LOCAL lock_timeout = '500ms'"
"""How long a switch waits for the tables: others wait behind it."""

SWITCH_ATTEMPTS_MAX: Final = 60

NEW_KEYS: Final[tuple[tuple[LiteralString, LiteralString], ...]] = (
    ("coupon_codes", "bucket, code, scope"),
    ("coupon_code_spellings", "bucket, code, scope"),
    ("coupon_assignments", "bucket, code, user_id, book_id"),
)
"""The primary keys of tables once codes are unique within their business."""

OLD_KEYS: Final[tuple[tuple[LiteralString, LiteralString], ...]] = (
    ("coupon_codes", "bucket, code"),
    ("coupon_code_spellings", "bucket, code"),
    ("coupon_assignments", "bucket, code, user_id"),
)
"""Those that they have until then."""

Connection = psycopg.Connection[TupleRow]


class CannotFinishError(Exception):
    """Something is in the way; one clear sentence."""


def finish(
    database_url: str, shard: ShardPlace = ONLY_SHARD, steps: Steps | None = None
) -> Iterator[str]:
    """Makes codes of new books unique within their business; says how far it is.

    It can be called again after it was cut off. Raises CannotFinishError, Contention and
    DatabaseUnavailable.
    """
    found = status(database_url, shard=shard, steps=steps)
    missing = [step for step, is_applied in found if not is_applied]
    if missing:
        raise CannotFinishError(f"Run migrate up first: {', '.join(missing)} is missing.")
    with _connected(database_url, shard) as connection:
        if _is_finished(connection):
            return
        _refuse_old_versions(connection)
        for table, columns in NEW_KEYS:
            yield f"building the key of {table} ({columns})"
            _build(connection, table, columns)
        yield "switching over"
        _switch(connection, NEW_KEYS, finished=True)


def unfinish(database_url: str, shard: ShardPlace = ONLY_SHARD) -> Iterator[str]:
    """Takes that back, as long as no book has codes of its business alone; says how far it is.

    Raises CannotFinishError, which lists what is in the way, Contention and DatabaseUnavailable.
    """
    with _connected(database_url, shard) as connection:
        if not _is_finished(connection):
            return
        _refuse_scoped_books(connection)
        for table, columns in OLD_KEYS:
            yield f"building the key of {table} ({columns})"
            _build(connection, table, columns)
        yield "switching back"
        _switch(connection, OLD_KEYS, finished=False)


TRY_LOCK: Final = "SELECT pg_try_advisory_lock(%s), set_config('statement_timeout', '0', false)"


@contextmanager
def _connected(database_url: str, shard: ShardPlace) -> Generator[Connection]:
    """A connection in autocommit mode, of which there is one at a time. Raises Contention and
    DatabaseUnavailable."""
    parts = {
        **url_parts(database_url),
        "application_name": APPLICATION_NAME,
        "client_encoding": "UTF8",
        "options": options(database_url, shard.parameters),
    }
    try:
        with psycopg.connect(make_conninfo(**parts), autocommit=True) as connection:
            locked = connection.execute(TRY_LOCK, [lock_of(shard)]).fetchone()
            if locked is None or not locked[0]:
                raise Contention("Another process is changing the schema.")
            yield connection
    except psycopg.Error as error:
        raise DatabaseUnavailable(sentence_of(error)) from error


IS_FINISHED: Final = """
SELECT to_regclass('coupon_finished_steps') IS NOT NULL
"""
HAS_STEP: Final = "SELECT EXISTS (SELECT FROM coupon_finished_steps WHERE step = %s)"


def _is_finished(connection: Connection) -> bool:
    if connection.execute(IS_FINISHED).fetchone() != (True,):
        return False
    return connection.execute(HAS_STEP, [STEP]).fetchone() == (True,)


SELECT_OLD_VERSIONS: Final = """
SELECT pid, application_name, coalesce(host(client_addr), 'this machine')
FROM pg_stat_activity
WHERE datname = current_database() AND application_name = ANY(%s)
ORDER BY pid
LIMIT 5
"""


def _refuse_old_versions(connection: Connection) -> None:
    cursor = connection.execute(SELECT_OLD_VERSIONS, [list(APPLICATION_NAMES_BEFORE)])
    found = [f"{name} from {host}, backend {pid}" for pid, name, host in cursor.fetchall()]
    if found:
        raise CannotFinishError(
            "Services of an earlier version are connected, which would redeem and lock codes under"
            f" other names: {'; '.join(found)}. Stop them, then run migrate finish again."
        )


COUNT_SCOPED: Final = """
SELECT count(*), (
    SELECT coalesce(sum(available + assigned + redeemed + disabled), 0)::bigint
    FROM coupon_book_counters WHERE book_id BETWEEN %(first)s AND %(last)s)
FROM coupon_books WHERE book_id BETWEEN %(first)s AND %(last)s
"""


def _refuse_scoped_books(connection: Connection) -> None:
    between = {"first": FIRST_SCOPED_BOOK, "last": LAST_SCOPED_BOOK}
    row = connection.execute(COUNT_SCOPED, between).fetchone()
    books, codes = row or (0, 0)
    if books:
        raise CannotFinishError(
            f"{books:,} coupon books were made since migrate finish, with {codes:,} codes, which"
            " are unique within their business only: an earlier version cannot serve them."
        )


def _build(connection: Connection, table: LiteralString, columns: LiteralString) -> None:
    """Builds the index of a key beside that of now. One that was left behind is built anew."""
    index = f"{table}_next_key"
    connection.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {index}")
    connection.execute(f"CREATE UNIQUE INDEX CONCURRENTLY {index} ON {table} ({columns})")


# By themselves, since Citus takes no constraint beside other commands.
DROP_KEY: Final[LiteralString] = "ALTER TABLE {table} DROP CONSTRAINT {table}_pkey"

ADD_KEY: Final[LiteralString] = """
ALTER TABLE {table} ADD CONSTRAINT {table}_pkey PRIMARY KEY USING INDEX {table}_next_key
"""


def _switch(
    connection: Connection,
    keys: tuple[tuple[LiteralString, LiteralString], ...],
    *,
    finished: bool,
) -> None:
    """Makes the indexes that were built the keys, all at once, when the tables are free."""
    for attempts_left in reversed(range(SWITCH_ATTEMPTS_MAX)):
        try:
            with connection.transaction():
                connection.execute(WAIT_SHORTLY)
                for table, _ in keys:
                    connection.execute(DROP_KEY.replace("{table}", table))
                    connection.execute(ADD_KEY.replace("{table}", table))
                # Nobody gets at the tables now, and who connects finds them changed.
                if finished:
                    _refuse_old_versions(connection)
                    connection.execute(
                        "INSERT INTO coupon_finished_steps VALUES (%s, now())", [STEP]
                    )
                else:
                    _refuse_scoped_books(connection)
                    connection.execute("DELETE FROM coupon_finished_steps WHERE step = %s", [STEP])
        except psycopg.errors.LockNotAvailable as error:
            if not attempts_left:
                raise Contention("The tables are in use.") from error
        else:
            return
