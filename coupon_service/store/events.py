"""The ledger: events are written, found by id or by lock, and listed page by page.

A page is read through the index of the narrowest filter that is given, by a statement of its own;
the other filters only drop rows on the way.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import product
from typing import Any, Final, LiteralString
from uuid import UUID

from coupon_service.model import Event, EventType, bucket_of_event
from coupon_service.model.normalization import id_spellings
from coupon_service.store.arrays import int_array, uuid_array
from coupon_service.store.business_events import newest_events
from coupon_service.store.columns import Column, Columns
from coupon_service.store.keyset import Position, page_of, time_and_id, time_position
from coupon_service.store.pipeline import Connection
from coupon_service.store.rows import EVENTS, WRITTEN, bucket_of_event_row, event_from_row


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFilter:
    """Which events are wanted; all that is set has to hold. Empty texts and tuples: any.

    `business_id`: whose books they are about. `start_time` is inclusive, `end_time` exclusive.
    `own`: it is `user_id` who asks. Only events of that user are read then, so that the time it
    takes tells nothing of what others did with the code, or for the order, that is named.
    """

    business_id: str = ""
    book_id: UUID | None = None
    code: str = ""
    user_id: str = ""
    order_id: str = ""
    types: Sequence[EventType] = ()
    start_time: datetime | None = None
    end_time: datetime | None = None
    own: bool = False


# --- written ------------------------------------------------------------------------------------

EVENT_ROWS: Final = Columns[Event](Column("bucket", "smallint", bucket_of_event_row), *WRITTEN)

INSERT_EVENTS: Final[LiteralString] = f"""
INSERT INTO redemption_audit (
    {EVENT_ROWS.names})
SELECT
    {EVENT_ROWS.unnested}
"""
INSERT_EVENT_ONCE: Final[LiteralString] = (
    INSERT_EVENTS + "ON CONFLICT (event_id) DO NOTHING RETURNING event_id"
)

RECORDED_FINGERPRINT: Final = """
SELECT fingerprint FROM redemption_audit WHERE event_id = %s AND bucket = %s
"""


async def insert_events(connection: Connection, events: Sequence[Event]) -> None:
    """Writes the events to the ledger.

    Raises psycopg's UniqueViolation when one of them is there already.
    """
    await connection.execute(INSERT_EVENTS, EVENT_ROWS.array_parameters(events))


async def insert_event_once(connection: Connection, event: Event) -> bool:
    """Writes the event to the ledger unless it is there; returns whether it was written.

    Waits for another transaction that is writing it.
    """
    cursor = await connection.execute(INSERT_EVENT_ONCE, EVENT_ROWS.array_parameters([event]))
    return await cursor.fetchone() is not None


async def recorded_fingerprint(connection: Connection, *attempts: UUID) -> int | None:
    """The fingerprint of an attempt on a book, by whichever id it was carried out, if it was."""
    for event_id in attempts:
        parameters = (event_id, bucket_of_event(event_id))
        cursor = await connection.execute(RECORDED_FINGERPRINT, parameters)
        if (row := await cursor.fetchone()) is not None:
            return row[0]
    return None


# --- found --------------------------------------------------------------------------------------

# Without the bucket: the id of ASSIGNED does not lead to that of a code that was picked at random.
SELECT_EVENTS_BY_ID: Final[LiteralString] = f"""
SELECT {EVENTS.selected}
FROM unnest(%s::uuid[]) AS wanted (event_id)
JOIN redemption_audit USING (event_id)
"""


async def select_events_by_id(connection: Connection, ids: Iterable[UUID]) -> dict[UUID, Event]:
    """Those of the events that there are."""
    cursor = await connection.execute(SELECT_EVENTS_BY_ID, [uuid_array(ids)])
    return {event.event_id: event for event in map(event_from_row, await cursor.fetchall())}


# Lock by lock (OFFSET 0): while hardly an event is of a lock, the planner would read all of those
# and compare each with each lock that is wanted, also when there are many by then.
SELECT_LOCK_EVENTS: Final[LiteralString] = f"""
SELECT event.*
FROM unnest(%s::uuid[], %s::smallint[]) AS wanted (lock_id, bucket)
CROSS JOIN LATERAL (
    SELECT {EVENTS.selected} FROM redemption_audit
    WHERE lock_id = wanted.lock_id AND bucket = wanted.bucket
    OFFSET 0
) AS event
ORDER BY event_time
"""


# --- pages --------------------------------------------------------------------------------------

_MATCHING: Final[LiteralString] = """
    (event_time, event_id) < (%(time)s, %(id)s)
    AND event_time >= %(start_time)s AND event_time < %(end_time)s
    AND type = ANY(%(types)s::smallint[])
    AND (%(book_id)s::uuid IS NULL OR book_id = %(book_id)s)
    AND (%(code)s = '' OR code = %(code)s)
    AND (%(user_id)s = '' OR user_id = %(user_id)s)
    AND (%(order_id)s = '' OR order_id = %(order_id)s)
    AND (%(business_id)s = '' OR book_id IN (
        SELECT book.book_id FROM coupon_books AS book WHERE book.business_id = %(business_id)s))
"""
_NEWEST_FIRST: Final[LiteralString] = "ORDER BY event_time DESC, event_id DESC LIMIT %(count)s"

# An order has few events, so they are taken first and sorted then: the planner, which does not know
# how few, might otherwise walk along the time.
EVENTS_OF_ORDER: Final[LiteralString] = f"""
WITH of_order AS MATERIALIZED (
    SELECT * FROM redemption_audit WHERE order_id = %(order_id)s
        AND (%(user_id)s = '' OR order_user_id IS NULL OR order_user_id = %(user_id)s))
