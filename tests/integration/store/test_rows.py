"""What is written is what is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, LiteralString
from uuid import UUID

import psycopg
import pytest
from support.store import START, call, new_book, opened

from coupon_service.model import (
    AmountOff,
    AssignmentPolicy,
    Benefit,
    Book,
    BookLimits,
    Discount,
    Event,
    EventType,
    LockPolicy,
    PercentOff,
    Period,
    PeriodLimits,
    Schedule,
    Tier,
    TieredDiscount,
    Weekday,
    WeeklyWindow,
    bucket_of_event,
    event_id,
)
from coupon_service.model.codes import CodeFormat, bucket_of
from coupon_service.model.time_zones import time_zone
from coupon_service.store.arrays import int_array, text_array, time_array, uuid_array
from coupon_service.store.books import Books
from coupon_service.store.columns import Columns
from coupon_service.store.database import Connection
from coupon_service.store.events import insert_event_once, insert_events, select_events_by_id
from coupon_service.store.rows import ASSIGNMENTS, BOOKS, CODES, COUNTERS, EVENTS

AWKWARD = [
    "plain",
    "",
    "NULL",
    "null",
    '"',
    "\\",
    '\\"',
    "{}",
    "{a,b}",
    "a,b",
    " lead and trail ",
    "tab\tnew\nline\r",
    "Ünïcödé 🎟",
    "'; DROP TABLE coupon_codes; --",
    "%s %(x)s",
    None,
]


def event(number: int, text: str | None = None) -> Event:
    """An event with every column set, or only those that have to be."""
    bare = Event(
        event_id=event_id(5, EventType.REDEEMED, number),
        type=EventType.REDEEMED,
        event_time=START,
        book_id=UUID(int=1),
        caller="shop",
        peer="",
        user_agent="",
        request_id="r",
        fingerprint=-(2**63) + number,
    )
    if text is None:
        return bare
    return replace(
        bare,
        user_id=text,
        order_id=text,
        caller=text,
        peer=text,
        user_agent=text,
        request_id=text,
        state_before=2,
        state_after=3,
        order_amount_minor=10**15,
        discount_minor=0,
        currency_code="EUR",
        benefit=text,
        redemption_id=UUID(int=2**128 - 1),
        lock_id=UUID(int=0),
        fence=2**63 - 1,
        code_redemptions=1,
        code_redemption_limit=10**9,
        user_code_redemptions=2,
        expire_time=datetime(2036, 1, 1, 1, 1, 1, 999_999, tzinfo=UTC),
        metadata='{"a": "\\"\\\\ü{},"}',
    )


async def test_arrays_arrive_as_they_were(database_url: str) -> None:
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        cursor = await connection.execute(
            "SELECT %s::text[], %s::bigint[], %s::uuid[], %s::timestamptz[]",
            (
                text_array(AWKWARD),
                int_array([1, None, -(2**63), EventType.REDEEMED]),
                uuid_array([UUID(int=5), None]),
                time_array([START, None]),
            ),
        )
        assert await cursor.fetchone() == (
            AWKWARD,
            [1, None, -(2**63), 16],
            [UUID(int=5), None],
            [START, None],
        )
        cursor = await connection.execute("SELECT %s::text[]", [text_array([])])
        assert await cursor.fetchone() == ([],)
        with pytest.raises(psycopg.DataError):  # rather than taken for two
            await connection.execute("SELECT %s::text[]", [text_array(["a\0b", "c"])])


async def test_arrays_of_one_value_arrive_as_they_were(database_url: str) -> None:
    columns: list[tuple[LiteralString, Callable[[Any], str], Any]] = [
        *(("SELECT %s::text[]", text_array, it) for it in (*AWKWARD, None)),
        *(("SELECT %s::bigint[]", int_array, it) for it in (-(2**63), EventType.REDEEMED, None)),
        *(("SELECT %s::uuid[]", uuid_array, it) for it in (UUID(int=5), None)),
        *(("SELECT %s::timestamptz[]", time_array, it) for it in (START, None)),
    ]
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        for statement, array, value in columns:
            for values in ([value], [value] * 3):
                cursor = await connection.execute(statement, [array(values)])
                assert await cursor.fetchone() == (values,)


async def test_events_are_read_as_they_were_written(database_url: str) -> None:
    events = [event(number, text) for number, text in enumerate(AWKWARD)]

    async def work(connection: Connection) -> dict[UUID, Event]:
        await insert_events(connection, events)
        return await select_events_by_id(connection, [it.event_id for it in events])

    async with opened(database_url) as database:
        assert await database.transaction("test", work) == {it.event_id: it for it in events}


async def test_the_row_of_an_event_is_in_the_bucket_of_its_code(database_url: str) -> None:
    picked = replace(event(1), type=EventType.ASSIGNED, code="ABC")
    of_book = event(2)
    assert bucket_of("ABC") != 5

    async with opened(database_url) as database:
        await database.transaction("test", lambda it: insert_events(it, [picked, of_book]))
        async with database.pool.connection() as connection:
            cursor = await connection.execute("SELECT event_id, bucket FROM redemption_audit")
            assert dict(await cursor.fetchall()) == {
                picked.event_id: bucket_of("ABC"),
                of_book.event_id: 5,
            }


async def test_an_event_is_found_by_its_id_whatever_the_bucket_of_its_code(
    database_url: str,
) -> None:
    picked = replace(event(1), type=EventType.ASSIGNED, code="ABC")
    assert bucket_of("ABC") != bucket_of_event(picked.event_id)

    async with opened(database_url) as database:
        await database.transaction("test", lambda it: insert_events(it, [picked]))
        found = await database.read("test", lambda it: select_events_by_id(it, [picked.event_id]))
        assert found == {picked.event_id: picked}


async def test_an_event_happens_once(database_url: str) -> None:
    async with opened(database_url) as database:
        first, second = [
            await database.transaction("test", lambda it: insert_event_once(it, event(1)))
            for _ in range(2)
        ]
        assert (first, second) == (True, False)
        with pytest.raises(psycopg.errors.UniqueViolation):
            await database.transaction("test", lambda it: insert_events(it, [event(1)]))


@pytest.mark.parametrize(
    "discount",
    [
        PercentOff(1500, 99),
        AmountOff(500),
        Benefit("a gift"),
        TieredDiscount((Tier(1, PercentOff(1, 0)), Tier(10**15, AmountOff(10**15)))),
    ],
)
async def test_a_book_is_read_as_it_was_written(database_url: str, discount: Discount) -> None:
    book = new_book(
        description="so 🎟 it is",
        discount=discount,
        currency_code="EUR",
        min_order_amount_minor=10**15,
        limits=BookLimits(10**12, 10**9, 3, 4, 5),
        assignment_policy=AssignmentPolicy.BEARER,
        lock_policy=LockPolicy.OFF,
        default_lock_ttl_ms=1000,
        max_lock_ttl_ms=2000,
        start_time=START,
        end_time=datetime(2030, 1, 1, tzinfo=UTC),
        assigned_code_validity_s=315_360_000,
        code_format=CodeFormat(8, "AB", "PRE", "SUF", "-", 4, check_character=True),
        metadata='{"a": 1}',
        period_limits=PeriodLimits(Period.MONTH, time_zone("UTC"), 10**12, 10**9),
        schedule=Schedule(
            time_zone("Asia/Kathmandu"),
            (WeeklyWindow((Weekday.MONDAY, Weekday.SUNDAY), 0, 1_440), WeeklyWindow((), 1, 0)),
        ),
    )
    plain: Book = new_book("plain")
    async with opened(database_url) as database:
        books = Books(database, lambda: START)
        for it in (book, plain):
            assert await books.create(it, call("r"), it.book_id, 1) == (it, False)
            assert await books.get(it.book_id, "") == it


@pytest.mark.parametrize(
    ("table", "columns"),
    [
        ("coupon_books", BOOKS),
        ("coupon_book_counters", COUNTERS),
        ("coupon_codes", CODES),
        ("coupon_assignments", ASSIGNMENTS),
        ("redemption_audit", EVENTS),
    ],
)
async def test_columns_have_the_types_of_the_table(
    database_url: str, table: str, columns: Columns[Any]
) -> None:
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        cursor = await connection.execute(
            "SELECT attname, format_type(atttypid, NULL) FROM pg_attribute"
            " WHERE attrelid = %s::regclass AND attnum > 0",
            [table],
        )
        types = dict(await cursor.fetchall())
    full_names = {"timestamptz": "timestamp with time zone"}
    assert {it.name: full_names.get(it.type, it.type) for it in columns.columns} == {
        it.name: types[it.name] for it in columns.columns
    }
