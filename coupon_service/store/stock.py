"""What books with a threshold have left, and the level that the ledger has of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from coupon_service.model import (
    BookLimits,
    BookState,
    Event,
    EventType,
    StockLevel,
    bucket_of_book,
    event_id,
)
from coupon_service.rules import crossed, stock_left, stock_level
from coupon_service.store.events import insert_events
from coupon_service.store.pipeline import Connection

CALLER: Final = "stock watch"


@dataclass(frozen=True, slots=True)
class Stock:
    """What a book has left. `recorded`: the level it had at the last of its `changes`."""

    book_id: UUID
    threshold: int
    left: int
    recorded: StockLevel
    changes: int

    @property
    def level(self) -> StockLevel:
        """The level that it has now."""
        return stock_level(self.left, self.threshold)


# A book that never had a code is being prepared. One that has not begun yet counts as well: that is
# the time to make more codes.
SELECT_STOCKS: Final = """
SELECT book.book_id, book.low_threshold, book.max_redemptions, book.max_redemptions_per_code,
    counted.available, coalesce(total.redemptions, 0), coalesce(recorded.level, 1),
    coalesce(recorded.changes, 0)
FROM coupon_books AS book
CROSS JOIN LATERAL (
    SELECT sum(available)::bigint AS available,
        sum(available + assigned + redeemed + disabled) AS codes
    FROM coupon_book_counters AS counter WHERE counter.book_id = book.book_id
) AS counted
LEFT JOIN coupon_book_totals AS total USING (book_id)
LEFT JOIN coupon_book_levels AS recorded USING (book_id)
WHERE book.low_threshold > 0 AND book.state = 2
    AND (book.end_time IS NULL OR book.end_time > %s) AND counted.codes > 0
"""


async def select_stocks(connection: Connection, now: datetime) -> list[Stock]:
    """What the books that are ACTIVE, not over, and have a threshold and codes have left."""
    cursor = await connection.execute(SELECT_STOCKS, [now])
    stocks: list[Stock] = []
    for (
        book_id,
        threshold,
        total,
        per_code,
        available,
        redemptions,
        *recorded,
    ) in await cursor.fetchall():
        limits = BookLimits(max_redemptions=total, max_redemptions_per_code=per_code)
        left = stock_left(limits, available, redemptions)
        stocks.append(Stock(book_id, threshold, left, StockLevel(recorded[0]), recorded[1]))
    return stocks


# Of several who have found the same change, the first changes the row and the others do not.
CHANGE_LEVEL: Final = """
INSERT INTO coupon_book_levels AS recorded (book_id, level, changes)
VALUES (%(book_id)s, %(level)s, 1)
ON CONFLICT (book_id) DO UPDATE SET level = excluded.level, changes = recorded.changes + 1
WHERE recorded.changes = %(changes)s
"""


async def record_level(connection: Connection, stock: Stock, now: datetime) -> Sequence[EventType]:
    """Records that the book has come to another level, once; returns the events it wrote.

    In a transaction.
    """
    parameters = {"book_id": stock.book_id, "level": stock.level, "changes": stock.changes}
    cursor = await connection.execute(CHANGE_LEVEL, parameters)
    if not cursor.rowcount:
        return ()
    types = crossed(stock.recorded, stock.level)
    if types:
        await insert_events(connection, [_event(stock, it, now) for it in types])
    return types


def _event(stock: Stock, event_type: EventType, now: datetime) -> Event:
    bucket, change = bucket_of_book(stock.book_id), stock.changes + 1
    # Both at once come in this order also where events are listed by their time.
    later = timedelta(microseconds=event_type is EventType.BOOK_USED_UP)
    return Event(
        event_id=event_id(bucket, event_type, stock.book_id, change),
        type=event_type,
        event_time=now + later,
        book_id=stock.book_id,
        caller=CALLER,
        peer="",
        user_agent="",
        request_id=f"level-{change}",
        fingerprint=0,
        state_before=BookState.ACTIVE,
        state_after=BookState.ACTIVE,
        metadata=json.dumps({"left": stock.left, "threshold": stock.threshold}),
    )


LEDGER_LAG: Final = """
SELECT coalesce(extract(epoch FROM clock_timestamp() - min(xact_start)), 0)::float8
FROM pg_stat_activity
WHERE datname = current_database() AND backend_xid IS NOT NULL
"""


async def ledger_lag_s(connection: Connection) -> float:
    """The age of the oldest transaction that writes: events older than that are all to be seen.

    Whoever reads the ledger in order cannot go beyond it. Only transactions of the same PostgreSQL
    user count, or of all for a member of pg_read_all_stats.
    """
    cursor = await connection.execute(LEDGER_LAG)
    row = await cursor.fetchone()
    return row[0] if row else 0.0
