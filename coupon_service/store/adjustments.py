"""Redemptions whose order got another amount, and on which terms codes were redeemed."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final, LiteralString
from uuid import UUID

from coupon_service.model import Adjustment, Event, bucket_of_event
from coupon_service.store.arrays import int_array, time_array, uuid_array
from coupon_service.store.columns import Column, Columns
from coupon_service.store.pipeline import Pipeline, Rows
from coupon_service.store.rows import ADJUSTMENTS, TERMS

SELECT_ADJUSTMENTS: Final[LiteralString] = f"""
SELECT {ADJUSTMENTS.selected}
FROM unnest(%s::uuid[], %s::smallint[]) AS wanted (redemption_id, bucket)
JOIN coupon_adjustments USING (bucket, redemption_id)
"""


def adjustment_keys(redemptions: Collection[UUID]) -> tuple[str, str]:
    """The parameters of SELECT_ADJUSTMENTS."""
    return uuid_array(redemptions), int_array(map(bucket_of_event, redemptions))


def select_adjustments(pipeline: Pipeline, redemptions: Collection[UUID]) -> Rows:
    """Adds what reads the adjustments of those redemptions that have any."""
    return pipeline.add(SELECT_ADJUSTMENTS, adjustment_keys(redemptions))


# A redemption that was recorded without a version is of the terms of its time, or else the first.
SELECT_TERMS: Final[LiteralString] = f"""
SELECT wanted.redemption_id, terms.*
FROM unnest(%s::uuid[], %s::uuid[], %s::integer[], %s::timestamptz[])
    AS wanted (redemption_id, book_id, book_version, redeem_time)
CROSS JOIN LATERAL (
    SELECT {TERMS.selected} FROM coupon_book_terms
    WHERE book_id = wanted.book_id
    ORDER BY coalesce(version <= wanted.book_version, since_time <= wanted.redeem_time) DESC,
        CASE WHEN coalesce(version <= wanted.book_version, since_time <= wanted.redeem_time)
        THEN version ELSE -version END DESC
    LIMIT 1
) AS terms
"""


def select_terms(pipeline: Pipeline, redemptions: Collection[Event]) -> Rows:
    """Adds what reads, after the id of each redemption, the terms on which it was made."""
    return pipeline.add(
        SELECT_TERMS,
        (
            uuid_array([it.event_id for it in redemptions]),
            uuid_array([it.book_id for it in redemptions]),
            int_array([it.book_version for it in redemptions]),
            time_array([it.event_time for it in redemptions]),
        ),
    )


ADJUSTMENT_ROWS: Final = Columns[Adjustment](
    Column("bucket", "smallint", lambda it: bucket_of_event(it.redemption_id)),
    *ADJUSTMENTS.columns,
)

PUT_ADJUSTMENTS: Final[LiteralString] = f"""
INSERT INTO coupon_adjustments (
    {ADJUSTMENT_ROWS.names})
SELECT * FROM unnest(
    {ADJUSTMENT_ROWS.arrays})
ON CONFLICT (bucket, redemption_id) DO UPDATE
SET order_amount_minor = EXCLUDED.order_amount_minor, discount_minor = EXCLUDED.discount_minor,
    adjustments = EXCLUDED.adjustments, currency_code = EXCLUDED.currency_code
"""


def put_adjustments(pipeline: Pipeline, adjustments: Iterable[Adjustment]) -> None:
    """Adds what writes the adjustments, each under the lock of its code."""
    pipeline.add(PUT_ADJUSTMENTS, ADJUSTMENT_ROWS.array_parameters(list(adjustments)))
