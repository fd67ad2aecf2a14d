"""Rows of the ledger as leaves are made of them, and the keys of their users.

PostgreSQL itself writes the records: `audit.leaves.row_of` is the definition that they follow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import Final, LiteralString
from uuid import UUID

from coupon_service.audit.leaves import Row, leaf_of
from coupon_service.audit.records import MalformedError
from coupon_service.audit.seals import Leaf
from coupon_service.audit.verification import NO_LEAF
from coupon_service.store.arrays import text_array, uuid_array
from coupon_service.store.pipeline import Connection, Pipeline

MALFORMED: Final = b"malformed"
"""Instead of the leaf of a row that cannot be one that was sealed."""

HASHED_AT_ONCE: Final = 128
"""Leaves that are computed in one turn of the event loop: about a millisecond."""

# Callers and users are compared by their bytes.
_OTHERS: Final[LiteralString] = (
    'caller COLLATE "C" = other_user_id AND user_id IS DISTINCT FROM caller'
)

# The first CASE is `caller_is`.
FACTS: Final[LiteralString] = """
    sequence, event_id, book_id, event_time, bucket, type, state_before, state_after,
    code_redemptions, code_redemption_limit, user_code_redemptions, order_amount_minor,
    discount_minor, fence, expire_time, redemption_id, lock_id, code,
    CASE caller COLLATE "C" WHEN user_id THEN 1::smallint
        WHEN other_user_id THEN 2::smallint
        ELSE 0::smallint END,
    CASE caller COLLATE "C" WHEN user_id THEN NULL WHEN other_user_id THEN NULL ELSE caller END,
    request_id, currency_code, benefit, book_version
"""
USER_PART: Final[LiteralString] = f"""
    user_id, order_id, order_user_id, CASE WHEN other_user_id IS NULL THEN fingerprint END,
    metadata::text,
    CASE WHEN {_OTHERS} THEN NULL ELSE peer END,
    CASE WHEN {_OTHERS} THEN NULL ELSE user_agent END
"""
OTHER_PART: Final[LiteralString] = f"""
    other_user_id,
    CASE WHEN {_OTHERS} THEN peer END,
    CASE WHEN {_OTHERS} THEN user_agent END
"""
ROW: Final[LiteralString] = f"""
    sequence, uuid_send(event_id), coalesce(user_id, ''), coalesce(other_user_id, ''),
    record_send(ROW({FACTS})), record_send(ROW({USER_PART})),
    CASE WHEN other_user_id IS NOT NULL THEN record_send(ROW({OTHER_PART})) END,
    CASE WHEN other_user_id IS NOT NULL THEN record_send(ROW(fingerprint)) END, commitments
"""
"""A list for SELECT, of which `Row` is made."""

# A number that is not known when it is planned would make it look expensive in a large ledger, so
# that PostgreSQL would compile it each time.
SELECT_ROWS: Final[LiteralString] = f"""
SELECT {ROW}
FROM (
    SELECT * FROM redemption_audit
    WHERE sequence >= %s AND sequence <= %s ORDER BY sequence LIMIT 1024
) AS event
LIMIT %s
"""


async def select_rows(connection: Connection, first: int, last: int, count: int) -> list[Row]:
    """The first rows with numbers from `first` to `last`: `count`, and at most 1,024."""
    pipeline = Pipeline(connection)
    found = pipeline.add(SELECT_ROWS, [first, last, count])
    await pipeline.run()
    return [Row(*row) for row in found]


SELECT_ROWS_BY_ID: Final[LiteralString] = f"""
SELECT {ROW}
FROM unnest(%s::uuid[]) AS wanted (wanted_id)
JOIN redemption_audit ON event_id = wanted_id
WHERE sequence IS NOT NULL
"""


async def select_rows_by_id(connection: Connection, ids: Collection[UUID]) -> list[Row]:
    """Those rows of these events that have a number."""
    pipeline = Pipeline(connection)
    found = pipeline.add(SELECT_ROWS_BY_ID, [uuid_array(ids)])
    await pipeline.run()
    return [Row(*row) for row in found]


SELECT_KEYS: Final = """
SELECT user_id, key FROM coupon_user_keys WHERE user_id = ANY(%s::text[])
"""


async def select_keys(connection: Connection, users: Collection[str]) -> dict[str, bytes]:
    """The keys of those of the users who have one."""
    pipeline = Pipeline(connection)
    found = pipeline.add(SELECT_KEYS, [text_array(users)])
    await pipeline.run()
    return dict(found)


async def leaves_of(rows: Sequence[Row], keys: Mapping[str, bytes]) -> list[Leaf]:
    """The leaves of the rows; NO_LEAF where one cannot be computed. Others get their turns."""
    leaves: list[Leaf] = []
    for start in range(0, len(rows), HASHED_AT_ONCE):
        for row in rows[start : start + HASHED_AT_ONCE]:
            try:
                leaf = leaf_of(row, keys)
            except KeyError:
                leaf = NO_LEAF
            except MalformedError:
                leaf = MALFORMED
            leaves.append((row.sequence, leaf))
        await asyncio.sleep(0)
    return leaves
