"""Codes are generated and imported in chunks: each once, none lost, none twice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
from support.store import BULK, Clock, activate, call, make_book, opened

from coupon_service.errors import (
    BookNotFound,
    CodeChecksumInvalid,
    CodeSpaceExhausted,
    Contention,
    DuplicateCode,
    InvalidArgument,
    InvalidStateTransition,
    RequestIdReused,
)
from coupon_service.model import Book, BookStats, Call, EventType
from coupon_service.model.codes import CodeFormat, bucket_of, generate
from coupon_service.store.books import Books
from coupon_service.store.bulk import generation
from coupon_service.store.bulk.generation import CodeGenerator, GenerateProgress
from coupon_service.store.bulk.imports import CodeImporter
from coupon_service.store.bulk.lane import BulkLane
from coupon_service.store.bulk.upload_rows import ImportOutcome, ImportResult
from coupon_service.store.database import Database
from coupon_service.store.queries.reads import AuditFilter, Reads


@dataclass(frozen=True)
class Store:
    """What these tests work with."""

    database: Database
    books: Books
    generator: CodeGenerator
    importer: CodeImporter

    async def rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        async with self.database.pool.connection() as connection:
            cursor = await connection.execute(query.encode(), parameters)
            return await cursor.fetchall()

    async def codes(self, book: Book) -> list[str]:
        rows = await self.rows("SELECT code FROM coupon_codes WHERE book_id = %s", book.book_id)
        return [row[0] for row in rows]

    async def generate(self, book: Book, count: int, call: Call) -> list[GenerateProgress]:
        return [it async for it in self.generator.generate(book.book_id, count, call)]

    async def chunk_counts(self, book: Book, event: EventType) -> list[dict[str, Any]]:
        """What the ledger says of each chunk, in the order they were committed."""
        wanted = AuditFilter(book_id=book.book_id, types=(event,))
        events, _ = await Reads(self.database).audit_events(wanted, 1000, None)
        return [json.loads(it.metadata or "") for it in reversed(events)]

    async def assert_counted(self, book: Book) -> int:
        """The counters say what there is; returns how many codes."""
        _, stats = await self.books.stats(book.book_id, "")
        codes = await self.codes(book)
        assert stats == BookStats(available=len(codes))
        assert len(set(codes)) == len(codes)
        return len(codes)


@pytest.fixture
async def store(database_url: str) -> AsyncGenerator[Store]:
    clock = Clock()
    async with opened(database_url) as database, opened(database_url, **BULK) as bulk:
        lane = BulkLane(bulk)
        yield Store(
            database,
            Books(database, clock),
            CodeGenerator(database, lane, clock),
            CodeImporter(database, lane, clock),
        )


@pytest.fixture
def chunks_of_ten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of ten codes, to have many of them."""
    monkeypatch.setattr(generation, "GENERATED_CHUNK", 10)


# --- generate -----------------------------------------------------------------------------------


async def test_a_hundred_thousand_codes_without_a_duplicate(store: Store) -> None:
    book = await make_book(store.books)
    progress = await store.generate(book, 100_001, call("g"))
    assert [it.generated for it in progress] == [20_000, 40_000, 60_000, 80_000, 100_000, 100_001]
    assert {(it.count, it.replayed) for it in progress} == {(100_001, False)}
    assert await store.assert_counted(book) == 100_001
    assert all(book.code_format.matches(code) for code in await store.codes(book))
    wrong = await store.rows("SELECT code, bucket FROM coupon_codes")
    assert [code for code, bucket in wrong if bucket != bucket_of(code)] == []
    counts = await store.chunk_counts(book, EventType.CODES_GENERATED)
    assert counts == [*[{"count": 20_000}] * 5, {"count": 1}]


async def test_a_repeat_makes_nothing(store: Store, chunks_of_ten: None) -> None:
    book = await make_book(store.books)
    await store.generate(book, 25, call("g"))
    assert await store.generate(book, 25, call("g")) == [GenerateProgress(25, 25, replayed=True)]
    assert await store.assert_counted(book) == 25
    # Another request, and another caller's, are new ones.
    await store.generate(book, 5, call("g2"))
    await store.generate(book, 5, call("g", caller="ann"))
    assert await store.assert_counted(book) == 35


