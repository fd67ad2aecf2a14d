"""What the ledger has no more, since it is in archives: read only in books that have some of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final
from uuid import UUID

from coupon_service.model import ArchivedRange, AssignRandom, Command, State
from coupon_service.model.scopes import scope_of_book
from coupon_service.rules import ids_of_attempt
from coupon_service.store.arrays import uuid_array
from coupon_service.store.commands.read_set import ReadSet
from coupon_service.store.pipeline import Pipeline

SELECT_ARCHIVED: Final = """
SELECT event_id, file_name
FROM unnest(%s::uuid[]) AS wanted (event_id)
JOIN coupon_archived_events USING (event_id)
JOIN coupon_audit_archives USING (archive)
"""

# From 2, written, to 5, being restored.
SELECT_ARCHIVES: Final = """
SELECT book_id, first_sequence, last_sequence, file_name
FROM coupon_audit_archives
WHERE book_id = ANY(%s::uuid[]) AND state BETWEEN 2 AND 5
"""


async def load_archived(
    pipeline: Pipeline, commands: Iterable[Command], wanted: ReadSet, state: State
) -> None:
    """Reads which attempts of these commands are in archives, and the archives of their books.

    In no round trip where no book has anything there.
    """
    books = [it.book_id for it in state.books.values() if it.archived_until is not None]
    if not books:
        return
    scopes = set(map(scope_of_book, state.books))
    ids: set[UUID] = wanted.events | wanted.random_events
    ids |= {
        attempt
        for command in commands
        if not isinstance(command, AssignRandom)
        for scope in scopes
        for attempt in ids_of_attempt(command, scope)
    }
    events = pipeline.add(SELECT_ARCHIVED, (uuid_array(ids - state.events.keys()),))
    archives = pipeline.add(SELECT_ARCHIVES, (uuid_array(books),))
    await pipeline.run()
    state.archived = dict(map(tuple, events))
    state.archives = tuple(ArchivedRange(*row) for row in archives)
