"""What codes say for themselves: a row for each that says something, in a table beside the codes.

A row is read as one JSON text, so that statements for all codes carry one column more and no more
than that. `codes_have_terms` of the book says whether there is any.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, LiteralString
from uuid import UUID

from coupon_service.model import (
    AmountOff,
    Benefit,
    CodeTerms,
    Discount,
    PercentOff,
    TieredDiscount,
)
from coupon_service.model.codes import bucket_of
from coupon_service.store.columns import Column, Columns
from coupon_service.store.pipeline import Connection
from coupon_service.store.tiers import tiers_json, tiers_of_json

TermsRow = tuple[UUID, str, CodeTerms]
"""Of a code of a book."""

TERMS: Final = Columns[TermsRow](
    Column("book_id", "uuid", lambda it: it[0]),
    Column("bucket", "smallint", lambda it: bucket_of(it[1])),
    Column("code", "text", lambda it: it[1]),
    Column("max_redemptions", "integer", lambda it: it[2].max_redemptions),
    Column("start_time", "timestamptz", lambda it: it[2].start_time),
    Column("end_time", "timestamptz", lambda it: it[2].end_time),
    Column("discount", "jsonb", lambda it: it[2].discount and json.dumps(_json(it[2].discount))),
    Column("metadata", "jsonb", lambda it: it[2].metadata),
)

INSERT_TERMS: Final[LiteralString] = f"""
INSERT INTO coupon_code_terms (
    {TERMS.names})
SELECT * FROM unnest(
    {TERMS.arrays})
"""

MARK_BOOK: Final = """
UPDATE coupon_books SET codes_have_terms = true WHERE book_id = %s AND NOT codes_have_terms
"""


async def insert_terms(
    connection: Connection, book_id: UUID, terms: Mapping[str, CodeTerms]
) -> None:
    """Stores the terms of codes that this transaction has made."""
    rows = [(book_id, code, it) for code, it in terms.items()]
    await connection.execute(INSERT_TERMS, TERMS.array_parameters(rows))
    await connection.execute(MARK_BOOK, [book_id])


OF_CODE: Final[LiteralString] = """
    (SELECT to_json(t)::text FROM coupon_code_terms AS t
     WHERE t.bucket = c.bucket AND t.code = c.code AND t.book_id = c.book_id)"""
"""The terms of the code of a row c of coupon_codes."""


def terms_from_json(text: str | None) -> CodeTerms | None:
    """The terms of a row as it is read."""
    return _terms(json.loads(text)) if text else None


def terms_by_code(text: str | None) -> Iterable[tuple[str, CodeTerms]]:
    """Codes with their terms, of several rows."""
    return [(row["code"], _terms(row)) for row in json.loads(text)] if text else ()


def _terms(row: Mapping[str, Any]) -> CodeTerms:
    return CodeTerms(
        row["max_redemptions"],
        _time(row["start_time"]),
        _time(row["end_time"]),
        _discount(row["discount"]) if row["discount"] else None,
        json.dumps(row["metadata"]) if row["metadata"] else None,
    )


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text).astimezone(UTC) if text else None


def _json(discount: Discount) -> Mapping[str, Any]:
    match discount:
        case PercentOff(basis_points, max_discount_minor):
            return {"basis_points": basis_points, "max_discount_minor": max_discount_minor}
        case AmountOff(amount_minor):
            return {"amount_minor": amount_minor}
        case Benefit(description):
            return {"benefit": description}
        case TieredDiscount():
            return {"tiers": tiers_json(discount)}


def _discount(row: Mapping[str, Any]) -> Discount:
    match row:
        case {"basis_points": basis_points, "max_discount_minor": max_discount_minor}:
            return PercentOff(basis_points, max_discount_minor)
        case {"amount_minor": amount_minor}:
            return AmountOff(amount_minor)
        case {"tiers": tiers}:
            return tiers_of_json(tiers)
        case _:
            return Benefit(row["benefit"])
