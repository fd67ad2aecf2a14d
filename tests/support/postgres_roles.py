"""Roles and databases of PostgreSQL that are not as the service would have them."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import LiteralString
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
from psycopg import sql

PASSWORD = "of-a-role-of-the-tests"


def execute(url: str, *statements: LiteralString | sql.Composed) -> None:
    """Executes the statements, each in a transaction of its own."""
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


@contextmanager
def new_role(database_url: str) -> Generator[tuple[str, str]]:
    """A role that may log in and nothing else: its name, and the URL of the database for it."""
    role = f"coupon_test_{uuid4().hex}"
    name = sql.Identifier(role)
    execute(database_url, sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(name, PASSWORD))
    try:
        parts = urlsplit(database_url)
        yield (
            role,
            parts._replace(netloc=f"{role}:{PASSWORD}@{parts.hostname}:{parts.port}").geturl(),
        )
    finally:
        execute(
            database_url,
            sql.SQL("DROP OWNED BY {}").format(name),
            sql.SQL("DROP ROLE {}").format(name),
        )


@contextmanager
def encoded_database(server_url: str, encoding: LiteralString) -> Generator[str]:
    """A database in another encoding than UTF8."""
    name = f"coupon_test_{uuid4().hex}"
    create = sql.SQL(
        "CREATE DATABASE {} TEMPLATE template0 ENCODING {} LOCALE_PROVIDER libc LOCALE 'C'"
    )
    execute(server_url, create.format(sql.Identifier(name), encoding))
    try:
        yield urlsplit(server_url)._replace(path=f"/{name}").geturl()
    finally:
        execute(server_url, sql.SQL("DROP DATABASE {}").format(sql.Identifier(name)))
