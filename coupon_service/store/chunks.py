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
from itertools import groupby
from struct import pack
from typing import Any, Final
from uuid import UUID

from psycopg.errors import UniqueViolation

from coupon_service.codes import (
    CodeFormat,
    bucket_of,
    check_capacity,
    generate,
    sorted_by_key,
)
from coupon_service.errors import CodeSpaceExhausted, InvalidStateTransition, RequestIdReused
from coupon_service.model import (
    Book,
    BookState,
    Call,
    Event,
    EventType,
    bucket_of_book,
    event_id,
    fingerprint,
)
from coupon_service.store.books import select_book, select_stats
from coupon_service.store.db import Database
from coupon_service.store.events import select_events_by_id
from coupon_service.store.pipeline import Connection
from coupon_service.store.rows import (
    insert_event_once,
    insert_events,
    int_array,
    recorded_fingerprint,
    text_array,
)
from coupon_service.store.uploads import (
    ChunkRows,
    ImportResult,
    Rejection,
    import_result,
    read_rows,
)

GENERATED_CHUNK: Final = 20_000
"""Codes a transaction: more are hardly faster, and a lost connection would lose more."""

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

    def event_id(self, event: EventType, chunk: int) -> UUID:
        """The id of the ledger row of a chunk."""
        caller, request_id = self.call.caller, self.call.request_id
        bucket = bucket_of_book(self.book_id)
        return event_id(bucket, event, caller, request_id, self.book_id, chunk)

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
        """Makes `count` random codes in the book's format; tells how far it is after each chunk.

        Raises BookNotFound, RequestIdReused, InvalidStateTransition, CodeSpaceExhausted.
        """
        request = _Request(call, book_id, fingerprint(count))
        sizes = [min(GENERATED_CHUNK, count - done) for done in range(0, count, GENERATED_CHUNK)]

        async def begin(connection: Connection) -> tuple[Book, list[int]]:
            book = await select_book(connection, book_id, call.business_id)
            missing = await _missing_chunks(connection, request, len(sizes))
            if missing:
                _refuse_closed(book)
                stats = await select_stats(connection, book_id)
                done = count - sum(sizes[chunk] for chunk in missing)
                check_capacity(book.code_format, stats.codes - done, count)
            return book, missing

        book, missing = await self._database.read("generate_codes", begin)
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

    async def _commit_generated(
        self, request: _Request, chunk: int, made: _Made, *, copy: bool
    ) -> None:
        count = len(made.codes)
        event = request.event(EventType.CODES_GENERATED, chunk, self._now(), {"count": count})

        async def work(connection: Connection) -> None:
            await allow_longer_statements(connection)
            if not await insert_event_once(connection, event):
                # The same call at the same time was faster.
                if await recorded_fingerprint(connection, event.event_id) != event.fingerprint:
                    raise RequestIdReused
                return
            book = await select_book(connection, request.book_id, request.call.business_id)
            _refuse_closed(book)
            if copy:
                await copy_codes(connection, made.rows)
            else:
                await insert_or_replace_codes(connection, book, request.tag, made.codes)
            await add_available(connection, book.book_id, bucket_of(made.codes[0]), count)

        await self._database.transaction("generate_codes", work)

    async def import_chunk(
        self, book_id: UUID, chunk_number: int, rows: Sequence[str], call: Call
    ) -> ImportResult:
        """Stores the rows of a file that are new codes; tells what became of the others.

        A repeat of the same chunk is answered from the ledger. A code that an earlier chunk of the
        same request made is a duplicate in the upload.

        Raises BookNotFound, RequestIdReused, InvalidStateTransition.
        """
        request = _Request(call, book_id, fingerprint(json.dumps(list(rows))))
        attempt = request.event_id(EventType.CODES_IMPORTED, chunk_number)
        book = await self._database.read(
            "get_book", lambda connection: select_book(connection, book_id, call.business_id)
        )
        chunk = await asyncio.to_thread(_read, request, rows, book.code_format)

        async def work(connection: Connection) -> ImportResult:
            await allow_longer_statements(connection)
            # A repeat at the same time waits here until the first call is done.
            await connection.execute(LOCK_ATTEMPT, [attempt.int & (2**63 - 1)])
            recorded = (await select_events_by_id(connection, [attempt])).get(attempt)
            if recorded is not None:
                return _recorded_result(recorded, request)
            _refuse_closed(await select_book(connection, book_id, call.business_id))
            created, rejected = await _import(connection, request, chunk)
            result = import_result(created, rejected)
            record = {
                "created": created,
                "duplicates": result.duplicates,
                "existing": result.existing,
                "invalid": result.invalid,
                "rejected": rejected,
            }
            event = request.event(EventType.CODES_IMPORTED, chunk_number, self._now(), record)
            await insert_events(connection, [event])
            return result

        return await self._database.transaction("import_codes", work)


