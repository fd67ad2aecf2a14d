"""Where a shard is: on Citus one of the nodes, and once it was moved another place than the one
that its URL names.

Where it was, a forwarding address is left behind, in the transaction that ends its use there. Who
does not find the tables any more looks for it, and goes on at the new place. An address has no
secrets: user and password stay those of the URL.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import psycopg
from psycopg import errors as pg
from psycopg.conninfo import make_conninfo

from coupon_service.store import citus
from coupon_service.store.sessions import DatabaseSettings, url_parts

MISPLACED: Final = (
    pg.UndefinedTable,
    pg.UndefinedFunction,
    pg.InvalidSchemaName,
    pg.InsufficientPrivilege,
    pg.ConnectionFailure,
)
"""How PostgreSQL says that the tables are not there, or not to be used yet, or a node of Citus that
it cannot reach the one that has them."""

ARRIVING: Final = "CM001"
"""The SQLSTATE of who writes to a shard that has not arrived yet."""

HOPS_MAX: Final = 16
"""Forwarding addresses that are followed, one after the other."""

MAKE_PLACES: Final = """
CREATE SCHEMA IF NOT EXISTS coupon_moves;
GRANT USAGE ON SCHEMA coupon_moves TO PUBLIC;
CREATE TABLE IF NOT EXISTS coupon_moves.places (
    schema  text PRIMARY KEY,
    number  bigint NOT NULL,
    host    text,
    port    text,
    dbname  text,
    token   text NOT NULL
);
GRANT SELECT ON coupon_moves.places TO PUBLIC
"""
"""What a database knows of shards that were moved: how often each was when it came or went, and
where it went to; no host for one that came and is there."""


@dataclass(frozen=True, slots=True)
class Address:
    """A database, without who uses it."""

    host: str
    port: str
    dbname: str

    def __str__(self) -> str:
        """As `shards status` has it."""
        return f"{self.host or 'local'}:{self.port}/{self.dbname}"


@dataclass(frozen=True, slots=True)
class Forward:
    """A forwarding address. `number`: of the move, among those of the shard. `token`: lets its
    bearer write at the new place while others may not yet. `on_citus`: it is that of a node, which
    all nodes know."""

    number: int
    address: Address
    token: str
    on_citus: bool = False


def address_of(url: str) -> Address:
    """Raises DatabaseUnavailable for a URL that PostgreSQL cannot read."""
    parts = url_parts(url)
    return Address(parts.get("host", ""), parts.get("port", "5432"), parts.get("dbname", ""))


def url_at(address: Address, url: str, known_urls: Sequence[str] = ()) -> str:
    """The URL of an address: the one of `known_urls` that names it, else with all but the address
    of `url`."""
    for known in known_urls:
        if address_of(known) == address:
            return known
    parts = {
        **url_parts(url),
        "host": address.host,
        "port": address.port,
        "dbname": address.dbname,
    }
    parts.pop("hostaddr", None)
    return make_conninfo(**{name: value for name, value in parts.items() if value})


def moved(settings: DatabaseSettings, forward: Forward) -> DatabaseSettings:
    """The settings for the place that an address leads to."""
    known_urls = () if forward.on_citus else settings.known_urls
    return replace(
        settings,
        url=url_at(forward.address, settings.url, known_urls),
        move_number=forward.number,
        move_token=forward.token,
        on_citus=forward.on_citus,
    )


# By its name only where it is there: no statement may fail in a transaction.
HAS_PLACES: Final = "SELECT to_regclass('coupon_moves.places') IS NOT NULL"

SELECT_FORWARD: Final = """
SELECT number, host, port, dbname, token FROM coupon_moves.places
WHERE schema = %s AND number > %s AND host IS NOT NULL
"""


async def find_forward(
    connection: psycopg.AsyncConnection[Any], settings: DatabaseSettings
) -> Forward | None:
    """The address that the shard has left in this database after it came there, or of the node of
    Citus that has it; None when it is here."""
    cursor = await connection.execute(citus.HAS_CITUS)
    if await cursor.fetchone() == (True,):
        cursor = await connection.execute(citus.SELECT_NODE, [settings.shard.schema])
        row = await cursor.fetchone()
        if row is None or (row[3] and settings.on_citus):
            return None
        return Forward(settings.move_number, Address(*row[:3]), settings.move_token, on_citus=True)
    cursor = await connection.execute(HAS_PLACES)
    if await cursor.fetchone() != (True,):
        return None
    parameters = [settings.shard.schema, settings.move_number]
    cursor = await connection.execute(SELECT_FORWARD, parameters)
    return _forward(await cursor.fetchone())


def read_forward(connection: psycopg.Connection[Any], schema: str, number: int) -> Forward | None:
    """As `find_forward`, for commands."""
    if connection.execute(HAS_PLACES).fetchone() != (True,):
        return None
    return _forward(connection.execute(SELECT_FORWARD, [schema, number]).fetchone())


def _forward(row: tuple[Any, ...] | None) -> Forward | None:
    if row is None:
        return None
    number, host, port, dbname, token = row
    return Forward(number, Address(host, port, dbname), token)


WRITE_PLACE: Final = """
INSERT INTO coupon_moves.places (schema, number, host, port, dbname, token)
VALUES (%s, %s, %s, %s, %s, %s)
ON CONFLICT (schema) DO UPDATE SET number = excluded.number, host = excluded.host,
    port = excluded.port, dbname = excluded.dbname, token = excluded.token
"""


def write_forward(connection: psycopg.Connection[Any], schema: str, forward: Forward) -> None:
    """Leaves the address behind, in a database that has MAKE_PLACES."""
    to = forward.address
    connection.execute(
        WRITE_PLACE, [schema, forward.number, to.host, to.port, to.dbname, forward.token]
    )


def write_arrival(
    connection: psycopg.Connection[Any], schema: str, number: int, token: str
) -> None:
    """Says that the shard is here, in a database that has MAKE_PLACES; it forgets the address of
    an earlier move from here."""
    connection.execute(WRITE_PLACE, [schema, number, None, None, None, token])


SELECT_NUMBER: Final = "SELECT number, token FROM coupon_moves.places WHERE schema = %s"


def read_arrival(connection: psycopg.Connection[Any], schema: str) -> tuple[int, str]:
    """The number and token of the last move that this database knows of; 0 and none before."""
    if connection.execute(HAS_PLACES).fetchone() != (True,):
        return 0, ""
    row = connection.execute(SELECT_NUMBER, [schema]).fetchone()
    return (row[0], row[1]) if row is not None else (0, "")
