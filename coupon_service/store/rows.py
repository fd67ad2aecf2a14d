"""Rows and values: the column lists of the tables, what a row becomes, and the one ledger insert.

The functions that read a row take it in the order of the column list beside them. JSONB is read and
written as text: the service never looks into it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from itertools import repeat
from operator import attrgetter, is_
from typing import Any, Final, LiteralString, TypeVar
from uuid import UUID

from coupon_service.model import (
    AmountOff,
    Assignment,
    AssignmentPolicy,
    AssignmentState,
    Benefit,
    Book,
    BookLimits,
    BookState,
    Code,
    CodeState,
    Discount,
    Event,
    EventType,
    LockPolicy,
    PercentOff,
    bucket_of_event,
)
from coupon_service.model.codes import CodeFormat, bucket_of
from coupon_service.store.pipeline import Connection

Row = tuple[Any, ...]
T = TypeVar("T")

# --- arrays -------------------------------------------------------------------------------------
# A list as a parameter gets the type of its largest number (smallint[] today, bigint[] tomorrow) or
# none when it is all None, and every combination of types is another prepared statement. The text
# form with a cast in the statement (%s::bigint[]) has one type, and is twice as fast to make.


def int_array(values: Iterable[int | None]) -> str:
    """PostgreSQL's text form of an array of numbers."""
    return _array(values, int.__repr__)  # of an IntEnum, too, the number


def uuid_array(values: Iterable[UUID | None]) -> str:
    """PostgreSQL's text form of an array of UUIDs."""
    return _array(values, attrgetter("hex"))


def time_array(values: Iterable[datetime | None]) -> str:
    """PostgreSQL's text form of an array of times with a time zone."""
    return _array(values, lambda value: f'"{value.isoformat()}"')


def text_array(values: Iterable[str | None]) -> str:
    """PostgreSQL's text form of an array of texts, or of JSON texts."""
    return _array(values, _quoted)


def _array(values: Iterable[T | None], written: Callable[[T], str]) -> str:
    column = list(values)
    if column and all(map(is_, column, repeat(column[0]))):
        # Most columns of a batch are: what is the same all the way down is written once.
        first = column[0]
        texts = ["NULL" if first is None else written(first)] * len(column)
    else:
        texts = ["NULL" if value is None else written(value) for value in column]
    return "{" + ",".join(texts) + "}"


def _quoted(text: str) -> str:
    if '"' in text or "\\" in text:
        text = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


# --- books --------------------------------------------------------------------------------------

BOOK_COLUMNS: Final[LiteralString] = """
    book_id, business_id, name, description, state, percent_off_basis_points, max_discount_minor,
    amount_off_minor, benefit, currency_code, min_order_amount_minor, max_redemptions,
    max_redemptions_per_code, max_redemptions_per_user_per_code, max_redemptions_per_user,
    max_assignments_per_user, assignment_policy, lock_policy, default_lock_ttl_ms, max_lock_ttl_ms,
    start_time, end_time, assigned_code_validity_s, code_length, code_alphabet, code_prefix,
    code_suffix, code_separator, code_group_size, code_check_character, metadata::text, version,
    create_time, update_time, low_threshold"""


def book_from_row(row: Row) -> Book:
    """The book in a row of BOOK_COLUMNS."""
    return Book(
        book_id=row[0],
        business_id=row[1],
        name=row[2],
        description=row[3],
        state=BookState(row[4]),
        discount=_discount(*row[5:9]),
        currency_code=row[9],
        min_order_amount_minor=row[10],
        limits=BookLimits(*row[11:16]),
        assignment_policy=AssignmentPolicy(row[16]),
        lock_policy=LockPolicy(row[17]),
        default_lock_ttl_ms=row[18],
        max_lock_ttl_ms=row[19],
        start_time=row[20],
        end_time=row[21],
        assigned_code_validity_s=row[22],
        code_format=CodeFormat(*row[23:30]),
        metadata=row[30],
        version=row[31],
        create_time=row[32],
        update_time=row[33],
        low_threshold=row[34],
    )


