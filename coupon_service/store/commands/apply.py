"""Apply: one statement a table writes the write set of a whole batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, LiteralString
from uuid import UUID

from coupon_service.model import (
    Assignment,
    Book,
    BookLimits,
    BookTotals,
    Code,
    UserCounts,
    WriteSet,
    bucket_of_user,
)
from coupon_service.model.codes import bucket_of
from coupon_service.model.scopes import scope_of_book
from coupon_service.rules import book_of, returns_to_pool
from coupon_service.store.adjustments import put_adjustments
from coupon_service.store.arrays import int_array
from coupon_service.store.columns import Column, Columns
from coupon_service.store.commands.order_coupons import update_orders
from coupon_service.store.commands.period_counters import update_periods
from coupon_service.store.counters import ADD_TO_COUNTERS, counter_parameters
from coupon_service.store.events import EVENT_ROWS, INSERT_EVENTS
from coupon_service.store.pipeline import Pipeline
from coupon_service.store.rows import ASSIGNMENTS, bucket_of_event_row


def apply(pipeline: Pipeline, write_set: WriteSet, books: Mapping[UUID, Book]) -> None:
    """Adds what writes the write set, in the order in which all batches lock: codes, assignments,
    users, orders, periods, totals, counters.
    """
    if not write_set.events:
        return
    if write_set.codes:
        _update_codes(pipeline, write_set, books)
    if write_set.assignments:
        _write_assignments(pipeline, write_set, books)
    if write_set.users:
        _update_users(pipeline, write_set, books)
    if write_set.orders:
        update_orders(pipeline, write_set, books)
    if write_set.periods:
        update_periods(pipeline, write_set, books)
    if write_set.totals:
        _update_totals(pipeline, write_set, books)
    if write_set.adjustments:
        put_adjustments(pipeline, write_set.adjustments.values())
    if write_set.stats:
        _add_stats(pipeline, write_set)
    pipeline.add(INSERT_EVENTS, EVENT_ROWS.array_parameters(write_set.events))


# In all of these, counts are added to and never set, and a limit is written with what was counted
# against it: a decision on stale rows could not get past the CHECKs of the table.

CODE_CHANGES: Final = Columns[tuple[Code, Code, BookLimits]](
    Column("bucket", "smallint", lambda it: bucket_of(it[1].code)),
    Column("code", "text", lambda it: it[1].code),
    Column("scope", "bigint", lambda it: scope_of_book(it[1].book_id)),
    Column("state", "smallint", lambda it: it[1].state),
    Column("redemptions", "integer", lambda it: it[1].redemptions - it[0].redemptions),
    Column("assignments", "integer", lambda it: it[1].assignments - it[0].assignments),
    Column("redemption_limit", "integer", lambda it: it[2].max_redemptions_per_code),
)

PAST_CODE_CHANGES: Final = Columns[tuple[Code, Code, BookLimits]](
    *CODE_CHANGES.columns, Column("book_id", "uuid", lambda it: it[1].book_id)
)

_SET_CODES: Final = """
SET state = d.state,
    redemptions = c.redemptions + d.redemptions,
    assignments = c.assignments + d.assignments,
    redemption_limit = CASE WHEN d.redemptions > 0 THEN d.redemption_limit
                            ELSE c.redemption_limit END
"""
UPDATE_CODES: Final[LiteralString] = f"""
UPDATE coupon_codes AS c{_SET_CODES}FROM unnest(
    {CODE_CHANGES.arrays}) AS d (
    {CODE_CHANGES.names})
WHERE c.bucket = d.bucket AND c.code = d.code AND c.scope = d.scope
"""
UPDATE_PAST_CODES: Final[LiteralString] = f"""
UPDATE coupon_past_codes AS c{_SET_CODES}FROM unnest(
    {PAST_CODE_CHANGES.arrays}) AS d (
    {PAST_CODE_CHANGES.names})
WHERE c.bucket = d.bucket AND c.code = d.code AND c.book_id = d.book_id
"""


def _update_codes(pipeline: Pipeline, write_set: WriteSet, books: Mapping[UUID, Book]) -> None:
    changes = [
        (before, after, book_of(after, books[after.book_id]).limits)
        for before, after in write_set.codes.values()
    ]
    past = [it for it in changes if it[1].is_past]
    if past:
        pipeline.add(UPDATE_PAST_CODES, PAST_CODE_CHANGES.array_parameters(past))
        changes = [it for it in changes if not it[1].is_past]
    if changes:
        pipeline.add(UPDATE_CODES, CODE_CHANGES.array_parameters(changes))


ASSIGNMENT_ROWS: Final = Columns[Assignment](
    Column("bucket", "smallint", lambda it: bucket_of(it.code)), *ASSIGNMENTS.columns
)

INSERT_ASSIGNMENTS: Final[LiteralString] = f"""
INSERT INTO coupon_assignments (
    {ASSIGNMENT_ROWS.names},
    redemption_limit,
    returns)
SELECT * FROM unnest(
    {ASSIGNMENT_ROWS.arrays},
    %s::integer[],
    %s::boolean[])
"""
UPDATE_ASSIGNMENTS: Final[LiteralString] = f"""
UPDATE coupon_assignments AS a
SET state = d.state,
    redemptions = a.redemptions + d.added,
    redemption_limit = CASE WHEN d.added > 0 THEN d.redemption_limit
                            ELSE a.redemption_limit END,
    fence = d.fence,
    assign_time = d.assign_time,
    expire_time = d.expire_time,
    metadata = d.metadata,
    returns = d.returns
