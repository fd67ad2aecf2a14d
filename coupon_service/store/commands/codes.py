"""Codes and their books: locked and read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final, LiteralString
from uuid import UUID

from psycopg.rows import TupleRow

from coupon_service.model import State
from coupon_service.model.scopes import scope_of_book
from coupon_service.store.arrays import int_array, text_array, uuid_array
from coupon_service.store.erasures import ERASURES
from coupon_service.store.pipeline import Pipeline, Rows
from coupon_service.store.rows import BOOKS, CODES, book_from_row, code_from_row
from coupon_service.store.scopes import SOLE_BUSINESS
from coupon_service.store.terms import terms_by_code

CodeRowKey = tuple[int, str, int]
"""A bucket, a code, and its scope, if that is a business."""

# A code of the scope that is wanted, or one that is unique over all businesses.
SELECT_CODES: Final[LiteralString] = f"""
SELECT {CODES.selected}
FROM unnest(%s::smallint[], %s::text[], %s::bigint[]) AS wanted (bucket, code, own_scope)
JOIN coupon_codes AS c USING (bucket, code)
WHERE c.scope = ANY(ARRAY[0, own_scope])
"""
LOCK_CODES: Final[LiteralString] = (
    SELECT_CODES + "ORDER BY c.bucket, c.code, c.scope FOR NO KEY UPDATE OF c"
)


def select_codes(pipeline: Pipeline, keys: Sequence[CodeRowKey], *, lock: bool) -> Rows:
    """Adds what reads codes, in the order that all batches lock."""
    return pipeline.add(LOCK_CODES if lock else SELECT_CODES, key_arrays(keys))


def key_arrays(keys: Sequence[CodeRowKey]) -> tuple[str, str, str]:
    """The keys of codes, as parameters of SELECT_CODES."""
    return (
        int_array([bucket for bucket, _, _ in keys]),
        text_array([code for _, code, _ in keys]),
        int_array([scope for _, _, scope in keys]),
    )


# For a code that does not exist any book is read, which nobody looks at: else it took less work
# than a code that is hidden. The terms of the codes, $1 and $2, are read here, and only for a book
# that has some: for all others PostgreSQL does not carry out what CASE encloses.
SELECT_BOOKS: Final[LiteralString] = f"""
SELECT {SOLE_BUSINESS}, {ERASURES}, {BOOKS.selected},
    CASE WHEN codes_have_terms THEN (
        SELECT json_agg(of_code)::text
        FROM unnest($1::smallint[], $2::text[]) AS wanted (bucket, code)
        CROSS JOIN LATERAL (
            SELECT * FROM coupon_code_terms AS t
            WHERE t.bucket = wanted.bucket AND t.code = wanted.code
                AND t.book_id = coupon_books.book_id
            LIMIT 1
        ) AS of_code)
    END
FROM coupon_books
WHERE book_id IN (
    SELECT coalesce(
        c.book_id, (SELECT any_book.book_id FROM coupon_books AS any_book ORDER BY 1 LIMIT 1))
    FROM unnest(%s::smallint[], %s::text[], %s::bigint[]) AS wanted (bucket, code, own_scope)
    LEFT JOIN coupon_codes AS c
        ON c.bucket = wanted.bucket AND c.code = wanted.code AND c.scope = ANY(ARRAY[0, own_scope])
    UNION SELECT unnest(%s::uuid[]))
"""


def select_books(pipeline: Pipeline, keys: Sequence[CodeRowKey], books: Iterable[UUID]) -> Rows:
    """Adds what reads the books of codes, with the terms of those, and other books; before each
    book whether there are several businesses, and who is erased."""
    return pipeline.add(SELECT_BOOKS, (*key_arrays(keys), uuid_array(books)))


def put_codes(rows: Iterable[TupleRow], spellings: Iterable[TupleRow], state: State) -> None:
    """Puts codes into the state, as they were uploaded."""
    for row in rows:
        state.put_code(code_from_row(row))
    for code, scope, spelling in spellings:
        # None where it was uploaded between these two statements.
        for book_id in state.names.get(code, ()):
            if scope_of_book(book_id) == scope:
                state.put_code(replace(state.codes[book_id, code], spelling=spelling))


def put_books(rows: Iterable[TupleRow], state: State) -> None:
    """Puts books into the state, and the terms of their codes."""
    for row in rows:
        book = book_from_row(row[2:-1])
        state.books[book.book_id] = book
        for code, terms in terms_by_code(row[-1]):
            if (key := (book.book_id, code)) in state.codes:  # else it is new, as above
                state.put_code(replace(state.codes[key], terms=terms))
