"""The service with other versions of PostgreSQL than the embedded one, where they are installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from support.installed_postgres import InstalledPostgres, each_installed_postgres
from support.invariants import assert_adds_up
from support.service import Api, ServerThread, settings_for
from support.tour import take_tour

from coupon_service.errors import DatabaseUnavailable
from coupon_service.model import bucket_of_user
from coupon_service.store import migrations, server_check
from coupon_service.store.server_check import server_problems
from coupon_service.telemetry.readiness import Readiness

INSERT_COUNTER = """
INSERT INTO coupon_user_counters (bucket, book_id, user_id, redemptions)
VALUES (%s, '00000000-0000-0000-0000-000000000001', %s, 1)
"""
SELECT_COUNTERS = "SELECT bucket, user_id, redemptions FROM coupon_user_counters WHERE user_id = %s"
SPELLINGS = ["jose\N{COMBINING ACUTE ACCENT}", "jos\N{LATIN SMALL LETTER E WITH ACUTE}"]


@pytest.fixture(scope="module")
def installed_url(version: int, server_folder: Path) -> Iterator[str]:
    with InstalledPostgres(version, server_folder / f"postgres-{version}") as server:
        migrations.apply(server.url)
        yield server.url


@each_installed_postgres
def test_the_service_works(version: int, installed_url: str, redis_url: str) -> None:
    settings = settings_for(installed_url, redis_url)
    with ServerThread(settings) as running, closing(Api(running.address)) as api:
        take_tour(api)
    with psycopg.connect(installed_url) as connection:
        assert connection.info.server_version // 10_000 == version
        assert_adds_up(connection)


@each_installed_postgres
def test_its_schema_goes_down_and_up_and_merges_names(installed_url: str) -> None:
    with psycopg.connect(installed_url, autocommit=True) as connection:
        for spelling in SPELLINGS:
            connection.execute(INSERT_COUNTER, [bucket_of_user(spelling), spelling])
        connection.execute("CALL coupon_merge_names()")
        merged = connection.execute(SELECT_COUNTERS, [SPELLINGS[1]]).fetchall()
    assert merged == [(bucket_of_user(SPELLINGS[1]), SPELLINGS[1], 2)]
    steps = [step for step, _ in migrations.status(installed_url)]
    assert migrations.rollback(installed_url) == steps[::-1]
    assert migrations.apply(installed_url) == steps


def test_a_server_that_is_too_old_is_refused(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert server_problems(14, "UTF8", read_only=False) == {
        Readiness.VERSION_TOO_OLD: "PostgreSQL 14 is too old: 15 or newer is needed."
    }
    monkeypatch.setattr(server_check, "VERSION_MIN", 1_000)
    with pytest.raises(DatabaseUnavailable, match=r"too old: 1000 or newer is needed"):
        migrations.apply(empty_database_url)
