"""Whether what a database holds adds up: rows, counters and ledger say the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, LiteralString

import psycopg

from coupon_service.model import EventType

REDEEMED: Final = int(EventType.REDEEMED)
ROLLED_BACK: Final = int(EventType.ROLLED_BACK)
ASSIGNED: Final = int(EventType.ASSIGNED)
REVOKED: Final = int(EventType.REVOKED)

# Each returns what is wrong, nothing when all is well.
CHECKS: Final[Mapping[str, LiteralString]] = {
    "codes whose count is not that of the ledger": """
        SELECT c.code, c.redemptions, c.assignments, l.redemptions, l.assignments
        FROM coupon_codes AS c
        LEFT JOIN (
            SELECT code,
                count(*) FILTER (WHERE type = %(redeemed)s)
                    - count(*) FILTER (WHERE type = %(rolled_back)s) AS redemptions,
                count(*) FILTER (WHERE type = %(assigned)s)
                    - count(*) FILTER (WHERE type = %(revoked)s) AS assignments
            FROM redemption_audit WHERE code IS NOT NULL GROUP BY code
        ) AS l USING (code)
        WHERE c.redemptions <> coalesce(l.redemptions, 0)
            OR c.assignments <> coalesce(l.assignments, 0)
    """,
    "codes redeemed more often than their book allows": """
        SELECT code, redemptions, max_redemptions_per_code
        FROM coupon_codes JOIN coupon_books USING (book_id)
        WHERE redemptions < 0 OR (max_redemptions_per_code > 0
            AND redemptions > greatest(max_redemptions_per_code, redemption_limit))
    """,
    "links whose count is not that of the ledger": """
        SELECT a.code, a.user_id, a.redemptions, l.redemptions
        FROM coupon_assignments AS a
        LEFT JOIN (
            SELECT r.code, r.user_id, count(*) - count(b.event_id) AS redemptions
            FROM redemption_audit AS r
            LEFT JOIN redemption_audit AS b
                ON b.redemption_id = r.event_id AND b.type = %(rolled_back)s AND b.code = r.code
            WHERE r.type = %(redeemed)s AND r.user_code_redemptions IS NOT NULL
            GROUP BY r.code, r.user_id
        ) AS l USING (code, user_id)
        WHERE a.redemptions <> coalesce(l.redemptions, 0)
    """,
    "users whose count in a book is not that of the ledger": """
        SELECT u.book_id, u.user_id, u.redemptions, l.redemptions
        FROM coupon_user_counters AS u
        LEFT JOIN (
            SELECT book_id, user_id,
                count(*) FILTER (WHERE type = %(redeemed)s)
                    - count(*) FILTER (WHERE type = %(rolled_back)s) AS redemptions
            FROM redemption_audit WHERE code IS NOT NULL GROUP BY book_id, user_id
        ) AS l USING (book_id, user_id)
        WHERE u.redemptions <> coalesce(l.redemptions, 0)
    """,
    "books whose total is not that of their codes": """
        SELECT t.book_id, t.redemptions, sum(c.redemptions)
        FROM coupon_book_totals AS t JOIN coupon_codes AS c USING (book_id)
        GROUP BY t.book_id, t.redemptions
        HAVING t.redemptions <> sum(c.redemptions)
    """,
    "books whose statistics are not those of codes and ledger": """
        WITH counted AS (
            SELECT book_id, sum(redemptions) AS redemptions, sum(rollbacks) AS rollbacks,
                sum(discount_minor) AS discount, sum(assignments) AS assignments,
                sum(available) AS available, sum(assigned) AS assigned,
                sum(redeemed) AS redeemed, sum(disabled) AS disabled
            FROM coupon_book_counters GROUP BY book_id
        ), ledger AS (
            SELECT book_id,
                count(*) FILTER (WHERE type = %(redeemed)s)
                    - count(*) FILTER (WHERE type = %(rolled_back)s) AS redemptions,
                count(*) FILTER (WHERE type = %(rolled_back)s) AS rollbacks,
                coalesce(sum(discount_minor) FILTER (WHERE type = %(redeemed)s), 0)
                    - coalesce(sum(discount_minor) FILTER (WHERE type = %(rolled_back)s), 0)
                    AS discount,
                count(*) FILTER (WHERE type = %(assigned)s)
                    - count(*) FILTER (WHERE type = %(revoked)s) AS assignments
            FROM redemption_audit GROUP BY book_id
        ), codes AS (
            SELECT book_id,
                count(*) FILTER (WHERE state = 1) AS available,
                count(*) FILTER (WHERE state = 2) AS assigned,
                count(*) FILTER (WHERE state = 3) AS redeemed,
                count(*) FILTER (WHERE state = 4) AS disabled
            FROM coupon_codes GROUP BY book_id
        )
        SELECT * FROM counted JOIN ledger USING (book_id) JOIN codes USING (book_id)
        WHERE (counted.redemptions, counted.rollbacks, counted.discount, counted.assignments,
                counted.available, counted.assigned, counted.redeemed, counted.disabled)
            <> (ledger.redemptions, ledger.rollbacks, ledger.discount, ledger.assignments,
                codes.available, codes.assigned, codes.redeemed, codes.disabled)
    """,
    "orders that redeem a code twice": """
        SELECT r.code, r.order_id, count(*) - count(b.event_id)
        FROM redemption_audit AS r
        LEFT JOIN redemption_audit AS b
            ON b.redemption_id = r.event_id AND b.type = %(rolled_back)s AND b.code = r.code
        WHERE r.type = %(redeemed)s AND r.order_id IS NOT NULL
        GROUP BY r.code, r.order_id
        HAVING count(*) - count(b.event_id) > 1
    """,
    "redemptions rolled back twice, or that never were": """
        SELECT b.redemption_id, count(*), count(r.event_id)
        FROM redemption_audit AS b
        LEFT JOIN redemption_audit AS r
            ON r.event_id = b.redemption_id AND r.type = %(redeemed)s
        WHERE b.type = %(rolled_back)s
        GROUP BY b.redemption_id
        HAVING count(*) > 1 OR count(r.event_id) <> 1
    """,
    "locks that redeemed twice": """
        SELECT lock_id, count(*) FROM redemption_audit
        WHERE type = %(redeemed)s AND lock_id IS NOT NULL
        GROUP BY lock_id HAVING count(*) > 1
    """,
    "redemptions with an older fence than one before them": """
        SELECT code, user_id, fence, newest FROM (
            SELECT code, user_id, fence, max(fence) OVER (
                PARTITION BY code, user_id ORDER BY event_time
                ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS newest
            FROM redemption_audit WHERE type = %(redeemed)s AND fence IS NOT NULL
        ) AS fenced WHERE fence <= newest
    """,
}


def assert_adds_up(database_url: str) -> None:
    """Invariants I1, I3, I8 and I9 hold in this database."""
    types = {
        "redeemed": REDEEMED,
        "rolled_back": ROLLED_BACK,
        "assigned": ASSIGNED,
        "revoked": REVOKED,
    }
    with psycopg.connect(database_url) as connection:
        wrong = {
            what: rows
            for what, statement in CHECKS.items()
            if (rows := connection.execute(statement, types).fetchmany(10))
        }
    assert not wrong, "\n".join(f"{what}: {rows}" for what, rows in wrong.items())


def assert_between(ok: int, unknown: int, effects: int, *, what: str = "redemptions") -> None:
    """Every effect that was answered is there, and no other but those whose outcome was open."""
    assert ok <= effects <= ok + unknown, (
        f"{ok} {what} were answered OK, {unknown} are open, and there are {effects}"
    )
