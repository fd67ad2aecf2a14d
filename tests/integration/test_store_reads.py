"""Codes, assignments, redemptions and the ledger are found, page by page, by their owners alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TypeVar
from uuid import UUID

import pytest
from prometheus_client import CollectorRegistry
from stores import START, Clock, activate, call, make_book, opened

from coupon_service.codes import CodeFormat, bucket_of, generate
from coupon_service.errors import (
    BookNotFound,
    CodeChecksumInvalid,
    CodeNotFound,
    InvalidArgument,
    RedemptionNotFound,
)
from coupon_service.metrics import Metrics
from coupon_service.model import (
    Assign,
    AssignmentPolicy,
    AssignmentState,
    Book,
    BookLimits,
    Code,
    CodeState,
    Command,
    Done,
    Event,
    EventType,
    LockPolicy,
    Redeem,
    Revoke,
    Rollback,
    SwitchCode,
    Unit,
    bucket_of_event,
    event_id,
)
from coupon_service.store.books import Books
from coupon_service.store.chunks import CodeChunks
from coupon_service.store.db import Database
from coupon_service.store.events import select_events
from coupon_service.store.execute import Executor
from coupon_service.store.keyset import Position
from coupon_service.store.reads import AuditFilter, Reads
from coupon_service.store.rows import insert_events

T = TypeVar("T")
NOBODY = UUID(int=9)


@dataclass(frozen=True)
class Shop:
    """A store with a bearer's book of many-use codes, and one of another business."""

    database: Database
    books: Books
    reads: Reads
    chunks: CodeChunks
    executor: Executor
    book: Book
    other: Book

    async def codes(self, book: Book, *codes: str) -> None:
        """Imports codes, which are spread over all buckets by their hash."""
        result = await self.chunks.import_chunk(book.book_id, 1, codes, call("import"))
        assert result.created == len(codes)

    async def do(self, command: Command) -> Event:
        ((outcome,),) = await self.executor.execute([Unit((command,))])
        assert isinstance(outcome, Done), outcome
        return outcome.event

    async def assign(self, code: str, user_id: str) -> Event:
        attempt = event_id(bucket_of(code), EventType.ASSIGNED, code, user_id)
        return await self.do(
            Assign(call=call("a"), code=code, event_id=attempt, fingerprint=1, user_id=user_id)
        )

    async def revoke(self, code: str, user_id: str) -> Event:
        attempt = event_id(bucket_of(code), EventType.REVOKED, code, user_id)
        return await self.do(
            Revoke(call=call("v"), code=code, event_id=attempt, fingerprint=1, user_id=user_id)
        )

    async def redeem(self, code: str, user_id: str, order_id: str = "") -> Event:
        attempt = event_id(bucket_of(code), EventType.REDEEMED, code, user_id, order_id)
        return await self.do(
            Redeem(
                call=call(f"r-{order_id}"),
                code=code,
                event_id=attempt,
                fingerprint=1,
                user_id=user_id,
                order_id=order_id,
            )
        )

    async def roll_back(self, redemption: Event) -> Event:
        bucket = bucket_of_event(redemption.event_id)
        return await self.do(
            Rollback(
                call=call("b"),
                code=redemption.code or "",
                event_id=event_id(bucket, EventType.ROLLED_BACK, redemption.event_id),
                fingerprint=1,
                user_id=redemption.user_id or "",
                redemption=redemption,
            )
        )

    async def disable(self, code: str) -> Event:
        attempt = event_id(bucket_of(code), EventType.CODE_DISABLED, code)
        return await self.do(
            SwitchCode(
                call=call("d"),
                type=EventType.CODE_DISABLED,
                code=code,
                event_id=attempt,
                fingerprint=1,
            )
        )


@pytest.fixture
async def shop(database_url: str) -> AsyncGenerator[Shop]:
    clock = Clock()
    async with opened(database_url) as database:
        books = Books(database, clock)
        limits = BookLimits(max_redemptions_per_code=100)
        bearer = AssignmentPolicy.BEARER
        made = [
            await activate(
                books,
                await make_book(
                    books,
                    name,
                    business_id=business_id,
                    limits=limits,
                    assignment_policy=bearer,
                    lock_policy=LockPolicy.OFF,
                ),
            )
            for name, business_id in (("spring", "bakery"), ("summer", "butcher"))
        ]
        yield Shop(
            database,
            books,
            Reads(database),
            CodeChunks(database, clock),
            Executor(database, clock, Metrics(CollectorRegistry())),
            *made,
        )