def _refuse_closed(book: Book) -> None:
    if book.state is BookState.CLOSED:
        raise InvalidStateTransition(
            "The coupon book is CLOSED and gets no more codes.", state=book.state.name
        )


async def _missing_chunks(connection: Connection, request: _Request, count: int) -> list[int]:
    """The chunks of a generation that are not committed yet. Raises RequestIdReused."""
    ids = [request.event_id(EventType.CODES_GENERATED, chunk) for chunk in range(count)]
    recorded = await select_events_by_id(connection, ids)
    if any(event.fingerprint != request.fingerprint for event in recorded.values()):
        raise RequestIdReused
    return [chunk for chunk, attempt in enumerate(ids) if attempt not in recorded]


@dataclass(frozen=True, slots=True)
class _Chunk:
    """The rows of an uploaded chunk, and their codes as they are stored."""

    rows: ChunkRows
    made: _Made


def _read(request: _Request, rows: Sequence[str], code_format: CodeFormat) -> _Chunk:
    read = read_rows(rows, code_format)
    codes = sorted_by_key(read.codes)
    return _Chunk(read, _Made(codes, copy_rows(request.book_id, request.tag, codes)))


async def _import(
    connection: Connection, request: _Request, chunk: _Chunk
) -> tuple[int, dict[Rejection, list[int]]]:
    """How many codes were new, and the rows that were not, by why."""
    codes, rows = chunk.made.codes, chunk.rows
    created = await _insert_new(connection, request, chunk.made) if codes else set[str]()
    if created:
        await add_available(connection, request.book_id, bucket_of(codes[0]), len(created))
    rejected = {why: list(indexes) for why, indexes in rows.rejected.items()}
    others = [code for code in rows.codes if code not in created]
    if others:
        earlier = await select_codes_of(connection, request.book_id, request.tag, others)
        for code in others:
            why = Rejection.DUPLICATE if code in earlier else Rejection.EXISTING
            rejected.setdefault(why, []).append(rows.codes[code])
    return len(created), rejected


async def _insert_new(connection: Connection, request: _Request, made: _Made) -> set[str]:
    """Stores those of the codes that are new; returns them."""
    try:
        async with connection.transaction():  # from a savepoint: COPY stores all or none
            await copy_codes(connection, made.rows)
    except UniqueViolation:
        return await insert_codes(connection, request.book_id, request.tag, made.codes)
    return set(made.codes)


def _recorded_result(event: Event, request: _Request) -> ImportResult:
    if event.fingerprint != request.fingerprint:
        raise RequestIdReused
    record = json.loads(event.metadata or "{}")
    rejected = {Rejection(why): indexes for why, indexes in record["rejected"].items()}
    return import_result(record["created"], rejected, replayed=True)


# --- codes, made ready in a thread --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Made:
    """Codes in the order of the table's key, and the same as rows for COPY."""

    codes: list[str]
    rows: bytes


async def _made_ahead(book: Book, tag: int, sizes: Sequence[int]) -> AsyncGenerator[_Made]:
    """Codes in chunks of these sizes; the next one is made while one is being stored."""

    def start(size: int) -> asyncio.Task[_Made]:
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


def _make(book: Book, tag: int, size: int) -> _Made:
    codes = generate(book.code_format, size, in_key_order=True)
    return _Made(codes, copy_rows(book.book_id, tag, codes))


