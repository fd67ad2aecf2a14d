"""Assignments that have expired, in books that give their codes to others."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, LiteralString, NamedTuple
from uuid import UUID

from coupon_service.model.codes import bucket_of
from coupon_service.store.pipeline import Connection


class DueReturn(NamedTuple):
    """An assignment whose code may go back to the pool of its book. They are in this order."""

    expire_time: datetime
    code: str
    user_id: str
    book_id: UUID
    assign_time: datetime


# Book by book, through the index of those alone that return. 2 and 3 are ACTIVE and PAUSED: a book
# that is CLOSED gives nothing out any more.
SELECT_DUE: Final[LiteralString] = """
SELECT due.expire_time, due.code, due.user_id, due.book_id, due.assign_time
FROM (
    SELECT book.book_id AS of_book FROM coupon_books AS book
    WHERE book.return_to_pool AND book.state IN (2, 3)
) AS pool
CROSS JOIN LATERAL (
    SELECT expire_time, bucket, code, user_id, book_id, assign_time
    FROM coupon_assignments
    WHERE returns AND book_id = of_book AND expire_time <= %(ended_by)s
        AND (expire_time, bucket, code, user_id)
            > (%(time)s, %(bucket)s::smallint, %(code)s, %(user_id)s)
    ORDER BY expire_time, bucket, code, user_id
    LIMIT %(count)s
) AS due
ORDER BY due.expire_time, due.bucket, due.code, due.user_id
LIMIT %(count)s
"""


async def select_due_returns(
    connection: Connection, ended_by: datetime, count: int, after: DueReturn | None
) -> Sequence[DueReturn]:
    """At most so many assignments that were over at `ended_by`, the first first, after one."""
    parameters = {
        "ended_by": ended_by,
        "count": count,
        "time": after.expire_time if after else datetime.min.replace(tzinfo=UTC),
        "bucket": bucket_of(after.code) if after else -1,
        "code": after.code if after else "",
        "user_id": after.user_id if after else "",
    }
    cursor = await connection.execute(SELECT_DUE, parameters)
    return [DueReturn(*row) for row in await cursor.fetchall()]
