"""For which orders codes were redeemed. Rows from before ids were compared in NFC have them in
another spelling, so each is looked for in every one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, LiteralString
from uuid import UUID

from psycopg.rows import TupleRow

from coupon_service.model import EventType, OrderKey, State, order_keys
from coupon_service.model.codes import bucket_of
from coupon_service.model.normalization import canonical_id, id_spellings
from coupon_service.store.arrays import int_array, text_array
from coupon_service.store.pipeline import Pipeline, Rows

# Orders of the business, and of the user alone: where users number theirs, very many of a code have
# the same name.
SELECT_ORDERS: Final[LiteralString] = """
SELECT event.*
FROM unnest(%s::smallint[], %s::text[], %s::text[], %s::text[])
    AS wanted (bucket, code, order_id, user_id)
CROSS JOIN LATERAL (
    SELECT book_id, code, order_id, user_id, order_user_id, type, event_id, redemption_id
    FROM redemption_audit
    WHERE order_id = wanted.order_id AND order_user_id IS NULL
        AND code = wanted.code AND bucket = wanted.bucket
    UNION ALL
    SELECT book_id, code, order_id, user_id, order_user_id, type, event_id, redemption_id
    FROM redemption_audit
    WHERE order_id = wanted.order_id AND order_user_id = wanted.user_id
        AND code = wanted.code AND bucket = wanted.bucket
) AS event
"""


def select_orders(pipeline: Pipeline, orders: Iterable[tuple[str, str, str]]) -> Rows:
    """Adds what reads the redemptions of codes for orders: code, order and user of each."""
    spelled = [
        (code, order_id, user_id)
        for code, order, user in orders
        for order_id in id_spellings(order)
        for user_id in id_spellings(user)
    ]
    codes, order_ids, users = zip(*spelled, strict=True)
    return pipeline.add(
        SELECT_ORDERS,
        (
            int_array(map(bucket_of, codes)),
            text_array(codes),
            text_array(order_ids),
            text_array(users),
        ),
    )


def put_live_orders(rows: Iterable[TupleRow], state: State) -> None:
    """Puts the redemptions that were not rolled back into the state."""
    redeemed: dict[UUID, tuple[OrderKey, ...]] = {}
    rolled_back: set[UUID] = set()
    for book_id, code, order_id, user_id, whose, event_type, event_id, redemption_id in rows:
        if event_type == EventType.REDEEMED:
            redeemed[event_id] = order_keys(
                (book_id, code), canonical_id(order_id), canonical_id(user_id), whose
            )
        elif event_type == EventType.ROLLED_BACK:
            rolled_back.add(redemption_id)
    for event_id in redeemed.keys() - rolled_back:
        state.orders.update(dict.fromkeys(redeemed[event_id], event_id))
