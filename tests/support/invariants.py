"""Checks in SQL that rows, counters and ledger agree: invariants I1, I2, I3, I8, I9
and I13."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import psycopg

from coupon_service.model import CodeState, EventType, OrderPolicy
from coupon_service.model.scopes import shard_of_book

SELECT_SHARDS: Final = """
SELECT nspname FROM pg_namespace WHERE nspname ~ '^coupon_[0-9][0-9]$' ORDER BY nspname
"""

COMMON_TABLES: Final = f"""
    WITH books AS (
        SELECT *, max_redemptions_per_user + max_assignments_per_user > 0 AS counts_users
        FROM coupon_books WHERE book_id = ANY(%(books)s::uuid[])
    ), all_codes AS (
        SELECT book_id, bucket, code, state, redemptions, redemption_limit, assignments
        FROM coupon_codes
        UNION ALL
        SELECT book_id, bucket, code, state, redemptions, redemption_limit, assignments
        FROM coupon_past_codes
    ), codes AS (
        SELECT codes.*, coalesce(nullif(terms.max_redemptions, 0), max_redemptions_per_code)
            AS own_limit
        FROM all_codes AS codes JOIN books USING (book_id)
        LEFT JOIN coupon_code_terms AS terms USING (bucket, code, book_id)
    ), archives AS (
        SELECT * FROM coupon_audit_archives WHERE state BETWEEN 3 AND 5
    ), archived AS MATERIALIZED (
        SELECT event_id FROM coupon_archived_events
        UNION ALL
        SELECT event_id FROM redemption_audit JOIN archives USING (book_id)
        WHERE code IS NOT NULL AND sequence <= last_sequence
    ), opening AS (
        SELECT of_code.* FROM coupon_archived_codes AS of_code JOIN archives USING (archive)
    ), ledger AS (
        SELECT *,
            (type = {EventType.REDEEMED:d})::int - (type = {EventType.ROLLED_BACK:d})::int
                AS redeemed,
            (type = {EventType.ASSIGNED:d})::int
                - (type IN ({EventType.REVOKED:d}, {EventType.ASSIGNMENT_TRANSFERRED:d},
                    {EventType.ASSIGNMENT_EXPIRED:d}))::int
                AS assigned
        FROM redemption_audit
        WHERE book_id = ANY(%(books)s::uuid[]) AND event_id NOT IN (SELECT event_id FROM archived)
    ), live AS (
        SELECT done.*, CASE WHEN adjusted.redemption_id IS NULL
            THEN done.discount_minor ELSE adjusted.discount_minor END AS present_discount_minor
        FROM ledger AS done
        LEFT JOIN coupon_adjustments AS adjusted ON adjusted.redemption_id = done.event_id
        WHERE type = {EventType.REDEEMED:d} AND NOT EXISTS (
            SELECT FROM ledger AS undone
            WHERE undone.type = {EventType.ROLLED_BACK:d} AND redemption_id = done.event_id)
    ), bound AS (
        SELECT book_id, business_id FROM coupon_books
        WHERE order_policy <> {OrderPolicy.INDEPENDENT:d}
        AND business_id IN (SELECT business_id FROM books)
    ), on_orders AS (
        SELECT business_id, bound.book_id, normalize(order_id) AS order_id,
            coalesce(normalize(order_user_id), '') AS whose,
            coalesce(adjusted.order_amount_minor, done.order_amount_minor) AS order_amount_minor,
            coalesce(adjusted.discount_minor, done.discount_minor, 0) AS discount_minor
        FROM redemption_audit AS done JOIN bound USING (book_id)
        LEFT JOIN coupon_adjustments AS adjusted ON adjusted.redemption_id = done.event_id
        WHERE type = {EventType.REDEEMED:d} AND NOT EXISTS (
            SELECT FROM redemption_audit AS undone
            WHERE undone.type = {EventType.ROLLED_BACK:d} AND undone.book_id = done.book_id
            AND undone.redemption_id = done.event_id)
        UNION ALL
        SELECT business_id, book_id, order_id, order_user_id, NULL, discount_minor
        FROM coupon_archived_orders JOIN bound USING (book_id) WHERE redemptions = 1
    )
