"""What a move leaves behind on both servers: dropped when it is undone, and when it is done."""

from __future__ import annotations

from typing import Final, LiteralString

from psycopg import sql

from coupon_service.store.moving.copying import GUARD, OPEN_GUARD, is_guarded
from coupon_service.store.moving.replication import (
    change_busy_tables,
    drop_publication,
    drop_subscription,
    restore_identities,
)
from coupon_service.store.moving.sides import Connection, Names, connect, connect_again
from coupon_service.store.placement import MAKE_PLACES, read_arrival, read_forward, write_arrival
from coupon_service.store.sessions import ShardPlace


def undo(source: Connection, target: Connection, names: Names) -> None:
    """Drops what moves have left on both servers, while the shard is at the source."""
    drop_subscription(target, names)
    if is_guarded(target, names):
        _drop_schema(target, names.schema)
    _drop_schema(target, names.retired)
    _drop_schema(source, names.retired)
    drop_publication(source, names)
    restore_identities(source, names)


def finish(url: str, shard: ShardPlace, names: Names, before_url: str = "") -> None:
    """Opens the place where the shard has arrived to all, and drops what is left of the move on
    both servers; the guard last, since by it a move is known that was not finished."""
    with connect_again(url, shard) as target:
        number, token = read_arrival(target, names.schema)
        if before_url:
            with connect(before_url) as source:
                forward = read_forward(source, names.schema, 0)
            number, token = (forward.number, forward.token) if forward else (number, token)
        with target.transaction():
            target.execute(MAKE_PLACES)
            if is_guarded(target, names):
                guard = names.table(GUARD)
                target.execute(sql.SQL(OPEN_GUARD).format(guard=guard))
            write_arrival(target, names.schema, number, token)
        drop_subscription(target, names)
        if before_url:
            with connect_again(before_url, shard) as source:
                drop_publication(source, names)
                _drop_schema(source, names.retired)
        change_busy_tables(target, names, SELECT_GUARDED, UNGUARD, GUARD)
        target.execute(sql.SQL("DROP FUNCTION IF EXISTS {}()").format(names.table(GUARD)))


SELECT_GUARDED: Final[LiteralString] = """
SELECT relname::text FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid
WHERE relnamespace = to_regnamespace(%s) AND tgname = %s
"""

UNGUARD: Final[LiteralString] = "DROP TRIGGER IF EXISTS coupon_arriving ON {table}"


def _drop_schema(connection: Connection, schema: str) -> None:
    drop = sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema))
    connection.execute(drop)
