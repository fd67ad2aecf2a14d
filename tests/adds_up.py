"""Whether a whole database adds up: invariants I1, I3, I8 and I9 in what it holds."""

from __future__ import annotations

from typing import Final

import psycopg
from conservation import broken_rules

from coupon_service.model import EventType

RULES: Final = {
    # What a bearer does without a lock and without a limit of the user is not counted.
    "a user's count of a code is the sum over its ledger": f"""
        SELECT code, user_id, a.redemptions, coalesce(live, 0)
        FROM coupon_assignments a LEFT JOIN (
            SELECT done.code, done.user_id, count(*) - count(undone.event_id) AS live
            FROM redemption_audit done LEFT JOIN redemption_audit undone
                ON undone.redemption_id = done.event_id AND undone.bucket = done.bucket
                AND undone.type = {EventType.ROLLED_BACK:d}
            WHERE done.type = {EventType.REDEEMED:d} AND done.user_code_redemptions IS NOT NULL
            GROUP BY done.code, done.user_id
        ) l USING (code, user_id)
        WHERE a.redemptions <> coalesce(live, 0)
    """,
    # Only books with a limit for users count what they do.
    "a user's count of a book is the sum over its ledger": f"""
        SELECT book_id, user_id, u.redemptions, coalesce(live, 0)
        FROM coupon_user_counters u JOIN coupon_books b USING (book_id) LEFT JOIN (
            SELECT book_id, user_id,
                count(*) FILTER (WHERE type = {EventType.REDEEMED:d})
                    - count(*) FILTER (WHERE type = {EventType.ROLLED_BACK:d}) AS live
            FROM redemption_audit WHERE code IS NOT NULL GROUP BY book_id, user_id
        ) l USING (book_id, user_id)
        WHERE (b.max_redemptions_per_user > 0 OR b.max_assignments_per_user > 0)
            AND u.redemptions <> coalesce(live, 0)
    """,
    "a lock redeems once": f"""
        SELECT lock_id, count(*) FROM redemption_audit
        WHERE type = {EventType.REDEEMED:d} AND lock_id IS NOT NULL
        GROUP BY lock_id HAVING count(*) > 1
    """,
    "no redemption has an older fence than one before it": f"""
        SELECT code, user_id, fence, newest FROM (
            SELECT code, user_id, fence, max(fence) OVER (
                PARTITION BY code, user_id ORDER BY event_time
                ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS newest
            FROM redemption_audit WHERE type = {EventType.REDEEMED:d} AND fence IS NOT NULL
        ) AS fenced WHERE fence <= newest
    """,
    "as many codes are in each state as the statistics say": """
        SELECT book_id, counted.*, found.* FROM (
            SELECT book_id, sum(available) AS available, sum(assigned) AS assigned,
                sum(redeemed) AS redeemed, sum(disabled) AS disabled
            FROM coupon_book_counters GROUP BY book_id
        ) AS counted JOIN (
            SELECT book_id, count(*) FILTER (WHERE state = 1) AS available,
                count(*) FILTER (WHERE state = 2) AS assigned,
                count(*) FILTER (WHERE state = 3) AS redeemed,
                count(*) FILTER (WHERE state = 4) AS disabled
            FROM coupon_codes GROUP BY book_id
        ) AS found USING (book_id)
        WHERE (counted.available, counted.assigned, counted.redeemed, counted.disabled)
            <> (found.available, found.assigned, found.redeemed, found.disabled)
    """,
}
"""Each finds the rows that break it."""


def assert_adds_up(database_url: str) -> None:
    """Rows, counters and ledger of all books say the same, and no limit is passed."""
    with psycopg.connect(database_url) as connection:
        book_ids = [str(row[0]) for row in connection.execute("SELECT book_id FROM coupon_books")]
        broken = broken_rules(connection, book_ids)
        for rule, query in RULES.items():
            broken[rule] = list(connection.execute(query.encode()).fetchmany(5))
    broken = {rule: rows for rule, rows in broken.items() if rows}
    assert not broken, "\n".join(f"not so: {rule}: {rows}" for rule, rows in broken.items())


def assert_between(ok: int, unknown: int, effects: int) -> None:
    """Every effect that was answered is there, and no other but those whose outcome was open."""
    assert ok <= effects <= ok + unknown, (
        f"{ok} were answered OK, {unknown} are open, and there are {effects}"
    )