SELECT {EVENTS.selected} FROM of_order WHERE {_MATCHING} {_NEWEST_FIRST}
"""
EVENTS_OF_CODE: Final[LiteralString] = f"""
SELECT {EVENTS.selected} FROM redemption_audit
WHERE code IS NOT NULL AND code || '' = %(code)s AND {_MATCHING} {_NEWEST_FIRST}
"""
EVENTS_OF_USER: Final[LiteralString] = f"""
SELECT {EVENTS.selected} FROM redemption_audit
WHERE user_id = %(user_id)s AND {_MATCHING} {_NEWEST_FIRST}
"""
# Of this user before anything else (OFFSET 0): the planner would otherwise find the order, or the
# book, that is named, and how long it takes would tell how many events of others it has.
EVENTS_OF_OWN: Final[LiteralString] = f"""
SELECT {EVENTS.selected}
FROM (
    SELECT * FROM redemption_audit
    WHERE user_id = %(user_id)s AND (event_time, event_id) < (%(time)s, %(id)s)
        AND event_time >= %(start_time)s AND event_time < %(end_time)s
    ORDER BY event_time DESC, event_id DESC
    OFFSET 0
) AS own
WHERE {_MATCHING} {_NEWEST_FIRST}
"""
# One probe of the index a type: a few redemptions are found quickly among millions of assignments.
EVENTS_OF_BOOK: Final[LiteralString] = f"""
SELECT {EVENTS.selected}
FROM unnest(%(types)s::smallint[]) AS wanted (event_type)
CROSS JOIN LATERAL (
    SELECT * FROM redemption_audit
    WHERE book_id = %(book_id)s AND type = event_type AND {_MATCHING} {_NEWEST_FIRST}
) AS event
{_NEWEST_FIRST}
"""
ALL_EVENTS: Final[LiteralString] = f"""
SELECT {EVENTS.selected}
FROM unnest(%(types)s::smallint[]) AS wanted (event_type)
CROSS JOIN LATERAL (
    SELECT * FROM redemption_audit
    WHERE type::integer = event_type AND {_MATCHING} {_NEWEST_FIRST}
) AS event
{_NEWEST_FIRST}
"""


# A plan for any filters at once would take the page for tiny, and read and sort everything for it;
# so would one by a bitmap, or one with another sort than that of the few events of one time, where
# what is listed is short on average.
PLAN_FOR_PAGES: Final = """
SELECT set_config('plan_cache_mode', 'force_custom_plan', true),
    set_config('enable_bitmapscan', 'off', true), set_config('enable_sort', 'off', true)
"""


async def select_events(
    connection: Connection, wanted: AuditFilter, page_size: int, after: Position | None
) -> tuple[list[Event], Position | None]:
    """A page of the ledger, newest first, and the position to go on from. In a transaction."""
    await connection.execute(PLAN_FOR_PAGES)
    events: list[Event] = []
    spellings = list(product(id_spellings(wanted.user_id), id_spellings(wanted.order_id)))
    for user_id, order_id in spellings:
        spelled = replace(wanted, user_id=user_id, order_id=order_id)
        events += await _select_spelled(connection, spelled, page_size + 1, after)
    if len(spellings) > 1:  # those of before ids were compared in NFC, in between
        events.sort(key=lambda it: (it.event_time, it.event_id), reverse=True)
    return page_of(events[: page_size + 1], page_size, event_position)


async def _select_spelled(
    connection: Connection, wanted: AuditFilter, count: int, after: Position | None
) -> list[Event]:
    time, event_id = time_and_id(after)
    types = wanted.types or tuple(EventType)
    parameters: dict[str, Any] = {
        "business_id": wanted.business_id,
        "book_id": wanted.book_id,
        "code": wanted.code,
        "user_id": wanted.user_id,
        "order_id": wanted.order_id,
        "types": int_array(types),
        "start_time": wanted.start_time or datetime.min.replace(tzinfo=UTC),
        "end_time": wanted.end_time or datetime.max.replace(tzinfo=UTC),
        "time": time,
        "id": event_id,
        "count": count,
    }
    statement = _statement(wanted)
    if statement is None:
        events = await newest_events(connection, types, parameters, count)
    else:
        cursor = await connection.execute(statement, parameters)
        events = [event_from_row(row) for row in await cursor.fetchall()]
    return [listed(event) for event in events]


def event_position(event: Event) -> Position:
    """Where a page goes on after this event."""
    return time_position(event.event_time, event.event_id)


def _statement(wanted: AuditFilter) -> LiteralString | None:
    """The statement of the narrowest filter; None for all books of a business, which are merged."""
    if wanted.own:
        return EVENTS_OF_OWN
    if wanted.order_id:
        return EVENTS_OF_ORDER
    if wanted.code:
        return EVENTS_OF_CODE
    if wanted.user_id:
        return EVENTS_OF_USER
    if wanted.book_id is not None:
        return EVENTS_OF_BOOK
    return None if wanted.business_id else ALL_EVENTS


ONLY_FOR_REPEATS: Final = {
    EventType.CODES_IMPORTED: ("rejected", "min_length", "rows"),
    EventType.CODES_DELETED: ("refusals", "after"),
    EventType.CODES_CHANGED: ("refusals", "after"),
}


def listed(event: Event) -> Event:
    """The event without what is recorded of bulk work only to answer a repeat."""
    if event.type not in ONLY_FOR_REPEATS or event.metadata is None:
        return event
    left_out = ONLY_FOR_REPEATS[event.type]
    recorded = json.loads(event.metadata)
    counts = {key: value for key, value in recorded.items() if key not in left_out}
    return replace(event, metadata=json.dumps(counts))
