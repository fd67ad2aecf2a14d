"""`coupon-service migrate` and `coupon-service shards` on several shards."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
from support.command_line import run
from support.shards import make_shards, places
from support.store import Clock, make_book, opened

from coupon_service.errors import Contention
from coupon_service.store import migrations, shards
from coupon_service.store.books import Books
from coupon_service.store.sessions import ShardPlace

LAST = max(migrations.step_names())
SCHEMAS = ["coupon_00", "coupon_01", "coupon_02"]


def command(folder: Path, url: str, *arguments: str, of: int = 3) -> tuple[int, list[str], str]:
    done = run(folder, *arguments, DATABASE_URL=url, COUPON_SHARDS=str(of))
    return done.returncode, done.stdout.splitlines(), done.stderr.strip()


def test_up_status_down_and_up_again(empty_database_url: str, tmp_path: Path) -> None:
    url = empty_database_url
    code, lines, _ = command(tmp_path, url, "shards", "status")
    assert code == 1
    assert all("has no tables: migrate up" in it for it in lines[1:])
    for _ in range(2):
        code, lines, _ = command(tmp_path, url, "migrate", "up")
        assert (code, lines[-1]) == (0, "The schemas of 3 shards are up to date.")
        assert {f"{it}: applied {LAST}" for it in SCHEMAS} <= set(lines)
        assert {f"{it}: switching over" for it in SCHEMAS} <= set(lines)
        code, lines, _ = command(tmp_path, url, "migrate", "up")
        assert (code, lines) == (0, ["The schemas of 3 shards are up to date."])
        code, lines, _ = command(tmp_path, url, "migrate", "status")
        assert (code, len(lines)) == (0, 3 * len(migrations.step_names()))
        code, lines, _ = command(tmp_path, url, "shards", "status")
        assert code == 0
        assert [it.split()[2:] for it in lines[1:]] == [[it, LAST, "0", "ok"] for it in SCHEMAS]
        code, lines, _ = command(tmp_path, url, "migrate", "down", "--yes")
        assert code == 0
        assert {f"{it}: rolled back 0001.core" for it in SCHEMAS} <= set(lines)


def test_the_number_of_shards_cannot_be_changed(empty_database_url: str, tmp_path: Path) -> None:
    make_shards(empty_database_url, of=3)
    code, lines, told = command(tmp_path, empty_database_url, "migrate", "up", of=2)
    assert (code, lines) == (1, [])
    assert "coupon_00: It was made as shard 0 of 3, and would now be shard 0 of 2" in told
    code, lines, told = command(tmp_path, empty_database_url, "migrate", "up", of=1)
    assert (code, lines) == (1, [])
    assert told == "The database has shards: COUPON_SHARDS has to say how many."
    code, lines, _ = command(tmp_path, empty_database_url, "shards", "status", of=1)
    assert (code, lines[1].endswith(told)) == (1, True)
    code, lines, _ = command(tmp_path, empty_database_url, "shards", "status", of=2)
    assert code == 1
    assert lines[1].endswith("is shard 0 of 3, not shard 0 of 2")


async def test_books_without_a_shard_cannot_be_moved_to_one(
    database_url: str, tmp_path: Path
) -> None:
    async with opened(database_url) as database:
        await make_book(Books(database, Clock()), "spring")
    code, lines, told = command(tmp_path, database_url, "migrate", "up")
    assert (code, lines) == (1, [])
    assert told.count("has coupon books that are in no shard") == 3
    code, lines, _ = command(tmp_path, database_url, "shards", "status")
    assert code == 1
    assert all("has coupon books that are in no shard" in it for it in lines[1:])


def test_a_schema_that_is_being_changed_keeps_no_other_waiting(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_shards(empty_database_url, of=2)
    monkeypatch.setattr(migrations, "LOCK_TIMEOUT_MS", 100)
    with psycopg.connect(empty_database_url) as other:
        lock = migrations.lock_of(ShardPlace(0, 2))
        other.execute("SELECT pg_advisory_lock(%s)", [lock])
        with pytest.raises(shards.ShardsFailedError, match=r"^coupon_00: Another process") as it:
            list(shards.up(places(empty_database_url, of=2)))
        assert "coupon_01" not in str(it.value)
        with pytest.raises(Contention):
            migrations.status(empty_database_url, shard=ShardPlace(0, 2))


def test_what_one_shard_lacks_is_done_when_it_is_called_again(empty_database_url: str) -> None:
    one, other = places(empty_database_url, of=2)
    unreachable = ("postgresql://nobody@127.0.0.1:1/none", other[1])
    with pytest.raises(shards.ShardsFailedError, match=r"^coupon_01: ") as it:
        list(shards.up([one, unreachable]))
    assert "coupon_00" not in str(it.value)
    assert [it.problem for it in shards.look([one, other])] == ["", "has no tables: migrate up"]
    told = list(shards.up([one, other]))
    assert all(line.startswith("coupon_01: ") for line in told)
    assert [it.problem for it in shards.look([one, other])] == ["", ""]


def test_roles_get_what_they_need_in_each_schema(empty_database_url: str, tmp_path: Path) -> None:
    make_shards(empty_database_url, of=3)
    code, lines, _ = command(tmp_path, empty_database_url, "migrate", "grants", "somebody")
    assert code == 0
    for schema in SCHEMAS:
        assert f'GRANT USAGE ON SCHEMA "{schema}" TO "somebody";' in lines


def test_migrate_has_to_reach_postgresql_itself(empty_database_url: str, tmp_path: Path) -> None:
    done = run(
        tmp_path,
        "migrate",
        "up",
        DATABASE_URL=empty_database_url,
        COUPON_SHARDS="2",
        COUPON_SESSION_PARAMETERS="transaction",
    )
    assert done.returncode == 1
    assert "name PostgreSQL itself" in done.stderr
