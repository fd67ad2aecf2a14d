"""A shard moves to another server as a whole: while it serves, or not at all."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from support.calls import locking_code
from support.command_line import COMMAND, environment, run
from support.invariants import assert_adds_up
from support.service import (
    Api,
    ServerThread,
    audit,
    books,
    new_codes,
    settings_for_moves,
)
from support.shards import business_in, make_shards, places
from support.waiting import until

from coupon_service.embedded import EmbeddedPostgres
from coupon_service.settings import Settings
from coupon_service.store.migrations import NUMBERS_ARE_ABOVE
from coupon_service.store.moving import leftovers, pausing, switchover
from coupon_service.store.moving import move as moving
from coupon_service.store.moving.move import Move
from coupon_service.store.moving.sides import CannotMoveError

OF = 2
PATIENCE_MS = 10_000
"""Longest pause, of a machine that is busy with other things."""

LEFT_BEHIND = """
SELECT 'publication ' || pubname FROM pg_publication
UNION ALL SELECT 'subscription ' || subname FROM pg_subscription
    WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())
UNION ALL SELECT 'slot ' || slot_name FROM pg_replication_slots
UNION ALL SELECT 'schema ' || nspname FROM pg_namespace WHERE nspname LIKE 'coupon_01_%'
UNION ALL SELECT 'trigger ' || tgname FROM pg_trigger WHERE tgname = 'coupon_arriving'
UNION ALL SELECT 'function ' || proname FROM pg_proc WHERE proname = 'coupon_arriving'
UNION ALL SELECT 'origin ' || roname FROM pg_replication_origin
"""


@dataclass
class Servers:
    """Two servers whose roles have the same password, and a database with shards on the first."""

    postgres: list[EmbeddedPostgres]
    password: str
    numbers: Iterator[int]

    def url(self, server: int, database: str) -> str:
        one = self.postgres[server]
        return f"postgresql://{one.user}:{self.password}@127.0.0.1:{one.port}/{database}"


@pytest.fixture(scope="module")
def servers(server_folder: Path) -> Iterator[Servers]:
    folder = server_folder / f"move-{uuid4().hex}"
    settings = {"wal_level": "logical", "max_wal_senders": "8", "wal_writer_delay": "20ms"}
    with (
        EmbeddedPostgres(folder / "0", durable=False, settings=settings) as first,
        EmbeddedPostgres(folder / "1", durable=False, settings=settings) as second,
    ):
        password = str(urlsplit(first.url).password)
        with psycopg.connect(second.url) as connection:
            change = sql.SQL("ALTER ROLE coupon PASSWORD {}").format(sql.Literal(password))
            connection.execute(change)
        found = Servers([first, second], password, count(1))
        with psycopg.connect(first.url, autocommit=True) as connection:
            connection.execute("CREATE DATABASE shards")
        make_shards(found.url(0, "shards"), of=OF)
        yield found


@dataclass
class Shop:
    """A database with shards and an empty one, of the two servers, and a service on the first."""

    here: str
    there: str
    settings: Settings

    def move(self, *, back: bool = False, pause_max_ms: int = PATIENCE_MS) -> Move:
        """Of the second shard, by settings that stay as they are."""
        url, place = places(self.here, of=OF)[1]
        return Move(url, place, self.here if back else self.there, [self.here], pause_max_ms)

    def left_behind(self) -> list[str]:
        """Of a move, on both servers."""
        found: list[str] = []
        for url in (self.here, self.there):
            with psycopg.connect(url) as connection:
                found += [it for (it,) in connection.execute(LEFT_BEHIND).fetchall()]
        return found

    def has(self, url: str) -> bool:
        with psycopg.connect(url) as connection:
            found = connection.execute("SELECT to_regnamespace('coupon_01') IS NOT NULL").fetchone()
        return found == (True,)


@pytest.fixture
def shop(servers: Servers, redis_server_url: str) -> Iterator[Shop]:
    name = f"shop_{next(servers.numbers)}"
    for server, template in ((0, "shards"), (1, "template1")):
        with psycopg.connect(servers.url(server, "postgres"), autocommit=True) as connection:
            create = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
                sql.Identifier(name), sql.Identifier(template)
            )
            connection.execute(create)
    here, there = servers.url(0, name), servers.url(1, name)
    yield Shop(here, there, settings_for_moves(here, redis_server_url, OF))
    for server in (0, 1):
        with psycopg.connect(servers.url(server, "postgres"), autocommit=True) as connection:
            drop = sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
            connection.execute(drop)


@dataclass
class Load:
    """Calls that go on while the shard moves; each is answered OK, or the test fails."""

    api: Api
    business: str
    locking: str
    picked: str

    def __post_init__(self) -> None:
        self.answered: list[str] = []
        self._stopped = threading.Event()

    @contextmanager
    def going_on(self, workers: int = 4) -> Generator[None]:
        with ThreadPoolExecutor(workers) as threads:
            doing = [threads.submit(self._work, worker) for worker in range(workers)]
            try:
                yield
            finally:
                self._stopped.set()
        for it in doing:
            it.result()

    def _work(self, worker: int) -> None:
        for number in count():
            if self._stopped.is_set():
                return
            user = f"user-{worker}-{number}"
            lock = self.api.lock(self.locking, user, business_id=self.business)
            done = self.api.redeem(
                self.locking, user, business_id=self.business, lock_token=lock.lock_token
            )
            self.answered.append(done.redemption.redemption_id)
            self.api.assign_random(self.picked, user)


def assert_exact(url: str, redeemed: Sequence[str]) -> None:
    """Assert that just these redemptions are stored, and that the ledger adds up and goes on."""
    with psycopg.connect(url, options="-c search_path=coupon_01") as connection:
        rows = connection.execute("SELECT event_id::text FROM redemption_audit WHERE type = 16")
        assert sorted(it for (it,) in rows.fetchall()) == sorted(redeemed)
        assert_adds_up(connection)
        above = connection.execute(NUMBERS_ARE_ABOVE).fetchone()
        assert above == (True,), "numbers of the ledger would come again"


def test_no_call_fails_or_is_lost_while_it_moves_there_and_back(shop: Shop) -> None:
    settings = shop.settings.model_copy(update={"seal_interval_ms": 100})
    with ServerThread(settings) as server, ServerThread(settings) as other:
        api, business = Api(server.address), business_in(1, OF)
        locking = locking_code(api, 100_000, business_id=business)
        picked = api.book(
            codes=2_000,
            business_id=business,
            assignment_policy=books.ASSIGNMENT_POLICY_REQUIRED,
        )
        watched = audit.WatchAuditEventsRequest(business_id=business, stop_at_end=True)
        seen = list(api.audit.WatchAuditEvents(watched))
        watched.resume_token = seen[-1].resume_token
        load = Load(api, business, locking, picked.book_id)
        with load.going_on():
            until(lambda: len(load.answered) > 5)
            list(shop.move().run())
            here, there = shop.has(shop.here), shop.has(shop.there)
            assert (here, there, shop.left_behind()) == (False, True, [])
            answered = len(load.answered)
            until(lambda: len(load.answered) > answered + 5)
            fence = api.lock(locking, "ann", business_id=business).lock.fence
            list(shop.move(back=True).run())
            assert (shop.has(shop.here), shop.left_behind()) == (True, [])
        assert api.lock(locking, "bob", business_id=business).lock.fence > fence
        second = Api(other.address)  # has served nobody since it began
        lock = second.lock(locking, "eve", business_id=business)
        done = second.redeem(locking, "eve", business_id=business, lock_token=lock.lock_token)
        assert_exact(shop.here, [*load.answered, done.redemption.redemption_id])
        followed = [it for step in second.audit.WatchAuditEvents(watched) for it in step.events]
        assert len({it.event_id for it in followed}) == len(followed)
        redeemed = [it for it in followed if it.type == audit.AUDIT_EVENT_TYPE_REDEEMED]
        assert len(redeemed) == len(load.answered) + 1
        api.close()
        second.close()


class KilledError(BaseException):
    """The process that moves is no more."""


def killed_after(shop: Shop, patch: pytest.MonkeyPatch, line: str) -> None:
    """A move whose process is killed when it has come so far."""
    with patch.context() as killed:
        killed.setattr(Move, "give_up", Move.close)
        steps = shop.move().run()
        assert any(line in told for told in steps)
        with pytest.raises(KilledError):
            steps.throw(KilledError)


def killed_in(shop: Shop, patch: pytest.MonkeyPatch, where: Any, name: str, *, done: bool) -> None:
    """The same, in a step of the switch; `done`: just after it."""
    real = getattr(where, name)

    def end(*arguments: Any) -> None:
        if done:
            real(*arguments)
        raise KilledError

    with patch.context() as killed:
        killed.setattr(Move, "give_up", Move.close)
        killed.setattr(where, name, end)
        with pytest.raises(KilledError):
            list(shop.move().run())


def test_who_moves_it_may_be_killed_at_any_step(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ServerThread(shop.settings) as server:
        api, business = Api(server.address), business_in(1, OF)
        codes = new_codes(9)
        api.book(codes=codes, business_id=business)
        redeemed: list[str] = []

        def redeem() -> None:
            done = api.redeem(codes[len(redeemed)], "ann", business_id=business)
            redeemed.append(done.redemption.redemption_id)

        for line in ("made the tables", "replicating", "caught up", "switching"):
            killed_after(shop, monkeypatch, line)
            redeem()
            assert_exact(shop.here, redeemed)
        for is_done in (False, True):
            killed_in(shop, monkeypatch, switchover, "hand_over", done=is_done)
            redeem()
            assert_exact(shop.here, redeemed)
        list(shop.move().undo())
        assert (shop.left_behind(), shop.has(shop.there)) == ([], False)
        killed_in(shop, monkeypatch, Move, "clean_up", done=False)
        redeem()
        assert_exact(shop.there, redeemed)
        with pytest.raises(CannotMoveError, match=r"was cut off after.*first do that one again"):
            list(shop.move(back=True).run())
        list(shop.move().run())  # only cleans up
        assert (shop.left_behind(), shop.has(shop.here)) == ([], False)
        redeem()
        assert_exact(shop.there, redeemed)
        api.close()


def test_a_plan_says_what_is_unfinished_and_what_a_run_would_do(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    for line, step in (
        ("made the tables", "making the tables"),
        ("replicating", "copying the rows"),
        ("caught up", "catching up and comparing"),
    ):
        killed_after(shop, monkeypatch, line)
        until(lambda: not (moves_in(shop.here) or moves_in(shop.there)))
        told = list(shop.move().plan())
        assert told[0] == f"a move of it is unfinished, in its step: {step}"
        assert told[1] == "would undo that move, and begin anew"
    killed_in(shop, monkeypatch, Move, "clean_up", done=False)
    told = list(shop.move().plan())
    assert told[1] == "a move to there is unfinished, in its step: cleaning up"
    assert told[2] == "would bring that move to its end"
    with pytest.raises(CannotMoveError, match=r"was cut off after.*first do that one again"):
        list(shop.move(back=True).plan())
    list(shop.move().run())
    assert len(list(shop.move().plan())) == 1
    until(lambda: not (moves_in(shop.here) or moves_in(shop.there)))
    back = shop.move(back=True).run()
    assert any("replicating" in told for told in back)
    plan = shop.move(back=True).plan()
    assert next(plan) == "a move of it is unfinished, in its step: copying the rows"
    with pytest.raises(CannotMoveError, match="Another process is moving the shard"):
        next(plan)
    back.close()
    until(lambda: not (moves_in(shop.here) or moves_in(shop.there)))
    assert not any("unfinished" in told for told in shop.move(back=True).plan())


def kill_command(shop: Shop, line: str, by: signal.Signals = signal.SIGKILL) -> None:
    """The command, killed when it says so."""
    command = [*COMMAND, "shards", "move", "1", "--to", shop.there]
    variables = environment(DATABASE_URL=shop.here, COUPON_SHARDS=str(OF))
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True) as moving_it:
        assert moving_it.stdout is not None
        said = any(line in told for told in iter(moving_it.stdout.readline, ""))
        moving_it.send_signal(by)
    assert said


def test_a_command_that_is_told_to_end_undoes_what_it_did(shop: Shop) -> None:
    kill_command(shop, "replicating", signal.SIGTERM)
    assert (shop.left_behind(), shop.has(shop.there)) == ([], False)
    assert shop.has(shop.here)


def test_a_killed_command_is_undone_or_brought_to_its_end(shop: Shop, tmp_path: Path) -> None:
    def command(*more: str) -> None:
        arguments = ("shards", "move", "1", "--to", shop.there, *more)
        done = run(tmp_path, *arguments, DATABASE_URL=shop.here, COUPON_SHARDS=str(OF))
        assert (done.returncode, done.stderr) == (0, "")

    with ServerThread(shop.settings) as server:
        api, business = Api(server.address), business_in(1, OF)
        codes = new_codes(2)
        api.book(codes=codes, business_id=business)
        redeemed: list[str] = []
        for code, line in zip(codes, ("replicating", "switching over"), strict=True):
            kill_command(shop, line)
            done = api.redeem(code, "ann", business_id=business)
            redeemed.append(done.redemption.redemption_id)
            if line == "replicating":
                assert shop.left_behind()
                until(lambda: not (moves_in(shop.here) or moves_in(shop.there)))
                command("--undo")
                assert (shop.left_behind(), shop.has(shop.there)) == ([], False)
        until(lambda: not (moves_in(shop.here) or moves_in(shop.there)))
        command()  # wherever it was
        assert (shop.left_behind(), shop.has(shop.here)) == ([], False)
        assert_exact(shop.there, redeemed)
        api.close()


def moves_in(url: str) -> bool:
    """Whether sessions of a move are still there."""
    with psycopg.connect(url) as connection:
        return connection.execute(MOVES).fetchone() == (True,)


MOVES = """
SELECT EXISTS (SELECT FROM pg_stat_activity
    WHERE application_name = 'coupon_service move' AND datname = current_database())
