"""Random codes: locked without waiting, in a time that does not depend on how many there are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from secrets import randbelow
from typing import Final
from uuid import UUID

from psycopg.rows import TupleRow

from coupon_service.codes import BUCKETS, generate
from coupon_service.model import Book, Code, State
from coupon_service.store.db import Connection, Cursor, send
from coupon_service.store.rows import code_from_row

PICK_IN_BUCKET: Final = """
SELECT code, book_id, state, redemptions, assignments
FROM coupon_codes
WHERE book_id = %s AND state = 1 AND bucket = %s AND code >= %s
ORDER BY code LIMIT %s
FOR NO KEY UPDATE SKIP LOCKED
"""
PICK_AFTER: Final = """
SELECT code, book_id, state, redemptions, assignments
FROM coupon_codes
WHERE book_id = %s AND state = 1 AND (bucket, code) > (%s, %s)
ORDER BY bucket, code LIMIT %s
FOR NO KEY UPDATE SKIP LOCKED
"""
MORE_AVAILABLE: Final = """
SELECT count(*) > %s
FROM (SELECT FROM coupon_codes WHERE book_id = %s AND state = 1 LIMIT %s) AS available
"""


@dataclass(slots=True)
class Pick:
    """Available codes of a book from a random point on, locked; those that others lock are passed.

    One probe of the index in a random bucket is nearly always enough. Where it is not, two more
    go on to the end of the book and round from its beginning: always O(1), however few are left.
    """

    connection: Connection
    book_id: UUID
    count: int
    bucket: int
    start: str
    first: Cursor

    async def read_into(self, state: State) -> None:
        """Puts the codes into the state, and whether others had all that there are locked."""
        found: dict[str, Code] = {}
        self._take(await self.first.fetchall(), found)
        for bucket, start in ((self.bucket, self.start), (-1, "")):
            missing = self.count - len(found)
            if missing <= 0:
                break
            rows = await send(
                self.connection, PICK_AFTER, (self.book_id, bucket, start, self.count)
            )
            self._take((await rows.fetchall())[: self.count], found)
        state.codes.update(found)
        state.picks[self.book_id] = list(found)
        if len(found) < self.count:
            own = len(found)
            rows = await send(self.connection, MORE_AVAILABLE, (own, self.book_id, own + 1))
            if await rows.fetchone() == (True,):
                state.picks_contended |= {self.book_id}

    @staticmethod
    def _take(rows: Iterable[TupleRow], found: dict[str, Code]) -> None:
        for row in rows:
            found.setdefault(row[0], code_from_row(row))


async def pick_codes(connection: Connection, book_id: UUID, count: int, book: Book | None) -> Pick:
    """Sends the first probe. `book`: for a start that its codes are spread around."""
    bucket = randbelow(BUCKETS)
    start = generate(book.code_format, 1)[0] if book is not None else ""
    rows = await send(connection, PICK_IN_BUCKET, (book_id, bucket, start, count))
    return Pick(connection, book_id, count, bucket, start, rows)
