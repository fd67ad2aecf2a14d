"""The ledger is found, page by page, by its owner alone, and no more of it is read than needed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from uuid import UUID

from support.store import START, call, make_book
from support.two_businesses import Shop, all_pages

from coupon_service.model import (
    Event,
    EventType,
    event_id,
)
from coupon_service.model.codes import bucket_of
from coupon_service.store.events import insert_events, select_events
from coupon_service.store.queries.reads import AuditFilter

NOBODY = UUID(int=9)


# --- the ledger ---------------------------------------------------------------------------------


async def test_the_ledger_is_listed_whole_by_every_path_and_in_every_page_size(shop: Shop) -> None:
    await shop.codes(shop.book, "A1", "A2")
    await shop.codes(shop.other, "B1")
    await shop.assign("A1", "ann")
    redemption = await shop.redeem("A1", "ann", "o1")
    await shop.redeem("B1", "ann", "o1")
    await shop.roll_back(redemption)
    await shop.disable("A2")
    kinds = EventType

    async def listed(wanted: AuditFilter, size: int = 3) -> list[Event]:
        found = await all_pages(lambda after: shop.reads.audit_events(wanted, size, after), size)
        times = [it.event_time for it in found]
        assert times == sorted(times, reverse=True)
        return found

    everything = AuditFilter()
    whole = await listed(everything, 1)
    assert await listed(everything, 3) == await listed(everything, 100) == whole
    assert [it.type for it in reversed(whole)] == [
        *[kinds.BOOK_CREATED] * 2,
        *[kinds.BOOK_ACTIVATED] * 2,
        *[kinds.CODES_IMPORTED] * 2,
        kinds.ASSIGNED,
        *[kinds.REDEEMED] * 2,
        kinds.ROLLED_BACK,
        kinds.CODE_DISABLED,
    ]

    mine = shop.book.book_id
    paths: list[tuple[AuditFilter, Callable[[Event], bool]]] = [
        (everything, lambda _: True),
        (AuditFilter(order_id="o1"), lambda it: it.order_id == "o1"),
        (AuditFilter(code="A1"), lambda it: it.code == "A1"),
        (AuditFilter(user_id="ann"), lambda it: it.user_id == "ann"),
        (AuditFilter(book_id=mine), lambda it: it.book_id == mine),
        (AuditFilter(business_id="bakery"), lambda it: it.book_id == mine),
        (
            AuditFilter(
                order_id="o1", book_id=mine, user_id="ann", code="A1", business_id="bakery"
            ),
            lambda it: it.order_id == "o1" and it.book_id == mine,
        ),
    ]
    for path, matches in paths:
        within = await listed(path)
        assert within == [it for it in whole if matches(it)]
        assert within
        types = (kinds.REDEEMED, kinds.ASSIGNED)
        assert await listed(replace(path, types=types)) == [it for it in within if it.type in types]
        middle = within[len(within) // 2].event_time
        late = [it for it in within if it.event_time >= middle]
        assert await listed(replace(path, start_time=middle)) == late
        assert await listed(replace(path, end_time=middle)) == within[len(late) :]
    assert await listed(AuditFilter(book_id=mine, business_id="butcher")) == []
    assert await listed(AuditFilter(book_id=NOBODY)) == []


async def test_events_of_the_same_moment_are_neither_lost_nor_repeated(shop: Shop) -> None:
    moment = START - timedelta(days=1)
    events = [
        Event(
            event_id=event_id(1, EventType.BOOK_UPDATED, number),
            type=EventType.BOOK_UPDATED,
            event_time=moment,
            book_id=shop.book.book_id,
            user_id="ann",
            caller="shop",
            peer="",
            user_agent="",
            request_id="r",
            fingerprint=1,
        )
        for number in range(7)
    ]
    await shop.database.transaction("test", lambda it: insert_events(it, events))
    for wanted in (AuditFilter(user_id="ann"), AuditFilter(book_id=shop.book.book_id)):
        found = await all_pages(
            lambda after, wanted=wanted: shop.reads.audit_events(wanted, 2, after), 2
        )
        assert [it for it in found if it.event_time == moment] == sorted(
            events, key=lambda it: it.event_id, reverse=True
        )


async def test_of_an_upload_the_ledger_lists_the_counts_only(shop: Shop) -> None:
    await shop.importer.import_chunk(shop.book.book_id, 1, ["A1", "A1", "?"], call("import"))
    wanted = AuditFilter(types=(EventType.CODES_IMPORTED,))
    (event,), _ = await shop.reads.audit_events(wanted, 10, None)
    assert event.metadata is not None
    assert '"created": 1' in event.metadata
    assert "rejected" not in event.metadata


# --- locks --------------------------------------------------------------------------------------


async def test_the_life_of_a_lock_is_read_in_order_for_its_own_business(shop: Shop) -> None:
    def lock(number: int, types: Sequence[EventType]) -> list[Event]:
        lock_id = event_id(bucket_of("A1"), EventType.LOCKED, number)
        return [
            Event(
                event_id=lock_id if it is EventType.LOCKED else event_id(3, it, number),
                type=it,
                event_time=START + timedelta(seconds=later),
                book_id=shop.book.book_id,
                code="A1",
                user_id="ann",
                lock_id=lock_id,
                caller="shop",
                peer="",
                user_agent="",
                request_id="r",
                fingerprint=1,
            )
            for later, it in enumerate(types)
        ]

    first = lock(1, [EventType.LOCKED, EventType.LOCK_EXTENDED, EventType.UNLOCKED])
    second = lock(2, [EventType.LOCKED])
    await shop.database.transaction("test", lambda it: insert_events(it, [*first[::-1], *second]))
    ids = [second[0].event_id, NOBODY, first[0].event_id]
    assert await shop.reads.lock_events(ids, "bakery") == [second, [], first]
    assert await shop.reads.lock_events(ids, "") == [second, [], first]
    assert await shop.reads.lock_events(ids, "butcher") == [[], [], []]
    assert await shop.reads.lock_events([], "") == []


async def test_books_of_other_databases_are_not_known(shop: Shop) -> None:
    book = await make_book(shop.books)
    ids = [str(NOBODY), str(book.book_id), "no id at all"]
    assert await shop.reads.known_books(ids) == {str(book.book_id)}


async def test_a_turn_is_taken_once_in_an_interval(shop: Shop) -> None:
    turns = await asyncio.gather(*(shop.reads.my_turn("sweep", 60_000) for _ in range(4)))
    assert sorted(turns) == [False, False, False, True]
    assert await shop.reads.my_turn("something else", 60_000)
    assert await shop.reads.my_turn("sweep", 0)


# --- how much is read ---------------------------------------------------------------------------

ReadPage = Callable[..., Awaitable[tuple[list[Event], int]]]

LEDGER_OF_20_000 = """
INSERT INTO redemption_audit (
    event_id, bucket, book_id, event_time, fingerprint, type, code, user_id, order_id, caller, peer,
    user_agent, request_id)