"""


def test_a_move_that_loses_a_connection_is_undone(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    for url in (shop.here, shop.there):
        with psycopg.connect(url, autocommit=True) as connection:
            for told in (steps := shop.move().run()):
                if "replicating" in told:
                    break
            connection.execute(CUT)
            with pytest.raises(CannotMoveError):
                list(steps)
        assert (shop.left_behind(), shop.has(shop.there)) == ([], False)
    assert shop.has(shop.here)


def test_a_move_that_fails_and_is_not_undone_says_both_reasons(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise CannotMoveError("The tables are too busy.")

    steps = shop.move().run()
    next(steps)
    with monkeypatch.context() as failing:
        failing.setattr(leftovers, "drop_publication", fail)
        with psycopg.connect(shop.here, autocommit=True) as connection:
            connection.execute("DROP TABLE coupon_01.coupon_turns")
        first = "The tables have other columns than those of this version"
        with pytest.raises(
            CannotMoveError, match=rf"^{first}.*The tables are too busy.*with --undo\.$"
        ):
            list(steps)
    assert shop.left_behind() == []  # it had made no more than the schema, which is dropped first
    assert (shop.has(shop.here), shop.has(shop.there)) == (True, False)


CUT = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE application_name = 'coupon_service move' AND datname = current_database()
"""


