"""Where names are found: in every row of a database, as text, and in everything that Redis has."""

# redis-py leaves the type of its keyword arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, cast

import psycopg
import redis
from psycopg import sql

from coupon_service.settings.redis_url import read_redis_url

TABLES: Final = """
SELECT oid::regclass::text FROM pg_class
WHERE relkind IN ('r', 'p') AND relnamespace = current_schema()::regnamespace
"""


def traces_in(database_url: str, redis_url: str, names: Iterable[str]) -> list[str]:
    """Each place that has one of the names."""
    wanted = list(names)
    return [*_in_tables(database_url, wanted), *_in_redis(redis_url, wanted)]


def _in_tables(database_url: str, names: list[str]) -> Iterator[str]:
    with psycopg.connect(database_url) as connection:
        for (table,) in connection.execute(TABLES).fetchall():
            query = sql.SQL(
                "SELECT DISTINCT ON (wanted.name) wanted.name, row_of::text"
                " FROM {table} AS row_of, unnest(%s::text[]) AS wanted (name)"
                " WHERE strpos(row_of::text, wanted.name) > 0"
                " OR strpos(row_of::text, encode(convert_to(wanted.name, 'UTF8'), 'hex')) > 0"
            ).format(table=sql.SQL(table))
            for name, row in connection.execute(query, [names]).fetchall():
                yield f"{name} in {table}: {row}"


def _in_redis(url: str, names: list[str]) -> Iterator[str]:
    with redis.Redis.from_url(read_redis_url(url).plain, decode_responses=True) as client:
        keys = cast("Iterator[str]", client.scan_iter(count=1_000))
        for key in keys:
            text = f"{key} {_value(client, key)}"
            yield from (f"{name} in Redis: {text}" for name in names if name in text)


def _value(client: Any, key: str) -> Any:
    match client.type(key):
        case "string":
            return client.get(key)
        case "zset":
            return client.zrange(key, 0, -1)
        case "hash":
            return client.hgetall(key)
        case "set":
            return client.smembers(key)
        case "list":
            return client.lrange(key, 0, -1)
        case _:
            return ""
