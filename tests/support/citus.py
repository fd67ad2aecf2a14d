"""Databases on a Citus cluster: ``COUPON_TEST_DATABASE_URL`` names its coordinator, in whose
database the nodes have been added."""

from __future__ import annotations

import os
from functools import cache
from typing import Final
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import TupleRow

HAS_CITUS: Final = "SELECT to_regclass('pg_catalog.pg_dist_node') IS NOT NULL"

SELECT_NODES: Final = """
SELECT nodename, nodeport FROM pg_dist_node WHERE noderole = 'primary' ORDER BY groupid
"""

END_SESSIONS: Final = """
SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s
"""

ATTEMPTS_MAX: Final = 50


@cache
def servers_of(url: str) -> tuple[str, ...]:
    """The URLs of all servers that have a part of a database, the coordinator first: only this one
    where there is no Citus."""
    with psycopg.connect(url, autocommit=True) as connection:
        if connection.execute(HAS_CITUS).fetchone() != (True,):
            return (url,)
        nodes = connection.execute(SELECT_NODES).fetchall()
    return tuple(_at(url, host, port) for host, port in nodes)


def _at(url: str, host: str, port: int) -> str:
    parts = urlsplit(url)
    user = parts.netloc.rpartition("@")[0]
    return parts._replace(netloc=f"{user}@{host}:{port}").geturl()


def is_cluster(url: str) -> bool:
    """Whether the server is a coordinator."""
    return len(servers_of(url)) > 1


def is_used() -> bool:
    """Whether the tests run on a cluster."""
    url = os.environ.get("COUPON_TEST_DATABASE_URL")
    return url is not None and is_cluster(url)


def require_cluster(url: str) -> None:
    """Skips the test where the server is none."""
    if not is_cluster(url):
        pytest.skip("no Citus: COUPON_TEST_DATABASE_URL has to name a coordinator, docs/testing.md")


def create_database(server_url: str, name: str, template: str) -> None:
    """Creates the database, on all nodes of a cluster."""
    # Faster than the default strategy, which writes all pages to the WAL.
    create = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY").format(
        sql.Identifier(name), sql.Identifier(template)
    )
    servers = servers_of(server_url)
    for server in servers:
        with psycopg.connect(server, autocommit=True) as connection:
            _execute(connection, create, template if len(servers) > 1 else "")
    if len(servers) > 1 and template == "template1":
        with psycopg.connect(server_url) as connection:  # one at a time, since roles are copied
            connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('join', 0))")
            _join([urlsplit(it)._replace(path=f"/{name}").geturl() for it in servers])


def _join(urls: list[str]) -> None:
    """Makes these databases, the first of them that of the coordinator, one."""
    for url in urls:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE EXTENSION citus")
    coordinator, *others = [urlsplit(it) for it in urls]
    with psycopg.connect(urls[0], autocommit=True) as connection:
        place = [coordinator.hostname, coordinator.port]
        connection.execute("SELECT citus_set_coordinator_host(%s, %s)", place)
        for other in others:
            connection.execute("SELECT citus_add_node(%s, %s)", [other.hostname, other.port])


def drop_database(server_url: str, name: str) -> None:
    """Drops the database, on all nodes of a cluster."""
    drop = sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
    servers = servers_of(server_url)
    for server in servers:
        with psycopg.connect(server, autocommit=True) as connection:
            _execute(connection, drop, name if len(servers) > 1 else "")


def _execute(
    connection: psycopg.Connection[TupleRow], statement: sql.Composed, of_citus: str
) -> None:
    """Executes what nobody else may be in a database for. `of_citus`: its name, where Citus has
    sessions of its own there."""
    for attempts_left in reversed(range(ATTEMPTS_MAX)):
        if of_citus:
            connection.execute(END_SESSIONS, [of_citus])
        try:
            connection.execute(statement)
        except psycopg.errors.ObjectInUse:
            if not (attempts_left and of_citus):
                raise
        else:
            return
