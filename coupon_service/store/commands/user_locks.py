"""Locks of users on codes, found by their rows in the ledger, whatever Redis has kept of them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final, LiteralString

from coupon_service.model.codes import bucket_of
from coupon_service.store.arrays import int_array, text_array
from coupon_service.store.pipeline import Pipeline, Rows
from coupon_service.store.rows import EVENTS

LOCK_LIFE_MAX: Final = timedelta(days=1, hours=1)
"""A lock that is held was taken or extended within that time: for a day at most, by clocks that may
differ."""

# User by user, and lock by lock (OFFSET 0): the planner does not know how few there are. 12 and 13
# are LOCKED and LOCK_EXTENDED.
SELECT_USER_LOCKS: Final[LiteralString] = f"""
SELECT event.*
FROM (
    SELECT DISTINCT recent.lock_id, recent.bucket
    FROM unnest(%s::smallint[], %s::text[], %s::text[])
        AS wanted (of_bucket, of_code, of_user)
    CROSS JOIN LATERAL (
        SELECT lock_id, bucket FROM redemption_audit
        WHERE user_id = of_user AND event_time > %s::timestamptz AND type IN (12, 13)
            AND code = of_code AND bucket = of_bucket
        OFFSET 0
    ) AS recent
) AS taken
CROSS JOIN LATERAL (
    SELECT {EVENTS.selected} FROM redemption_audit
    WHERE lock_id = taken.lock_id AND bucket = taken.bucket
    OFFSET 0
) AS event
ORDER BY event_time
"""


def select_user_locks(pipeline: Pipeline, keys: Iterable[tuple[str, str]], now: datetime) -> Rows:
    """Adds what reads the events of all locks that these users may hold now on these codes."""
    codes, users = zip(*keys, strict=True)
    arrays = int_array(map(bucket_of, codes)), text_array(codes), text_array(users)
    since = (now - LOCK_LIFE_MAX).isoformat()
    return pipeline.add(SELECT_USER_LOCKS, (*arrays, since))
