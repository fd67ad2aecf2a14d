"""How codes were written when they were uploaded: a row for each that is stored otherwise."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final, LiteralString

from coupon_service.model.codes import bucket_of
from coupon_service.store.arrays import int_array, text_array
from coupon_service.store.pipeline import Connection, Pipeline, Rows
from coupon_service.store.rows import SHOWN_CODES
from coupon_service.store.terms import OF_CODE

SELECT_SHOWN_CODES: Final[LiteralString] = f"""
SELECT {SHOWN_CODES.selected}
FROM unnest(%s::smallint[], %s::text[]) AS wanted (bucket, code)
JOIN coupon_codes AS c USING (bucket, code)
LEFT JOIN coupon_code_spellings USING (bucket, code)
CROSS JOIN LATERAL (SELECT {OF_CODE} AS terms) AS own
"""


def select_shown_codes(pipeline: Pipeline, codes: Collection[str]) -> Rows:
    """Adds what reads the codes, with their spellings and terms."""
    return pipeline.add(SELECT_SHOWN_CODES, (int_array(map(bucket_of, codes)), text_array(codes)))


SELECT_SPELLINGS: Final = """
SELECT code, spelling
FROM unnest(%s::smallint[], %s::text[]) AS wanted (bucket, code)
JOIN coupon_code_spellings USING (bucket, code)
"""


def select_spellings(pipeline: Pipeline, codes: Collection[str]) -> Rows:
    """Adds what reads the spellings of those codes that have one."""
    return pipeline.add(SELECT_SPELLINGS, (int_array(map(bucket_of, codes)), text_array(codes)))


INSERT_SPELLINGS: Final = """
INSERT INTO coupon_code_spellings (bucket, code, spelling)
SELECT * FROM unnest(%s::smallint[], %s::text[], %s::text[])
"""


async def insert_spellings(connection: Connection, spellings: Mapping[str, str]) -> None:
    """Stores the spellings of codes that this transaction has made."""
    parameters = (
        int_array(map(bucket_of, spellings)),
        text_array(spellings),
        text_array(spellings.values()),
    )
    await connection.execute(INSERT_SPELLINGS, parameters)
