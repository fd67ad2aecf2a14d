"""Codes that are deleted as if they had not been made."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final
from uuid import UUID

from coupon_service.errors import CouponServiceError
from coupon_service.model import BookStats, Code, CodeState
from coupon_service.model.codes import bucket_of
from coupon_service.model.scopes import scope_of_book
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


async def deletion_refusals(
    connection: Connection, book_id: UUID, codes: Mapping[str, Code]
) -> dict[str, CouponServiceError]:
    """Those of the codes of the book that cannot be deleted, and why."""
    cursor = await connection.execute(
        SELECT_WITH_HISTORY,
        {"codes": text_array(codes), "book_id": book_id, "types": int_array(HISTORY)},
    )
    seen = {code for (code,) in await cursor.fetchall()}
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


async def delete_codes(connection: Connection, book_id: UUID, codes: Sequence[Code]) -> None:
    """Deletes codes of the book, which are locked, and takes them from its counts."""
    names = [it.code for it in codes]
    keys = _keys(names)
    await connection.execute(DELETE_SPELLINGS, (*keys, scope_of_book(book_id)))
    await connection.execute(DELETE_TERMS, (*keys, book_id))
    await connection.execute(DELETE_CODES, (*keys, scope_of_book(book_id), book_id))
    disabled = sum(it.state is CodeState.DISABLED for it in codes)
    taken = BookStats(available=disabled - len(codes), disabled=-disabled)
    await add_to_counters(connection, (book_id, bucket_of(names[0]), taken))


def _keys(codes: Collection[str]) -> tuple[str, str]:
    return int_array(map(bucket_of, codes)), text_array(codes)
