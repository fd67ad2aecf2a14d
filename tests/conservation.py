"""What has to hold between codes, counters and ledger in every committed state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import psycopg

from coupon_service.model import EventType

LIVE: Final = f"""
    SELECT book_id, bucket, code, user_id, order_id, discount_minor,
           type = {EventType.REDEEMED:d} AS redeemed,
           CASE type WHEN {EventType.REDEEMED:d} THEN 1 ELSE -1 END AS change
    FROM redemption_audit
    WHERE type IN ({EventType.REDEEMED:d}, {EventType.ROLLED_BACK:d}) AND book_id = ANY(%(books)s)
"""

RULES: Final = {
    "a code's count is the sum over its ledger": f"""
        SELECT code, c.redemptions, coalesce(live, 0)
        FROM coupon_codes c LEFT JOIN (
            SELECT bucket, code, sum(change) AS live FROM ({LIVE}) GROUP BY bucket, code
        ) l USING (bucket, code)
        WHERE book_id = ANY(%(books)s) AND c.redemptions <> coalesce(live, 0)
    """,
    "a user's count of a code is the sum over its ledger": f"""
        SELECT code, user_id, a.redemptions, coalesce(live, 0)
        FROM coupon_assignments a LEFT JOIN (
            SELECT bucket, code, user_id, sum(change) AS live
            FROM ({LIVE}) GROUP BY bucket, code, user_id
        ) l USING (bucket, code, user_id)
        WHERE book_id = ANY(%(books)s) AND a.redemptions <> coalesce(live, 0)
    """,
    "a user's count of a book is the sum over its ledger": f"""
        SELECT book_id, user_id, u.redemptions, coalesce(live, 0)
        FROM coupon_user_counters u LEFT JOIN (
            SELECT book_id, user_id, sum(change) AS live FROM ({LIVE}) GROUP BY book_id, user_id
        ) l USING (book_id, user_id)
        WHERE book_id = ANY(%(books)s) AND u.redemptions <> coalesce(live, 0)
    """,
    "a book's total is the sum over its ledger": f"""
        SELECT book_id, t.redemptions, coalesce(live, 0)
        FROM coupon_book_totals t LEFT JOIN (
            SELECT book_id, sum(change) AS live FROM ({LIVE}) GROUP BY book_id
        ) l USING (book_id)
        WHERE book_id = ANY(%(books)s) AND t.redemptions <> coalesce(live, 0)
    """,
    "a book's statistics are the sums over its ledger": f"""
        SELECT book_id, s.redemptions, s.discount_minor, coalesce(live, 0), coalesce(discount, 0)
        FROM (
            SELECT book_id, sum(redemptions) AS redemptions, sum(discount_minor) AS discount_minor
            FROM coupon_book_counters WHERE book_id = ANY(%(books)s) GROUP BY book_id
        ) s LEFT JOIN (
            SELECT book_id, sum(change) AS live,
                   sum(change * coalesce(discount_minor, 0)) AS discount
            FROM ({LIVE}) GROUP BY book_id
        ) l USING (book_id)
        WHERE s.redemptions <> coalesce(live, 0) OR s.discount_minor <> coalesce(discount, 0)
    """,
    "no limit is passed": """
        SELECT code, c.redemptions, b.max_redemptions_per_code
        FROM coupon_codes c JOIN coupon_books b USING (book_id)
        WHERE book_id = ANY(%(books)s) AND b.max_redemptions_per_code > 0
          AND c.redemptions > b.max_redemptions_per_code
    """,
    "an order redeems a code once at a time": f"""
        SELECT code, order_id, sum(change) FROM ({LIVE})
        WHERE order_id IS NOT NULL GROUP BY code, order_id HAVING sum(change) NOT IN (0, 1)
    """,
    "a redemption is rolled back once, and only one that was": f"""
        SELECT undone.redemption_id, count(*), count(done.event_id)
        FROM redemption_audit undone LEFT JOIN redemption_audit done
            ON done.event_id = undone.redemption_id AND done.bucket = undone.bucket
            AND done.type = {EventType.REDEEMED:d}
        WHERE undone.type = {EventType.ROLLED_BACK:d} AND undone.book_id = ANY(%(books)s)
        GROUP BY undone.redemption_id HAVING count(*) <> 1 OR count(done.event_id) <> 1
    """,
}
"""Each finds the rows that break it."""


def broken_rules(
    connection: psycopg.Connection, book_ids: Sequence[str]
) -> dict[str, list[object]]:
    """The rules that do not hold for these books, with the first rows that break them."""
    found: dict[str, list[object]] = {}
    for rule, query in RULES.items():
        rows = connection.execute(query.encode(), {"books": list(book_ids)}).fetchmany(5)
        if rows:
            found[rule] = list(rows)
    return found
