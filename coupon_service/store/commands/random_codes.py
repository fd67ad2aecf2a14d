"""Candidates for random assignments: locked without waiting, in a time that does not depend on how
many codes there are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from secrets import randbelow
from typing import Final, LiteralString
from uuid import UUID

from psycopg.rows import TupleRow

from coupon_service.model import Book, Code, State
from coupon_service.model.codes import BUCKETS, generate
from coupon_service.store.pipeline import Pipeline, Rows
from coupon_service.store.rows import CODES, shown_code_from_row
from coupon_service.store.terms import OF_CODE

SPELLING: Final = """
    (SELECT spelling FROM coupon_code_spellings AS s
     WHERE s.bucket = c.bucket AND s.code = c.code AND s.scope = c.scope)"""

# $1 is the book, $2 the time, $3 the bucket, $4 a code, $5 how many. Whether codes of the book have
# terms is asked once, so that one without them is spared the rest. A code that is past its end is
# passed over: it would be of no use.
_HAVE_TERMS: Final = "(SELECT codes_have_terms FROM coupon_books AS b WHERE b.book_id = $1)"
_CANDIDATES: Final[LiteralString] = f"""
SELECT {CODES.selected},{SPELLING},
    CASE WHEN {_HAVE_TERMS} THEN {OF_CODE} END
FROM coupon_codes AS c
WHERE book_id = $1 AND state = 1 AND (NOT {_HAVE_TERMS} OR coalesce($2::timestamptz < (
    SELECT t.end_time FROM coupon_code_terms AS t
    WHERE t.bucket = c.bucket AND t.code = c.code AND t.book_id = c.book_id), true))
"""
CANDIDATES_IN_BUCKET: Final[LiteralString] = f"""
{_CANDIDATES} AND bucket = $3 AND code >= $4
ORDER BY code LIMIT $5
FOR NO KEY UPDATE SKIP LOCKED
"""
CANDIDATES_AFTER: Final[LiteralString] = f"""
{_CANDIDATES} AND (bucket, code) > ($3, $4)
ORDER BY bucket, code LIMIT $5
FOR NO KEY UPDATE SKIP LOCKED
"""
MORE_AVAILABLE: Final[LiteralString] = f"""
SELECT count(*) > $3
FROM (SELECT FROM ({_CANDIDATES}) AS usable LIMIT $4) AS available
"""


@dataclass(slots=True)
class Candidates:
    """Available codes of a book from a random point on, locked; those that others lock are passed.

    One probe of the index in a random bucket is nearly always enough. Where it is not, two more
    go on to the end of the book and round from its beginning: always O(1), however few are left.
    """

    pipeline: Pipeline
    book_id: UUID
    now: str
    count: int
    bucket: int
    start: str
    first: Rows

    async def read_into(self, state: State) -> None:
        """Puts the codes into the state, and whether others had all that there are locked."""
        found: dict[str, Code] = {}
        self._take(self.first, found)
        for bucket, start in ((self.bucket, self.start), (-1, "")):
            missing = self.count - len(found)
            if missing <= 0:
                break
            after = (self.book_id.hex, self.now, bucket, start, self.count)
            rows = self.pipeline.add(CANDIDATES_AFTER, after)
            await self.pipeline.run()
            self._take(rows[: self.count], found)
        for code in found.values():
            state.put_code(code)
        state.candidates[self.book_id] = list(found)
        if len(found) < self.count:
            own = len(found)
            more = self.pipeline.add(MORE_AVAILABLE, (self.book_id.hex, self.now, own, own + 1))
            await self.pipeline.run()
            if more == [(True,)]:
                state.candidates_contended |= {self.book_id}

    @staticmethod
    def _take(rows: Iterable[TupleRow], found: dict[str, Code]) -> None:
        for row in rows:
            found.setdefault(row[0], shown_code_from_row(row))


def lock_candidates(
    pipeline: Pipeline, book_id: UUID, count: int, book: Book | None, now: datetime
) -> Candidates:
    """Adds the first probe. `book`: for a start that its codes are spread around."""
    bucket, time = randbelow(BUCKETS), now.isoformat()
    start = generate(book.code_format, 1)[0] if book is not None else ""
    rows = pipeline.add(CANDIDATES_IN_BUCKET, (book_id.hex, time, bucket, start, count))
    return Candidates(pipeline, book_id, time, count, bucket, start, rows)