def _discount(
    basis_points: int | None, cap_minor: int, amount_minor: int | None, benefit: str | None
) -> Discount:
    if basis_points is not None:
        return PercentOff(basis_points, cap_minor)
    if amount_minor is not None:
        return AmountOff(amount_minor)
    return Benefit(benefit or "")


def book_parameters(book: Book) -> Mapping[str, object]:
    """The book as parameters named like the columns of coupon_books."""
    discount, limits, code_format = book.discount, book.limits, book.code_format
    percent = discount if isinstance(discount, PercentOff) else None
    return {
        "book_id": book.book_id,
        "business_id": book.business_id,
        "name": book.name,
        "description": book.description,
        "state": int(book.state),
        "percent_off_basis_points": percent.basis_points if percent else None,
        "max_discount_minor": percent.max_discount_minor if percent else 0,
        "amount_off_minor": discount.amount_minor if isinstance(discount, AmountOff) else None,
        "benefit": discount.description if isinstance(discount, Benefit) else None,
        "currency_code": book.currency_code,
        "min_order_amount_minor": book.min_order_amount_minor,
        "max_redemptions": limits.max_redemptions,
        "max_redemptions_per_code": limits.max_redemptions_per_code,
        "max_redemptions_per_user_per_code": limits.max_redemptions_per_user_per_code,
        "max_redemptions_per_user": limits.max_redemptions_per_user,
        "max_assignments_per_user": limits.max_assignments_per_user,
        "assignment_policy": int(book.assignment_policy),
        "lock_policy": int(book.lock_policy),
        "default_lock_ttl_ms": book.default_lock_ttl_ms,
        "max_lock_ttl_ms": book.max_lock_ttl_ms,
        "start_time": book.start_time,
        "end_time": book.end_time,
        "assigned_code_validity_s": book.assigned_code_validity_s,
        "code_length": code_format.length,
        "code_alphabet": code_format.alphabet,
        "code_prefix": code_format.prefix,
        "code_suffix": code_format.suffix,
        "code_separator": code_format.separator,
        "code_group_size": code_format.group_size,
        "code_check_character": code_format.check_character,
        "metadata": book.metadata,
        "version": book.version,
        "create_time": book.create_time,
        "update_time": book.update_time,
        "low_threshold": book.low_threshold,
    }


# --- codes and assignments ----------------------------------------------------------------------

CODE_COLUMNS: Final[LiteralString] = "code, book_id, state, redemptions, assignments"


def code_from_row(row: Row) -> Code:
    """The code in a row of CODE_COLUMNS."""
    code, book_id, state, redemptions, assignments = row
    return Code(code, book_id, CodeState(state), redemptions, assignments)


ASSIGNMENT_COLUMNS: Final[LiteralString] = """
    code, user_id, book_id, state, redemptions, fence, assign_time, expire_time, metadata::text"""


def assignment_from_row(row: Row) -> Assignment:
    """The assignment in a row of ASSIGNMENT_COLUMNS."""
    code, user_id, book_id, state, *rest = row
    return Assignment(code, user_id, book_id, AssignmentState(state), *rest)


# --- the ledger ---------------------------------------------------------------------------------

EVENT_COLUMNS: Final[LiteralString] = """
    event_id, type, event_time, book_id, code, user_id, order_id, caller, peer, user_agent,
    request_id, fingerprint, state_before, state_after, order_amount_minor, discount_minor,
    currency_code, benefit, redemption_id, lock_id, fence, code_redemptions,
    code_redemption_limit, user_code_redemptions, expire_time, metadata::text"""


def event_from_row(row: Row) -> Event:
    """The event in a row of EVENT_COLUMNS."""
    return Event(
        event_id=row[0],
        type=EventType(row[1]),
        event_time=row[2],
        book_id=row[3],
        code=row[4],
        user_id=row[5],
        order_id=row[6],
        caller=row[7],
        peer=row[8],
        user_agent=row[9],
        request_id=row[10],
        fingerprint=row[11],
        state_before=row[12],
        state_after=row[13],
        order_amount_minor=row[14],
        discount_minor=row[15],
        currency_code=row[16],
        benefit=row[17],
        redemption_id=row[18],
        lock_id=row[19],
        fence=row[20],
        code_redemptions=row[21],
        code_redemption_limit=row[22],
        user_code_redemptions=row[23],
        expire_time=row[24],
        metadata=row[25],
    )


