"""The ledger is complete up to a number when nothing can be added below it, and not before."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import psycopg
import pytest
import pytest_asyncio
from support.ledger_rows import NOW, REDEEMED
from support.ledger_writers import INSERT, write
from support.store import opened
from support.waiting import until

from coupon_service.embedded import EmbeddedPostgres
from coupon_service.store import ledger_horizon, migrations
from coupon_service.store.database import Database
from coupon_service.store.events import insert_events, select_events_by_id
from coupon_service.store.ledger_horizon import Complete, LedgerHorizon

Writer = psycopg.Connection[Any]

NUMBERED = "SELECT sequence, event_id FROM redemption_audit ORDER BY sequence"


@pytest_asyncio.fixture
async def database(database_url: str) -> AsyncGenerator[Database]:
    async with opened(database_url) as it:
        yield it


@pytest.fixture
def horizon(database: Database) -> LedgerHorizon:
    return LedgerHorizon(database)


@contextmanager
def writer(url: str) -> Generator[Writer]:
    """A session that writes and commits when it is told to."""
    with psycopg.connect(url) as connection:
        yield connection


def number_of(complete: Complete | None) -> int:
    return -1 if complete is None else complete.number


async def reaches(horizon: LedgerHorizon, number: int) -> bool:
    """Whether it comes to be complete up to there, and no further."""
    waits_s = 0.01
    while number_of(await horizon.advance()) < number and waits_s < 5:
        await asyncio.sleep(waits_s)  # another database may be analyzed just now
        waits_s *= 1.5
    return number_of(await horizon.advance()) == number


async def test_an_idle_ledger_is_complete_at_once(
    horizon: LedgerHorizon, database_url: str
) -> None:
    assert await reaches(horizon, 0)
    with writer(database_url) as it:
        write(it, 3)
        it.commit()
    assert await reaches(horizon, 3)
    assert horizon.behind_s == 0


async def test_a_writer_that_alone_is_in_flight_is_waited_for(
    horizon: LedgerHorizon, database_url: str
) -> None:
    assert await reaches(horizon, 0)
    with writer(database_url) as it:
        write(it)
        for _ in range(5):
            assert number_of(await horizon.advance()) == 0
        assert horizon.behind_s > 0
        it.commit()
    assert await reaches(horizon, 1)


async def test_a_writer_that_commits_after_a_later_one_is_waited_for(
    horizon: LedgerHorizon, database_url: str
) -> None:
    """It has its id first, draws last, or in between: each way round."""
    assert await reaches(horizon, 0)
    with writer(database_url) as first, writer(database_url) as second:
        first.execute("SELECT pg_current_xact_id()")
        write(second)
        write(first)
        second.commit()
        assert number_of(await horizon.settled(0.2)) == 0
        write(second)
        assert number_of(await horizon.settled(0.2)) == 0
        first.commit()
        assert await reaches(horizon, 2)
        second.commit()
        assert await reaches(horizon, 3)


async def test_numbers_of_a_writer_that_rolls_back_are_not_waited_for_any_more(
    horizon: LedgerHorizon, database_url: str
) -> None:
    assert await reaches(horizon, 0)
    with writer(database_url) as first, writer(database_url) as second:
        write(first)
        write(second)
        second.commit()
        assert number_of(await horizon.settled(0.1)) == 0
        first.rollback()
    assert await reaches(horizon, 2)


TURN = 7
"""An advisory lock: the last number is only read once the test gives it free."""

WAITING = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"


async def test_who_draws_between_the_two_reads_is_waited_for(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_turn = f"{ledger_horizon.LAST_NUMBER} FROM (SELECT pg_advisory_xact_lock({TURN})) AS turn"
    monkeypatch.setattr(ledger_horizon, "LAST_NUMBER", in_turn)
    patient = {"lock_timeout_ms": 60_000, "statement_timeout_ms": 60_000}
    async with opened(database_url, **patient) as database:
        horizon = LedgerHorizon(database)
        assert await reaches(horizon, 0)
        with writer(database_url) as it, writer(database_url) as first:
            first.execute("SELECT pg_advisory_lock(%s)", [TURN])
            first.commit()
            looking = asyncio.create_task(horizon.advance())
            await asyncio.to_thread(until, lambda: first.execute(WAITING).fetchone() == (1,))
            write(it)
            first.execute("SELECT pg_advisory_unlock(%s)", [TURN])
            assert number_of(await looking) == 0
            assert number_of(await horizon.advance()) == 0
            it.commit()
        assert await reaches(horizon, 1)


async def test_a_long_stall_keeps_few_bounds_and_ends_with_it(
    horizon: LedgerHorizon, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_horizon, "BOUNDS_MAX", 3)
    assert await reaches(horizon, 0)
    with writer(database_url) as stalled, writer(database_url) as others:
        write(stalled)
        for _ in range(10):
            write(others)
            others.commit()
            assert number_of(await horizon.advance()) == 0
        stalled.commit()
    assert await reaches(horizon, 11)


async def test_who_holds_the_ledger_up_is_named(horizon: LedgerHorizon, database_url: str) -> None:
    named = f"{database_url}?application_name=a%20long%20import"
    with writer(named) as first, writer(database_url) as second:
        write(first)
        write(second)
        mine = urlsplit(database_url).path.removeprefix("/")
        oldest, *_ = [it for it in await horizon.holders(100) if it.database == mine]
        assert oldest.application == "a long import"
        assert oldest.pid == first.info.backend_pid
        assert oldest.seconds is not None
        assert f"backend {oldest.pid}, a long import (role coupon" in str(oldest)


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Generator[EmbeddedPostgres]:
    """A PostgreSQL that may be restarted, with prepared transactions."""
    folder = tmp_path_factory.mktemp("horizon")
    settings = {"max_prepared_transactions": "2"}
    with EmbeddedPostgres(folder / "postgres", durable=False, settings=settings) as server:
        migrations.apply(server.url)
        yield server


async def test_a_prepared_transaction_holds_it_up_and_is_named(
    own_server: EmbeddedPostgres,
) -> None:
    async with opened(own_server.url) as database:
        horizon = LedgerHorizon(database)
        before = number_of(await horizon.settled(10))
        with psycopg.connect(own_server.url, autocommit=True) as it:
            it.execute("BEGIN")
            write(it)
            it.execute("PREPARE TRANSACTION 'a transfer'")
            assert number_of(await horizon.settled(0.1)) == before
            (holder,) = [it for it in await horizon.holders(100) if it.pid is None]
            assert holder.application == "a transfer"
            assert "prepared transaction a transfer (role coupon" in str(holder)
            it.execute("COMMIT PREPARED 'a transfer'")
        assert await reaches(horizon, before + 1)


async def test_after_a_restart_nothing_is_known_until_it_was_looked_at_anew(
    own_server: EmbeddedPostgres,
) -> None:
    url = own_server.url
    async with opened(url) as database:
        horizon = LedgerHorizon(database)
        before = number_of(await horizon.settled(10))
        lost = psycopg.connect(url)
        write(lost)
        assert number_of(await horizon.advance()) == before
        own_server.stop()
        lost.close()
        own_server.start()
        await asyncio.to_thread(until, lambda: _answers(url))
        with writer(url) as it:
            write(it)
            assert horizon.complete is not None
            assert await horizon.advance() is None
            it.commit()
        assert await reaches(horizon, horizon.last_number)
        assert horizon.last_number > before


def _answers(url: str) -> bool:
    try:
        with psycopg.connect(url, connect_timeout=1):
            return True
    except psycopg.OperationalError:
        return False


# --- with many writers ----------------------------------------------------------------------------

WRITERS, ROUNDS = 8, 40


async def test_what_is_read_up_to_the_complete_number_is_read_once_and_in_order(
    horizon: LedgerHorizon, database_url: str
) -> None:
    written: set[UUID] = set()
    done = asyncio.Event()
    read: list[tuple[int, UUID]] = []

    async def follow() -> None:
        with psycopg.connect(database_url, autocommit=True) as connection:
            while True:
                is_last = done.is_set()
                complete = number_of(
                    await horizon.settled(10) if is_last else await horizon.advance()
                )
                after = read[-1][0] if read else 0
                query = NUMBERED.replace("ORDER", "WHERE sequence > %s AND sequence <= %s ORDER")
                read.extend(connection.execute(query.encode(), [after, complete]).fetchall())
                if is_last:
                    return
                await asyncio.sleep(0.001)

    following = asyncio.create_task(follow())
    with ThreadPoolExecutor(WRITERS) as pool:
        loop = asyncio.get_running_loop()
        for committed in await asyncio.gather(
            *(
                loop.run_in_executor(pool, _write_at_random, database_url, it)
                for it in range(WRITERS)
            )
        ):
            written |= committed
    done.set()
    await following
    assert [it for it, _ in read] == sorted({it for it, _ in read})
    assert {it for _, it in read} == written
    assert len(read) == len(written)


def _write_at_random(url: str, seed: int) -> set[UUID]:
    """Transactions of several statements that wait in between; returns what was committed."""
    chance = random.Random(seed)
    committed: set[UUID] = set()
    with psycopg.connect(url) as connection:
        for _ in range(ROUNDS):
            ids: list[UUID] = []
            for _ in range(chance.randint(1, 3)):
                connection.execute("SELECT pg_current_xact_id(), pg_sleep(%s)", [_pause(chance)])
                ids += write(connection, chance.randint(1, 4))
            connection.execute("SELECT pg_sleep(%s)", [_pause(chance)])
            if chance.random() < 0.1:
                connection.rollback()
            else:
                connection.commit()
                committed.update(ids)
    return committed


def _pause(chance: random.Random) -> float:
    return chance.choice((0, 0, 0.001, 0.01))


# --- drawn in order -------------------------------------------------------------------------------


def test_rows_of_one_statement_are_numbered_in_their_order(database_url: str) -> None:
    with writer(database_url) as it:
        ids = write(it, 500)
        it.commit()
        assert [event_id for _, event_id in it.execute(NUMBERED)] == ids


async def test_events_of_a_batch_are_numbered_in_the_order_in_which_they_are_written(
    database: Database,
) -> None:
    events = [
        replace(REDEEMED, event_id=uuid4(), event_time=NOW - timedelta(seconds=it))
        for it in range(300)
    ]
    await database.transaction("test", lambda it: insert_events(it, events))
    found = await database.read(
        "test", lambda it: select_events_by_id(it, (e.event_id for e in events))
    )
    assert [found[it.event_id].sequence for it in events] == list(range(1, 301))


def test_a_writer_has_its_id_before_it_draws(database_url: str) -> None:
    """Numbers that are in the WAL already need none for themselves."""
    with writer(database_url) as it:
        write(it)
        it.commit()
        names = ("book_id", "event_ids", "event_time", "code", "before", "after")
        values: dict[str, object] = {}
        values.update((name, None) for name in names)
        plan = "EXPLAIN (COSTS OFF, VERBOSE) "
        shown = "\n".join(row[0] for row in it.execute(plan + INSERT, values))
    assert "CASE WHEN (pg_current_xact_id() <> '0'::xid8) THEN nextval(" in shown
