"""`coupon-service migrate` on a real database."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from psycopg import sql
from support.command_line import run
from support.postgres_roles import encoded_database, execute, new_role

from coupon_service.embedded.machine import free_port

STEPS = sorted(
    path.stem
    for path in (Path(__file__).parents[3] / "migrations").glob("*.sql")
    if not path.stem.endswith(".rollback")
)


def test_up_down_and_up_again(empty_database_url: str, tmp_path: Path) -> None:
    def migrate(*arguments: str) -> tuple[int, list[str]]:
        done = run(tmp_path, "migrate", *arguments, DATABASE_URL=empty_database_url)
        assert done.stderr == ""
        return done.returncode, done.stdout.splitlines()

    assert migrate("status") == (1, [f"missing {step}" for step in STEPS])
    applied = [f"applied {step}" for step in STEPS]
    for _ in range(2):
        assert migrate("up") == (0, [*applied, "The schema is up to date."])
        assert migrate("up") == (0, ["The schema is up to date."])
        assert migrate("status") == (0, applied)
        assert migrate("down", "--yes", "--to", STEPS[-1]) == (
            0,
            ["There is nothing to roll back."],
        )
        assert migrate("down", "--yes") == (0, [f"rolled back {step}" for step in reversed(STEPS)])
    assert migrate("down") == (0, ["There is nothing to roll back."])


@pytest.mark.parametrize("answer", [b"n\n", b""])
def test_nothing_is_taken_back_unless_the_question_is_answered_with_yes(
    answer: bytes, database_url: str, tmp_path: Path
) -> None:
    done = run(tmp_path, "migrate", "down", stdin=answer, DATABASE_URL=database_url)
    assert done.returncode == 1
    assert STEPS[-1] in done.stdout
    assert run(tmp_path, "migrate", "status", DATABASE_URL=database_url).returncode == 0


def test_a_step_that_is_not_there_cannot_be_gone_back_to(database_url: str, tmp_path: Path) -> None:
    done = run(
        tmp_path, "migrate", "down", "--yes", "--to", "0000.nothing", DATABASE_URL=database_url
    )
    assert done.returncode == 1
    assert done.stderr.startswith("0000.nothing is not an applied step. Applied: 0001")
    assert run(tmp_path, "migrate", "status", DATABASE_URL=database_url).returncode == 0


@pytest.mark.parametrize("action", ["up", "down", "status"])
def test_a_database_that_cannot_be_used_is_told_in_a_sentence(
    action: str, empty_database_url: str, tmp_path: Path
) -> None:
    there = urlsplit(empty_database_url)
    port = free_port()
    elsewhere = there._replace(netloc=f"nobody@127.0.0.1:{port}").geturl()
    for url in (elsewhere, there._replace(path="/no_such_database").geturl()):
        done = run(tmp_path, "migrate", action, DATABASE_URL=url)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("The database cannot be used: ")
        assert len(done.stderr.splitlines()) == 1
        assert "Traceback" not in done.stderr
        assert not there.password or there.password not in done.stderr
        if url is elsewhere:
            assert f'"127.0.0.1", port {port} ' in done.stderr


def test_each_host_that_cannot_be_reached_is_named_once(tmp_path: Path) -> None:
    ports = (free_port(), free_port())
    url = f"postgresql://nobody@127.0.0.1:{ports[0]},127.0.0.1:{ports[1]}/coupons"
    done = run(tmp_path, "migrate", "up", COUPON_DATABASE_URL=url, COUPON_HOST="0.0.0.0")
    assert done.returncode == 1
    (sentence,) = done.stderr.splitlines()
    assert [sentence.count(f"port {port} failed") for port in ports] == [1, 1]


def assert_refused(url: str, folder: Path, *words: str) -> None:
    """Every action ends with one sentence that has these words."""
    for action in ("up", "status", "down"):
        done = run(folder, "migrate", action, DATABASE_URL=url)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("The database cannot be used: ")
        assert len(done.stderr.splitlines()) == 1
        for word in words:
            assert word in done.stderr


def test_a_read_only_server_is_told_in_a_sentence(empty_database_url: str, tmp_path: Path) -> None:
    name = sql.Identifier(urlsplit(empty_database_url).path.removeprefix("/"))
    statement = sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on")
    execute(empty_database_url, statement.format(name))
    assert_refused(empty_database_url, tmp_path, "read-only", "target_session_attrs=read-write")


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_another_encoding_is_told_in_a_sentence(
    encoding: Any, postgres_url: str, tmp_path: Path
) -> None:
    with encoded_database(postgres_url, encoding) as url:
        assert_refused(url, tmp_path, encoding, "UTF8")


def test_a_role_without_privileges_is_told_in_a_sentence(
    empty_database_url: str, tmp_path: Path
) -> None:
    with new_role(empty_database_url) as (_, url):
        assert_refused(url, tmp_path, "may not create tables in the schema public")