"""
"""The checked books, their codes, their ledger, and their live redemptions; and those for orders
of all books of their businesses that are not INDEPENDENT. What is in archives counts by the opening
balances alone, from when the archive is verified, also while the ledger still has some of it. These
say nothing of users: in books with archives, sums over those have to be right. Of orders each
archived redemption is known."""

SUMS: Final = {
    "counts of codes": (
        """
        SELECT book_id, code, redemptions, assignments FROM codes
        WHERE (redemptions, assignments) <> (0, 0)
        """,
        """
        SELECT book_id, code, sum(redeemed), sum(assigned) FROM (
            SELECT book_id, code, redeemed, assigned FROM ledger WHERE code IS NOT NULL
            UNION ALL
            SELECT book_id, code, redemptions, assignments FROM opening JOIN books USING (book_id)
        ) AS counted
        GROUP BY book_id, code HAVING (sum(redeemed), sum(assigned)) <> (0, 0)
        """,
    ),
    # Rows from before ids were compared in NFC have other spellings of them.
    # Redemptions of bearers are counted only where a limit applies to the user.
    "counts of users of codes": (
        """
        SELECT book_id, code, whose, sum(redemptions) FROM (
            SELECT book_id, code, user_id, redemptions FROM coupon_assignments
            UNION ALL
            SELECT book_id, code, user_id, redemptions FROM coupon_archived_assignments
        ) AS stored
        CROSS JOIN LATERAL (SELECT CASE
            WHEN book_id IN (SELECT book_id FROM archives) THEN '' ELSE user_id END AS whose) AS own
        WHERE book_id = ANY(%(books)s::uuid[])
        GROUP BY book_id, code, whose HAVING sum(redemptions) <> 0
        """,
        """
        SELECT book_id, code, whose, sum(redemptions) FROM (
            SELECT book_id, code, normalize(user_id) AS user_id, 1 AS redemptions FROM live
            WHERE user_code_redemptions IS NOT NULL
            UNION ALL
            SELECT book_id, code, '', user_redemptions FROM opening JOIN books USING (book_id)
        ) AS derived
        CROSS JOIN LATERAL (SELECT CASE
            WHEN book_id IN (SELECT book_id FROM archives) THEN '' ELSE user_id END AS whose) AS own
        GROUP BY book_id, code, whose HAVING sum(redemptions) <> 0
        """,
    ),
    # Only books that limit users have counters of users.
    "counts of users of books": (
        """
        SELECT book_id, whose, sum(redemptions), sum(assignments)
        FROM coupon_user_counters JOIN books USING (book_id)
        CROSS JOIN LATERAL (SELECT CASE
            WHEN book_id IN (SELECT book_id FROM archives) THEN '' ELSE user_id END AS whose) AS own
        WHERE counts_users
        GROUP BY book_id, whose HAVING (sum(redemptions), sum(assignments)) <> (0, 0)
        """,
        """
        SELECT book_id, whose, sum(redeemed), sum(assigned) FROM (
            SELECT book_id, normalize(user_id) AS user_id, redeemed, assigned FROM ledger
            UNION ALL
            SELECT book_id, '', redemptions, assignments FROM archives
        ) AS counted JOIN books USING (book_id)
        CROSS JOIN LATERAL (SELECT CASE
            WHEN book_id IN (SELECT book_id FROM archives) THEN '' ELSE user_id END AS whose) AS own
        WHERE counts_users
        GROUP BY book_id, whose HAVING (sum(redeemed), sum(assigned)) <> (0, 0)
        """,
    ),
    # Only books that limit periods have counts of them, which outlive their periods by days.
    "counts of periods": (
        """
        SELECT book_id, user_id, period_start, redemptions
        FROM coupon_period_counters JOIN books USING (book_id)
        WHERE redemptions <> 0 AND book_id NOT IN (SELECT book_id FROM archives)
            AND (period_limits->>(CASE user_id WHEN '' THEN 'book' ELSE 'user' END))::bigint > 0
        """,
        """
        SELECT book_id, CASE whose WHEN 'user' THEN user_id ELSE '' END,
            date_trunc(CASE period_limits->>'period'
                WHEN '1' THEN 'day' WHEN '2' THEN 'week' ELSE 'month' END,
                event_time AT TIME ZONE (period_limits->>'zone'))::date,
            count(*)
        FROM live JOIN books USING (book_id)
        CROSS JOIN (VALUES ('user'), ('book')) AS limited (whose)
        WHERE (period_limits->>whose)::bigint > 0
            AND book_id NOT IN (SELECT book_id FROM archives)
        GROUP BY 1, 2, 3
        """,
    ),
    "totals of books": (
        """
        SELECT book_id, redemptions FROM coupon_book_totals JOIN books USING (book_id)
        WHERE max_redemptions > 0 AND redemptions <> 0
        """,
        """
        SELECT book_id, sum(redeemed) FROM (
            SELECT book_id, redeemed FROM ledger
            UNION ALL SELECT book_id, redemptions FROM archives
        ) AS counted JOIN books USING (book_id)
        WHERE max_redemptions > 0 GROUP BY book_id HAVING sum(redeemed) <> 0
        """,
    ),
    "totals of discounts": (
        """
        SELECT book_id, discount_minor FROM coupon_book_totals JOIN books USING (book_id)
        WHERE budget_minor > 0 AND discount_minor <> 0
        """,
        """
        SELECT book_id, sum(l.present_discount_minor) FROM (
            SELECT book_id, present_discount_minor FROM live
            UNION ALL SELECT book_id, discount_minor FROM archives
        ) AS l JOIN books USING (book_id)
        WHERE budget_minor > 0 GROUP BY book_id HAVING sum(l.present_discount_minor) <> 0
        """,
    ),
    "books on orders": (
        """
        SELECT business_id, order_id, order_user_id, book_id, redemptions
        FROM coupon_order_books JOIN bound USING (business_id, book_id)
        WHERE redemptions <> 0
        """,
        """
        SELECT business_id, order_id, whose, book_id, count(*) FROM on_orders
        GROUP BY business_id, order_id, whose, book_id
        """,
    ),
    "discounts on orders": (
        """
        SELECT business_id, order_id, order_user_id, discount_minor FROM coupon_orders
        WHERE business_id IN (SELECT business_id FROM books) AND discount_minor <> 0
        """,
        """
        SELECT business_id, order_id, whose, sum(discount_minor) FROM on_orders
        GROUP BY business_id, order_id, whose HAVING sum(discount_minor) <> 0
        """,
    ),
    "archived redemptions on orders": (
        """
        SELECT archive, sum(redemptions), sum(discount_minor)
        FROM coupon_archived_orders JOIN bound USING (book_id)
        WHERE archive IN (SELECT archive FROM archives WHERE state = 4)
        GROUP BY archive HAVING sum(redemptions) > 0
        """,
        """
        SELECT archive, on_orders, order_discount_minor FROM archives JOIN bound USING (book_id)
        WHERE state = 4 AND on_orders > 0
        """,
    ),
    "statistics": (
        """
        SELECT book_id, sum(redemptions), sum(rollbacks), sum(assignments), sum(discount_minor)
        FROM books JOIN coupon_book_counters USING (book_id) GROUP BY book_id
        """,
        f"""
        SELECT book_id,
            coalesce(sum(redeemed), 0) + before.redemptions,
            count(*) FILTER (WHERE type = {EventType.ROLLED_BACK:d}) + before.rollbacks,
            coalesce(sum(assigned), 0) + before.assignments,
            coalesce((
                SELECT sum(present_discount_minor) FROM live
                WHERE live.book_id = b.book_id), 0) + before.discount_minor
        FROM (SELECT DISTINCT book_id FROM coupon_book_counters JOIN books USING (book_id)) AS b
        CROSS JOIN LATERAL (
            SELECT coalesce(sum(redemptions), 0) AS redemptions,
                coalesce(sum(rollbacks), 0) AS rollbacks,
                coalesce(sum(assignments), 0) AS assignments,
                coalesce(sum(discount_minor), 0) AS discount_minor
            FROM archives WHERE archives.book_id = b.book_id
        ) AS before
        LEFT JOIN ledger AS l USING (book_id)
        GROUP BY book_id, before.redemptions, before.rollbacks, before.assignments,
            before.discount_minor
        """,
    ),
    "statistics of states": (
        """
        SELECT book_id, sum(available), sum(assigned), sum(redeemed), sum(disabled)
        FROM coupon_book_counters JOIN books USING (book_id) GROUP BY book_id
        HAVING (sum(available), sum(assigned), sum(redeemed), sum(disabled)) <> (0, 0, 0, 0)
        """,
        f"""
        SELECT book_id, count(*) FILTER (WHERE state = {CodeState.AVAILABLE:d}),
            count(*) FILTER (WHERE state = {CodeState.ASSIGNED:d}),
            count(*) FILTER (WHERE state = {CodeState.REDEEMED:d}),
            count(*) FILTER (WHERE state = {CodeState.DISABLED:d})
        FROM codes GROUP BY book_id
        """,
    ),
}
"""Stored values, and the query of the ledger or rows that they have to equal."""

RULES: Final = {
    # A code that was deleted may have been made again.
    "an event of a code begins where the one before has left it": f"""
        SELECT code, sequence, left_in, state_before FROM (
            SELECT *, lag(state_after) OVER (PARTITION BY book_id, code ORDER BY sequence)
                AS left_in
            FROM ledger WHERE code IS NOT NULL AND sequence IS NOT NULL
        ) AS event
        WHERE state_before <> left_in AND NOT EXISTS (
            SELECT FROM ledger AS deletion
            WHERE deletion.type = {EventType.CODES_DELETED:d}
                AND deletion.book_id = event.book_id)
    """,
    "a code's state follows from its counts": f"""
        SELECT code, codes.state, redemptions, assignments FROM codes
        WHERE codes.state <> {CodeState.DISABLED:d} AND codes.state <> CASE
            WHEN own_limit > 0 AND redemptions >= own_limit
            THEN {CodeState.REDEEMED:d}
            WHEN assignments > 0 THEN {CodeState.ASSIGNED:d} ELSE {CodeState.AVAILABLE:d} END
    """,
    "no code is redeemed beyond its limit": """
        SELECT code, redemptions, own_limit FROM codes
        WHERE own_limit > 0 AND redemptions > own_limit
    """,
    # It goes on to say so when those codes are deleted.
    "a book says that its codes have terms": """
        SELECT book_id, codes_have_terms FROM books
        WHERE NOT codes_have_terms AND EXISTS (
            SELECT FROM coupon_code_terms AS terms WHERE terms.book_id = books.book_id)
    """,
    "a code of the past is one of another book of the business now": """
        SELECT past.book_id, past.code FROM coupon_past_codes AS past JOIN books USING (book_id)
        WHERE books.state <> 4 OR NOT EXISTS (
            SELECT FROM coupon_codes AS now JOIN coupon_books AS owner USING (book_id)
            WHERE now.bucket = past.bucket AND now.code = past.code
                AND owner.business_id = books.business_id AND owner.book_id <> past.book_id)
    """,
    "terms are those of a code": """
        SELECT code FROM coupon_code_terms AS terms JOIN books USING (book_id)
        WHERE NOT EXISTS (
            SELECT FROM codes WHERE codes.code = terms.code AND codes.book_id = terms.book_id)
    """,
    "no redemption exceeded the limit of its time": f"""
        SELECT code, code_redemptions, code_redemption_limit FROM ledger
        WHERE type = {EventType.REDEEMED:d}
        AND code_redemption_limit > 0 AND code_redemptions > code_redemption_limit
    """,
    "no book takes off more than its budget was": """
        SELECT book_id, sum(live.discount_minor), discount_limit_minor
        FROM live JOIN books USING (book_id) JOIN coupon_book_totals USING (book_id)
        WHERE budget_minor > 0 AND discount_limit_minor > 0
        GROUP BY book_id, discount_limit_minor
        HAVING sum(live.discount_minor) > discount_limit_minor
    """,
    "an order has, or had, coupons": """
        SELECT business_id, order_id, order_user_id FROM coupon_orders
        WHERE business_id IN (SELECT business_id FROM books) AND NOT EXISTS (
            SELECT FROM coupon_order_books
            WHERE coupon_order_books.business_id = coupon_orders.business_id
            AND coupon_order_books.order_id = coupon_orders.order_id
            AND coupon_order_books.order_user_id = coupon_orders.order_user_id)
    """,
    "coupons take off an order no more than its amount": """
        SELECT business_id, order_id, whose, sum(discount_minor), max(order_amount_minor)
        FROM on_orders WHERE order_amount_minor IS NOT NULL GROUP BY business_id, order_id, whose
        HAVING sum(discount_minor) > max(order_amount_minor)
    """,
    "an order has one live redemption of a code": """
        SELECT code, order_id, NULL AS user_id, count(*) FROM live
        WHERE order_id IS NOT NULL AND order_user_id IS NULL
        GROUP BY book_id, code, order_id HAVING count(*) > 1
        UNION ALL
        SELECT code, order_id, user_id, count(*) FROM live WHERE order_id IS NOT NULL
        GROUP BY book_id, code, order_id, user_id HAVING count(*) > 1
    """,
    "a request has one effect": f"""
        SELECT caller, request_id, type, code, count(*) FROM ledger
        WHERE type IN ({EventType.CODE_DISABLED:d}, {EventType.CODE_ENABLED:d},
            {EventType.REVOKED:d}, {EventType.ASSIGNMENT_TRANSFERRED:d}, {EventType.REDEEMED:d})
        -- ChangeCodes revokes all assignments of a code, also those that users get meanwhile.
        GROUP BY book_id, caller, request_id, type, code,
            CASE WHEN type = {EventType.REVOKED:d} THEN user_id END,
            CASE WHEN type = {EventType.REVOKED:d} THEN (
                SELECT max(made.event_time) FROM redemption_audit AS made
                WHERE made.code || '' = ledger.code AND made.book_id = ledger.book_id
                    AND made.type = {EventType.ASSIGNED:d}
                    AND made.user_id = ledger.user_id AND made.event_time <= ledger.event_time)
            END
        HAVING count(*) > 1
    """,
    "what was handed over was received by the other user at the same moment": f"""
        SELECT given.code, given.user_id, given.other_user_id FROM ledger AS given
        WHERE type = {EventType.ASSIGNMENT_TRANSFERRED:d} AND 1 <> (
            SELECT count(*) FROM ledger AS received
            WHERE received.type = {EventType.ASSIGNED:d}
            AND (received.code, received.event_time) = (given.code, given.event_time)
            AND (received.user_id, received.other_user_id) = (given.other_user_id, given.user_id))
    """,
    "a rollback has a redemption, which is rolled back once": f"""
        SELECT undone.redemption_id, count(*), count(done.event_id) FROM ledger AS undone
        LEFT JOIN ledger AS done
            ON done.event_id = undone.redemption_id AND done.type = {EventType.REDEEMED:d}
        WHERE undone.type = {EventType.ROLLED_BACK:d}
        GROUP BY undone.redemption_id HAVING count(*) > 1 OR count(done.event_id) <> 1
    """,
    "an adjusted redemption has the amounts of its last adjustment": f"""
        SELECT redemption_id, adjustments, discount_minor FROM coupon_adjustments AS present
        JOIN books USING (book_id)
        WHERE redemption_id NOT IN (SELECT event_id FROM archived) AND (adjustments <> (
            SELECT count(*) FROM ledger WHERE type = {EventType.ADJUSTED:d}
            AND ledger.redemption_id = present.redemption_id)
        OR NOT EXISTS (
            SELECT FROM ledger WHERE type = {EventType.ADJUSTED:d}
            AND ledger.redemption_id = present.redemption_id
            AND ledger.order_amount_minor = present.order_amount_minor
            AND ledger.discount_minor IS NOT DISTINCT FROM present.discount_minor))
    """,
    "a rollback takes back what the discount was": f"""
        SELECT undone.redemption_id, undone.discount_minor FROM ledger AS undone
        JOIN ledger AS done ON done.event_id = undone.redemption_id
        LEFT JOIN coupon_adjustments AS present ON present.redemption_id = undone.redemption_id
        WHERE undone.type = {EventType.ROLLED_BACK:d}
        AND undone.discount_minor IS DISTINCT FROM CASE WHEN present.redemption_id IS NULL
            THEN done.discount_minor ELSE present.discount_minor END
    """,
    "seals follow each other without a gap": """
        SELECT number, first_sequence FROM (
            SELECT *, lag(last_sequence, 1, 0::bigint) OVER (ORDER BY number) AS before,
                row_number() OVER (ORDER BY number) AS place
            FROM coupon_audit_seals
        ) AS seal WHERE first_sequence <> before + 1 OR number <> place
    """,
    "the head is the newest seal": """
        SELECT number, last_sequence FROM coupon_audit_head
        WHERE (number, last_sequence) <> (
            SELECT coalesce(max(number), 0), coalesce(max(last_sequence), 0)
            FROM coupon_audit_seals)
    """,
    "no row is left out of the seals": """
        SELECT last_sequence FROM coupon_audit_head AS head
        WHERE (SELECT coalesce(sum(row_count), 0) FROM coupon_audit_seals) < (
            SELECT count(*) FROM redemption_audit
            WHERE sequence BETWEEN 1 AND head.last_sequence)
    """,
    "a lock redeems once": f"""
        SELECT lock_id, count(*) FROM ledger
        WHERE type = {EventType.REDEEMED:d} AND lock_id IS NOT NULL
        GROUP BY lock_id HAVING count(*) > 1
    """,
    "a request has one lock": f"""
        SELECT caller, request_id, code, count(DISTINCT lock_id) FROM ledger
        WHERE type = {EventType.LOCKED:d}
        GROUP BY book_id, caller, request_id, code HAVING count(DISTINCT lock_id) > 1
    """,
    "a lock that answers a request was acquired for its user": f"""
        SELECT code, user_id, lock_id FROM ledger AS answered
        WHERE type = {EventType.LOCKED:d} AND NOT EXISTS (
            SELECT FROM ledger AS acquired
            WHERE acquired.type = answered.type AND acquired.event_id = answered.lock_id
            AND (acquired.code, acquired.user_id) = (answered.code, answered.user_id))
    """,
}
"""Each query returns the rows that break the rule."""

RULES_OF_TIME: Final = {
    "a code that its user had redeemed did not go back to the pool": f"""
        SELECT returned.code, returned.user_id FROM ledger AS returned
        WHERE type = {EventType.ASSIGNMENT_EXPIRED:d} AND 0 < (
            SELECT sum(redeemed) FROM ledger AS used
            WHERE (used.book_id, used.code, used.user_id)
                = (returned.book_id, returned.code, returned.user_id)
            AND used.event_time < returned.event_time + make_interval(
                secs => (used.type = {EventType.ROLLED_BACK:d})::int * 0.000001))
    """,
    "fences of redemptions increase": f"""
        SELECT code, user_id, fence, newest FROM (
            SELECT code, user_id, fence, max(fence) OVER (
                PARTITION BY book_id, code, user_id ORDER BY event_time
                ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS newest
            FROM ledger WHERE type = {EventType.REDEEMED:d} AND fence IS NOT NULL
        ) AS redeemed WHERE fence <= newest
    """,
}
"""Rules that hold only where the clock was never set back."""


def assert_adds_up(
    connection: psycopg.Connection[Any],
    book_ids: Sequence[str] | None = None,
    *,
    clock_jumped: bool = False,
) -> None:
    """Assert that stored values of these books (default: all) equal the ledger, and rules hold: in
    each shard by itself, if there are several, and that it has books of its own businesses only."""
    schemas = [row[0] for row in connection.execute(SELECT_SHARDS)]
    if not schemas:
        _assert_adds_up(connection, book_ids, clock_jumped=clock_jumped)
    for number, schema in enumerate(schemas):
        connection.execute("SELECT set_config('search_path', %s, false)", [schema])
        try:
            found = {str(row[0]) for row in connection.execute("SELECT book_id FROM coupon_books")}
            astray = [it for it in found if shard_of_book(it, len(schemas)) != number]
            assert not astray, f"{schema} has books of other shards: {astray[:5]}"
            own = found if book_ids is None else found.intersection(book_ids)
            _assert_adds_up(connection, list(own), clock_jumped=clock_jumped)
        finally:
            connection.execute("RESET search_path")


def _assert_adds_up(
    connection: psycopg.Connection[Any], book_ids: Sequence[str] | None, *, clock_jumped: bool
) -> None:
    if book_ids is None:
        book_ids = [str(row[0]) for row in connection.execute("SELECT book_id FROM coupon_books")]
    queries = {what: _differences(*sides) for what, sides in SUMS.items()} | RULES
    if not clock_jumped:
        queries |= RULES_OF_TIME
    with connection.pipeline():
        results = {
            what: connection.execute((COMMON_TABLES + query).encode(), {"books": list(book_ids)})
            for what, query in queries.items()
        }
    broken = {what: rows for what, it in results.items() if (rows := it.fetchmany(5))}
    assert not broken, "\n".join(f"broken: {what}: {rows}" for what, rows in broken.items())


def assert_between(ok: int, unknown: int, effects: int) -> None:
    """Assert an effect for each OK answer, and no more than unknown outcomes explain."""
    assert ok <= effects <= ok + unknown, (
        f"{ok} were answered OK, {unknown} outcomes are unknown, and there are {effects} effects"
    )


def _differences(stored: str, derived: str) -> str:
    """The query of rows that only one side has."""
    return f"""
        SELECT 'stored', * FROM ({stored} EXCEPT {derived}) AS stored
        UNION ALL SELECT 'derived', * FROM ({derived} EXCEPT {stored}) AS derived
    """
