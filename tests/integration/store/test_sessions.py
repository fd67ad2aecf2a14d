"""What a URL says of the session holds, as far as the service does not say otherwise."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from support.postgres_roles import execute
from support.store import opened

from coupon_service.store import migrations
from coupon_service.store.database import Database
from coupon_service.store.migrations import schema_is_current
from coupon_service.store.pipeline import Connection, Pipeline

NAME = "josé 🎟"
SETTINGS = (
    "SELECT current_setting('search_path'), current_setting('statement_timeout'),"
    " current_setting('enable_seqscan'), current_setting('work_mem')"
)


async def settings_of(database: Database) -> Any:
    async def work(connection: Connection) -> Any:
        return await (await connection.execute(SETTINGS)).fetchone()

    return await database.read("settings", work)


async def kept(database: Database) -> list[Any]:
    """A name as the server has it, sent both ways that the service sends parameters."""

    async def work(connection: Connection) -> list[Any]:
        cursor = await connection.execute("SELECT %s, octet_length(%s)", [NAME, NAME])
        pipeline = Pipeline(connection)
        rows = pipeline.add("SELECT %s::text, octet_length(%s::text)", [NAME, NAME])
        await pipeline.run()
        return [await cursor.fetchone(), *rows]

    return await database.read("kept", work)


@pytest.mark.parametrize("by", ["URL", "environment"])
async def test_names_are_kept_whatever_the_encoding_of_the_client(
    by: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by == "environment":
        monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    url = f"{database_url}?client_encoding=LATIN1" if by == "URL" else database_url
    async with opened(url) as database:
        assert await kept(database) == [(NAME, len(NAME.encode()))] * 2


@pytest.mark.parametrize("by", ["URL", "environment"])
async def test_options_hold_for_migrations_and_the_service_alike(
    by: str, empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(empty_database_url, "CREATE SCHEMA app")
    options = "-csearch_path=app -c work_mem=5MB -c statement_timeout=0"
    if by == "environment":
        monkeypatch.setenv("PGOPTIONS", options)
        url = empty_database_url
    else:
        url = f"{empty_database_url}?options={quote(options)}"
    steps = migrations.apply(url)
    assert migrations.status(url) == [(step, True) for step in steps]
    monkeypatch.delenv("PGOPTIONS", raising=False)
    with psycopg.connect(empty_database_url) as connection:
        found = connection.execute(
            "SELECT DISTINCT schemaname FROM pg_tables WHERE schemaname IN ('app', 'public')"
        ).fetchall()
    assert found == [("app",)]
    if by == "environment":
        monkeypatch.setenv("PGOPTIONS", options)
    async with opened(url) as database:
        assert await settings_of(database) == ("app", "5s", "off", "5MB")
        assert await database.read("schema", schema_is_current)
