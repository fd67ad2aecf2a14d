"""Many codes of a book: disabled, enabled, deleted or revoked, in chunks of one transaction each.

Each code is decided by the same rules, under the same row locks, and written with the same ledger
rows as in a call for that code alone. The ledger row of a chunk says how far the work has come, and
another call goes on from there.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from coupon_service.model import Book, EventType
from coupon_service.store.books import select_book
from coupon_service.store.bulk.change_progress import (
    ChangeProgress,
    CodeChanges,
    Part,
    parts_of_list,
    parts_of_page,
)
from coupon_service.store.bulk.changed_parts import PartChanger
from coupon_service.store.bulk.code_filter import (
    mark_of,
    select_matching,
    select_uploads,
    upload_of,
)
from coupon_service.store.bulk.lane import BulkLane
from coupon_service.store.bulk.requests import ChunkedRequest
from coupon_service.store.events import insert_events
from coupon_service.store.pipeline import Connection
from coupon_service.telemetry.metrics import Metrics

READ_AGAIN: Final = 10
"""Chunks of earlier calls that are read at a time."""

BEGINNING: Final = datetime.min.replace(tzinfo=UTC)

CLOCKS_APART: Final = timedelta(minutes=10)
"""By how much the clocks of replicas may differ."""


@dataclass(slots=True)
class _Work:
    """A call on its way. `upload`: caller and request_id of the one that the filter names; `mark`:
    that of its codes."""

    changes: CodeChanges
    book: Book
    request: ChunkedRequest
    began: datetime
    upload: tuple[str, str] | None = None
    uploads: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])

    @property
    def mark(self) -> int | None:
        """What marks the codes of the upload. Raises UploadAmbiguous when others have it too."""
        return mark_of(self.book.book_id, self.upload, self.uploads) if self.upload else None


class CodeChanger:
    """Changes many codes.

    Everything here raises Contention, DatabaseUnavailable or Overloaded as Database does; what was
    committed by then stays, and the same call goes on from there.
    """

    def __init__(self, lane: BulkLane, now: Callable[[], datetime], metrics: Metrics) -> None:
        self._lane = lane
        self._now = now
        self._changer = PartChanger(metrics)

    async def change(self, changes: CodeChanges) -> AsyncGenerator[ChangeProgress]:
        """Carries it out; yields what became of each chunk, first of those that earlier calls have
        committed.

        Raises BookNotFound, also for a book of another business, RequestIdReused, UploadNotFound,
        UploadAmbiguous.
        """
        work = await self._begin(changes)
        progress = ChangeProgress()
        if not changes.validate_only:
            async for progress in self._recorded(work.request):
                yield progress
        while not progress.done:
            for part in await self._parts(work, progress):
                progress = await self._carry_out(work, progress, part)
                yield progress
                if progress.after != part.after:
                    break  # another call was faster, or the part was more than a chunk

    async def _begin(self, changes: CodeChanges) -> _Work:
        async def begin(connection: Connection) -> _Work:
            book = await select_book(connection, changes.book_id, changes.call.business_id)
            call = replace(changes.call, business_id=book.business_id)
            request = ChunkedRequest(call, book.book_id, changes.fingerprint)
            work = _Work(replace(changes, call=call), book, request, self._now())
            if changes.wanted.upload_request_id:
                work.uploads = await select_uploads(connection, book.book_id, BEGINNING)
                work.upload = upload_of(changes.wanted, call.caller, work.uploads)
            return work

        return await self._lane.read("begin_changes", begin)

    async def _recorded(self, request: ChunkedRequest) -> AsyncGenerator[ChangeProgress]:
        """What became of the chunks that are committed."""
        first, more = 0, True
        while more:

            async def read(connection: Connection, first: int = first) -> list[ChangeProgress]:
                kind = EventType.CODES_CHANGED
                rows = await request.recorded_from(connection, kind, first, READ_AGAIN)
                return [ChangeProgress.recorded(it) for it in rows]

            found = await self._lane.read("changed_chunks", read)
            for progress in found:
                yield progress
            first, more = first + READ_AGAIN, len(found) == READ_AGAIN

    async def _parts(self, work: _Work, progress: ChangeProgress) -> list[Part]:
        """What comes next, up to a page of the codes of the book."""
        listed = work.changes.listed
        if listed is not None:
            return parts_of_list(listed, progress)

        async def read(connection: Connection) -> list[Part]:
            async with self._lane.step(connection):
                page = await select_matching(
                    connection, work.book.book_id, work.changes.wanted, work.mark, progress.after
                )
            return parts_of_page(page, progress)

        async with self._lane.turn(work.book.business_id):
            return await self._lane.read("matching_codes", read)

    async def _carry_out(self, work: _Work, progress: ChangeProgress, part: Part) -> ChangeProgress:
        """Commits a chunk; returns how far it has come then."""
        if not part.items and not part.is_last:
            return progress.passed(part)
        changes, book = work.changes, work.book

        async def look(connection: Connection) -> ChangeProgress:
            async with self._lane.step(connection):
                done = await self._changer.preview(connection, changes, book, part, self._now())
            return progress.after_part(part, done)

        async def commit(connection: Connection) -> ChangeProgress:
            number, kind = progress.number, EventType.CODES_CHANGED
            recorded = await work.request.recorded(connection, kind, number)
            if recorded is not None:
                return ChangeProgress.recorded(recorded)
            if work.upload:  # no other one is stored now, so none has the same mark unseen
                since = work.began - CLOCKS_APART
                work.uploads |= await select_uploads(connection, book.book_id, since)
            now = self._now()
            done = await self._changer.carry_out(connection, changes, book, part, work.mark, now)
            after = progress.after_part(part, done)
            row = work.request.event(kind, number, now, after.record(changes, done.deleted))
            if done.deleted:
                row = replace(row, type=EventType.CODES_DELETED)
            await insert_events(connection, [row])
            return after

        async with self._lane.turn(book.business_id):
            if changes.validate_only:
                return await self._lane.read("preview_changes", look)
            return await self._lane.whole_transaction("change_codes", commit)
