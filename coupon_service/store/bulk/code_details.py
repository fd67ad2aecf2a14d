"""Who has codes, and who has redeemed them last: read for codes of which there is any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final
from uuid import UUID

from coupon_service.model import Code
from coupon_service.model.codes import bucket_of
from coupon_service.model.normalization import canonical_id
from coupon_service.store.arrays import int_array, text_array
from coupon_service.store.pipeline import Connection


@dataclass(frozen=True, slots=True)
class CodeDetails:
    """Of a code: the assignment that was made last, and the last redemption that is live."""

    user_id: str = ""
    assign_time: datetime | None = None
    expire_time: datetime | None = None
    redemption_id: UUID | None = None
    redeem_time: datetime | None = None
    redeem_user_id: str = ""
    order_id: str = ""
    discount_minor: int | None = None
    currency_code: str = ""


NO_DETAILS: Final = CodeDetails()

SELECT_LAST_ASSIGNMENTS: Final = """
SELECT wanted.code, last.*
FROM unnest(%s::smallint[], %s::text[]) AS wanted (bucket, code)
CROSS JOIN LATERAL (
    SELECT user_id, assign_time, expire_time
    FROM coupon_assignments AS a
    WHERE a.bucket = wanted.bucket AND a.code = wanted.code AND a.book_id = %s AND state IN (1, 2)
    ORDER BY assign_time DESC, user_id
    LIMIT 1
) AS last
"""

# Back from the newest. A roll-back is newer than its redemption: few events are between them.
SELECT_LAST_REDEMPTIONS: Final = """
SELECT wanted.code, last.*
FROM unnest(%(codes)s::text[]) AS wanted (code)
CROSS JOIN LATERAL (
    SELECT event_id, event_time, user_id, order_id, discount_minor, currency_code
    FROM redemption_audit AS e
    WHERE e.code IS NOT NULL AND e.code || '' = wanted.code
        AND e.book_id = %(book_id)s AND e.type = 16
        AND (SELECT r.event_id FROM redemption_audit AS r
             WHERE r.code IS NOT NULL AND r.code || '' = wanted.code AND r.type = 17
                AND r.event_time >= e.event_time AND r.redemption_id = e.event_id
             LIMIT 1) IS NULL
    ORDER BY event_time DESC
    LIMIT 1
) AS last
"""


async def select_details(
    connection: Connection, book_id: UUID, codes: Sequence[Code]
) -> Mapping[str, CodeDetails]:
    """Details of those of the codes of a book that have any."""
    found: dict[str, CodeDetails] = {}
    assigned = [it.code for it in codes if it.assignments]
    if assigned:
        parameters = int_array(map(bucket_of, assigned)), text_array(assigned), book_id
        cursor = await connection.execute(SELECT_LAST_ASSIGNMENTS, parameters)
        for code, user_id, assign_time, expire_time in await cursor.fetchall():
            found[code] = CodeDetails(canonical_id(user_id), assign_time, expire_time)
    redeemed = [it.code for it in codes if it.redemptions]
    if redeemed:
        named = {"codes": text_array(redeemed), "book_id": book_id}
        cursor = await connection.execute(SELECT_LAST_REDEMPTIONS, named)
        for code, event_id, time, user_id, order_id, minor, currency in await cursor.fetchall():
            found[code] = replace(
                found.get(code, NO_DETAILS),
                redemption_id=event_id,
                redeem_time=time,
                redeem_user_id=canonical_id(user_id),
                order_id=canonical_id(order_id or ""),
                discount_minor=minor,
                currency_code=currency or "",
            )
    return found
