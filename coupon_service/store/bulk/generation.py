"""Random codes by the million: made in chunks, each of them one transaction."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from psycopg.errors import UniqueViolation

from coupon_service.errors import CodeSpaceExhausted, RequestIdReused
from coupon_service.model import Book, BookStats, Call, EventType, fingerprint
from coupon_service.model.codes import bucket_of, generate
from coupon_service.store.books import select_book
from coupon_service.store.bulk.lane import BulkLane
from coupon_service.store.bulk.new_codes import (
    NewCodes,
    copy_codes,
    insert_new_codes,
    select_in_other_scope,
)
from coupon_service.store.bulk.requests import ChunkedRequest, refuse_closed
from coupon_service.store.bulk.reused_codes import reuse_codes, select_reusable
from coupon_service.store.counters import add_to_counters, select_stats
from coupon_service.store.database import Database
from coupon_service.store.events import (
    insert_event_once,
    recorded_fingerprint,
)
from coupon_service.store.generations import reserve_codes, use_reserved
from coupon_service.store.pipeline import Connection

GENERATED_CHUNK: Final = 20_000
"""Codes a transaction: more are hardly faster, and a lost connection would lose more."""

MAKING_STEP: Final = 100
"""Codes that are made in one turn of the event loop: less than a millisecond, with check
characters too."""

TOP_UPS_MAX: Final = 64
"""How often codes that were taken are replaced; half of them or more are new each time, unless
other books use the same format."""


@dataclass(frozen=True, slots=True)
class GenerateProgress:
    """How many codes of a request are committed. `replayed`: earlier calls had made all of them."""

    generated: int
    count: int
    replayed: bool = False


class CodeGenerator:
    """Makes random codes. A book of another business does not exist (BookNotFound).

    Everything here raises Contention, DatabaseUnavailable or Overloaded as Database does; what was
    committed by then stays, and the same call goes on from there.
    """

    def __init__(self, database: Database, lane: BulkLane, now: Callable[[], datetime]) -> None:
        self._database = database
        self._lane = lane
        self._now = now

    async def generate(
        self, book_id: UUID, count: int, call: Call
    ) -> AsyncGenerator[GenerateProgress]:
        """Makes `count` random codes in the book's format; yields how far it is after each chunk.

        All of them are reserved when it begins, so that generations at the same time leave room for
        each other, and this one does not fail half-way.

        Raises BookNotFound, RequestIdReused, InvalidStateTransition, CodeSpaceExhausted.
        """
        request = ChunkedRequest(call, book_id, fingerprint(count))
        book, done = await self._reserve(request, count)
        if done == count:
            yield GenerateProgress(count, count, replayed=True)
            return
        copy = True
        made: list[NewCodes] = []
        for start in range(done, count, GENERATED_CHUNK):
            chunk, done = start // GENERATED_CHUNK, min(start + GENERATED_CHUNK, count)
            async with self._lane.turn(book.business_id):
                made = made or await self._make(book, request.tag, done - start)
                # The next ones are made while PostgreSQL stores these.
                ahead = min(GENERATED_CHUNK, count - done)
                making = asyncio.create_task(self._make(book, request.tag, ahead))
                try:
                    copy = await self._store(request, chunk, made, copy=copy)
                    made = await making
                finally:
                    making.cancel()
            yield GenerateProgress(done, count)

    async def _reserve(self, request: ChunkedRequest, count: int) -> tuple[Book, int]:
        """The book, and how many codes are committed; all others are reserved then."""

        async def work(connection: Connection) -> tuple[Book, int]:
            business_id = request.call.business_id
            book = await select_book(connection, request.book_id, business_id, lock=True)
            chunks = -(-count // GENERATED_CHUNK)
            committed = await _committed_chunks(connection, request, chunks)
            done = min(committed * GENERATED_CHUNK, count)
            if done < count:
                refuse_closed(book)
                await reserve_codes(connection, book, _generation_id(request), count, count - done)
            return book, done

        return await self._database.transaction("reserve_codes", work)

    async def _store(
        self, request: ChunkedRequest, chunk: int, made: Sequence[NewCodes], *, copy: bool
    ) -> bool:
        """Commits the chunk; returns whether COPY will do for the next one."""
        try:
            await self._commit(request, chunk, made, copy=copy)
        except UniqueViolation:
            copy = False  # slower, but it passes over codes that are taken
            await self._commit(request, chunk, made, copy=copy)
        return copy

    async def _commit(
        self, request: ChunkedRequest, chunk: int, made: Sequence[NewCodes], *, copy: bool
    ) -> None:
        count = sum(len(part.codes) for part in made)
        event = request.event(EventType.CODES_GENERATED, chunk, self._now(), {"count": count})

        async def work(connection: Connection) -> None:
            if not await insert_event_once(connection, event):
                # The same call at the same time was faster.
                if await recorded_fingerprint(connection, event.event_id) != event.fingerprint:
                    raise RequestIdReused
                return
            book = await select_book(connection, request.book_id, request.call.business_id)
            refuse_closed(book)
            if copy:
                codes = [code for part in made for code in part.codes]
                if await select_in_other_scope(connection, book, codes, self._lane):
                    raise UniqueViolation
                await copy_codes(connection, made, self._lane)
            else:
                await self._insert_or_replace(connection, book, request.tag, made)
            await use_reserved(connection, book.book_id, _generation_id(request), count)
            bucket = bucket_of(made[0].codes[0])
            await add_to_counters(connection, (book.book_id, bucket, BookStats(available=count)))

        await self._lane.transaction("generate_codes", work)

    async def _insert_or_replace(
        self, connection: Connection, book: Book, tag: int, made: Sequence[NewCodes]
    ) -> None:
        """Stores as many random codes, others in place of those that are taken.

        Raises CodeSpaceExhausted.
        """
        requested = missing = sum(len(part.codes) for part in made)
        for _ in range(TOP_UPS_MAX):
            codes = [code for part in made for code in part.codes]
            reused = await select_reusable(connection, book, codes, self._lane, lock=True)
            other = await select_in_other_scope(connection, book, codes, self._lane)
            if passed_over := reused.keys() | other:
                left = [code for code in codes if code not in passed_over]
                made = await NewCodes.in_parts(book.book_id, tag, left, self._lane)
            await reuse_codes(connection, book.book_id, tag, reused, self._now(), self._lane)
            created = await insert_new_codes(connection, book.book_id, tag, made, self._lane)
            missing -= len(reused) + len(created)
            if not missing:
                return
            made = await self._make(book, tag, missing)
        raise CodeSpaceExhausted(
            "Nearly all codes of this format are taken, by this and by other coupon books.",
            capacity=book.code_format.capacity,
            existing=(await select_stats(connection, book.book_id)).codes,
            requested=requested,
            max_codes=book.code_format.capacity // 2,
        )

    async def _make(self, book: Book, tag: int, count: int) -> list[NewCodes]:
        """So many different codes, which may be taken."""
        codes: set[str] = set()
        while len(codes) < count:
            async for some in self._lane.steps(range(count - len(codes)), MAKING_STEP):
                codes.update(generate(book.code_format, len(some)))
        return await NewCodes.in_parts(book.book_id, tag, codes, self._lane)


def _generation_id(request: ChunkedRequest) -> UUID:
    """The id under which a generation reserves its codes: that of its first chunk."""
    return request.event_id(EventType.CODES_GENERATED, 0)


async def _committed_chunks(connection: Connection, request: ChunkedRequest, count: int) -> int:
    """How many chunks of a generation are committed: the first ones. Raises RequestIdReused.

    A chunk is begun when the one before it is committed, so that a few look-ups find the last one.
    """
    least, most, chunk = 0, count, 0
    while least < most:
        recorded = await request.recorded(connection, EventType.CODES_GENERATED, chunk)
        if recorded is None:
            most = chunk
        else:
            least = chunk + 1
        chunk = (least + most) // 2
    return least