SELECT gen_random_uuid(), n %% 64, %s, %s::timestamptz + n * interval '1 s', 1,
    CASE WHEN n <= 100 THEN 16 ELSE 10 END, 'C' || n %% 2, 'u' || n %% 2, 'o' || n / 100,
    '', '', '', ''
FROM generate_series(1, 20000) AS n
"""
ROWS_READ = """
SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_user_tables WHERE relname = 'redemption_audit'
"""


@asynccontextmanager
async def ledger_of_20_000(
    shop: Shop,
) -> AsyncGenerator[ReadPage]:
    """Reads a page of a large ledger, and says how many of its rows were read for it."""
    async with shop.database.pool.connection() as connection:
        await connection.execute(LEDGER_OF_20_000, (shop.book.book_id, START))
        await connection.execute("ANALYZE redemption_audit")
    async with reading(shop) as page:
        yield page


@asynccontextmanager
async def reading(shop: Shop) -> AsyncGenerator[ReadPage]:
    """Reads a page of the ledger, and says how many of its rows were read for it."""
    async with shop.database.pool.connection() as connection:

        async def rows_read() -> int:
            await connection.execute("SELECT pg_stat_force_next_flush()")
            cursor = await connection.execute(ROWS_READ)
            (row,) = await cursor.fetchall()
            return row[0]

        async def page(wanted: AuditFilter, size: int = 10) -> tuple[list[Event], int]:
            before = await rows_read()
            async with connection.transaction():
                events, _ = await select_events(connection, wanted, size, None)
            return events, await rows_read() - before

        yield page


async def test_a_page_of_the_ledger_is_read_without_reading_the_ledger(shop: Shop) -> None:
    book_id = shop.book.book_id
    redeemed = (EventType.REDEEMED,)
    async with ledger_of_20_000(shop) as page:
        for wanted in (
            AuditFilter(),
            AuditFilter(types=redeemed),
            AuditFilter(order_id="o7"),
            AuditFilter(code="C1"),
            AuditFilter(user_id="u1"),
            AuditFilter(book_id=book_id),
            AuditFilter(book_id=book_id, types=redeemed),
            AuditFilter(business_id="bakery"),
            AuditFilter(business_id="bakery", types=redeemed),
        ):
            events, rows = await page(wanted)
            assert len(events) == 10
            assert rows <= 150, wanted


LEDGER_OF_TIES = """
INSERT INTO redemption_audit (
    event_id, bucket, book_id, event_time, fingerprint, type, code, user_id, order_id, caller, peer,
    user_agent, request_id)
