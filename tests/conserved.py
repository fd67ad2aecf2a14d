"""I1-I3 and I9 in SQL: what rows and counters say is what the ledger says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, LiteralString

import psycopg

LEDGER_OF_CODES: LiteralString = """
    SELECT book_id, code,
        count(*) FILTER (WHERE type = 16) - count(*) FILTER (WHERE type = 17) AS redemptions,
        count(*) FILTER (WHERE type = 10) - count(*) FILTER (WHERE type = 11) AS assignments
    FROM redemption_audit WHERE book_id = ANY(%(books)s::uuid[]) AND code IS NOT NULL
    GROUP BY book_id, code
"""

CHECKS: dict[str, LiteralString] = {
    "counts of codes": f"""
        SELECT code, c.redemptions, l.redemptions, c.assignments, l.assignments
        FROM coupon_codes AS c
        LEFT JOIN ({LEDGER_OF_CODES}) AS l USING (book_id, code)
        WHERE book_id = ANY(%(books)s::uuid[])
        AND (c.redemptions, c.assignments)
            <> (coalesce(l.redemptions, 0), coalesce(l.assignments, 0))
    """,
    "states of codes": """
        SELECT code, c.state, redemptions, assignments
        FROM coupon_codes AS c JOIN coupon_books AS b USING (book_id)
        WHERE book_id = ANY(%(books)s::uuid[]) AND c.state <> 4 AND c.state <> CASE
            WHEN max_redemptions_per_code > 0 AND redemptions >= max_redemptions_per_code THEN 3
            WHEN assignments > 0 THEN 2 ELSE 1 END
    """,
    "the code's limit": """
        SELECT code, redemptions, max_redemptions_per_code
        FROM coupon_codes JOIN coupon_books USING (book_id)
        WHERE book_id = ANY(%(books)s::uuid[])
        AND max_redemptions_per_code > 0 AND redemptions > max_redemptions_per_code
    """,
    "counters of redemptions and discounts": """
        SELECT * FROM (
            SELECT book_id, sum(redemptions)::bigint, sum(rollbacks)::bigint,
                sum(assignments)::bigint, sum(discount_minor)::bigint
            FROM coupon_book_counters WHERE book_id = ANY(%(books)s::uuid[]) GROUP BY book_id
        EXCEPT
            SELECT book_id, count(*) FILTER (WHERE type = 16) - count(*) FILTER (WHERE type = 17),
                count(*) FILTER (WHERE type = 17),
                count(*) FILTER (WHERE type = 10) - count(*) FILTER (WHERE type = 11),
                (coalesce(sum(discount_minor) FILTER (WHERE type = 16), 0)
                - coalesce(sum(discount_minor) FILTER (WHERE type = 17), 0))::bigint
            FROM redemption_audit WHERE book_id = ANY(%(books)s::uuid[])
            GROUP BY book_id) AS difference
    """,
    "counters of states": """
        SELECT * FROM (
            SELECT book_id, sum(available)::bigint, sum(assigned)::bigint, sum(redeemed)::bigint,
                sum(disabled)::bigint
            FROM coupon_book_counters WHERE book_id = ANY(%(books)s::uuid[]) GROUP BY book_id
        EXCEPT
            SELECT book_id, count(*) FILTER (WHERE state = 1), count(*) FILTER (WHERE state = 2),
                count(*) FILTER (WHERE state = 3), count(*) FILTER (WHERE state = 4)
            FROM coupon_codes WHERE book_id = ANY(%(books)s::uuid[]) GROUP BY book_id) AS difference
    """,
    "counters of users": """
        SELECT u.book_id, u.user_id, u.redemptions, u.assignments
        FROM coupon_user_counters AS u JOIN coupon_books AS b USING (book_id)
        CROSS JOIN LATERAL (
            SELECT
                count(*) FILTER (WHERE type = 16)
                - count(*) FILTER (WHERE type = 17) AS redemptions,
                count(*) FILTER (WHERE type = 10) - count(*) FILTER (WHERE type = 11) AS assignments
            FROM redemption_audit AS a
            WHERE a.book_id = u.book_id AND a.user_id = u.user_id) AS l
        WHERE u.book_id = ANY(%(books)s::uuid[])
        AND b.max_redemptions_per_user + b.max_assignments_per_user > 0
        AND (u.redemptions, u.assignments) <> (l.redemptions, l.assignments)
    """,
    "totals of books": """
        SELECT t.book_id, t.redemptions
        FROM coupon_book_totals AS t JOIN coupon_books AS b USING (book_id)
        WHERE b.book_id = ANY(%(books)s::uuid[]) AND b.max_redemptions > 0 AND t.redemptions <> (
            SELECT count(*) FILTER (WHERE type = 16) - count(*) FILTER (WHERE type = 17)
            FROM redemption_audit AS a WHERE a.book_id = t.book_id)
    """,
    "one live redemption an order": """
        SELECT code, order_id, count(*)
        FROM redemption_audit AS a
        WHERE book_id = ANY(%(books)s::uuid[]) AND type = 16 AND order_id IS NOT NULL
        AND NOT EXISTS (
            SELECT FROM redemption_audit AS b WHERE b.type = 17 AND b.redemption_id = a.event_id)
        GROUP BY code, order_id HAVING count(*) > 1
    """,
    "one effect a request": """
        SELECT caller, request_id, type, code, count(*)
        FROM redemption_audit
        WHERE book_id = ANY(%(books)s::uuid[]) AND type IN (8, 9, 11, 12, 16)
        GROUP BY caller, request_id, type, code HAVING count(*) > 1
    """,
    "no count beyond its limit": """
        SELECT code, code_redemptions, code_redemption_limit FROM redemption_audit
        WHERE book_id = ANY(%(books)s::uuid[]) AND type = 16
        AND code_redemption_limit > 0 AND code_redemptions > code_redemption_limit
    """,
}


def violations(
    connection: psycopg.Connection[Any], book_ids: Sequence[str] | None = None
) -> dict[str, list[Any]]:
    """What does not hold of these books, or of all: what it is, and the rows that show it."""
    if book_ids is None:
        found = connection.execute("SELECT book_id FROM coupon_books").fetchall()
        book_ids = [str(row[0]) for row in found]
    books = "{" + ",".join(book_ids) + "}"
    wrong: dict[str, list[Any]] = {}
    for what, check in CHECKS.items():
        rows = connection.execute(check, {"books": books}).fetchall()
        if rows:
            wrong[what] = rows
    return wrong