def bucket_of_event_row(event: Event) -> int:
    """The bucket of an event's row: that of its code, or else the one its id leads to.

    They differ for a code that was picked at random: its id is known before the code is.
    """
    return bucket_of_event(event.event_id) if event.code is None else bucket_of(event.code)


INSERT_EVENTS: Final[LiteralString] = """
INSERT INTO redemption_audit (
    event_id, bucket, type, event_time, book_id, code, user_id, order_id, caller, peer, user_agent,
    request_id, fingerprint, state_before, state_after, order_amount_minor, discount_minor,
    currency_code, benefit, redemption_id, lock_id, fence, code_redemptions, code_redemption_limit,
    user_code_redemptions, expire_time, metadata)
SELECT * FROM unnest(
    %s::uuid[], %s::smallint[], %s::smallint[], %s::timestamptz[], %s::uuid[], %s::text[],
    %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::bigint[],
    %s::smallint[], %s::smallint[], %s::bigint[], %s::bigint[], %s::text[], %s::text[], %s::uuid[],
    %s::uuid[], %s::bigint[], %s::integer[], %s::integer[], %s::integer[], %s::timestamptz[],
    %s::jsonb[])
"""


INSERT_EVENT_ONCE: Final[LiteralString] = (
    INSERT_EVENTS + "ON CONFLICT DO NOTHING RETURNING event_id"
)

RECORDED_FINGERPRINT: Final = """
SELECT fingerprint FROM redemption_audit WHERE event_id = %s AND bucket = %s
"""


async def insert_events(connection: Connection, events: Sequence[Event]) -> None:
    """Writes the events to the ledger.

    Raises psycopg's UniqueViolation when one of them is there already.
    """
    await connection.execute(INSERT_EVENTS, event_arrays(events))


async def insert_event_once(connection: Connection, event: Event) -> bool:
    """Writes the event to the ledger unless it is there; returns whether it was written.

    Waits for another transaction that is writing it.
    """
    cursor = await connection.execute(INSERT_EVENT_ONCE, event_arrays([event]))
    return await cursor.fetchone() is not None


async def recorded_fingerprint(connection: Connection, event_id: UUID) -> int | None:
    """The fingerprint of an attempt on a book, if it was carried out."""
    parameters = (event_id, bucket_of_event(event_id))
    cursor = await connection.execute(RECORDED_FINGERPRINT, parameters)
    row = await cursor.fetchone()
    return None if row is None else row[0]


def event_arrays(events: Sequence[Event]) -> tuple[str, ...]:
    """The events as parameters of INSERT_EVENTS."""
    return (
        uuid_array([e.event_id for e in events]),
        int_array([bucket_of_event_row(e) for e in events]),
        int_array([e.type for e in events]),
        time_array([e.event_time for e in events]),
        uuid_array([e.book_id for e in events]),
        text_array([e.code for e in events]),
        text_array([e.user_id for e in events]),
        text_array([e.order_id for e in events]),
        text_array([e.caller for e in events]),
        text_array([e.peer for e in events]),
        text_array([e.user_agent for e in events]),
        text_array([e.request_id for e in events]),
        int_array([e.fingerprint for e in events]),
        int_array([e.state_before for e in events]),
        int_array([e.state_after for e in events]),
        int_array([e.order_amount_minor for e in events]),
        int_array([e.discount_minor for e in events]),
        text_array([e.currency_code for e in events]),
        text_array([e.benefit for e in events]),
        uuid_array([e.redemption_id for e in events]),
        uuid_array([e.lock_id for e in events]),
        int_array([e.fence for e in events]),
        int_array([e.code_redemptions for e in events]),
        int_array([e.code_redemption_limit for e in events]),
        int_array([e.user_code_redemptions for e in events]),
        time_array([e.expire_time for e in events]),
        text_array([e.metadata for e in events]),
    )
