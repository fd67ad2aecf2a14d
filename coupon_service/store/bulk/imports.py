"""Codes of files: imported in chunks, each of them one transaction."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from psycopg.errors import UniqueViolation

from coupon_service.model import Book, BookStats, Call, Event, EventType, fingerprint
from coupon_service.model.codes import bucket_of
from coupon_service.store.books import select_book
from coupon_service.store.bulk.dry_runs import DryRun
from coupon_service.store.bulk.lane import BulkLane
from coupon_service.store.bulk.new_codes import (
    NewCodes,
    copy_codes,
    insert_new_codes,
    select_existing,
)
from coupon_service.store.bulk.requests import ChunkedRequest, refuse_closed
from coupon_service.store.bulk.upload_rows import (
    ChunkRows,
    ImportResult,
    Rejection,
    import_result,
)
from coupon_service.store.counters import add_to_counters
from coupon_service.store.database import Database
from coupon_service.store.events import insert_events
from coupon_service.store.pipeline import Connection
from coupon_service.store.spellings import insert_spellings

LOCK_ATTEMPT: Final = "SELECT pg_advisory_xact_lock(%s)"

MIN_CODE_LENGTH: Final = 4
"""Of imported codes, where neither the upload nor the book says otherwise."""

READING_STEP: Final = 200
"""Rows that are read in one turn of the event loop."""


class CodeImporter:
    """Imports codes. A book of another business does not exist (BookNotFound).

    Everything here raises Contention, DatabaseUnavailable or Overloaded as Database does; what was
    committed by then stays, and the same call goes on from there.
    """

    def __init__(self, database: Database, lane: BulkLane, now: Callable[[], datetime]) -> None:
        self._database = database
        self._lane = lane
        self._now = now

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

        async def work(connection: Connection) -> ImportResult:
            # A repeat at the same time waits here until the first call is done.
            await connection.execute(LOCK_ATTEMPT, [attempt.int & (2**63 - 1)])
            recorded = await request.recorded(connection, EventType.CODES_IMPORTED, chunk_number)
            if recorded is not None:
                return _recorded_result(recorded)
            refuse_closed(await select_book(connection, book_id, call.business_id))
            created, rejected = await self._import(connection, request, chunk)
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

        book = await self._book(request)
        async with self._lane.turn(book.business_id):
            chunk = await self._read(book, request.tag, rows, min_length)
            return await self._lane.transaction("import_codes", work)

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

        async def work(connection: Connection) -> ImportResult | dict[str, bool]:
            recorded = await request.recorded(connection, EventType.CODES_IMPORTED, chunk_number)
            if recorded is not None:
                return _recorded_result(recorded)
            refuse_closed(await select_book(connection, book_id, call.business_id))
            codes = list(chunk.rows.codes)
            return await select_existing(connection, book_id, request.tag, codes, self._lane)

        book = await self._book(request)
        async with self._lane.turn(book.business_id):
            chunk = await self._read(book, request.tag, rows, min_length)
            found = await self._lane.read("try_import", work)
            if isinstance(found, ImportResult):
                return found
            dry_run.reserve(len(chunk.rows.codes))
            return await self._outcomes(chunk, found, dry_run)

    async def _book(self, request: ChunkedRequest) -> Book:
        book_id, business_id = request.book_id, request.call.business_id
        return await self._database.read(
            "get_book", lambda connection: select_book(connection, book_id, business_id)
        )

    async def _read(self, book: Book, tag: int, rows: Sequence[str], min_length: int) -> _Chunk:
        """The rows, sorted out by what the book says of codes."""
        least = min_length or book.min_code_length or MIN_CODE_LENGTH
        read, index = ChunkRows(), 0
        async for some in self._lane.steps(rows, READING_STEP):
            read.add(some, index, book.code_format, least)
            index += len(some)
        new = await NewCodes.in_parts(book.book_id, tag, read.codes, self._lane)
        return _Chunk(read, new, least)

    async def _import(
        self, connection: Connection, request: ChunkedRequest, chunk: _Chunk
    ) -> tuple[int, dict[Rejection, list[int]]]:
        """How many codes were new, and the rows that were not, by why."""
        rows = chunk.rows
        created = await self._store_new(connection, request, chunk.new)
        if created:
            bucket = bucket_of(chunk.new[0].codes[0])
            added = BookStats(available=len(created))
            await add_to_counters(connection, (request.book_id, bucket, added))
        spellings = {code: it for code, it in rows.spellings.items() if code in created}
        if spellings:
            await insert_spellings(connection, spellings)
        rejected = {why: list(indexes) for why, indexes in rows.rejected.items()}
        others = [code for code in rows.codes if code not in created]
        found = await select_existing(connection, request.book_id, request.tag, others, self._lane)
        for code in others:
            why = Rejection.DUPLICATE if found.get(code) else Rejection.EXISTING
            rejected.setdefault(why, []).append(rows.codes[code])
        return len(created), rejected

    async def _store_new(
        self, connection: Connection, request: ChunkedRequest, new: Sequence[NewCodes]
    ) -> set[str]:
        """Stores those of the codes that are new; returns them."""
        try:
            async with connection.transaction():  # from a savepoint: COPY stores all or none
                await copy_codes(connection, new, self._lane)
        except UniqueViolation:
            return await insert_new_codes(connection, request.book_id, request.tag, new, self._lane)
        return {code for part in new for code in part.codes}

    async def _outcomes(
        self, chunk: _Chunk, found: Mapping[str, bool], dry_run: DryRun
    ) -> ImportResult:
        """What _import would find, of the codes that are there and those of the dry run before."""
        created = 0
        rejected = {why: list(indexes) for why, indexes in chunk.rows.rejected.items()}
        async for some in self._lane.steps(list(chunk.rows.codes.items()), READING_STEP):
            for code, index in some:
                if code not in found and dry_run.is_new(code):
                    created += 1
                else:
                    why = Rejection.DUPLICATE if found.get(code, True) else Rejection.EXISTING
                    rejected.setdefault(why, []).append(index)
        return import_result(created, rejected, chunk.min_length)


@dataclass(frozen=True, slots=True)
class _Chunk:
    """The rows of an uploaded chunk, and their codes as they are stored."""

    rows: ChunkRows
    new: list[NewCodes]
    min_length: int


def _import_request(
    call: Call, book_id: UUID, rows: Sequence[str], min_length: int
) -> ChunkedRequest:
    asked = [json.dumps(list(rows)), *([min_length] if min_length else [])]
    return ChunkedRequest(call, book_id, fingerprint(*asked))


def _recorded_result(event: Event) -> ImportResult:
    record = json.loads(event.metadata or "{}")
    rejected = {Rejection(why): indexes for why, indexes in record["rejected"].items()}
    return import_result(record["created"], rejected, record.get("min_length", 0), replayed=True)