async def test_a_generation_that_broke_off_goes_on_behind_the_last_chunk(
    store: Store, chunks_of_ten: None
) -> None:
    book = await make_book(store.books)
    async with aclosing(store.generator.generate(book.book_id, 45, call("g"))) as progress:
        async for it in progress:
            if it.generated == 20:
                break
    first = set(await store.codes(book))
    assert len(first) == 20
    rest = await store.generate(book, 45, call("g"))
    assert rest == [GenerateProgress(done, 45) for done in (30, 40, 45)]
    assert first < set(await store.codes(book))
    assert await store.assert_counted(book) == 45


async def test_the_same_generation_twice_at_once_makes_its_codes_once(
    store: Store, chunks_of_ten: None
) -> None:
    book = await make_book(store.books)
    answers = await asyncio.gather(*(store.generate(book, 95, call("g")) for _ in range(3)))
    assert [it[-1].generated for it in answers] == [95, 95, 95]
    assert await store.assert_counted(book) == 95
    assert len(await store.chunk_counts(book, EventType.CODES_GENERATED)) == 10


async def test_a_generation_of_another_count_is_another_request(
    store: Store, chunks_of_ten: None
) -> None:
    book = await make_book(store.books)
    await store.generate(book, 25, call("g"))
    for count in (24, 5, 26, 1000):
        with pytest.raises(RequestIdReused):
            await store.generate(book, count, call("g"))
    assert await store.assert_counted(book) == 25


async def test_of_two_counts_at_once_under_one_request_id_one_is_refused(
    store: Store, chunks_of_ten: None
) -> None:
    book = await make_book(store.books)
    answers = await asyncio.gather(
        store.generate(book, 20, call("g")),
        store.generate(book, 95, call("g")),
        return_exceptions=True,
    )
    assert [isinstance(it, RequestIdReused) for it in answers].count(True) == 1
    assert await store.assert_counted(book) in (20, 95)


async def test_more_than_half_of_a_format_is_refused_at_once(store: Store) -> None:
    book = await make_book(store.books, code_format=CodeFormat(length=4, alphabet="ABCD"))
    await store.generate(book, 100, call("g1"))
    with pytest.raises(CodeSpaceExhausted) as refused:
        await store.generate(book, 29, call("g2"))
    assert refused.value.metadata == {
        "capacity": "256",
        "existing": "100",
        "requested": "29",
        "max_codes": "128",
    }
    await store.generate(book, 28, call("g2"))
    # Its own codes do not count against a repeat.
    assert (await store.generate(book, 28, call("g2")))[0].replayed
    assert await store.assert_counted(book) == 128


SMALL = CodeFormat(length=4, alphabet="ABCD")
"""A format of which 128 codes may be used."""


async def begin(store: Store, book: Book, count: int, call: Call) -> None:
    """Makes the first chunk of a generation, and breaks it off."""
    async with aclosing(store.generator.generate(book.book_id, count, call)) as progress:
        await anext(progress)


async def give_up(store: Store) -> None:
    """Lets time pass in which nobody goes on with a generation."""
    await store.rows(
        "UPDATE coupon_generations SET update_time = now() - interval '2 hours' RETURNING 1"
    )


async def test_of_generations_that_begin_at_once_only_those_are_made_that_fit(
    store: Store, chunks_of_ten: None
) -> None:
    book = await make_book(store.books, code_format=SMALL)
    answers = await asyncio.gather(
        *(store.generate(book, 40, call(f"g{number}")) for number in range(4)),
        return_exceptions=True,
    )
    refused = [it for it in answers if isinstance(it, CodeSpaceExhausted)]
    assert len(refused) == 1
    assert await store.assert_counted(book) == 120


async def test_a_generation_reserves_all_of_its_codes_when_it_begins(
    store: Store, chunks_of_ten: None
) -> None:
    book = await make_book(store.books, code_format=SMALL)
    await begin(store, book, 100, call("g1"))
    with pytest.raises(CodeSpaceExhausted) as refused:
        await store.generate(book, 29, call("g2"))
    assert refused.value.metadata["existing"] == "100"
    await store.generate(book, 28, call("g2"))
    await store.generate(book, 100, call("g1"))
    assert await store.assert_counted(book) == 128
    with pytest.raises(CodeSpaceExhausted):
        await store.generate(book, 1, call("g3"))