async def all_pages(
    page: Callable[[Position | None], Awaitable[tuple[Sequence[T], Position | None]]], size: int
) -> list[T]:
    """Everything, page by page; each but the last is full."""
    found: list[T] = []
    position: Position | None = None
    while True:
        items, position = await page(position)
        found += items
        if position is None:
            return found
        assert len(items) == size


# --- codes --------------------------------------------------------------------------------------


async def test_a_code_is_found_with_its_book_by_its_own_business(shop: Shop) -> None:
    await shop.codes(shop.book, "SPRING1")
    code = Code("SPRING1", shop.book.book_id, CodeState.AVAILABLE, 0, 0)
    for book_id, business_id in ((None, ""), (shop.book.book_id, "bakery")):
        assert await shop.reads.code("SPRING1", book_id, business_id) == (code, shop.book)
    for missing, book_id, business_id in (
        ("SPRING2", None, ""),
        ("SPRING1", shop.other.book_id, ""),
        ("SPRING1", NOBODY, ""),
        ("SPRING1", None, "butcher"),
    ):
        with pytest.raises(CodeNotFound):
            await shop.reads.code(missing, book_id, business_id)


async def test_a_mistyped_code_is_told_from_an_unknown_one_where_the_book_is_named(
    shop: Shop,
) -> None:
    code_format = CodeFormat(check_character=True)
    book = await make_book(shop.books, "checked", code_format=code_format)
    (right,) = generate(code_format, 1)
    wrong = right[:-1] + ("A" if right[-1] != "A" else "B")
    with pytest.raises(CodeNotFound):
        await shop.reads.code(right, book.book_id, "")
    with pytest.raises(CodeChecksumInvalid):
        await shop.reads.code(wrong, book.book_id, "")
    with pytest.raises(CodeNotFound):
        await shop.reads.code(wrong, None, "")


async def test_codes_are_listed_whole_in_every_page_size_and_by_state(shop: Shop) -> None:
    codes = [f"C{number}" for number in range(23)]
    await shop.codes(shop.book, *codes)
    await shop.codes(shop.other, "ELSEWHERE")
    for code in codes[:5]:
        await shop.assign(code, "ann")
    await shop.disable("C7")

    async def listed(state: CodeState | None, size: int) -> list[str]:
        async def page(after: Position | None) -> tuple[Sequence[Code], Position | None]:
            book, found, position = await shop.reads.codes(
                shop.book.book_id, "bakery", state, size, after
            )
            assert book == shop.book
            assert state is None or {it.state for it in found} <= {state}
            return found, position

        return [it.code for it in await all_pages(page, size)]

    in_order = sorted(codes, key=lambda code: (bucket_of(code), code))
    for size in (1, 2, 22, 23, 24):
        assert await listed(None, size) == in_order
    assert await listed(CodeState.ASSIGNED, 2) == [it for it in in_order if it in codes[:5]]
    assert await listed(CodeState.DISABLED, 2) == ["C7"]
    assert await listed(CodeState.REDEEMED, 2) == []
    with pytest.raises(BookNotFound):
        await shop.reads.codes(shop.book.book_id, "butcher", None, 10, None)


async def test_a_code_that_changes_its_state_between_pages_is_listed_once(shop: Shop) -> None:
    codes = [f"C{number}" for number in range(20)]
    await shop.codes(shop.book, *codes)
    for code in codes[::2]:
        await shop.assign(code, "ann")

    async def page(after: Position | None) -> tuple[Sequence[Code], Position | None]:
        _, found, position = await shop.reads.codes(shop.book.book_id, "", None, 4, after)
        if after is None:
            for code in codes[::2]:
                await shop.revoke(code, "ann")
            for code in codes[1::2]:
                await shop.assign(code, "bob")
        return found, position

    assert sorted(it.code for it in await all_pages(page, 4)) == sorted(codes)


# --- assignments --------------------------------------------------------------------------------


