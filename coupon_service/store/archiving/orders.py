"""What archived redemptions have on orders, so that EraseUser goes on to find whose they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

from coupon_service.model import rollback_id
from coupon_service.store.archiving.records import Archive, Connection

# 16 is REDEEMED, 1 INDEPENDENT: coupons of such books are on no order.
SELECT_ON_ORDERS: Final = """
SELECT e.event_id FROM coupon_books AS b
JOIN coupon_archived_ranges AS r ON r.archive = %s AND r.seal = %s
CROSS JOIN LATERAL unnest(r.sequences) AS of_range (sequence)
JOIN redemption_audit AS e ON e.sequence = of_range.sequence AND e.book_id = b.book_id
WHERE b.book_id = %s AND b.order_policy <> 1 AND e.type = 16 AND e.order_id IS NOT NULL
"""
KEEP_ORDERS: Final = """
INSERT INTO coupon_archived_orders (
    redemption_id, book_id, archive, user_id, order_id, order_user_id, redemptions, discount_minor)
SELECT e.event_id, e.book_id, %s, coalesce(e.user_id, ''), normalize(e.order_id),
    coalesce(normalize(e.order_user_id), ''), live.redemptions,
    live.redemptions * coalesce(
        CASE WHEN a.redemption_id IS NULL THEN e.discount_minor ELSE a.discount_minor END, 0)
FROM unnest(%s::uuid[], %s::uuid[]) AS wanted (event_id, rollback_id)
JOIN redemption_audit AS e USING (event_id)
LEFT JOIN coupon_adjustments AS a ON a.bucket = e.bucket AND a.redemption_id = e.event_id
CROSS JOIN LATERAL (SELECT CASE WHEN EXISTS (
    SELECT FROM redemption_audit AS r WHERE r.event_id = wanted.rollback_id
) THEN 0 ELSE 1 END AS redemptions) AS live
"""


def keep_orders(connection: Connection, archive: Archive, seal: int) -> None:
    """Keeps what redemptions of a seal have on orders. In the transaction that deletes them from
    the ledger, before it does, with `events.lock_erasures`."""
    rows = connection.execute(SELECT_ON_ORDERS, [archive.number, seal, archive.book_id]).fetchall()
    if rows:
        ids = [it for (it,) in rows]
        connection.execute(KEEP_ORDERS, [archive.number, ids, list(map(rollback_id, ids))])


SELECT_ERASED_ORDERS: Final = """
SELECT redemption_id, user_id, order_id, nullif(order_user_id, '') FROM coupon_archived_orders
WHERE redemption_id = ANY(%s) AND user_id ~ '^erased-[a-z2-7]{32}$'
"""


def select_erased_orders(
    connection: Connection, redemptions: Sequence[UUID]
) -> Mapping[UUID, dict[str, Any]]:
    """What stands for the user and the order of those of these redemptions that were erased, by
    the columns of the ledger."""
    rows = connection.execute(SELECT_ERASED_ORDERS, [list(redemptions)]).fetchall()
    return {
        it: {"user_id": user_id, "order_id": order_id, "order_user_id": order_user_id}
        for it, user_id, order_id, order_user_id in rows
    }


DELETE_ORDERS: Final = "DELETE FROM coupon_archived_orders WHERE redemption_id = ANY(%s)"


def delete_orders(connection: Connection, redemptions: Sequence[UUID]) -> None:
    """Takes that back, in the transaction in which the ledger has these redemptions again."""
    connection.execute(DELETE_ORDERS, [list(redemptions)])