async def test_what_is_reserved_is_made_whatever_is_imported_meanwhile(
    store: Store, chunks_of_ten: None
) -> None:
    book = await make_book(store.books, code_format=SMALL)
    await begin(store, book, 100, call("g1"))
    await store.importer.import_chunk(book.book_id, 1, [f"X{n}" for n in range(30)], call("i"))
    with pytest.raises(CodeSpaceExhausted):
        await store.generate(book, 1, call("g2"))
    await store.generate(book, 100, call("g1"))
    assert await store.assert_counted(book) == 130


async def test_an_abandoned_generation_leaves_its_codes_to_others(
    store: Store, chunks_of_ten: None
) -> None:
    book = await make_book(store.books, code_format=SMALL)
    await begin(store, book, 100, call("g1"))
    await give_up(store)
    await store.generate(book, 28, call("g2"))
    await store.generate(book, 40, call("g3"))
    with pytest.raises(CodeSpaceExhausted) as refused:
        await store.generate(book, 100, call("g1"))
    assert refused.value.metadata["existing"] == "68"
    assert await store.assert_counted(book) == 78


async def test_an_abandoned_generation_goes_on_where_there_is_room(
    store: Store, chunks_of_ten: None
) -> None:
    book = await make_book(store.books, code_format=SMALL)
    await begin(store, book, 100, call("g1"))
    await give_up(store)
    await store.generate(book, 28, call("g2"))
    await store.generate(book, 100, call("g1"))
    assert await store.assert_counted(book) == 128


async def test_a_generation_whose_reservation_was_abandoned_meanwhile_begins_anew(
    store: Store, chunks_of_ten: None
) -> None:
    book = await make_book(store.books, code_format=SMALL)
    stalled = store.generator.generate(book.book_id, 100, call("g1"))
    await anext(stalled)
    await give_up(store)
    await store.generate(book, 110, call("g2"))
    with pytest.raises(Contention):
        await anext(stalled)
    with pytest.raises(CodeSpaceExhausted):
        await store.generate(book, 100, call("g1"))
    assert await store.assert_counted(book) == 120


async def test_another_format_needs_another_reservation(store: Store, chunks_of_ten: None) -> None:
    book = await make_book(store.books)
    running = store.generator.generate(book.book_id, 200, call("g"))
    await anext(running)
    await store.books.update(book.book_id, {"code_format": SMALL}, None, call("u"), 1)
    with pytest.raises(Contention):
        await anext(running)
    with pytest.raises(CodeSpaceExhausted) as refused:
        await store.generate(book, 200, call("g"))
    assert refused.value.metadata["requested"] == "200"
    assert await store.assert_counted(book) == 10


