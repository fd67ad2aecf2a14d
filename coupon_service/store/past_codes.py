"""Codes that a CLOSED book had, and another book of its business has now.

What they were in the CLOSED book goes to coupon_past_codes; the other book gets the row of
coupon_codes. Whoever changes a past code has that row locked, so that past codes need no locks.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, LiteralString

from coupon_service.model import CodeKey
from coupon_service.model.codes import bucket_of
from coupon_service.store.arrays import int_array, text_array, uuid_array
from coupon_service.store.pipeline import Pipeline, Rows
from coupon_service.store.rows import SHOWN_CODES
from coupon_service.store.terms import OF_CODE

SELECT_PAST_CODES: Final[LiteralString] = f"""
SELECT {SHOWN_CODES.selected}
FROM unnest(%s::smallint[], %s::text[], %s::uuid[]) AS wanted (bucket, code, book_id)
JOIN coupon_past_codes AS c USING (bucket, code, book_id)
CROSS JOIN LATERAL (SELECT {OF_CODE} AS terms) AS own
"""


def select_past_codes(pipeline: Pipeline, keys: Collection[CodeKey]) -> Rows:
    """Adds what reads those of the codes that these books had."""
    codes = [code for _, code in keys]
    arrays = int_array(map(bucket_of, codes)), text_array(codes)
    return pipeline.add(SELECT_PAST_CODES, (*arrays, uuid_array(book for book, _ in keys)))
