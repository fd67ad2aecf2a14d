"""The coupons that a user can redeem, now or later."""

from __future__ import annotations

from datetime import datetime
from typing import Final, LiteralString

from coupon_service.model import AssignmentState, BookState
from coupon_service.model.scopes import scope_of_book
from coupon_service.store.arrays import uuid_array
from coupon_service.store.books import SELECT_BOOKS
from coupon_service.store.pipeline import Connection, Pipeline
from coupon_service.store.queries.lookups import Coupon
from coupon_service.store.rows import (
    ASSIGNMENTS,
    assignment_from_row,
    book_from_row,
    shown_code_from_row,
)
from coupon_service.store.spellings import select_shown_codes

LOOKED_AT_MAX: Final = 10_000
"""Active assignments of a user, the newest ones: so that no user makes a call long."""

SELECT_LIVE_ASSIGNMENTS: Final[LiteralString] = f"""
WITH newest AS MATERIALIZED (
    SELECT * FROM coupon_assignments
    WHERE user_id = %(user_id)s AND assign_time IS NOT NULL AND state = %(active)s
    ORDER BY assign_time DESC, code DESC
    LIMIT %(looked_at)s
), live AS (
    SELECT newest.*, own.ends
    FROM newest JOIN coupon_books AS book USING (book_id)
    CROSS JOIN LATERAL (
        SELECT least(newest.expire_time, book.end_time, CASE WHEN codes_have_terms THEN (
            SELECT terms.end_time FROM coupon_code_terms AS terms
            WHERE terms.bucket = newest.bucket AND terms.code = newest.code
                AND terms.book_id = newest.book_id)
            END) AS ends
    ) AS own
    WHERE book.state <> %(closed)s
        AND coalesce(own.ends > %(now)s, true)
        AND (%(business_id)s = '' OR book.business_id = %(business_id)s)
)
SELECT (SELECT count(*) FROM newest), {ASSIGNMENTS.selected}
FROM live
ORDER BY ends, code
LIMIT %(count)s
"""


async def select_live_coupons(
    connection: Connection, user_id: str, business_id: str, now: datetime, count: int
) -> tuple[list[Coupon], bool]:
    """The `count` live coupons of a user that end soonest, in that order, and whether there may be
    more. `business_id`: of the books, empty = any.
    """
    cursor = await connection.execute(
        SELECT_LIVE_ASSIGNMENTS,
        {
            "user_id": user_id,
            "business_id": business_id,
            "active": AssignmentState.ACTIVE,
            "closed": BookState.CLOSED,
            "now": now,
            "looked_at": LOOKED_AT_MAX,
            "count": count + 1,
        },
    )
    rows = await cursor.fetchall()
    if not rows:
        return [], False
    assignments = [assignment_from_row(row[1:]) for row in rows[:count]]
    pipeline = Pipeline(connection)
    code_rows = select_shown_codes(
        pipeline, {(it.code, scope_of_book(it.book_id)) for it in assignments}
    )
    book_ids = uuid_array({it.book_id for it in assignments})
    book_rows = pipeline.add(SELECT_BOOKS, (book_ids,))
    await pipeline.run()
    codes = {code.key: code for code in map(shown_code_from_row, code_rows)}
    books = {book.book_id: book for book in map(book_from_row, book_rows)}
    # Since they were read, a book may have been closed, and another may have got its code.
    live = (it for it in assignments if (it.book_id, it.code) in codes)
    coupons = [(it, codes[it.book_id, it.code], books[it.book_id]) for it in live]
    return coupons, len(rows) > count or rows[0][0] >= LOOKED_AT_MAX
