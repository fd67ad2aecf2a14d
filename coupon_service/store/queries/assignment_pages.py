"""The assignments of a book, page by page, newest first."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, LiteralString
from uuid import UUID

from coupon_service.model import Assignment, AssignmentState
from coupon_service.model.scopes import scope_of_book
from coupon_service.store.arrays import int_array
from coupon_service.store.keyset import IN_ORDER, Position, page_of, time_code_and_user
from coupon_service.store.pipeline import Connection
from coupon_service.store.rows import ASSIGNMENTS, assignment_from_row

LOOKED_AT_MAX: Final = 10_000
"""Assignments that are read for a page, also where hardly one has the state that is wanted."""

ShownAssignment = tuple[Assignment, str]
"""An assignment, and its code as it was uploaded; empty where that is how it is stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AssignmentFilter:
    """Which assignments are wanted. `start_time` is inclusive, `end_time` exclusive."""

    book_id: UUID
    state: AssignmentState | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None


# The state is not in the index, so that a redemption, which may change it, changes no index. So the
# row that is looked at last is returned as well, whatever its state: there the next page begins.
SELECT_ASSIGNMENTS_OF_BOOK: Final[LiteralString] = f"""
SELECT looked_at,
    coalesce(CASE WHEN is_past THEN past_spelling ELSE spelling END, ''),
    {ASSIGNMENTS.selected}
FROM (
    SELECT *
    FROM (
        SELECT *, row_number() OVER newest_first AS looked_at
        FROM coupon_assignments
        WHERE book_id = %(book_id)s AND assign_time IS NOT NULL
            AND (assign_time, code, user_id) < (%(time)s, %(code)s, %(user_id)s)
            AND assign_time >= %(start_time)s AND assign_time < %(end_time)s
        WINDOW newest_first AS (ORDER BY assign_time DESC, code DESC, user_id DESC)
        ORDER BY assign_time DESC, code DESC, user_id DESC
        LIMIT %(looked_at_max)s
    ) AS newest
    WHERE state = ANY(%(states)s::smallint[]) OR looked_at = %(looked_at_max)s
    ORDER BY assign_time DESC, code DESC, user_id DESC
    LIMIT %(count)s
) AS page
LEFT JOIN (
    SELECT bucket, code, spelling FROM coupon_code_spellings WHERE scope = %(scope)s
) AS shown USING (bucket, code)
LEFT JOIN (
    SELECT bucket, code, book_id, true AS is_past, spelling AS past_spelling FROM coupon_past_codes
) AS past USING (bucket, code, book_id)
ORDER BY looked_at
"""


async def select_assignments(
    connection: Connection,
    wanted: AssignmentFilter,
    page_size: int,
    after: Position | None,
    looked_at_max: int = LOOKED_AT_MAX,
) -> tuple[list[ShownAssignment], Position | None]:
    """A page of the assignments of a book, and the position to go on from. In a transaction.

    The page ends, perhaps before it is full, where so many were looked at.
    """
    time, code, user_id = time_code_and_user(after)
    states = tuple(AssignmentState) if wanted.state is None else (wanted.state,)
    await connection.execute(IN_ORDER)
    cursor = await connection.execute(
        SELECT_ASSIGNMENTS_OF_BOOK,
        {
            "book_id": wanted.book_id,
            "scope": scope_of_book(wanted.book_id),
            "states": int_array(states),
            "start_time": wanted.start_time or datetime.min.replace(tzinfo=UTC),
            "end_time": wanted.end_time or datetime.max.replace(tzinfo=UTC),
            "time": time,
            "code": code,
            "user_id": user_id,
            "count": page_size + 1,
            "looked_at_max": looked_at_max,
        },
    )
    rows = await cursor.fetchall()
    found = [(assignment_from_row(row[2:]), row[1]) for row in rows]
    page, end = page_of(found, page_size, shown_position)
    if end is None and rows and rows[-1][0] == looked_at_max:
        end = shown_position(found[-1])
    return [it for it in page if it[0].state in states], end


def shown_position(shown: ShownAssignment) -> Position:
    """Where a page goes on after this assignment."""
    assignment, _ = shown
    if assignment.assign_time is None:
        raise AssertionError("an assignment of a book that was never made")
    return assignment.assign_time.isoformat(), assignment.code, assignment.user_id
