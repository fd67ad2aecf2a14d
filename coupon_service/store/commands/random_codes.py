"""Candidates for random assignments: locked without waiting, in a time that does not depend on how
many codes there are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from secrets import randbelow
from typing import Final, LiteralString
from uuid import UUID

from psycopg.rows import TupleRow

from coupon_service.model import Book, Code, State
from coupon_service.model.codes import BUCKETS, generate
from coupon_service.store.pipeline import Pipeline, Rows
from coupon_service.store.rows import CODES, shown_code_from_row

SPELLING: Final = """
    (SELECT spelling FROM coupon_code_spellings AS s
     WHERE s.bucket = c.bucket AND s.code = c.code)"""

CANDIDATES_IN_BUCKET: Final[LiteralString] = f"""
SELECT {CODES.selected},{SPELLING}
FROM coupon_codes AS c
WHERE book_id = %s AND state = 1 AND bucket = %s AND code >= %s
ORDER BY code LIMIT %s
FOR NO KEY UPDATE SKIP LOCKED
"""
CANDIDATES_AFTER: Final[LiteralString] = f"""
SELECT {CODES.selected},{SPELLING}
FROM coupon_codes AS c
WHERE book_id = %s AND state = 1 AND (bucket, code) > (%s, %s)
ORDER BY bucket, code LIMIT %s
FOR NO KEY UPDATE SKIP LOCKED
"""
MORE_AVAILABLE: Final = """
SELECT count(*) > %s
FROM (SELECT FROM coupon_codes WHERE book_id = %s AND state = 1 LIMIT %s) AS available
"""


@dataclass(slots=True)
class Candidates:
    """Available codes of a book from a random point on, locked; those that others lock are passed.

    One probe of the index in a random bucket is nearly always enough. Where it is not, two more
    go on to the end of the book and round from its beginning: always O(1), however few are left.
    """

    pipeline: Pipeline
    book_id: UUID
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
            after = (self.book_id.hex, bucket, start, self.count)
            rows = self.pipeline.add(CANDIDATES_AFTER, after)
            await self.pipeline.run()
            self._take(rows[: self.count], found)
        for code in found.values():
            state.put_code(code)
        state.candidates[self.book_id] = list(found)
        if len(found) < self.count:
            own = len(found)
            more = self.pipeline.add(MORE_AVAILABLE, (own, self.book_id.hex, own + 1))
            await self.pipeline.run()
            if more == [(True,)]:
                state.candidates_contended |= {self.book_id}

    @staticmethod
    def _take(rows: Iterable[TupleRow], found: dict[str, Code]) -> None:
        for row in rows:
            found.setdefault(row[0], shown_code_from_row(row))


def lock_candidates(pipeline: Pipeline, book_id: UUID, count: int, book: Book | None) -> Candidates:
    """Adds the first probe. `book`: for a start that its codes are spread around."""
    bucket = randbelow(BUCKETS)
    start = generate(book.code_format, 1)[0] if book is not None else ""
    rows = pipeline.add(CANDIDATES_IN_BUCKET, (book_id.hex, bucket, start, count))
    return Candidates(pipeline, book_id, count, bucket, start, rows)
