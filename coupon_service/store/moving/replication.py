"""The publication at the old place and the subscription to it at the new one: made and dropped."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Final, LiteralString

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from coupon_service.store.moving.sides import (
    CannotMoveError,
    Connection,
    Names,
    set_timeout,
    until,
)
from coupon_service.store.sessions import url_parts

BUSY_LOCK_MS: Final = 200
BUSY_S: Final = 60.0
"""For a moment in which each table of a shard that is at work is free."""

RELEASE_S: Final = 10.0
"""For PostgreSQL to let go of a replication slot."""

SELECT_KEYLESS: Final[LiteralString] = """
SELECT relname::text FROM pg_class
WHERE relnamespace = to_regnamespace(%s) AND relkind = 'r' AND relreplident = 'd'
    AND NOT EXISTS (SELECT FROM pg_index WHERE indrelid = pg_class.oid AND indisprimary)
"""

SELECT_FULL: Final[LiteralString] = """
SELECT relname::text FROM pg_class
WHERE relnamespace = to_regnamespace(%s) AND relkind = 'r' AND relreplident = 'f'
"""


def change_busy_tables(
    connection: Connection, names: Names, find: LiteralString, change: LiteralString, *more: str
) -> None:
    """Changes the tables that are found, one after the other, since the service is at work there.

    `more`: what `find` needs besides the schema. Raises CannotMoveError when one is never free.
    """

    def is_done() -> bool:
        with suppress(psycopg.errors.LockNotAvailable):
            for (table,) in connection.execute(find, [names.schema, *more]).fetchall():
                with connection.transaction():
                    set_timeout(connection, "lock_timeout", BUSY_LOCK_MS)
                    connection.execute(sql.SQL(change).format(table=names.table(table)))
            return True
        return False

    if not until(is_done, BUSY_S):
        raise CannotMoveError("Its tables are too busy to be changed: do the same again later.")


def publish(source: Connection, names: Names, tables: Sequence[str]) -> None:
    """Has all changes of the tables in the publication, also of those without a key."""
    full = "ALTER TABLE {table} REPLICA IDENTITY FULL"
    change_busy_tables(source, names, SELECT_KEYLESS, full)
    listed = sql.SQL(", ").join(map(names.table, tables))
    name = sql.Identifier(names.move)
    source.execute(sql.SQL("CREATE PUBLICATION {} FOR TABLE {}").format(name, listed))


SUBSCRIBE: Final = """
CREATE SUBSCRIPTION {name} CONNECTION {conninfo} PUBLICATION {name}
    WITH (enabled = false, create_slot = false, copy_data = false, slot_name = {slot},
        streaming = off)
"""


def subscribe(target: Connection, names: Names, source_url: str, slot: str) -> None:
    """Nothing is applied before `begin_applying`."""
    given = {**url_parts(source_url), "application_name": names.move}
    conninfo = make_conninfo(**given)  # pyright: ignore[reportArgumentType]
    statement = sql.SQL(SUBSCRIBE).format(
        name=sql.Identifier(names.move), conninfo=sql.Literal(conninfo), slot=sql.Literal(slot)
    )
    target.execute(statement)


def begin_applying(target: Connection, names: Names) -> None:
    """Applies from now on what was written at the source since the slot began."""
    target.execute(_of_move("ALTER SUBSCRIPTION {} ENABLE", names))


HAS_SUBSCRIPTION: Final = """
SELECT EXISTS (SELECT FROM pg_subscription WHERE subname = %s AND subdbid = (
    SELECT oid FROM pg_database WHERE datname = current_database()))
"""


def drop_subscription(target: Connection, names: Names) -> None:
    """Without its slot, which the other server may not be there for."""
    if target.execute(HAS_SUBSCRIPTION, [names.move]).fetchone() == (True,):
        target.execute(_of_move("ALTER SUBSCRIPTION {} DISABLE", names))
        target.execute(_of_move("ALTER SUBSCRIPTION {} SET (slot_name = NONE)", names))
        target.execute(_of_move("DROP SUBSCRIPTION {}", names))


END_SENDER: Final = """
SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots
WHERE slot_name = %s AND active_pid IS NOT NULL
"""

DROP_SLOT: Final = """
SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
WHERE slot_name = %s AND NOT active
"""

HAS_SLOT: Final = "SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = %s)"


def drop_publication(source: Connection, names: Names) -> None:
    """With the slot that its changes are sent from. Raises CannotMoveError."""
    slot = names.slot(source)

    def is_gone() -> bool:
        source.execute(END_SENDER, [slot])
        with suppress(psycopg.errors.ObjectInUse):
            source.execute(DROP_SLOT, [slot])
        return source.execute(HAS_SLOT, [slot]).fetchone() == (False,)

    if not until(is_gone, RELEASE_S):
        raise CannotMoveError(f"PostgreSQL does not let go of the replication slot {slot}.")
    source.execute(_of_move("DROP PUBLICATION IF EXISTS {}", names))


def restore_identities(source: Connection, names: Names) -> None:
    """Has tables without a key be as they were before `publish`."""
    default = "ALTER TABLE {table} REPLICA IDENTITY DEFAULT"
    change_busy_tables(source, names, SELECT_FULL, default)


def _of_move(statement: LiteralString, names: Names) -> sql.Composed:
    return sql.SQL(statement).format(sql.Identifier(names.move))
