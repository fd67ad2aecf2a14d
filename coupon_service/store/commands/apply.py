"""Apply: one statement a table writes the effects of a whole batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final
from uuid import UUID

from coupon_service.model import Assignment, Book, WriteSet, bucket_of_user
from coupon_service.model.codes import bucket_of
from coupon_service.store.pipeline import Pipeline
from coupon_service.store.rows import (
    INSERT_EVENTS,
    bucket_of_event_row,
    event_arrays,
    int_array,
    text_array,
    time_array,
    uuid_array,
)


def apply(pipeline: Pipeline, effects: WriteSet, books: Mapping[UUID, Book]) -> None:
    """Adds what writes the effects, in the order that all batches lock: codes, links, users, …"""
    if not effects.events:
        return
    if effects.codes:
        _update_codes(pipeline, effects, books)
    if effects.assignments:
        _write_assignments(pipeline, effects, books)
    if effects.users:
        _update_users(pipeline, effects, books)
    if effects.totals:
        _update_totals(pipeline, effects, books)
    if effects.stats:
        _add_stats(pipeline, effects)
    pipeline.add(INSERT_EVENTS, event_arrays(effects.events))


# Counts are added to and never set, and a limit is written with what was counted against it: a
# decision on stale rows could not get past the CHECKs of the table.
UPDATE_CODES: Final = """
UPDATE coupon_codes AS c
SET state = d.state,
    redemptions = c.redemptions + d.redemptions,
    assignments = c.assignments + d.assignments,
    redemption_limit = CASE WHEN d.redemptions > 0 THEN d.redemption_limit
                            ELSE c.redemption_limit END
FROM unnest(%s::smallint[], %s::text[], %s::smallint[], %s::integer[], %s::integer[],
            %s::integer[])
     AS d (bucket, code, state, redemptions, assignments, redemption_limit)
WHERE c.bucket = d.bucket AND c.code = d.code
"""


def _update_codes(pipeline: Pipeline, effects: WriteSet, books: Mapping[UUID, Book]) -> None:
    changes = list(effects.codes.values())
    pipeline.add(
        UPDATE_CODES,
        (
            int_array([bucket_of(after.code) for _, after in changes]),
            text_array([after.code for _, after in changes]),
            int_array([after.state for _, after in changes]),
            int_array([after.redemptions - before.redemptions for before, after in changes]),
            int_array([after.assignments - before.assignments for before, after in changes]),
            int_array(
                [books[after.book_id].limits.max_redemptions_per_code for _, after in changes]
            ),
        ),
    )


INSERT_ASSIGNMENTS: Final = """
INSERT INTO coupon_assignments (
    bucket, code, user_id, book_id, state, redemptions, redemption_limit, fence, assign_time,
    expire_time, metadata)
SELECT * FROM unnest(%s::smallint[], %s::text[], %s::text[], %s::uuid[], %s::smallint[],
                     %s::integer[], %s::integer[], %s::bigint[], %s::timestamptz[],
                     %s::timestamptz[], %s::jsonb[])
"""
UPDATE_ASSIGNMENTS: Final = """
UPDATE coupon_assignments AS a
SET state = d.state,
    redemptions = a.redemptions + d.redemptions,
    redemption_limit = CASE WHEN d.redemptions > 0 THEN d.redemption_limit
                            ELSE a.redemption_limit END,
    fence = d.fence,
    assign_time = d.assign_time,
    expire_time = d.expire_time,
    metadata = d.metadata
FROM unnest(%s::smallint[], %s::text[], %s::text[], %s::uuid[], %s::smallint[], %s::integer[],
            %s::integer[], %s::bigint[], %s::timestamptz[], %s::timestamptz[], %s::jsonb[])
     AS d (bucket, code, user_id, book_id, state, redemptions, redemption_limit, fence,
           assign_time, expire_time, metadata)
