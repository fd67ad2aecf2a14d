"""A call that makes or changes codes in chunks, each of them one transaction.

The ledger row of a chunk, whose id names the request and the number of the chunk, is what makes it
happen once; calling again goes on behind the chunks that are there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import chain, takewhile
from typing import Any
from uuid import UUID

from coupon_service.errors import InvalidStateTransition, RequestIdReused
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
from coupon_service.model.normalization import id_spellings
from coupon_service.store.events import select_events_by_id
from coupon_service.store.pipeline import Connection


@dataclass(frozen=True, slots=True)
class ChunkedRequest:
    """A call of GenerateCodes, ImportCodes or ChangeCodes; `tag` marks codes as made by it."""

    call: Call
    book_id: UUID
    fingerprint: int

    @property
    def tag(self) -> int:
        """See `source_tag`."""
        return source_tag(self.call.caller, self.call.request_id, self.book_id)

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

    async def recorded(self, connection: Connection, event: EventType, chunk: int) -> Event | None:
        """The ledger row of a chunk, if it is committed. Raises RequestIdReused."""
        return next(iter(await self.recorded_from(connection, event, chunk, 1)), None)

    async def recorded_from(
        self, connection: Connection, event: EventType, first: int, count: int
    ) -> list[Event]:
        """The ledger rows of up to so many chunks, from this one to the first that is missing.

        Raises RequestIdReused.
        """
        attempts = [self.attempts(event, chunk) for chunk in range(first, first + count)]
        found = await select_events_by_id(connection, chain.from_iterable(attempts))
        if any(it.fingerprint != self.fingerprint for it in found.values()):
            raise RequestIdReused
        rows = (next(filter(None, map(found.get, ids)), None) for ids in attempts)
        return [it for it in takewhile(bool, rows) if it is not None]

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


def source_tag(caller: str, request_id: str, book_id: UUID) -> int:
    """A signed 32-bit hash of what names a request that makes codes."""
    return fingerprint(caller, request_id, book_id) >> 32


def refuse_closed(book: Book) -> None:
    """Raises InvalidStateTransition for a book that gets no more codes."""
    if book.state is BookState.CLOSED:
        raise InvalidStateTransition(
            "The coupon book is CLOSED and gets no more codes.", state=book.state.name
        )