async def test_a_users_codes_are_listed_newest_first_with_code_and_book(shop: Shop) -> None:
    await shop.codes(shop.book, "A1", "A2", "A3")
    await shop.codes(shop.other, "B1")
    for code in ("A1", "B1", "A3", "A2"):
        await shop.assign(code, "ann")
    await shop.assign("A1", "bob")
    await shop.redeem("A2", "carl")  # a bearer, to whom nothing was assigned
    await shop.revoke("A3", "ann")

    async def listed(
        user_id: str,
        book: Book | None = None,
        business_id: str = "",
        state: AssignmentState | None = None,
    ) -> list[str]:
        found = await all_pages(
            lambda after: shop.reads.user_coupons(
                user_id, book.book_id if book else None, business_id, state, 2, after
            ),
            2,
        )
        for link, code, owner in found:
            assert link.user_id == user_id
            assert code.code == link.code
            assert owner == (shop.other if code.code == "B1" else shop.book)
        return [code.code for _, code, _ in found]

    assert await listed("ann") == ["A2", "A3", "B1", "A1"]
    assert await listed("ann", state=AssignmentState.REVOKED) == ["A3"]
    assert await listed("ann", state=AssignmentState.ACTIVE) == ["A2", "B1", "A1"]
    assert await listed("ann", shop.book) == ["A2", "A3", "A1"]
    assert await listed("ann", business_id="butcher") == ["B1"]
    assert await listed("ann", shop.book, business_id="butcher") == []
    assert await listed("carl") == []
    with pytest.raises(InvalidArgument):
        await shop.reads.user_coupons("ann", None, "", None, 2, ("2026-01-01T00:00:00", "\0"))


# --- redemptions --------------------------------------------------------------------------------


async def test_a_redemption_is_found_with_its_rollback(shop: Shop) -> None:
    await shop.codes(shop.book, "A1")
    redemption = await shop.redeem("A1", "ann", "o1")
    found = redemption.event_id
    assert await shop.reads.redemption(found, "bakery") == (redemption, None)
    rollback = await shop.roll_back(redemption)
    assert await shop.reads.redemption(found, "") == (redemption, rollback)
    for missing, business_id in ((found, "butcher"), (rollback.event_id, ""), (NOBODY, "")):
        with pytest.raises(RedemptionNotFound):
            await shop.reads.redemption(missing, business_id)


async def test_redemptions_are_listed_by_each_filter_and_all_of_them_together(shop: Shop) -> None:
    await shop.codes(shop.book, "A1", "A2")
    await shop.codes(shop.other, "B1")
    await shop.assign("A1", "ann")
    made = [
        await shop.redeem(code, user_id, order_id)
        for code, user_id, order_id in (
            ("A1", "ann", "o1"),
            ("A2", "ann", "o1"),
            ("A1", "bob", "o2"),
            ("B1", "ann", "o1"),
            ("A1", "ann", "o3"),
        )
    ]
    rollback = await shop.roll_back(made[1])
    newest_first = made[::-1]

    async def listed(
        user_id: str = "",
        book: Book | None = None,
        code: str = "",
        order_id: str = "",
        business_id: str = "",
    ) -> list[Event]:
        found = await all_pages(
            lambda after: shop.reads.redemptions(
                user_id, book.book_id if book else None, code, order_id, business_id, 2, after
            ),
            2,
        )
        for redemption, undone in found:
            assert undone == (rollback if redemption == made[1] else None)
        return [redemption for redemption, _ in found]

    def those(*numbers: int) -> list[Event]:
        return [it for it in newest_first if made.index(it) in numbers]

    assert await listed(user_id="ann") == those(0, 1, 3, 4)
    assert await listed(code="A1") == those(0, 2, 4)
    assert await listed(order_id="o1") == those(0, 1, 3)
    assert await listed(book=shop.book) == those(0, 1, 2, 4)
    assert await listed(business_id="butcher") == those(3)
    assert await listed() == newest_first
    assert await listed("ann", shop.book, "A1", "o1", "bakery") == those(0)
    assert await listed("ann", business_id="bakery") == those(0, 1, 4)
    assert await listed(book=shop.book, business_id="butcher") == []
    assert await listed(user_id="nobody") == []


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
    await shop.chunks.import_chunk(shop.book.book_id, 1, ["A1", "A1", "?"], call("import"))
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


async def test_a_page_of_the_ledger_is_read_without_reading_the_ledger(shop: Shop) -> None:
    book_id = shop.book.book_id
    redeemed = (EventType.REDEEMED,)
    async with shop.database.pool.connection() as connection:
        await connection.execute(LEDGER_OF_20_000, (book_id, START))
        await connection.execute("ANALYZE redemption_audit")

        async def rows_read() -> int:
            await connection.execute("SELECT pg_stat_force_next_flush()")
            cursor = await connection.execute(ROWS_READ)
            (row,) = await cursor.fetchall()
            return row[0]

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
            before = await rows_read()
            async with connection.transaction():
                events, _ = await select_events(connection, wanted, 10, None)
            assert len(events) == 10
            assert await rows_read() - before <= 150, wanted