FROM unnest(
    {ASSIGNMENT_ROWS.arrays},
    %s::integer[],
    %s::boolean[],
    %s::integer[]) AS d (
    {ASSIGNMENT_ROWS.names},
    redemption_limit,
    returns,
    added)
WHERE a.bucket = d.bucket AND a.code = d.code AND a.user_id = d.user_id
    AND a.book_id = d.book_id
"""


def _write_assignments(pipeline: Pipeline, write_set: WriteSet, books: Mapping[UUID, Book]) -> None:
    # Two statements: the counts of an update are differences, which the CHECKs of an insert refuse.
    changes = write_set.assignments.values()
    new = [after for before, after in changes if before is None]
    changed = [(before, after) for before, after in changes if before is not None]
    if new:
        pipeline.add(INSERT_ASSIGNMENTS, _assignment_arrays(new, books))
    if changed:
        arrays = _assignment_arrays([after for _, after in changed], books)
        added = int_array([after.redemptions - before.redemptions for before, after in changed])
        pipeline.add(UPDATE_ASSIGNMENTS, (*arrays, added))


def _assignment_arrays(rows: Sequence[Assignment], books: Mapping[UUID, Book]) -> tuple[str, ...]:
    """The rows, the limit of the redemptions of each, and whether it is to be looked at when it has
    expired: NULL for no, so that books that return no codes have no entry in the index of these."""
    limits = [books[it.book_id].limits.max_redemptions_per_user_per_code for it in rows]
    returns = [1 if returns_to_pool(it, books[it.book_id]) else None for it in rows]
    return (*ASSIGNMENT_ROWS.array_parameters(rows), int_array(limits), int_array(returns))


USER_CHANGES: Final = Columns[tuple[UUID, str, UserCounts, UserCounts, BookLimits]](
    Column("bucket", "smallint", lambda it: bucket_of_user(it[1])),
    Column("book_id", "uuid", lambda it: it[0]),
    Column("user_id", "text", lambda it: it[1]),
    Column("redemptions", "integer", lambda it: it[3].redemptions - it[2].redemptions),
    Column("redemption_limit", "integer", lambda it: it[4].max_redemptions_per_user),
    Column("assignments", "integer", lambda it: it[3].assignments - it[2].assignments),
    Column("assignment_limit", "integer", lambda it: it[4].max_assignments_per_user),
)

UPDATE_USERS: Final[LiteralString] = f"""
UPDATE coupon_user_counters AS u
SET redemptions = u.redemptions + d.redemptions,
    redemption_limit = CASE WHEN d.redemptions > 0 THEN d.redemption_limit
                            ELSE u.redemption_limit END,
    assignments = u.assignments + d.assignments,
    assignment_limit = CASE WHEN d.assignments > 0 THEN d.assignment_limit
                            ELSE u.assignment_limit END
FROM unnest(
    {USER_CHANGES.arrays}) AS d (
    {USER_CHANGES.names})
WHERE u.bucket = d.bucket AND u.book_id = d.book_id AND u.user_id = d.user_id
"""


def _update_users(pipeline: Pipeline, write_set: WriteSet, books: Mapping[UUID, Book]) -> None:
    changes = [
        (book_id, user_id, before, after, books[book_id].limits)
        for (book_id, user_id), (before, after) in write_set.users.items()
    ]
    pipeline.add(UPDATE_USERS, USER_CHANGES.array_parameters(changes))


TOTAL_CHANGES: Final = Columns[tuple[UUID, BookTotals, BookTotals, BookLimits]](
    Column("book_id", "uuid", lambda it: it[0]),
    Column("redemptions", "bigint", lambda it: it[2].redemptions - it[1].redemptions),
    Column("redemption_limit", "bigint", lambda it: it[3].max_redemptions),
    Column("discount_minor", "bigint", lambda it: it[2].discount_minor - it[1].discount_minor),
    Column("discount_limit_minor", "bigint", lambda it: it[3].budget_minor),
)

UPDATE_TOTALS: Final[LiteralString] = f"""
UPDATE coupon_book_totals AS t
SET redemptions = t.redemptions + d.redemptions,
    redemption_limit = CASE WHEN d.redemptions > 0 THEN d.redemption_limit
                            ELSE t.redemption_limit END,
    discount_minor = t.discount_minor + d.discount_minor,
    discount_limit_minor = CASE WHEN d.discount_minor > 0 THEN d.discount_limit_minor
                                ELSE t.discount_limit_minor END
FROM unnest(
    {TOTAL_CHANGES.arrays}) AS d (
    {TOTAL_CHANGES.names})
WHERE t.book_id = d.book_id
"""


def _update_totals(pipeline: Pipeline, write_set: WriteSet, books: Mapping[UUID, Book]) -> None:
    changes = [
        (book_id, before, after, books[book_id].limits)
        for book_id, (before, after) in write_set.totals.items()
    ]
    pipeline.add(UPDATE_TOTALS, TOTAL_CHANGES.array_parameters(changes))


def _add_stats(pipeline: Pipeline, write_set: WriteSet) -> None:
    buckets: dict[UUID, int] = {}
    for event in write_set.events:
        buckets.setdefault(event.book_id, bucket_of_event_row(event))
    rows = [(book_id, buckets[book_id], stats) for book_id, stats in write_set.stats.items()]
    pipeline.add(ADD_TO_COUNTERS, counter_parameters(rows))