def copy_rows(book_id: UUID, tag: int, codes: Sequence[str]) -> bytes:
    """Codes in the order of the table's key as COPY_CODES reads them.

    Source: the binary format in PostgreSQL's documentation of COPY.
    """
    parts = [b"PGCOPY\n\xff\r\n\0", pack("!ii", 0, 0)]
    for bucket, in_bucket in groupby(codes, key=bucket_of):
        for length, group in groupby(in_bucket, key=len):
            before_code = pack("!hi16sihiii", 4, 16, book_id.bytes, 2, bucket, 4, tag, length)
            parts.append(before_code + before_code.join([code.encode("ascii") for code in group]))
    parts.append(pack("!h", -1))
    return b"".join(parts)


# --- statements ---------------------------------------------------------------------------------

LONGER_STATEMENTS: Final = "SET LOCAL statement_timeout = '30s'"
LONGER_SILENCE_S: Final = 35.0


async def allow_longer_statements(connection: Connection) -> None:
    """Lets each statement of this transaction take up to 30 s."""
    await connection.execute(LONGER_STATEMENTS)
    connection.silence_max_s = LONGER_SILENCE_S


LOCK_ATTEMPT: Final = "SELECT pg_advisory_xact_lock(%s)"

COPY_CODES: Final = """
COPY coupon_codes (book_id, bucket, source_tag, code) FROM STDIN (FORMAT binary)
"""


async def copy_codes(connection: Connection, rows: bytes) -> None:
    """Stores new codes, the fastest way. Raises psycopg's UniqueViolation."""
    async with connection.cursor().copy(COPY_CODES) as copy:
        await copy.write(rows)


INSERT_CODES: Final = """
INSERT INTO coupon_codes (book_id, source_tag, bucket, code)
SELECT %s, %s, made.* FROM unnest(%s::smallint[], %s::text[]) AS made (bucket, code)
ON CONFLICT DO NOTHING
RETURNING code
"""


async def insert_codes(
    connection: Connection, book_id: UUID, tag: int, codes: Sequence[str]
) -> set[str]:
    """Stores those of the codes that are new; returns them."""
    parameters = book_id, tag, int_array(map(bucket_of, codes)), text_array(codes)
    cursor = await connection.execute(INSERT_CODES, parameters)
    return {row[0] for row in await cursor.fetchall()}


async def insert_or_replace_codes(
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


# LATERAL and LIMIT keep the planner, which does not know how many codes the book will get, from
# going through all of them for every code that is wanted.
SELECT_CODES_OF: Final = """
SELECT wanted.code
FROM unnest(%s::smallint[], %s::text[]) AS wanted (bucket, code)
CROSS JOIN LATERAL (
    SELECT book_id, source_tag FROM coupon_codes AS c
    WHERE c.bucket = wanted.bucket AND c.code = wanted.code
    LIMIT 1
) AS found
WHERE found.book_id = %s AND found.source_tag = %s
"""


async def select_codes_of(
    connection: Connection, book_id: UUID, tag: int, codes: Sequence[str]
) -> set[str]:
    """Those of the codes that the request with this tag made in this book."""
    parameters = int_array(map(bucket_of, codes)), text_array(codes), book_id, tag
    cursor = await connection.execute(SELECT_CODES_OF, parameters)
    return {row[0] for row in await cursor.fetchall()}


ADD_AVAILABLE: Final = """
INSERT INTO coupon_book_counters AS counter (
    book_id, bucket, available, assigned, redeemed, disabled, assignments, redemptions, rollbacks,
    discount_minor)
VALUES (%s, %s, %s, 0, 0, 0, 0, 0, 0, 0)
ON CONFLICT (book_id, bucket) DO UPDATE SET available = counter.available + excluded.available
"""


async def add_available(connection: Connection, book_id: UUID, bucket: int, count: int) -> None:
    """Counts new codes of a book, in one row of its counters."""
    await connection.execute(ADD_AVAILABLE, (book_id, bucket, count))
