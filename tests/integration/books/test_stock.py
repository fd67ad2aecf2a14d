"""Books that run low and are used up: each time is one event of the ledger, and gauges say it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import psycopg
import pytest
from support.service import (
    Api,
    ServerThread,
    audit,
    books,
    from_now,
    new_codes,
    settings_for,
    unique,
)
from support.store import opened
from support.waiting import until

from coupon_service.model import StockLevel
from coupon_service.store.stock import Stock, ledger_lag_s, record_level, select_stocks

LOW, USED_UP = "BOOK_RUNNING_LOW", "BOOK_USED_UP"
TYPES = [audit.AUDIT_EVENT_TYPE_BOOK_RUNNING_LOW, audit.AUDIT_EVENT_TYPE_BOOK_USED_UP]

EVENTS = "coupon_book_events_total"

Replicas = tuple[ServerThread, ServerThread]
LevelOf = Callable[[str], StockLevel]


@pytest.fixture(scope="module")
def replicas(
    new_database: Callable[[], AbstractContextManager[str]], redis_server_url: str
) -> Iterator[Replicas]:
    """Two servers on the same data, which both look all the time."""
    with new_database() as database_url, ExitStack() as stack:
        settings = settings_for(
            database_url, redis_server_url, stock_interval_ms=100, book_series_max=2
        )
        first, second = (stack.enter_context(ServerThread(settings)) for _ in range(2))
        yield first, second


@pytest.fixture
def api(replicas: Replicas) -> Iterator[Api]:
    client = Api(replicas[0].address)
    yield client
    client.close()


@pytest.fixture
def level_of(replicas: Replicas) -> LevelOf:
    """The level at which a book was seen last; the ledger does not say that there is enough."""

    def level(book_id: str) -> StockLevel:
        with psycopg.connect(replicas[0].database_url) as connection:
            query = "SELECT level FROM coupon_book_levels WHERE book_id = %s"
            row = connection.execute(query, [book_id]).fetchone()
        assert row is not None
        return StockLevel(row[0])

    return level


def events_of(api: Api, book_id: str) -> list[str]:
    """What the ledger says of how much the book has left, oldest first."""
    return api.event_names(book_id=book_id, types=TYPES)


def use_up(api: Api, *codes: str) -> None:
    for code in codes:
        api.redeem(code, unique("user"))


def test_a_book_that_runs_low_is_recorded_once_each_time(api: Api, level_of: LevelOf) -> None:
    codes = new_codes(9)
    book = api.book(codes=codes[:4], low_threshold=2).book_id
    api.redeem(codes[0], "ann")
    assert events_of(api, book) == []
    api.redeem(codes[1], "ann")
    until(lambda: events_of(api, book) == [LOW])
    use_up(api, *codes[2:4])
    until(lambda: events_of(api, book) == [LOW, USED_UP])
    api.import_codes(book, codes[4:])
    until(lambda: level_of(book) is StockLevel.ENOUGH)
    use_up(api, *codes[4:])
    until(lambda: events_of(api, book)[-1] == USED_UP and len(events_of(api, book)) >= 4)
    assert events_of(api, book) == [LOW, USED_UP] * 2


def test_the_event_says_what_was_left(api: Api) -> None:
    codes = new_codes(3)
    book = api.book(codes=codes, low_threshold=2)
    api.redeem(codes[0], "ann")
    until(lambda: events_of(api, book.book_id) == [LOW])
    (event,) = api.events(book_id=book.book_id, types=TYPES)
    assert dict(event.metadata) == {"left": 2, "threshold": 2}
    assert (event.caller, event.state_before, event.state_after) == (
        "stock watch",
        "ACTIVE",
        "ACTIVE",
    )
    assert (event.code, event.user_id) == ("", "")
    assert event in api.events(book_id=book.book_id)


def test_both_are_recorded_when_all_goes_at_once(api: Api) -> None:
    (code,) = new_codes(1)
    book = api.book(codes=[code], low_threshold=1, end_time=from_now(days=1)).book_id
    use_up(api, code)
    until(lambda: USED_UP in events_of(api, book))
    assert events_of(api, book) == [LOW, USED_UP]


def test_redemptions_up_to_the_limit_are_what_a_shared_code_has_left(
    api: Api, level_of: LevelOf
) -> None:
    limits = books.BookLimits(max_redemptions=3, max_redemptions_per_code=0)
    (code,) = new_codes(1)
    book = api.book(codes=[code], limits=limits, low_threshold=2).book_id
    api.redeem(code, "ann")
    until(lambda: events_of(api, book) == [LOW])
    redeemed = [api.redeem(code, "bob").redemption.redemption_id for _ in range(2)]
    until(lambda: events_of(api, book) == [LOW, USED_UP])
    api.rollback(redeemed[0])
    until(lambda: level_of(book) is StockLevel.LOW)
    api.redeem(code, "cy")
    until(lambda: events_of(api, book) == [LOW, USED_UP, USED_UP])


def test_books_that_nobody_asked_about_are_left_alone(api: Api) -> None:
    codes, over = new_codes(3), from_now(days=-1)
    silent = {
        "without a threshold": api.book(codes=codes[:1]).book_id,
        "without codes": api.book(low_threshold=5).book_id,
        "in draft": api.draft(low_threshold=5).book_id,
        "over": api.book(codes=codes[1:2], low_threshold=5, end_time=over).book_id,
        "closed": api.close_book(api.book(low_threshold=5).book_id).book_id,
    }
    api.import_codes(silent["in draft"], codes[2:])
    use_up(api, codes[0])
    watched = api.book(codes=1, low_threshold=1).book_id
    until(lambda: events_of(api, watched) == [LOW])  # somebody has looked since
    assert {what: events_of(api, book) for what, book in silent.items()} == {
        it: [] for it in silent
    }


def test_a_threshold_that_is_raised_counts_at_once(api: Api) -> None:
    book = api.book(codes=3).book_id
    assert api.update(book, low_threshold=3).low_threshold == 3
    until(lambda: events_of(api, book) == [LOW])
    assert api.update(book, low_threshold=0).low_threshold == 0


def test_each_event_is_counted_by_who_wrote_it(api: Api, replicas: Replicas) -> None:
    (code,) = new_codes(1)
    book = api.book(codes=[code], low_threshold=1).book_id
    until(lambda: events_of(api, book) == [LOW])

    def counted() -> float:
        values = (it.registry.get_sample_value(EVENTS, {"event": LOW}) for it in replicas)
        return sum(value or 0 for value in values)

    until(lambda: counted() == len(api.events(types=TYPES[:1])))


def test_gauges_say_what_books_have_left_first_those_that_run_low(
    database_url: str, redis_url: str
) -> None:
    settings = settings_for(database_url, redis_url, stock_interval_ms=100, book_series_max=2)
    with ServerThread(settings) as server:
        api, value = Api(server.address), server.registry.get_sample_value

        def shown() -> dict[str, float]:
            families = {it.name: it for it in server.registry.collect()}
            left = families.get("coupon_book_left")
            return {it.labels["book_id"]: it.value for it in left.samples} if left else {}

        codes = new_codes(2)
        close, closer, far = (
            api.book(codes=some, low_threshold=100).book_id for some in (codes, 1, 3)
        )
        api.book(codes=101, low_threshold=100)
        until(lambda: shown() == {closer: 1, close: 2})
        use_up(api, *codes)
        until(lambda: shown() == {closer: 1, far: 3})
        levels = {it.name: value("coupon_books_watched", {"level": it.name}) for it in StockLevel}
        assert levels == {"ENOUGH": 1, "LOW": 2, "USED_UP": 1}
        assert value("coupon_book_low_threshold", {"book_id": far}) == 100
        api.close_book(far)
        until(lambda: shown() == {closer: 1, close: 0})
        assert value("coupon_locks_live") == 0
        locked = api.code(lock_policy=books.LOCK_POLICY_OPTIONAL)
        api.lock(locked, "ann")
        until(lambda: value("coupon_locks_live") == 1)
        assert value("coupon_sweep_lag_seconds") == 0
        api.close()


@pytest.mark.one_shard
async def test_of_several_who_find_the_same_level_one_records_it(database_url: str) -> None:
    now = datetime.now(UTC)
    seen = Stock(UUID(int=7), threshold=5, left=0, recorded=StockLevel.ENOUGH, changes=0)
    async with opened(database_url) as database:

        async def record(stock: Stock) -> list[str]:
            events = await database.transaction("test", lambda it: record_level(it, stock, now))
            return [event.name for event in events]

        written = await asyncio.gather(*(record(seen) for _ in range(4)))
        assert sorted(written) == [[], [], [], [LOW, USED_UP]]
        late = replace(seen, left=9, recorded=StockLevel.USED_UP)  # as of before the others
        assert await record(late) == []
        assert await record(replace(late, changes=1)) == []  # nothing to record, but it is known
        assert await record(replace(seen, left=1, changes=2)) == [LOW]
        assert await database.read("test", lambda it: select_stocks(it, now)) == []


@pytest.mark.one_shard
async def test_the_ledger_lags_behind_the_oldest_transaction_that_writes(database_url: str) -> None:
    async with opened(database_url) as database:
        with psycopg.connect(database_url) as other:
            other.execute("CREATE TABLE something (number int)")
            await asyncio.sleep(0.05)
            assert await database.read("test", ledger_lag_s) >= 0.05
        assert await database.read("test", ledger_lag_s) == 0