def test_a_pause_that_would_be_too_long_is_given_up(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pausing, "ATTEMPTS_MAX", 2)
    monkeypatch.setattr(pausing, "REST_S", 0.0)
    with psycopg.connect(shop.here) as other:
        other.execute("SELECT FROM coupon_01.coupon_books FOR UPDATE")
        with pytest.raises(CannotMoveError, match=r"A pause of 200 ms was not enough.*backend"):
            list(shop.move(pause_max_ms=200).run())
    assert (shop.left_behind(), shop.has(shop.there)) == ([], False)
    assert shop.has(shop.here)


def test_a_copy_that_differs_is_not_switched_to(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = moving.enable_triggers

    def lose(target: Any, names: Any, tables: Any) -> None:
        target.execute("UPDATE coupon_01.coupon_audit_head SET erasures = erasures + 1")
        real(target, names, tables)

    monkeypatch.setattr(moving, "enable_triggers", lose)
    with pytest.raises(CannotMoveError, match="The rows of coupon_audit_head differ"):
        list(shop.move().run())
    assert (shop.left_behind(), shop.has(shop.there)) == ([], False)


def move_with_a_redemption_in_the_pause(shop: Shop, patch: pytest.MonkeyPatch) -> list[str]:
    """Moves the shard; a redemption is asked for while nobody can write, and answered OK."""
    with ServerThread(shop.settings) as server, ThreadPoolExecutor(1) as thread:
        api, business = Api(server.address), business_in(1, OF)
        codes = new_codes(2)
        api.book(codes=codes, business_id=business)
        first = api.redeem(codes[0], "ann", business_id=business)
        asked: list[Any] = []
        real = switchover.hand_over

        def redeem_meanwhile(source: Any, target: Any, names: Any) -> None:
            real(source, target, names)
            stop_replication(shop.there)
            asked.append(thread.submit(api.redeem, codes[1], "bob", business_id=business))
            with psycopg.connect(shop.here, autocommit=True) as connection:
                until(lambda: asked[0].done() or connection.execute(WAITS).fetchone() == (True,))

        patch.setattr(switchover, "hand_over", redeem_meanwhile)
        list(shop.move().run())
        redeemed = [first.redemption.redemption_id, asked[0].result().redemption.redemption_id]
        api.close()
    return redeemed


def stop_replication(url: str) -> None:
    """Nothing is replicated after what the pause has waited for."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ALTER SUBSCRIPTION coupon_01_move DISABLE")
        until(lambda: connection.execute(APPLIES).fetchone() == (False,))


APPLIES = "SELECT EXISTS (SELECT FROM pg_stat_subscription WHERE pid IS NOT NULL)"

WAITS = "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'relation' AND NOT granted)"


def test_what_is_asked_for_in_the_pause_is_done_at_the_new_place(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_exact(shop.there, move_with_a_redemption_in_the_pause(shop, monkeypatch))


def test_writes_that_are_accepted_in_the_pause_would_be_found(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = pausing.lock_tables

    def lock_nothing(connection: Any, names: Any, tables: Any, mode: str) -> None:
        real(connection, names, tables, "ACCESS SHARE" if mode == "EXCLUSIVE" else mode)

    monkeypatch.setattr(pausing, "lock_tables", lock_nothing)
    with pytest.raises((AssertionError, CannotMoveError)):  # the comparison may find it before
        assert_exact(shop.there, move_with_a_redemption_in_the_pause(shop, monkeypatch))


def test_numbers_that_would_come_again_would_be_found(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(switchover, "SET_SEQUENCE", "SELECT %s::text, %s")
    with ServerThread(shop.settings) as server:
        api = Api(server.address)
        api.book(codes=1, business_id=business_in(1, OF))
        api.close()
    list(shop.move().run())
    with pytest.raises(AssertionError, match="numbers of the ledger would come again"):
        assert_exact(shop.there, [])


def test_what_is_missing_is_said_before_anything_is_done(
    shop: Shop, new_empty_database: Any, tmp_path: Path
) -> None:
    def command(url: str, to: str, *more: str, parameters: str = "startup") -> Any:
        arguments = ("shards", "move", "1", "--to", to, *more)
        return run(
            tmp_path,
            *arguments,
            DATABASE_URL=url,
            COUPON_SHARDS=str(OF),
            COUPON_SESSION_PARAMETERS=parameters,
        )

    done = command(shop.here, shop.there, "--undo", parameters="transaction")
    assert "set the URLs of the servers themselves" in done.stderr
    done = command(shop.here, shop.there, "--dry-run")
    assert done.returncode == 0
    assert "would copy about" in done.stdout
    assert not shop.has(shop.there)
    make_shards(shop.there, of=OF)
    done = command(shop.here, shop.there)
    assert done.returncode == 1
    assert "The database to move to has a schema coupon_01 already" in done.stderr
    with new_empty_database() as url:
        make_shards(url, of=OF)
        done = command(url, shop.there)
        assert done.returncode == 1
        assert "set wal_level = logical and restart it" in done.stderr
