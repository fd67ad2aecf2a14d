"""The ledger in the order in which it is followed: first the events of before there were numbers,
by time, then the others, by number.

A page is a window of the ledger, of which the filter picks events, so that whoever wants few of
them moves on as well, at a bounded cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, LiteralString
from uuid import UUID

from coupon_service.model import Event, EventType
from coupon_service.model.normalization import id_spellings
from coupon_service.store.arrays import int_array, text_array
from coupon_service.store.events import PLAN_FOR_PAGES, AuditFilter, listed
from coupon_service.store.pipeline import Connection
from coupon_service.store.rows import EVENTS, event_from_row

WINDOW: Final = 1_000
"""Events that a page looks at."""

CLOCKS_DIFFER: Final = timedelta(hours=1)
"""By how much an event may have an earlier time than one with a lower number: clocks of replicas
differ, and transactions take their time."""

NO_EVENT: Final = UUID(int=0)
FIRST_TIME: Final = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class LedgerPosition:
    """After which event to go on: one with a `sequence`, or, where that is 0, one with this time.

    `event_id`: of that event, by which it is told from another one that got its number later.
    """

    sequence: int = 0
    time: datetime = FIRST_TIME
    event_id: UUID = NO_EVENT

    @property
    def is_numbered(self) -> bool:
        """Whether all events without numbers are before it."""
        return self.sequence > 0


BEGINNING: Final = LedgerPosition()


@dataclass(frozen=True, slots=True)
class LedgerPage:
    """Events in order, and where to go on. `is_last`: there are no more that are complete."""

    events: Sequence[Event]
    end: LedgerPosition
    is_last: bool


_MATCHES: Final[LiteralString] = """
    event_time >= %(start_time)s AND event_time < %(end_time)s
    AND type = ANY(%(types)s::smallint[])
    AND (%(book_id)s::uuid IS NULL OR book_id = %(book_id)s)
    AND (%(code)s = '' OR code = %(code)s)
    AND (%(user_ids)s::text[] = '{""}' OR user_id = ANY(%(user_ids)s::text[]))
    AND (%(order_ids)s::text[] = '{""}' OR order_id = ANY(%(order_ids)s::text[]))
    AND (%(business_id)s = '' OR EXISTS (
        SELECT FROM coupon_books AS book
        WHERE book.book_id = seen.book_id AND book.business_id = %(business_id)s))
"""

NUMBERED: Final[LiteralString] = f"""
WITH seen AS MATERIALIZED (
    SELECT * FROM redemption_audit
    WHERE sequence > %(after)s AND sequence <= %(complete)s
    ORDER BY sequence
    LIMIT %(window)s
), counted AS (SELECT count(*) AS count, max(sequence) AS last FROM seen)
SELECT {EVENTS.selected}, ({_MATCHES}), counted.count
FROM seen, counted
WHERE sequence = counted.last OR ({_MATCHES})
ORDER BY sequence
"""

UNNUMBERED: Final[LiteralString] = f"""
WITH seen AS MATERIALIZED (
    SELECT * FROM redemption_audit
    WHERE sequence IS NULL AND (event_time, event_id) > (%(time)s, %(id)s)
    ORDER BY event_time, event_id
    LIMIT %(window)s
), counted AS (SELECT count(*) AS count FROM seen)
SELECT {EVENTS.selected}, ({_MATCHES}), counted.count
FROM seen, counted
ORDER BY event_time, event_id
"""


async def select_followed(
    connection: Connection, wanted: AuditFilter, after: LedgerPosition, complete: int
) -> LedgerPage:
    """The next page of what is complete up to a number. In a transaction."""
    await connection.execute(PLAN_FOR_PAGES)
    parameters = {**_parameters(wanted), "window": WINDOW}
    if not after.is_numbered:
        position = {"time": after.time, "id": after.event_id}
        cursor = await connection.execute(UNNUMBERED, {**parameters, **position})
        if rows := await cursor.fetchall():
            events, last = _read(rows)
            return LedgerPage(events, position_after(last), is_last=False)
    numbers = {"after": after.sequence, "complete": complete}
    cursor = await connection.execute(NUMBERED, {**parameters, **numbers})
    if rows := await cursor.fetchall():
        events, last = _read(rows)
        return LedgerPage(events, position_after(last), is_last=rows[0][-1] < WINDOW)
    return LedgerPage((), after, is_last=True)


def _read(rows: Sequence[tuple[Any, ...]]) -> tuple[list[Event], Event]:
    """The events that match, and the last that was looked at."""
    events = [(event_from_row(row[:-2]), row[-2]) for row in rows]
    return [listed(event) for event, matches in events if matches], events[-1][0]


def position_after(event: Event) -> LedgerPosition:
    """Where to go on after this event."""
    if event.sequence is None:
        return LedgerPosition(0, event.event_time, event.event_id)
    return LedgerPosition(event.sequence, FIRST_TIME, event.event_id)


def _parameters(wanted: AuditFilter) -> dict[str, Any]:
    return {
        "business_id": wanted.business_id,
        "book_id": wanted.book_id,
        "code": wanted.code,
        "user_ids": text_array(id_spellings(wanted.user_id)),
        "order_ids": text_array(id_spellings(wanted.order_id)),
        "types": int_array(wanted.types or tuple(EventType)),
        "start_time": wanted.start_time or FIRST_TIME,
        "end_time": wanted.end_time or datetime.max.replace(tzinfo=UTC),
    }


# --- positions ----------------------------------------------------------------------------------

LAST_COMPLETE: Final = """
SELECT sequence, event_id FROM redemption_audit
WHERE sequence <= %s ORDER BY sequence DESC LIMIT 1
"""


async def select_end(connection: Connection, complete: int) -> LedgerPosition:
    """After the last event that is complete; where none has a number, the beginning."""
    cursor = await connection.execute(LAST_COMPLETE, [complete])
    row = await cursor.fetchone()
    return BEGINNING if row is None else LedgerPosition(row[0], FIRST_TIME, row[1])


AT_OR_ABOVE: Final = """
SELECT sequence, event_time FROM redemption_audit
WHERE sequence >= %s AND sequence <= %s ORDER BY sequence LIMIT 1
"""


async def select_start(connection: Connection, time: datetime, complete: int) -> LedgerPosition:
    """Before the first event of this time, or somewhat earlier. By halving, since numbers and times
    rise together but for CLOCKS_DIFFER."""
    before = max(time, FIRST_TIME + CLOCKS_DIFFER) - CLOCKS_DIFFER
    low, high = 0, complete  # all up to `low` are earlier than that, some above `high` may be
    while low < high:
        middle = (low + high) // 2 + 1
        cursor = await connection.execute(AT_OR_ABOVE, [middle, high])
        row = await cursor.fetchone()
        if row is None or row[1] >= before:
            high = middle - 1
        else:
            low = row[0]
    position = await select_end(connection, low) if low else BEGINNING
    return position if position.is_numbered else replace(BEGINNING, time=before)


SELECT_NUMBERED: Final = "SELECT event_id FROM redemption_audit WHERE sequence = %s"


async def is_there(connection: Connection, position: LedgerPosition) -> bool:
    """Whether the number of the position has the event that it had, or none, as one that was
    archived."""
    if not position.is_numbered:
        return True
    cursor = await connection.execute(SELECT_NUMBERED, [position.sequence])
    row = await cursor.fetchone()
    return row is None or row[0] == position.event_id
