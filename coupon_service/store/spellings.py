"""How codes were written when they were uploaded: a row for each that is stored otherwise."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final, LiteralString

from coupon_service.model.codes import bucket_of
from coupon_service.store.arrays import int_array, text_array
from coupon_service.store.pipeline import Connection, Pipeline, Rows
from coupon_service.store.rows import SHOWN_CODES
from coupon_service.store.scopes import ScopedCode
from coupon_service.store.terms import OF_CODE

SELECT_SHOWN_CODES: Final[LiteralString] = f"""
SELECT {SHOWN_CODES.selected}
FROM unnest(%s::smallint[], %s::text[], %s::bigint[]) AS wanted (bucket, code, own_scope)
JOIN coupon_codes AS c USING (bucket, code)
LEFT JOIN coupon_code_spellings USING (bucket, code, scope)
CROSS JOIN LATERAL (SELECT {OF_CODE} AS terms) AS own
WHERE c.scope = ANY(ARRAY[0, own_scope])
"""


def select_shown_codes(pipeline: Pipeline, codes: Collection[ScopedCode]) -> Rows:
    """Adds what reads the codes, with their spellings and terms; also those that are unique over
    all businesses."""
    return pipeline.add(SELECT_SHOWN_CODES, _arrays(codes))


def _arrays(codes: Collection[ScopedCode]) -> tuple[str, str, str]:
    names = [code for code, _ in codes]
    scopes = int_array([scope for _, scope in codes])
    return int_array(map(bucket_of, names)), text_array(names), scopes


SELECT_SPELLINGS: Final = """
SELECT code, s.scope, spelling
FROM unnest(%s::smallint[], %s::text[], %s::bigint[]) AS wanted (bucket, code, own_scope)
JOIN coupon_code_spellings AS s USING (bucket, code)
WHERE s.scope = ANY(ARRAY[0, own_scope])
"""


def select_spellings(pipeline: Pipeline, codes: Collection[ScopedCode]) -> Rows:
    """Adds what reads the spellings of those codes that have one, each with its scope."""
    return pipeline.add(SELECT_SPELLINGS, _arrays(codes))


INSERT_SPELLINGS: Final = """
INSERT INTO coupon_code_spellings (scope, bucket, code, spelling)
SELECT %s, made.* FROM unnest(%s::smallint[], %s::text[], %s::text[]) AS made
"""


async def insert_spellings(
    connection: Connection, scope: int, spellings: Mapping[str, str]
) -> None:
    """Stores the spellings of codes of this scope that this transaction has made."""
    parameters = (
        scope,
        int_array(map(bucket_of, spellings)),
        text_array(spellings),
        text_array(spellings.values()),
    )
    await connection.execute(INSERT_SPELLINGS, parameters)
