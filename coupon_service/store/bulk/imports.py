"""Codes of files: imported in chunks, each of them one transaction."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final
from uuid import UUID

from psycopg.errors import UniqueViolation

from coupon_service.errors import Contention, CouponServiceError, FieldViolation
from coupon_service.model import (
    Book,
    BookStats,
    Call,
    CodeTerms,
    Event,
    EventType,
    UserCounts,
    WriteSet,
    fingerprint,
)
from coupon_service.model.codes import bucket_of
from coupon_service.model.pseudonyms import NO_PSEUDONYMS, Pseudonyms
from coupon_service.model.scopes import scope_of_book
from coupon_service.rules import terms_violations
from coupon_service.store.books import select_book
from coupon_service.store.bulk.assigned_rows import (
    NOTHING,
    Counts,
    decide_assignments,
    select_attempts,
    select_counts,
    write_assignments,
)
from coupon_service.store.bulk.dry_runs import DryRun
from coupon_service.store.bulk.import_records import recorded_of, result_of
from coupon_service.store.bulk.lane import BulkLane
from coupon_service.store.bulk.new_codes import (
    NewCodes,
    copy_codes,
    insert_new_codes,
    select_existing,
    select_in_other_scope,
)
from coupon_service.store.bulk.requests import ChunkedRequest, refuse_closed
from coupon_service.store.bulk.reused_codes import reuse_codes, reused_of, select_reusable
from coupon_service.store.bulk.upload_rows import (
    OF_CODES,
    ChunkRows,
    ImportResult,
    OfRows,
    Rejection,
    UploadRow,
    import_result,
)
from coupon_service.store.counters import add_to_counters
from coupon_service.store.database import Database
from coupon_service.store.erasures import NOBODY_ERASED, select_erased_users
from coupon_service.store.events import insert_events
from coupon_service.store.pipeline import Connection
from coupon_service.store.spellings import insert_spellings
from coupon_service.store.terms import insert_terms

Rows = Sequence[str] | Sequence[UploadRow]
"""Of a chunk: as they stand in a file, or each with what is said of its code."""

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

    def __init__(
        self,
        database: Database,
        lane: BulkLane,
        now: Callable[[], datetime],
        pseudonyms: Pseudonyms = NO_PSEUDONYMS,
    ) -> None:
        """`pseudonyms`: what finds those of users who were erased."""
        self._database = database
        self._lane = lane
        self._now = now
        self._pseudonyms = pseudonyms

    async def import_chunk(
        self,
        book_id: UUID,
        chunk_number: int,
        rows: Rows,
        call: Call,
        min_length: int = 0,
    ) -> ImportResult:
        """Stores the rows of a file that are new codes, with their terms, and assigns those that
        have a user; returns what became of the others.

        `min_length`: of a code, 0 = what the book says. A repeat of the same chunk is answered from
        the ledger. A code that an earlier chunk of the same request made is a duplicate in the
        upload. A code that cannot be assigned to its user is not stored.

        Raises BookNotFound, RequestIdReused, InvalidStateTransition.
        """
        request = _import_request(call, book_id, rows, min_length)
        attempt = request.event_id(EventType.CODES_IMPORTED, chunk_number)

        async def work(connection: Connection) -> ImportResult:
            # A repeat at the same time waits here until the first call is done.
            await connection.execute(LOCK_ATTEMPT, [attempt.int & (2**63 - 1)])
            recorded = await request.recorded(connection, EventType.CODES_IMPORTED, chunk_number)
            if recorded is not None:
                return result_of(recorded)
            book = await select_book(connection, book_id, call.business_id)
            refuse_closed(book)
            result, rejected, reused = await self._import(connection, request, book, chunk)
            record = {**recorded_of(result, rejected), **reused_of(reused)}
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
        rows: Rows,
        call: Call,
        min_length: int,
        dry_run: DryRun,
    ) -> ImportResult:
        """What import_chunk would return, and raise; nothing is written but into `dry_run`.

        Raises Overloaded too, where the dry run cannot remember more.
        """
        request = _import_request(call, book_id, rows, min_length)

        async def work(
            connection: Connection,
        ) -> ImportResult | tuple[Book, Mapping[str, bool], Counts, Mapping[UUID, Event]]:
            recorded = await request.recorded(connection, EventType.CODES_IMPORTED, chunk_number)
            if recorded is not None:
                return result_of(recorded)
            book = await select_book(connection, book_id, call.business_id)
            refuse_closed(book)
            codes = list(chunk.rows.codes)
            found = await select_existing(connection, book, request.tag, codes, self._lane)
            there = [code for part in chunk.new for code in part.codes if code in found]
            reusable = await select_reusable(connection, book, there, self._lane, lock=False)
            found = {code: mine for code, mine in found.items() if code not in reusable}
            known = {code: it for code, it in chunk.users.items() if code in reusable}
            attempts = await select_attempts(connection, book, known, call)
            users = chunk.users.values()
            erased = await select_erased_users(connection, users, self._pseudonyms)
            counts = await select_counts(connection, book, users, erased, lock=False)
            return book, found, counts, attempts

        book = await self._book(request)
        async with self._lane.turn(book.business_id):
            chunk = await self._read(book, request.tag, rows, min_length)
            found = await self._lane.read("try_import", work)
            if isinstance(found, ImportResult):
                return found
            dry_run.reserve(len(chunk.rows.codes))
            return await self._outcomes(chunk, *found, call, dry_run)

    async def _book(self, request: ChunkedRequest) -> Book:
        book_id, business_id = request.book_id, request.call.business_id
        return await self._database.read(
            "get_book", lambda connection: select_book(connection, book_id, business_id)
        )

    async def _read(self, book: Book, tag: int, rows: Rows, min_length: int) -> _Chunk:
        """The rows, sorted out by what the book says of codes."""
        least = min_length or book.min_code_length or MIN_CODE_LENGTH
        texts = [row if isinstance(row, str) else row.text for row in rows]
        more = [row for row in rows if not isinstance(row, str)]
        bad = {
            index: bad for index, row in enumerate(more) if (bad := _violations(index, row, book))
        }
        read, index = ChunkRows(), 0
        async for some in self._lane.steps(texts, READING_STEP):
            read.add(some, index, book.code_format, least, bad)
            index += len(some)
        new = await NewCodes.in_parts(book.book_id, tag, read.codes, self._lane)
        if not more:
            return _Chunk(read, new, least)
        return _Chunk(
            read,
            new,
            least,
            OfRows(violations=bad),
            {code: it for code, at in read.codes.items() if (it := more[at].terms)},
            {code: it for code, at in read.codes.items() if (it := more[at].user_id)},
        )

    async def _import(
        self, connection: Connection, request: ChunkedRequest, book: Book, chunk: _Chunk
    ) -> tuple[ImportResult, dict[Rejection, list[int]], Mapping[str, UUID]]:
        """The result; the rows whose codes were not new, or not assigned, by why; and which codes
        CLOSED books had."""
        rows = chunk.rows
        rejected = {why: list(indexes) for why, indexes in rows.rejected.items()}
        stored = await self._store(connection, request, book, chunk)
        created, refused = stored.created, stored.refused
        if refused:
            rejected[Rejection.NOT_ASSIGNED] = sorted(rows.codes[code] for code in refused)
        terms = {code: it for code, it in chunk.terms.items() if code in created}
        if terms:
            await insert_terms(connection, book.book_id, terms)
        spellings = {code: it for code, it in rows.spellings.items() if code in created}
        if spellings:
            await insert_spellings(connection, scope_of_book(book.book_id), spellings)
        others = [code for code in rows.codes if code not in created and code not in refused]
        found = await select_existing(connection, book, request.tag, others, self._lane)
        for code in others:
            why = Rejection.DUPLICATE if found.get(code) else Rejection.EXISTING
            rejected.setdefault(why, []).append(rows.codes[code])
        assigned = {code for _, code in stored.assigned.codes}
        if assigned:
            if not created.issuperset(assigned):
                raise Contention  # made by somebody who does not take turns with other bulk work
            await write_assignments(connection, book, stored.assigned)
        if created:
            counts = BookStats(
                available=len(created) - len(assigned),
                assigned=len(assigned),
                assignments=len(assigned),
            )
            bucket = bucket_of(min(created))
            await add_to_counters(connection, (book.book_id, bucket, counts))
        result = chunk.result(len(created), rejected, len(assigned), refused)
        return result, rejected, stored.reused

    async def _store(
        self, connection: Connection, request: ChunkedRequest, book: Book, chunk: _Chunk
    ) -> _Stored:
        """Stores the codes that the book can get, all at once where nothing is in the way."""
        codes, tag = chunk.rows.codes, request.tag
        other = await select_in_other_scope(connection, book, list(codes), self._lane)
        tried = not (chunk.users or other)
        if tried and await self._copy_all(connection, chunk.new):
            return _Stored(set(codes))
        # Codes are locked before users are.
        in_order = [code for part in chunk.new for code in part.codes]
        reusable = await select_reusable(connection, book, in_order, self._lane, lock=True)
        refused, assigned = await self._decide_users(connection, request, book, chunk, reusable)
        reused = {code: it for code, it in reusable.items() if code not in refused}
        await reuse_codes(connection, book.book_id, tag, reused, self._now(), self._lane)
        passed_over = refused.keys() | reusable.keys() | other
        left = [code for code in codes if code not in passed_over]
        new = await NewCodes.in_parts(book.book_id, tag, left, self._lane)
        if (reused or not tried) and await self._copy_all(connection, new):
            created = set(left)
        else:
            created = await insert_new_codes(connection, book.book_id, tag, new, self._lane)
        return _Stored(created | reused.keys(), reused, refused, assigned)

    async def _decide_users(
        self,
        connection: Connection,
        request: ChunkedRequest,
        book: Book,
        chunk: _Chunk,
        reusable: Container[str],
    ) -> tuple[Mapping[str, CouponServiceError], WriteSet]:
        """Why codes cannot be assigned to their users, and what is to be written for the others.

        Bulk work is done one piece at a time: so what does not exist now, or is `reusable`, is in
        the book only once this transaction has made it.
        """
        users: Mapping[str, str] = chunk.users
        counts: Counts = {}
        erased = NOBODY_ERASED
        if users:
            erased = await select_erased_users(connection, users.values(), self._pseudonyms)
            found = await select_existing(connection, book, request.tag, list(users), self._lane)
            users = {
                code: user_id
                for code, user_id in users.items()
                if code not in found or code in reusable
            }
            counts = await select_counts(connection, book, users.values(), erased, lock=True)
        known = {code: user_id for code, user_id in users.items() if code in reusable}
        attempts = await select_attempts(connection, book, known, request.call)
        return decide_assignments(
            book, users, chunk.terms, counts, attempts, request.call, self._now(), erased
        )

    async def _copy_all(self, connection: Connection, new: Sequence[NewCodes]) -> bool:
        """Stores the codes, unless any of them is there."""
        try:
            async with connection.transaction():  # from a savepoint: COPY stores all or none
                await copy_codes(connection, new, self._lane)
        except UniqueViolation:
            return False
        return True

    async def _outcomes(
        self,
        chunk: _Chunk,
        book: Book,
        found: Mapping[str, bool],
        counts: Counts,
        attempts: Mapping[UUID, Event],
        call: Call,
        dry_run: DryRun,
    ) -> ImportResult:
        """What _import would find, of the codes that are there and those of the dry run before."""
        new: set[str] = set()
        known: dict[str, UserCounts] = {}
        rejected = {why: list(indexes) for why, indexes in chunk.rows.rejected.items()}
        async for some in self._lane.steps(list(chunk.rows.codes.items()), READING_STEP):
            for code, index in some:
                if code not in found and dry_run.is_new(code):
                    new.add(code)
                else:
                    why = Rejection.DUPLICATE if found.get(code, True) else Rejection.EXISTING
                    rejected.setdefault(why, []).append(index)
        users = {code: user_id for code, user_id in chunk.users.items() if code in new}
        for user_id in users.values():
            before, earlier = counts.get(user_id, UserCounts()), dry_run.assigned[user_id]
            known[user_id] = replace(before, assignments=before.assignments + earlier)
        refused, write_set = decide_assignments(
            book, users, chunk.terms, known, attempts, call, self._now()
        )
        for code in refused:
            dry_run.forget(code)
            rejected.setdefault(Rejection.NOT_ASSIGNED, []).append(chunk.rows.codes[code])
        if book.limits.any_per_user:
            dry_run.assigned.update(users[code] for _, code in write_set.codes)
        return chunk.result(len(new) - len(refused), rejected, len(write_set.codes), refused)


@dataclass(frozen=True, slots=True)
class _Chunk:
    """The rows of an uploaded chunk, and their codes as they are stored. `terms` and `users`: of
    the codes that have some."""

    rows: ChunkRows
    new: list[NewCodes]
    min_length: int
    of_rows: OfRows = OF_CODES
    terms: Mapping[str, CodeTerms] = field(default_factory=dict[str, CodeTerms])
    users: Mapping[str, str] = field(default_factory=dict[str, str])

    def result(
        self,
        created: int,
        rejected: Mapping[Rejection, Sequence[int]],
        assigned: int,
        refused: Mapping[str, CouponServiceError],
    ) -> ImportResult:
        """What is answered. `refused`: why codes were not assigned."""
        of_rows = replace(
            self.of_rows,
            assigned=assigned,
            refused={self.rows.codes[code]: error for code, error in refused.items()},
        )
        return import_result(created, rejected, self.min_length, of_rows)


@dataclass(frozen=True, slots=True)
class _Stored:
    """What became of the codes of a chunk: those that the book has got, and which of them CLOSED
    books had; why others were not assigned, and so left; and how the rest is assigned."""

    created: set[str]
    reused: Mapping[str, UUID] = field(default_factory=dict[str, UUID])
    refused: Mapping[str, CouponServiceError] = field(default_factory=dict[str, CouponServiceError])
    assigned: WriteSet = NOTHING


def _violations(index: int, row: UploadRow, book: Book) -> tuple[FieldViolation, ...]:
    """All that is wrong with a row for this book, beside its code."""
    if row.violations or row.terms is None:
        return row.violations
    return tuple(
        FieldViolation(f"rows[{index}].{it.field}", it.description)
        for it in terms_violations(row.terms, row.currency_code, book)
    )


def _import_request(call: Call, book_id: UUID, rows: Rows, min_length: int) -> ChunkedRequest:
    sent = [row if isinstance(row, str) else [row.sent] for row in rows]
    asked = [json.dumps(sent), *([min_length] if min_length else [])]
    return ChunkedRequest(call, book_id, fingerprint(*asked))