async def test_another_count_is_refused_before_the_first_chunk(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = await make_book(store.books, code_format=SMALL)
    taken = await make_book(store.books, "taken")
    rows = ["".join(letters) for letters in product("ABCD", repeat=4)]
    await store.importer.import_chunk(taken.book_id, 1, rows, call("i"))
    with pytest.raises(CodeSpaceExhausted):  # reserved, and then there is none that is free
        await store.generate(book, 2, call("g"))
    with pytest.raises(RequestIdReused):
        await store.generate(book, 3, call("g"))


async def test_nothing_stays_reserved_when_all_is_made(store: Store, chunks_of_ten: None) -> None:
    book = await make_book(store.books, code_format=SMALL)
    await asyncio.gather(*(store.generate(book, 45, call("g")) for _ in range(3)))
    assert await store.rows("SELECT * FROM coupon_generations") == []
    await store.generate(book, 83, call("g2"))
    assert await store.assert_counted(book) == 128


async def test_codes_that_are_taken_are_replaced(store: Store, chunks_of_ten: None) -> None:
    small = CodeFormat(length=4, alphabet="ABCD")
    taken = await make_book(store.books, "taken", code_format=small)
    book = await make_book(store.books, code_format=small)
    await store.generate(taken, 64, call("g"))
    await store.generate(book, 64, call("g"))
    assert await store.assert_counted(book) == 64
    assert await store.assert_counted(taken) == 64
    assert len(await store.chunk_counts(book, EventType.CODES_GENERATED)) == 7


async def test_a_format_that_other_books_have_used_up_ends_the_generation(store: Store) -> None:
    small = CodeFormat(length=4, alphabet="ABCD")
    taken = await make_book(store.books, "taken")
    rows = ["".join(letters) for letters in product("ABCD", repeat=4)]
    await store.importer.import_chunk(taken.book_id, 1, rows[:-1], call("i"))
    book = await make_book(store.books, code_format=small)
    with pytest.raises(CodeSpaceExhausted):
        await store.generate(book, 2, call("g"))
    assert await store.assert_counted(book) == 0
    assert await store.chunk_counts(book, EventType.CODES_GENERATED) == []


async def test_a_book_that_is_closed_gets_no_codes_but_answers_repeats(
    store: Store, chunks_of_ten: None
) -> None:
    book = await make_book(store.books)
    await store.generate(book, 5, call("g"))
    half_done = store.generator.generate(book.book_id, 25, call("half"))
    await anext(half_done)
    await store.books.transition(book.book_id, EventType.BOOK_CLOSED, None, call("c"), 1)
    with pytest.raises(InvalidStateTransition) as refused:
        await anext(half_done)
    assert refused.value.metadata == {"state": "CLOSED"}
    with pytest.raises(InvalidStateTransition):
        await store.generate(book, 5, call("new"))
    with pytest.raises(InvalidStateTransition):
        await store.importer.import_chunk(book.book_id, 1, ["A1"], call("i"))
    assert (await store.generate(book, 5, call("g")))[0].replayed
    assert await store.assert_counted(book) == 15


async def test_codes_of_every_format_are_stored_as_they_were_made(store: Store) -> None:
    code_format = CodeFormat(
        5, "0123456789", "SUMMER", "X", "-", group_size=2, check_character=True
    )
    book = await make_book(store.books, code_format=code_format)
    await store.generate(book, 1000, call("g"))
    codes = await store.codes(book)
    assert len(codes) == 1000
    assert all(code_format.matches(code) for code in codes)


async def test_a_book_of_another_business_gets_no_codes(store: Store) -> None:
    book = await make_book(store.books)
    stranger = call("g", business_id="butcher")
    with pytest.raises(BookNotFound):
        await store.generate(book, 5, stranger)
    with pytest.raises(BookNotFound):
        await store.importer.import_chunk(book.book_id, 1, ["A1"], stranger)


# --- import -------------------------------------------------------------------------------------


def outcomes(result: ImportResult) -> list[tuple[int, int, type]]:
    return [(index, outcome, type(error)) for index, outcome, error in result.verdicts()]


DUPLICATE, EXISTS, INVALID = (
    ImportOutcome.DUPLICATE_IN_UPLOAD,
    ImportOutcome.ALREADY_EXISTS,
    ImportOutcome.INVALID,
)


async def test_every_row_has_its_outcome(store: Store) -> None:
    other = await make_book(store.books, "other")
    await store.importer.import_chunk(other.book_id, 1, ["TAKEN"], call("i"))
    book = await make_book(store.books)
    await store.importer.import_chunk(book.book_id, 1, ["MINE"], call("before"))
    rows = [
        "\ufeffspring-1\r",  # as a spreadsheet writes the first row
        "SPRING 1",
        "summer_25\r\n",
        "taken",
        "mine",
        "",
        "un/ter",
        "A" * 65,
        "NUL\0",
        "\ufeff",
        " summer.26 ",
    ]
    result = await store.importer.import_chunk(book.book_id, 1, rows, call("i"))
    assert (result.created, result.duplicates, result.existing, result.invalid) == (3, 1, 2, 5)
    assert not result.replayed
    assert outcomes(result) == [
        (1, DUPLICATE, DuplicateCode),
        (3, EXISTS, DuplicateCode),
        (4, EXISTS, DuplicateCode),
        *[(index, INVALID, InvalidArgument) for index in (5, 6, 7, 8, 9)],
    ]
    error = list(result.verdicts())[3][2]
    assert isinstance(error, InvalidArgument)
    assert [it.field for it in error.violations] == ["codes[5]"]
    assert set(await store.codes(book)) == {"MINE", "SPRING1", "SUMMER25", "SUMMER26"}
    assert await store.assert_counted(book) == 4


async def test_a_code_of_an_earlier_chunk_is_a_duplicate_in_the_upload(store: Store) -> None:
    book = await make_book(store.books)
    imported = store.importer.import_chunk
    await imported(book.book_id, 1, ["A1", "A2"], call("i"))
    second = await imported(book.book_id, 2, ["A2", "A3"], call("i"))
    assert (second.created, outcomes(second)) == (1, [(0, DUPLICATE, DuplicateCode)])
    for other in (call("j"), call("i", caller="ann")):
        again = await imported(book.book_id, 1, ["A1", "A2"], other)
        assert (again.created, again.existing) == (0, 2)


async def test_a_repeated_chunk_is_answered_as_before(store: Store) -> None:
    book = await make_book(store.books, code_format=CodeFormat(check_character=True))
    (mistyped,) = generate(book.code_format, 1)
    mistyped = mistyped[:-1] + ("B" if mistyped[-1] != "B" else "C")
    rows = ["A1", "A1", "A2", "?", mistyped]
    await store.importer.import_chunk(book.book_id, 1, ["A2"], call("before"))
    first = await store.importer.import_chunk(book.book_id, 2, rows, call("i"))
    assert outcomes(first) == [
        (1, DUPLICATE, DuplicateCode),
        (2, EXISTS, DuplicateCode),
        (3, INVALID, InvalidArgument),
        (4, INVALID, CodeChecksumInvalid),
    ]
    again = await store.importer.import_chunk(book.book_id, 2, rows, call("i"))
    assert again.replayed
    assert outcomes(again) == outcomes(first)
    assert (again.created, again.duplicates, again.existing, again.invalid) == (1, 1, 1, 2)
    assert await store.assert_counted(book) == 2
    assert (await store.chunk_counts(book, EventType.CODES_IMPORTED))[-1] == {
        "created": 1,
        "duplicates": 1,
        "existing": 1,
        "invalid": 2,
    }
    with pytest.raises(RequestIdReused):
        await store.importer.import_chunk(book.book_id, 2, rows[:-1], call("i"))


async def test_the_same_chunk_many_times_at_once_is_imported_once(store: Store) -> None:
    book = await make_book(store.books)
    rows = [f"C{number}" for number in range(500)]
    results = await asyncio.gather(
        *(store.importer.import_chunk(book.book_id, 1, rows, call("i")) for _ in range(4))
    )
    assert sorted(it.replayed for it in results) == [False, True, True, True]
    assert {it.created for it in results} == {500}
    assert await store.assert_counted(book) == 500


async def test_uploads_of_the_same_codes_at_once_create_each_code_once(store: Store) -> None:
    book = await make_book(store.books)
    rows = [f"C{number}" for number in range(500)]
    results = await asyncio.gather(
        *(
            store.importer.import_chunk(book.book_id, 1, rows[:: 1 if i % 2 else -1], call(f"i{i}"))
            for i in range(4)
        )
    )
    assert sum(it.created for it in results) == 500
    assert sum(it.existing for it in results) == 1500
    assert await store.assert_counted(book) == 500


async def test_only_rows_in_the_form_of_the_book_need_its_check_character(store: Store) -> None:
    code_format = CodeFormat(length=6, prefix="P", check_character=True)
    book = await make_book(store.books, code_format=code_format)
    (right,) = generate(code_format, 1)
    wrong = right[:-1] + ("B" if right[-1] != "B" else "C")
    result = await store.importer.import_chunk(
        book.book_id, 1, [right, wrong, "LEGACY1", right + "2"], call("i")
    )
    assert outcomes(result) == [(1, INVALID, CodeChecksumInvalid)]
    assert result.created == 3


async def test_an_active_book_can_be_given_more_codes(store: Store) -> None:
    book = await activate(store.books, await make_book(store.books))
    await store.generate(book, 5, call("g"))
    await store.importer.import_chunk(book.book_id, 1, ["A1"], call("i"))
    assert await store.assert_counted(book) == 6


async def test_a_full_chunk_of_rows_that_are_all_rejected_is_recorded(store: Store) -> None:
    book = await make_book(store.books)
    rows = [f"C{number}" for number in range(10_000)]
    assert (await store.importer.import_chunk(book.book_id, 1, rows, call("i"))).created == 10_000
    first = await store.importer.import_chunk(book.book_id, 1, rows, call("j"))
    again = await store.importer.import_chunk(book.book_id, 1, rows, call("j"))
    assert first.existing == again.existing == len(again.rejected) == 10_000
    assert again.replayed