WHERE a.bucket = d.bucket AND a.code = d.code AND a.user_id = d.user_id
"""


def _write_assignments(pipeline: Pipeline, effects: WriteSet, books: Mapping[UUID, Book]) -> None:
    # Two statements: the counts of an update are differences, which the CHECKs of an insert refuse.
    changes = effects.assignments.values()
    new = [(after, after.redemptions) for before, after in changes if before is None]
    changed = [
        (after, after.redemptions - before.redemptions) for before, after in changes if before
    ]
    if new:
        pipeline.add(INSERT_ASSIGNMENTS, _assignment_arrays(new, books))
    if changed:
        pipeline.add(UPDATE_ASSIGNMENTS, _assignment_arrays(changed, books))


def _assignment_arrays(
    rows: Sequence[tuple[Assignment, int]], books: Mapping[UUID, Book]
) -> tuple[str, ...]:
    """The rows, each with what is added to its redemptions, as parameters of the statements."""
    limits = [books[row.book_id].limits for row, _ in rows]
    return (
        int_array([bucket_of(row.code) for row, _ in rows]),
        text_array([row.code for row, _ in rows]),
        text_array([row.user_id for row, _ in rows]),
        uuid_array([row.book_id for row, _ in rows]),
        int_array([row.state for row, _ in rows]),
        int_array([redemptions for _, redemptions in rows]),
        int_array([limit.max_redemptions_per_user_per_code for limit in limits]),
        int_array([row.fence for row, _ in rows]),
        time_array([row.assign_time for row, _ in rows]),
        time_array([row.expire_time for row, _ in rows]),
        text_array([row.metadata for row, _ in rows]),
    )


UPDATE_USERS: Final = """
UPDATE coupon_user_counters AS u
SET redemptions = u.redemptions + d.redemptions,
    redemption_limit = CASE WHEN d.redemptions > 0 THEN d.redemption_limit
                            ELSE u.redemption_limit END,
    assignments = u.assignments + d.assignments,
    assignment_limit = CASE WHEN d.assignments > 0 THEN d.assignment_limit
                            ELSE u.assignment_limit END
FROM unnest(%s::smallint[], %s::uuid[], %s::text[], %s::integer[], %s::integer[], %s::integer[],
            %s::integer[])
     AS d (bucket, book_id, user_id, redemptions, redemption_limit, assignments, assignment_limit)
WHERE u.bucket = d.bucket AND u.book_id = d.book_id AND u.user_id = d.user_id
"""


def _update_users(pipeline: Pipeline, effects: WriteSet, books: Mapping[UUID, Book]) -> None:
    keys = list(effects.users)
    changes = list(effects.users.values())
    limits = [books[book_id].limits for book_id, _ in keys]
    pipeline.add(
        UPDATE_USERS,
        (
            int_array([bucket_of_user(user_id) for _, user_id in keys]),
            uuid_array([book_id for book_id, _ in keys]),
            text_array([user_id for _, user_id in keys]),
            int_array([after.redemptions - before.redemptions for before, after in changes]),
            int_array([limit.max_redemptions_per_user for limit in limits]),
            int_array([after.assignments - before.assignments for before, after in changes]),
            int_array([limit.max_assignments_per_user for limit in limits]),
        ),
    )


UPDATE_TOTALS: Final = """
UPDATE coupon_book_totals AS t
SET redemptions = t.redemptions + d.redemptions,
    redemption_limit = CASE WHEN d.redemptions > 0 THEN d.redemption_limit
                            ELSE t.redemption_limit END
FROM unnest(%s::uuid[], %s::bigint[], %s::bigint[]) AS d (book_id, redemptions, redemption_limit)
WHERE t.book_id = d.book_id
"""


def _update_totals(pipeline: Pipeline, effects: WriteSet, books: Mapping[UUID, Book]) -> None:
    changes = effects.totals
    pipeline.add(
        UPDATE_TOTALS,
        (
            uuid_array(changes),
            int_array([after - before for before, after in changes.values()]),
            int_array([books[book_id].limits.max_redemptions for book_id in changes]),
        ),
    )


ADD_STATS: Final = """
INSERT INTO coupon_book_counters AS s (
    book_id, bucket, available, assigned, redeemed, disabled, assignments, redemptions, rollbacks,
    discount_minor)
SELECT * FROM unnest(%s::uuid[], %s::smallint[], %s::bigint[], %s::bigint[], %s::bigint[],
                     %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[])
ON CONFLICT (book_id, bucket) DO UPDATE
SET available = s.available + excluded.available,
    assigned = s.assigned + excluded.assigned,
    redeemed = s.redeemed + excluded.redeemed,
    disabled = s.disabled + excluded.disabled,
    assignments = s.assignments + excluded.assignments,
    redemptions = s.redemptions + excluded.redemptions,
    rollbacks = s.rollbacks + excluded.rollbacks,
    discount_minor = s.discount_minor + excluded.discount_minor
"""


def _add_stats(pipeline: Pipeline, effects: WriteSet) -> None:
    buckets: dict[UUID, int] = {}
    for event in effects.events:
        buckets.setdefault(event.book_id, bucket_of_event_row(event))
    rows = sorted((book_id, buckets[book_id], stats) for book_id, stats in effects.stats.items())
    stats = [stats for _, _, stats in rows]
    pipeline.add(
        ADD_STATS,
        (
            uuid_array([book_id for book_id, _, _ in rows]),
            int_array([bucket for _, bucket, _ in rows]),
            int_array([it.available for it in stats]),
            int_array([it.assigned for it in stats]),
            int_array([it.redeemed for it in stats]),
            int_array([it.disabled for it in stats]),
            int_array([it.assignments for it in stats]),
            int_array([it.redemptions for it in stats]),
            int_array([it.rollbacks for it in stats]),
            int_array([it.discount_minor for it in stats]),
        ),
    )
