"""Books are made, changed and counted, each change once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import pytest
from support.store import START, Clock, activate, call, make_book, new_book, opened

from coupon_service.errors import (
    BookNotFound,
    ConcurrentModification,
    InvalidArgument,
    InvalidStateTransition,
    PermissionDenied,
    RequestIdReused,
)
from coupon_service.model import AmountOff, Book, BookLimits, BookState, BookStats, EventType
from coupon_service.model.codes import CodeFormat
from coupon_service.store.books import Books
from coupon_service.store.database import Database
from coupon_service.store.queries.reads import AuditFilter, Reads

NOBODY = UUID(int=9)


@pytest.fixture
async def database(database_url: str) -> AsyncGenerator[Database]:
    async with opened(database_url) as database:
        yield database


@pytest.fixture
def books(database: Database) -> Books:
    return Books(database, Clock())


async def total(database: Database, book: Book) -> tuple[int, int] | None:
    """Redemptions and limit of the book's row in coupon_book_totals."""
    async with database.pool.connection() as connection:
        cursor = await connection.execute(
            "SELECT redemptions, redemption_limit FROM coupon_book_totals WHERE book_id = %s",
            [book.book_id],
        )
        row = await cursor.fetchone()
        return None if row is None else (row[0], row[1])


async def events_of(database: Database, book: Book) -> list[EventType]:
    events, _ = await Reads(database).audit_events(AuditFilter(book_id=book.book_id), 100, None)
    return [it.type for it in reversed(events)]


# --- create -------------------------------------------------------------------------------------


async def test_a_book_is_made_once_however_often_it_is_asked_for(
    database: Database, books: Books
) -> None:
    book = new_book()
    answers = await asyncio.gather(
        *(books.create(book, call("r"), book.book_id, 1) for _ in range(5))
    )
    assert sorted(replayed for _, replayed in answers) == [False, True, True, True, True]
    assert all(stored == book for stored, _ in answers)
    assert await events_of(database, book) == [EventType.BOOK_CREATED]


async def test_a_repeat_returns_the_book_as_it_is_now(books: Books) -> None:
    book = await make_book(books)
    active = await activate(books, book)
    assert await books.create(new_book(), call("create-spring"), book.book_id, 1) == (active, True)


async def test_a_request_id_with_another_book_is_refused(books: Books) -> None:
    book = await make_book(books)
    with pytest.raises(RequestIdReused):
        await books.create(replace(book, name="autumn"), call("r"), book.book_id, 2)
    assert (await books.get(book.book_id, "")).name == "spring"


async def test_nobody_makes_books_of_another_business(books: Books) -> None:
    book = new_book()
    with pytest.raises(PermissionDenied):
        await books.create(book, call("r", business_id="butcher"), book.book_id, 1)
    with pytest.raises(BookNotFound):
        await books.get(book.book_id, "")


async def test_only_a_book_with_a_limit_for_all_redemptions_has_a_row_for_them(
    database: Database, books: Books
) -> None:
    unlimited = await make_book(books)
    limited = await make_book(books, "summer", limits=BookLimits(max_redemptions=7))
    assert await total(database, unlimited) is None
    assert await total(database, limited) == (0, 7)
    assert await books.redemptions([unlimited, limited]) == {limited.book_id: 0}
    assert await books.redemptions([unlimited]) == {}


# --- get and list -------------------------------------------------------------------------------


async def test_a_book_of_another_business_does_not_exist(books: Books) -> None:
    book = await make_book(books)
    assert await books.get(book.book_id, "bakery") == book
    other = call("r", business_id="butcher")
    with pytest.raises(BookNotFound):
        await books.get(book.book_id, "butcher")
    with pytest.raises(BookNotFound):
        await books.stats(book.book_id, "butcher")
    with pytest.raises(BookNotFound):
        await books.update(book.book_id, {"name": "x"}, None, other, 1)
    with pytest.raises(BookNotFound):
        await books.transition(book.book_id, EventType.BOOK_CLOSED, None, other, 1)
    with pytest.raises(BookNotFound):
        await books.get(NOBODY, "")


