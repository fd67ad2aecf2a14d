"""Events that are written to the ledger by hand, as a version of before numbers would."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final
from uuid import UUID, uuid4

import psycopg

INSERT: Final = """
INSERT INTO redemption_audit (
    event_id, book_id, event_time, fingerprint, bucket, type, code, state_before, state_after,
    caller, peer, user_agent, request_id)
SELECT event_id, %(book_id)s, coalesce(%(event_time)s, now()), 0, 0, 16, %(code)s, %(before)s,
    %(after)s, '', '', '', ''
FROM unnest(%(event_ids)s::uuid[]) AS event_id
"""

BOOK: Final = UUID(int=1)


def write(
    connection: psycopg.Connection[Any],
    count: int = 1,
    *,
    book_id: UUID | str = BOOK,
    code: str = "C",
    event_time: datetime | None = None,
    states: tuple[int, int] = (1, 1),
) -> list[UUID]:
    """Writes so many events in one statement; returns their ids in the order they are written."""
    ids = [uuid4() for _ in range(count)]
    values = {
        "book_id": book_id,
        "event_ids": ids,
        "event_time": event_time,
        "code": code,
        "before": states[0],
        "after": states[1],
    }
    connection.execute(INSERT, values)
    return ids