SELECT gen_random_uuid(), n %% 64, (%s::uuid[])[1 + n %% 2],
    %s::timestamptz + n / 24 * interval '1 ms', 1, CASE WHEN n %% 3 = 0 THEN 16 ELSE 10 END,
    'TIED', 'tied', 'tied', '', '', '', ''
FROM generate_series(0, 239) AS n
"""
"""Of two books, 24 at a time, as what was carried out together has one time."""


async def test_pages_of_events_of_one_time_are_complete_and_in_order(shop: Shop) -> None:
    books = [(await make_book(shop.books, name, "tinker")).book_id for name in ("one", "two")]
    async with shop.database.pool.connection() as connection:
        await connection.execute(LEDGER_OF_TIES, (books, START + timedelta(days=1)))
    redeemed = (EventType.REDEEMED,)
    since = START + timedelta(days=1)
    for wanted, count in (
        (AuditFilter(start_time=since), 240),
        (AuditFilter(types=redeemed), 80),
        (AuditFilter(order_id="tied"), 240),
        (AuditFilter(code="TIED"), 240),
        (AuditFilter(user_id="tied"), 240),
        (AuditFilter(user_id="tied", code="TIED", own=True), 240),
        (AuditFilter(book_id=books[0]), 120),
        (AuditFilter(business_id="tinker", start_time=since), 240),
        (AuditFilter(business_id="tinker", types=redeemed), 80),
        (AuditFilter(business_id="tinker", start_time=since, end_time=since), 0),
    ):
        pages = [
            await all_pages(partial(shop.reads.audit_events, wanted, size), size)
            for size in (1, 7, 24, 100, 1_000)
        ]
        assert pages == [pages[0]] * len(pages), wanted
        keys = [(it.event_time, it.event_id) for it in pages[0]]
        assert keys == sorted(set(keys), reverse=True), wanted
        assert len([it for it in pages[0] if it.event_time >= since]) == count, wanted


LEDGER_OF_BOOKS = """
INSERT INTO redemption_audit (
    event_id, bucket, book_id, event_time, fingerprint, type, code, caller, peer, user_agent,
    request_id)
SELECT gen_random_uuid(), n %% 64, (%s::uuid[])[1 + least(n %% 60, 29)],
    %s::timestamptz + n * interval '1 s', 1, 16, 'C', '', '', '', ''
FROM generate_series(1, 20000) AS n
"""
"""Half of it in one of thirty books."""


async def test_a_page_of_a_business_is_merged_from_few_events_of_its_books(shop: Shop) -> None:
    made = [await make_book(shop.books, f"of many {it}", "baker") for it in range(30)]
    books = [it.book_id for it in made]
    async with shop.database.pool.connection() as connection:
        await connection.execute(LEDGER_OF_BOOKS, (books, START))
        await connection.execute("ANALYZE redemption_audit")
    wanted = AuditFilter(business_id="baker", types=(EventType.REDEEMED,))
    whole = await all_pages(lambda after: shop.reads.audit_events(wanted, 1_000, after), 1_000)
    times = [it.event_time for it in whole]
    assert times == [START + timedelta(seconds=20_000 - it) for it in range(20_000)]
    async with reading(shop) as page:
        for size in (10, 100):
            events, rows = await page(wanted, size)
            assert events == whole[:size]
            assert rows <= 10 * size + 5 * len(books)
            until = replace(wanted, end_time=START + timedelta(seconds=100))
            assert (await page(until, size))[0] == whole[-99:][:size]


async def test_for_users_who_ask_for_their_own_nothing_of_others_is_read(shop: Shop) -> None:
    def own(user_id: str, wanted: AuditFilter | None = None) -> AuditFilter:
        return replace(wanted or AuditFilter(), user_id=user_id, own=True)

    of_others = (
        AuditFilter(code="C1"),
        AuditFilter(order_id="o7"),
        AuditFilter(book_id=shop.book.book_id),
    )
    of_nobody = (AuditFilter(code="C"), AuditFilter(order_id="o"), AuditFilter(book_id=NOBODY))
    async with ledger_of_20_000(shop) as page:
        for wanted in of_others:
            assert len((await page(wanted))[0]) == 10
            assert await page(own("nobody", wanted)) == ([], 0), wanted
        looked_for = (of_others[0], *of_nobody)
        read = [await page(own("u0", wanted)) for wanted in looked_for]
        assert read == [read[0]] * len(read), "as much for a code of others as for what is not"
        events, rows = await page(own("u0"))
        assert len(events) == 10
        assert rows <= 40