async def test_books_are_listed_newest_first_page_by_page(books: Books) -> None:
    for number in range(5):
        # Two of them at the same time.
        time = START + timedelta(seconds=number // 2)
        await make_book(books, f"b{number}", create_time=time)
    whole, end = await books.list("", None, 5, None)
    assert end is None
    assert [it.create_time for it in whole] == sorted(
        (it.create_time for it in whole), reverse=True
    )

    paged: list[Book] = []
    position = None
    while True:
        page, position = await books.list("", None, 2, position)
        paged += page
        if position is None:
            break
        assert len(page) == 2
        assert json.loads(json.dumps(position)) == list(position)
    assert paged == whole


async def test_books_are_listed_by_business_and_state(books: Books) -> None:
    mine = await make_book(books)
    draft = await make_book(books, "draft")
    other = await make_book(books, business_id="butcher")
    mine = await activate(books, mine)

    async def listed(business_id: str, state: BookState | None) -> set[UUID]:
        page, end = await books.list(business_id, state, 10, None)
        assert end is None
        return {it.book_id for it in page}

    assert await listed("", None) == {mine.book_id, draft.book_id, other.book_id}
    assert await listed("bakery", None) == {mine.book_id, draft.book_id}
    assert await listed("bakery", BookState.ACTIVE) == {mine.book_id}
    assert await listed("", BookState.DRAFT) == {draft.book_id, other.book_id}
    assert await listed("baker", None) == set()


@pytest.mark.parametrize("position", [("x",), (), ("2026-01-01", "no uuid"), (1, 2), ("", "")])
async def test_a_position_that_is_none_is_refused(books: Books, position: tuple[str, ...]) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await books.list("", None, 10, position)
    assert [it.field for it in refused.value.violations] == ["page_token"]


# --- update -------------------------------------------------------------------------------------


async def test_an_update_changes_what_it_names_and_is_recorded(
    database: Database, books: Books
) -> None:
    book = await make_book(books, metadata='{"a": 1}')
    after, replayed = await books.update(
        book.book_id,
        {"name": "summer", "default_lock_ttl_ms": 5000, "assigned_code_validity_s": 60},
        book.version,
        call("u", caller="ann"),
        1,
    )
    assert not replayed
    assert after == replace(
        book,
        name="summer",
        default_lock_ttl_ms=5000,
        assigned_code_validity_s=60,
        version=2,
        update_time=after.update_time,
    )
    assert after.update_time > book.update_time
    assert await books.get(book.book_id, "") == after

    wanted = AuditFilter(book_id=book.book_id, types=(EventType.BOOK_UPDATED,))
    (event,), _ = await Reads(database).audit_events(wanted, 10, None)
    assert event.metadata is not None
    assert json.loads(event.metadata) == {
        "fields": ["assigned_code_validity", "default_lock_ttl", "name"]
    }
    assert (event.state_before, event.state_after) == (BookState.DRAFT, BookState.DRAFT)
    assert (event.caller, event.request_id, event.peer) == ("ann", "u", "ipv4:127.0.0.1:5")
    assert event.event_time == after.update_time


async def test_an_update_happens_once(database: Database, books: Books) -> None:
    book = await make_book(books)
    answers = await asyncio.gather(
        *(books.update(book.book_id, {"name": "x"}, 1, call("u"), 5) for _ in range(5))
    )
    assert sorted(replayed for _, replayed in answers) == [False, True, True, True, True]
    assert {it.version for it, _ in answers} == {2}
    assert (await events_of(database, book)).count(EventType.BOOK_UPDATED) == 1
    with pytest.raises(RequestIdReused):
        await books.update(book.book_id, {"name": "y"}, None, call("u"), 6)
    # Another caller's request of the same name is another one.
    again, replayed = await books.update(book.book_id, {"name": "y"}, 2, call("u", "ann"), 6)
    assert (again.name, again.version, replayed) == ("y", 3, False)


async def test_an_update_of_another_version_is_refused(database: Database, books: Books) -> None:
    book = await make_book(books)
    await books.update(book.book_id, {"name": "x"}, None, call("u1"), 1)
    with pytest.raises(ConcurrentModification):
        await books.update(book.book_id, {"name": "y"}, 1, call("u2"), 1)
    assert (await books.get(book.book_id, "")).name == "x"
    # What was refused can be tried again under the same id.
    after, replayed = await books.update(book.book_id, {"name": "y"}, 2, call("u2"), 1)
    assert (after.name, replayed) == ("y", False)


async def test_of_updates_to_one_version_one_wins(books: Books) -> None:
    book = await make_book(books)
    answers = await asyncio.gather(
        *(books.update(book.book_id, {"name": f"n{i}"}, 1, call(f"u{i}"), 1) for i in range(6)),
        return_exceptions=True,
    )
    assert sum(isinstance(it, ConcurrentModification) for it in answers) == 5


async def test_the_rules_of_books_hold(database: Database, books: Books) -> None:
    book = await activate(books, await make_book(books))
    with pytest.raises(InvalidStateTransition) as refused:
        await books.update(book.book_id, {"code_format": CodeFormat(length=5)}, None, call("u"), 1)
    assert refused.value.metadata == {"state": "ACTIVE", "field": "code_format"}
    with pytest.raises(InvalidArgument):
        await books.update(book.book_id, {"discount": AmountOff(1)}, None, call("u"), 1)
    assert await books.get(book.book_id, "") == book
    assert await events_of(database, book) == [EventType.BOOK_CREATED, EventType.BOOK_ACTIVATED]


async def test_the_limit_of_a_book_is_kept_where_it_is_counted(
    database: Database, books: Books
) -> None:
    book = await make_book(books)

    async def limit(value: int, name: str) -> tuple[int, int] | None:
        limits = BookLimits(max_redemptions=value)
        await books.update(book.book_id, {"limits": limits}, None, call(name), 1)
        return await total(database, book)

    assert await limit(9, "introduced in a draft") == (0, 9)
    assert await limit(0, "lifted") == (0, 0)
    assert await limit(8, "back in a draft") == (0, 8)
    await activate(books, book)
    async with database.pool.connection() as connection:
        await connection.execute("UPDATE coupon_book_totals SET redemptions = 5")
    assert await limit(6, "lowered") == (5, 6)
    # The database cannot hold less than there is; the decision refuses by the book's own limit.
    assert await limit(2, "lowered below what was redeemed") == (5, 5)
    assert await limit(100, "raised") == (5, 100)
    assert await limit(0, "lifted for good") == (5, 0)


# --- transitions --------------------------------------------------------------------------------


async def test_a_book_goes_through_its_life(database: Database, books: Books) -> None:
    book = await make_book(books)
    states: list[BookState] = []
    for number, verb in enumerate(
        [
            EventType.BOOK_ACTIVATED,
            EventType.BOOK_PAUSED,
            EventType.BOOK_ACTIVATED,
            EventType.BOOK_CLOSED,
        ]
    ):
        changed, replayed = await books.transition(
            book.book_id, verb, number + 1, call(f"t{number}"), 1
        )
        assert not replayed
        states.append(changed.state)
    assert states == [BookState.ACTIVE, BookState.PAUSED, BookState.ACTIVE, BookState.CLOSED]
    assert await events_of(database, book) == [
        EventType.BOOK_CREATED,
        EventType.BOOK_ACTIVATED,
        EventType.BOOK_PAUSED,
        EventType.BOOK_ACTIVATED,
        EventType.BOOK_CLOSED,
    ]
    with pytest.raises(InvalidStateTransition):
        await books.transition(book.book_id, EventType.BOOK_ACTIVATED, None, call("late"), 1)
    with pytest.raises(InvalidStateTransition):
        await books.update(book.book_id, {"name": "x"}, None, call("late"), 1)


async def test_a_repeated_verb_changes_nothing_and_is_told_when_it_is_no_longer_so(
    database: Database, books: Books
) -> None:
    book = await activate(books, await make_book(books))
    repeat = (book.book_id, EventType.BOOK_ACTIVATED, 1, call("activate"), 1)
    named, _ = await books.update(book.book_id, {"name": "May"}, None, call("name"), 1)
    assert await books.transition(*repeat) == (named, True)
    await books.transition(book.book_id, EventType.BOOK_PAUSED, None, call("p"), 1)
    with pytest.raises(InvalidStateTransition) as refused:
        await books.transition(*repeat)
    assert refused.value.metadata == {"state": "PAUSED"}
    # The same id for another verb is another request.
    closed, replayed = await books.transition(
        book.book_id, EventType.BOOK_CLOSED, None, call("activate"), 1
    )
    assert (closed.state, replayed) == (BookState.CLOSED, False)


async def test_a_new_book_counts_nothing(books: Books) -> None:
    book = await make_book(books)
    assert await books.stats(book.book_id, "bakery") == (book, BookStats())
