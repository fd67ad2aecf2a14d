"""Databases with shards, for all tests: ``COUPON_TEST_SHARDS=4``.

What tests read of the tables, without a schema, they find in views of all shards. They cannot write
so, and those that do are for one shard.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from itertools import count
from typing import Final
from uuid import uuid4

import psycopg
from psycopg import sql
from support.postgres_roles import new_role

from coupon_service.model.scopes import scope_of_business, shard_of_scope
from coupon_service.store import shards
from coupon_service.store.privileges import grant
from coupon_service.store.sessions import ShardPlace

SHARDS: Final = int(os.environ.get("COUPON_TEST_SHARDS", "1"))
"""How many shards the servers of tests have."""

SELECT_TABLES: Final = """
SELECT relname FROM pg_class WHERE relnamespace = 'coupon_00'::regnamespace AND relkind = 'r'
"""


def places(*urls: str, of: int = SHARDS) -> list[tuple[str, ShardPlace]]:
    """Where the shards on these servers are."""
    return [(urls[it * len(urls) // of], ShardPlace(it, of)) for it in range(of)]


def make_shards(*urls: str, of: int = SHARDS) -> None:
    """Makes so many shards on these servers."""
    list(shards.up(places(*urls, of=of)))


def make_views(url: str, of: int = SHARDS) -> None:
    """Makes views of the tables of all shards in the database."""
    with psycopg.connect(url, autocommit=True) as connection:
        for (table,) in connection.execute(SELECT_TABLES).fetchall():
            rows = [
                sql.SQL("SELECT * FROM {}").format(sql.Identifier(place.schema, table))
                for _, place in places(url, of=of)
            ]
            view, all_rows = sql.Identifier("public", table), sql.SQL(" UNION ALL ").join(rows)
            connection.execute(sql.SQL("CREATE VIEW {} AS {}").format(view, all_rows))


@contextmanager
def shard_roles(url: str, of: int = SHARDS) -> Generator[str]:
    """A role for each shard, which has what `coupon-service migrate grants` gives it and so no
    rights on any other: COUPON_SHARD_URLS."""
    urls: list[str] = []
    with ExitStack() as roles:
        for _, place in places(url, of=of):
            role, of_role = roles.enter_context(new_role(url))
            grant(url, role, {}, shard=place, execute=True)
            urls.append(of_role)
        yield ",".join(urls)


def business_in(shard: int, of: int) -> str:
    """A business of this shard that no other test uses."""
    names = (f"business-{uuid4().hex}" for _ in count())
    return next(it for it in names if shard_of_scope(scope_of_business(it), of) == shard)
