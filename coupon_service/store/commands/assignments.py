"""Assignments: read and put into the state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, LiteralString
from uuid import UUID

from psycopg.rows import TupleRow

from coupon_service.model import State
from coupon_service.model.codes import bucket_of
from coupon_service.store.arrays import int_array, text_array
from coupon_service.store.pipeline import Pipeline, Rows
from coupon_service.store.rows import ASSIGNMENTS, assignment_from_row

SELECT_ASSIGNMENTS: Final[LiteralString] = f"""
SELECT {ASSIGNMENTS.selected}
FROM unnest(%s::smallint[], %s::text[], %s::text[]) AS wanted (bucket, code, user_id)
JOIN coupon_assignments USING (bucket, code, user_id)
"""


def select_assignments(pipeline: Pipeline, keys: Iterable[tuple[str, str]]) -> Rows:
    """Adds what reads the assignments of codes to users."""
    keys = list(keys)
    codes = [code for code, _ in keys]
    users = [user_id for _, user_id in keys]
    parameters = int_array(map(bucket_of, codes)), text_array(codes), text_array(users)
    return pipeline.add(SELECT_ASSIGNMENTS, parameters)


# What users who get a random code had to do with the candidates before: one may have been revoked.
SELECT_CANDIDATE_ASSIGNMENTS: Final[LiteralString] = f"""
SELECT {ASSIGNMENTS.selected}
FROM unnest(%s::smallint[], %s::text[]) AS wanted (candidate_bucket, candidate_code)
CROSS JOIN LATERAL (
    SELECT * FROM coupon_assignments
    WHERE bucket = wanted.candidate_bucket AND code = wanted.candidate_code
    AND user_id = ANY(%s::text[])
    OFFSET 0  -- code by code
) AS assignment
"""


def select_candidate_assignments(
    pipeline: Pipeline,
    candidates: Mapping[UUID, Sequence[str]],
    users: Iterable[tuple[UUID, str]],
) -> Rows:
    """Adds what reads the assignments of candidates, by book, to users of books."""
    codes = [code for of_book in candidates.values() for code in of_book]
    arrays = int_array(map(bucket_of, codes)), text_array(codes)
    user_ids = text_array({user_id for _, user_id in users})
    return pipeline.add(SELECT_CANDIDATE_ASSIGNMENTS, (*arrays, user_ids))


def put_assignments(rows: Iterable[TupleRow], state: State) -> None:
    """Puts assignments into the state."""
    for row in rows:
        assignment = assignment_from_row(row)
        state.assignments[assignment.key] = assignment
