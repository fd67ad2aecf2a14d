"""Codes that are deleted as if they had not been made."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final
from uuid import UUID

from coupon_service.errors import CouponServiceError
from coupon_service.model import BookStats, Code, CodeState
from coupon_service.model.codes import bucket_of
from coupon_service.model.scopes import FIRST_SCOPED_BOOK, LAST_SCOPED_BOOK, scope_of_book
from coupon_service.rules.deletions import HISTORY, deletion_refusal
from coupon_service.store.arrays import int_array, text_array
from coupon_service.store.counters import add_to_counters
from coupon_service.store.pipeline import Connection

# Code by code, through the index of the list of its events (see EVENTS_OF_CODE).
SELECT_WITH_HISTORY: Final = """
SELECT wanted.code
FROM unnest(%(codes)s::text[]) AS wanted (code)
CROSS JOIN LATERAL (
    SELECT FROM redemption_audit AS event
    WHERE event.code IS NOT NULL AND event.code || '' = wanted.code
        AND event.book_id = %(book_id)s AND event.type = ANY(%(types)s::smallint[])
    LIMIT 1
) AS seen
"""
# Whose book of before may have them no more: another business may have got the name since.
SELECT_NOT_RESTORABLE: Final = """
SELECT code
FROM unnest(%s::smallint[], %s::text[]) AS wanted (bucket, code)
JOIN coupon_past_codes AS past USING (bucket, code)
WHERE past.next_book_id = %s AND past.book_id NOT BETWEEN %s AND %s
"""


# Some of their events are not in the ledger any more, and a repeat may name any code.
IS_ARCHIVED: Final = "SELECT archived_until > 0 FROM coupon_books WHERE book_id = %s"


async def deletion_refusals(
    connection: Connection, book_id: UUID, codes: Mapping[str, Code]
) -> dict[str, CouponServiceError]:
    """Those of the codes of the book that cannot be deleted, and why."""
    cursor = await connection.execute(
        SELECT_WITH_HISTORY,
        {"codes": text_array(codes), "book_id": book_id, "types": int_array(HISTORY)},
    )
    seen = {code for (code,) in await cursor.fetchall()}
    scoped = FIRST_SCOPED_BOOK, LAST_SCOPED_BOOK
    cursor = await connection.execute(SELECT_NOT_RESTORABLE, (*_keys(codes), book_id, *scoped))
    seen.update(code for (code,) in await cursor.fetchall())
    cursor = await connection.execute(IS_ARCHIVED, (book_id,))
    if await cursor.fetchone() == (True,):
        seen = set(codes)
    refusals = {it: deletion_refusal(code, has_history=it in seen) for it, code in codes.items()}
    return {it: refusal for it, refusal in refusals.items() if refusal is not None}


DELETE_CODES: Final = """
DELETE FROM coupon_codes AS c
USING unnest(%s::smallint[], %s::text[]) AS d (bucket, code)
WHERE c.bucket = d.bucket AND c.code = d.code AND c.scope = %s AND c.book_id = %s
"""
DELETE_SPELLINGS: Final = """
DELETE FROM coupon_code_spellings AS s
USING unnest(%s::smallint[], %s::text[]) AS d (bucket, code)
WHERE s.bucket = d.bucket AND s.code = d.code AND s.scope = %s
"""

DELETE_TERMS: Final = """
DELETE FROM coupon_code_terms AS t
USING unnest(%s::smallint[], %s::text[]) AS d (bucket, code)
WHERE t.bucket = d.bucket AND t.code = d.code AND t.book_id = %s
"""

RESTORE_CODES: Final = """
UPDATE coupon_codes AS c
SET book_id = past.book_id, source_tag = past.source_tag, state = past.state,
    redemptions = past.redemptions, redemption_limit = past.redemption_limit,
    assignments = past.assignments
FROM unnest(%s::smallint[], %s::text[]) AS d (bucket, code)
JOIN coupon_past_codes AS past USING (bucket, code)
WHERE c.bucket = d.bucket AND c.code = d.code AND c.scope = %s AND past.next_book_id = c.book_id
    AND c.book_id = %s
"""
RESTORE_SPELLINGS: Final = """
INSERT INTO coupon_code_spellings (bucket, code, scope, spelling)
SELECT bucket, code, %s, past.spelling
FROM unnest(%s::smallint[], %s::text[]) AS d (bucket, code)
JOIN coupon_past_codes AS past USING (bucket, code)
WHERE past.next_book_id = %s AND past.spelling IS NOT NULL
"""
DELETE_PAST: Final = """
DELETE FROM coupon_past_codes AS past
USING unnest(%s::smallint[], %s::text[]) AS d (bucket, code)
WHERE past.bucket = d.bucket AND past.code = d.code AND past.next_book_id = %s
"""


async def delete_codes(connection: Connection, book_id: UUID, codes: Sequence[Code]) -> None:
    """Deletes codes of the book, which are locked, and takes them from its counts. Those that a
    CLOSED book had are that book's again, as they were."""
    names = [it.code for it in codes]
    keys = _keys(names)
    scope = scope_of_book(book_id)
    await connection.execute(DELETE_SPELLINGS, (*keys, scope))
    await connection.execute(DELETE_TERMS, (*keys, book_id))
    restored = await connection.execute(RESTORE_CODES, (*keys, scope, book_id))
    if restored.rowcount:
        await connection.execute(RESTORE_SPELLINGS, (scope, *keys, book_id))
        await connection.execute(DELETE_PAST, (*keys, book_id))
    await connection.execute(DELETE_CODES, (*keys, scope, book_id))
    disabled = sum(it.state is CodeState.DISABLED for it in codes)
    taken = BookStats(available=disabled - len(codes), disabled=-disabled)
    await add_to_counters(connection, (book_id, bucket_of(names[0]), taken))


def _keys(codes: Collection[str]) -> tuple[str, str]:
    return int_array(map(bucket_of, codes)), text_array(codes)
