"""Codes by the thousand: generated and imported in chunks, each of them one transaction.

The ledger row of a chunk, whose id names the request and the number of the chunk, is what makes it
happen once; calling again goes on behind the chunks that are there.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from typing import Any, Final
from uuid import UUID

from psycopg.errors import UniqueViolation

from coupon_service.errors import CodeSpaceExhausted, InvalidStateTransition, RequestIdReused
from coupon_service.model import (
    Book,
    BookState,
    BookStats,
    Call,
    Event,
    EventType,
    bucket_of_book,
    event_id,
    fingerprint,
)
from coupon_service.model.codes import (
    CodeFormat,
    bucket_of,
    generate,
    sorted_by_key,
)
from coupon_service.model.normalization import id_spellings
from coupon_service.store.books import select_book
from coupon_service.store.bulk.dry_runs import DryRun
from coupon_service.store.bulk.new_codes import (
    NewCodes,
    copy_codes,
    insert_codes,
    select_existing,
)
from coupon_service.store.bulk.upload_rows import (
    ChunkRows,
    ImportResult,
    Rejection,
    import_result,
    read_rows,
)
from coupon_service.store.counters import add_to_counters, select_stats
from coupon_service.store.database import Database
from coupon_service.store.events import (
    insert_event_once,
    insert_events,
    recorded_fingerprint,
    select_events_by_id,
)
from coupon_service.store.generations import codes_taken, reserve_codes, use_reserved
from coupon_service.store.pipeline import Connection
from coupon_service.store.spellings import insert_spellings

LONGER_STATEMENTS: Final = "SET LOCAL statement_timeout = '30s'"
LONGER_SILENCE_S: Final = 35.0

LOCK_ATTEMPT: Final = "SELECT pg_advisory_xact_lock(%s)"

GENERATED_CHUNK: Final = 20_000
"""Codes a transaction: more are hardly faster, and a lost connection would lose more."""

MIN_CODE_LENGTH: Final = 4
"""Of imported codes, where neither the upload nor the book says otherwise."""

TOP_UPS_MAX: Final = 64
"""How often codes that were taken are replaced; half of them or more are new each time, unless
other books use the same format."""


@dataclass(frozen=True, slots=True)
class GenerateProgress:
    """How many codes of a request are committed. `replayed`: earlier calls had made all of them."""

    generated: int
    count: int
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class _Request:
    """A call of GenerateCodes or ImportCodes; `tag` marks its codes as made by it."""

    call: Call
    book_id: UUID
    fingerprint: int

    @property
    def tag(self) -> int:
        """A signed 32-bit hash of what names the request."""
        return fingerprint(self.call.caller, self.call.request_id, self.book_id) >> 32

    @property
    def generation_id(self) -> UUID:
        """The id under which a generation reserves its codes: that of its first chunk."""
        return self.event_id(EventType.CODES_GENERATED, 0)

    def event_id(self, event: EventType, chunk: int) -> UUID:
        """The id of the ledger row of a chunk."""
        return self.attempts(event, chunk)[0]

    def attempts(self, event: EventType, chunk: int) -> list[UUID]:
        """That id, and those that it has where the caller is still spelled otherwise."""
        bucket, request_id = bucket_of_book(self.book_id), self.call.request_id
        return [
            event_id(bucket, event, caller, request_id, self.book_id, chunk)
            for caller in id_spellings(self.call.caller)
        ]

    def event(
        self, event: EventType, chunk: int, now: datetime, metadata: Mapping[str, Any]
    ) -> Event:
        """The ledger row of a chunk."""
        return Event(
            event_id=self.event_id(event, chunk),
            type=event,
            event_time=now,
            book_id=self.book_id,
            caller=self.call.caller,
            peer=self.call.peer,
            user_agent=self.call.user_agent,
            request_id=self.call.request_id,
            fingerprint=self.fingerprint,
            metadata=json.dumps(metadata),
        )


class CodeChunks:
    """Makes codes by the thousand. A book of another business does not exist (BookNotFound).

    Everything here raises Contention, DatabaseUnavailable or Overloaded as Database does; what was
    committed by then stays, and the same call goes on from there.
    """

    def __init__(self, database: Database, now: Callable[[], datetime]) -> None:
        self._database = database
        self._now = now

    async def generate(
        self, book_id: UUID, count: int, call: Call
    ) -> AsyncGenerator[GenerateProgress]:
        """Makes `count` random codes in the book's format; yields how far it is after each chunk.

        All of them are reserved when it begins, so that generations at the same time leave room for
        each other, and this one does not fail half-way.

        Raises BookNotFound, RequestIdReused, InvalidStateTransition, CodeSpaceExhausted.
        """
        request = _Request(call, book_id, fingerprint(count))
        sizes = [min(GENERATED_CHUNK, count - done) for done in range(0, count, GENERATED_CHUNK)]

        async def begin(connection: Connection) -> tuple[Book, list[int]]:
            book = await select_book(connection, book_id, call.business_id, lock=True)
            missing = await _missing_chunks(connection, request, len(sizes))
            if missing:
                _refuse_closed(book)
                left = sum(sizes[chunk] for chunk in missing)
                await reserve_codes(connection, book, request.generation_id, count, left)
            return book, missing

        book, missing = await self._database.transaction("reserve_codes", begin)
        if not missing:
            yield GenerateProgress(count, count, replayed=True)
            return
        done = count - sum(sizes[chunk] for chunk in missing)
        copy = True
        ahead = _made_ahead(book, request.tag, [sizes[chunk] for chunk in missing])
        async with aclosing(ahead):
            for chunk in missing:
                made = await anext(ahead)
                try:
                    await self._commit_generated(request, chunk, made, copy=copy)
                except UniqueViolation:
                    copy = False  # slower, but it passes over codes that are taken
                    await self._commit_generated(request, chunk, made, copy=copy)
                done += sizes[chunk]
                yield GenerateProgress(done, count)

    async def taken(self, book_id: UUID, business_id: str) -> tuple[Book, int]:
        """The book, and how many codes it has or is getting. Raises BookNotFound."""

        async def work(connection: Connection) -> tuple[Book, int]:
            book = await select_book(connection, book_id, business_id)
            return book, await codes_taken(connection, book_id)

        return await self._database.read("codes_taken", work)

    async def _commit_generated(
        self, request: _Request, chunk: int, made: NewCodes, *, copy: bool
    ) -> None:
        count = len(made.codes)
        event = request.event(EventType.CODES_GENERATED, chunk, self._now(), {"count": count})

        async def work(connection: Connection) -> None:
            await _allow_longer_statements(connection)
            if not await insert_event_once(connection, event):
                # The same call at the same time was faster.
                if await recorded_fingerprint(connection, event.event_id) != event.fingerprint:
                    raise RequestIdReused
                return
            book = await select_book(connection, request.book_id, request.call.business_id)
            _refuse_closed(book)
            if copy:
                await copy_codes(connection, made)
            else:
                await _insert_or_replace(connection, book, request.tag, made.codes)
            await use_reserved(connection, book.book_id, request.generation_id, count)
            added = BookStats(available=count)
            await add_to_counters(connection, (book.book_id, bucket_of(made.codes[0]), added))

        await self._database.transaction("generate_codes", work)

    async def import_chunk(
        self,
        book_id: UUID,
        chunk_number: int,
        rows: Sequence[str],
        call: Call,
        min_length: int = 0,
    ) -> ImportResult:
        """Stores the rows of a file that are new codes; returns what became of the others.

        `min_length`: of a code, 0 = what the book says. A repeat of the same chunk is answered from
        the ledger. A code that an earlier chunk of the same request made is a duplicate in the
        upload.

        Raises BookNotFound, RequestIdReused, InvalidStateTransition.
        """
        request = _import_request(call, book_id, rows, min_length)
        attempt = request.event_id(EventType.CODES_IMPORTED, chunk_number)
        chunk = await self._read(request, rows, min_length)

        async def work(connection: Connection) -> ImportResult:
            await _allow_longer_statements(connection)
            # A repeat at the same time waits here until the first call is done.
            await connection.execute(LOCK_ATTEMPT, [attempt.int & (2**63 - 1)])
            recorded = await _recorded(connection, request, chunk_number)
            if recorded is not None:
                return _recorded_result(recorded, request)
            _refuse_closed(await select_book(connection, book_id, call.business_id))
            created, rejected = await _import(connection, request, chunk)
            result = import_result(created, rejected, chunk.min_length)
            record = {
                "created": created,
                "duplicates": result.duplicates,
                "existing": result.existing,
                "invalid": result.invalid,
                "min_length": chunk.min_length,
                "rejected": rejected,
            }
            event = request.event(EventType.CODES_IMPORTED, chunk_number, self._now(), record)
            await insert_events(connection, [event])
            return result

        return await self._database.transaction("import_codes", work)

    async def try_chunk(
        self,
        book_id: UUID,
        chunk_number: int,
        rows: Sequence[str],
        call: Call,
        min_length: int,
        dry_run: DryRun,
    ) -> ImportResult:
        """What import_chunk would return, and raise; nothing is written but into `dry_run`.

        Raises Overloaded too, where the dry run cannot remember more.
        """
        request = _import_request(call, book_id, rows, min_length)
        chunk = await self._read(request, rows, min_length)

        async def work(connection: Connection) -> ImportResult | dict[str, bool]:
            recorded = await _recorded(connection, request, chunk_number)
            if recorded is not None:
                return _recorded_result(recorded, request)
            _refuse_closed(await select_book(connection, book_id, call.business_id))
            return await select_existing(connection, book_id, request.tag, chunk.new.codes)

        found = await self._database.read("try_import", work)
        if isinstance(found, ImportResult):
            return found
        dry_run.reserve(len(chunk.new.codes))
        return await asyncio.to_thread(_outcomes, chunk, found, dry_run)

    async def _read(self, request: _Request, rows: Sequence[str], min_length: int) -> _Chunk:
        """The rows, sorted out by what the book says of codes. Raises BookNotFound."""
        book_id, business_id = request.book_id, request.call.business_id
        book = await self._database.read(
            "get_book", lambda connection: select_book(connection, book_id, business_id)
        )
        least = min_length or book.min_code_length or MIN_CODE_LENGTH
        return await asyncio.to_thread(_chunk, request, rows, book.code_format, least)


async def _allow_longer_statements(connection: Connection) -> None:
    """Lets each statement of this transaction take up to 30 s."""
    await connection.execute(LONGER_STATEMENTS)
    connection.silence_max_s = LONGER_SILENCE_S


def _refuse_closed(book: Book) -> None:
    if book.state is BookState.CLOSED:
        raise InvalidStateTransition(
            "The coupon book is CLOSED and gets no more codes.", state=book.state.name
        )


# --- generation ---------------------------------------------------------------------------------


async def _missing_chunks(connection: Connection, request: _Request, count: int) -> list[int]:
    """The chunks of a generation that are not committed yet. Raises RequestIdReused."""
    attempts = [request.attempts(EventType.CODES_GENERATED, chunk) for chunk in range(count)]
    recorded = await select_events_by_id(connection, chain.from_iterable(attempts))
    if any(event.fingerprint != request.fingerprint for event in recorded.values()):
        raise RequestIdReused
    return [chunk for chunk, ids in enumerate(attempts) if recorded.keys().isdisjoint(ids)]


async def _made_ahead(book: Book, tag: int, sizes: Sequence[int]) -> AsyncGenerator[NewCodes]:
    """Codes in chunks of these sizes; the next one is made while one is being stored."""

    def start(size: int) -> asyncio.Task[NewCodes]:
        return asyncio.create_task(asyncio.to_thread(_make, book, tag, size))

    making = start(sizes[0])
    try:
        for following in (*sizes[1:], None):
            made = await making
            if following is not None:
                making = start(following)
            yield made
    finally:
        making.cancel()


def _make(book: Book, tag: int, size: int) -> NewCodes:
    codes = generate(book.code_format, size, in_key_order=True)
    return NewCodes.made_ready(book.book_id, tag, codes)


async def _insert_or_replace(
    connection: Connection, book: Book, tag: int, codes: Sequence[str]
) -> None:
    """Stores as many random codes, others in place of those that are taken.

    Raises CodeSpaceExhausted.
    """
    requested = missing = len(codes)
    for _ in range(TOP_UPS_MAX):
        missing -= len(await insert_codes(connection, book.book_id, tag, codes))
        if not missing:
            return
        codes = await asyncio.to_thread(generate, book.code_format, missing, in_key_order=True)
    raise CodeSpaceExhausted(
        "Nearly all codes of this format are taken, by this and by other coupon books.",
        capacity=book.code_format.capacity,
        existing=(await select_stats(connection, book.book_id)).codes,
        requested=requested,
        max_codes=book.code_format.capacity // 2,
    )


# --- imports ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Chunk:
    """The rows of an uploaded chunk, and their codes as they are stored."""

    rows: ChunkRows
    new: NewCodes
    min_length: int


def _import_request(call: Call, book_id: UUID, rows: Sequence[str], min_length: int) -> _Request:
    asked = [json.dumps(list(rows)), *([min_length] if min_length else [])]
    return _Request(call, book_id, fingerprint(*asked))


def _chunk(
    request: _Request, rows: Sequence[str], code_format: CodeFormat, min_length: int
) -> _Chunk:
    read = read_rows(rows, code_format, min_length)
    codes = sorted_by_key(read.codes)
    return _Chunk(read, NewCodes.made_ready(request.book_id, request.tag, codes), min_length)


async def _import(
    connection: Connection, request: _Request, chunk: _Chunk
) -> tuple[int, dict[Rejection, list[int]]]:
    """How many codes were new, and the rows that were not, by why."""
    codes, rows = chunk.new.codes, chunk.rows
    created = await _store_new(connection, request, chunk.new) if codes else set[str]()
    if created:
        added = BookStats(available=len(created))
        await add_to_counters(connection, (request.book_id, bucket_of(codes[0]), added))
    spellings = {code: it for code, it in rows.spellings.items() if code in created}
    if spellings:
        await insert_spellings(connection, spellings)
    rejected = {why: list(indexes) for why, indexes in rows.rejected.items()}
    others = [code for code in rows.codes if code not in created]
    if others:
        found = await select_existing(connection, request.book_id, request.tag, others)
        for code in others:
            why = Rejection.DUPLICATE if found.get(code) else Rejection.EXISTING
            rejected.setdefault(why, []).append(rows.codes[code])
    return len(created), rejected


def _outcomes(chunk: _Chunk, found: Mapping[str, bool], dry_run: DryRun) -> ImportResult:
    """What _import would find, of the codes that are there and those of the dry run before."""
    created = 0
    rejected = {why: list(indexes) for why, indexes in chunk.rows.rejected.items()}
    for code, index in chunk.rows.codes.items():
        if code not in found and dry_run.is_new(code):
            created += 1
        else:
            why = Rejection.DUPLICATE if found.get(code, True) else Rejection.EXISTING
            rejected.setdefault(why, []).append(index)
    return import_result(created, rejected, chunk.min_length)


async def _store_new(connection: Connection, request: _Request, new: NewCodes) -> set[str]:
    """Stores those of the codes that are new; returns them."""
    try:
        async with connection.transaction():  # from a savepoint: COPY stores all or none
            await copy_codes(connection, new)
    except UniqueViolation:
        return await insert_codes(connection, request.book_id, request.tag, new.codes)
    return set(new.codes)


async def _recorded(connection: Connection, request: _Request, chunk: int) -> Event | None:
    """The ledger row of an uploaded chunk, if there is one."""
    attempts = request.attempts(EventType.CODES_IMPORTED, chunk)
    return next(iter((await select_events_by_id(connection, attempts)).values()), None)


def _recorded_result(event: Event, request: _Request) -> ImportResult:
    if event.fingerprint != request.fingerprint:
        raise RequestIdReused
    record = json.loads(event.metadata or "{}")
    rejected = {Rejection(why): indexes for why, indexes in record["rejected"].items()}
    return import_result(record["created"], rejected, record.get("min_length", 0), replayed=True)
