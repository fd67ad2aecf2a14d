"""Refused attempts: written many at a time, listed page by page, deleted when they are old.

They are no part of the ledger: nothing is decided on them, and some may be missing.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, LiteralString
from uuid import UUID

from psycopg.errors import UniqueViolation

from coupon_service.model import Money
from coupon_service.model.pseudonyms import NO_PSEUDONYMS, Pseudonyms
from coupon_service.model.refused_attempts import AttemptKind, Reason, RefusedAttempt
from coupon_service.store.arrays import text_array
from coupon_service.store.columns import Column, Columns, Nested, member_of
from coupon_service.store.events import PLAN_FOR_PAGES
from coupon_service.store.keyset import Position, page_of, time_and_id, time_position
from coupon_service.store.pipeline import Connection


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusalFilter:
    """Which refused attempts are wanted; all that is set has to hold. Empty: any.

    `codes`: a code in each form that it may be kept in. `start_time` is inclusive, `end_time`
    exclusive.
    """

    business_id: str = ""
    book_id: UUID | None = None
    codes: Sequence[str] = ()
    user_id: str = ""
    order_id: str = ""
    start_time: datetime | None = None
    end_time: datetime | None = None


# --- rows ---------------------------------------------------------------------------------------


def _reason_json(reason: Reason) -> str:
    name, metadata = reason
    if not metadata:
        return f'{{"reason": "{name}"}}'
    # A text is written far faster than what holds it, and the keys are names of ours.
    values = ", ".join([f'"{key}": {json.dumps(value)}' for key, value in metadata.items()])
    return f'{{"reason": "{name}", "metadata": {{{values}}}}}'


def _reasons_json(reasons: Sequence[Reason]) -> str | None:
    return f"[{', '.join(map(_reason_json, reasons))}]" if reasons else None


def _reasons(text: str | None) -> tuple[Reason, ...]:
    read: list[dict[str, Any]] = json.loads(text) if text is not None else []
    return tuple((it["reason"], it.get("metadata", {})) for it in read)


def _money(amount_minor: int | None, currency_code: str | None) -> Money | None:
    return Money(amount_minor, currency_code or "") if amount_minor is not None else None


AMOUNT: Final = Columns[Money | None](
    Column("order_amount_minor", "bigint", lambda it: it.amount_minor if it else None),
    Column("currency_code", "text", lambda it: it.currency_code if it else None),
)

REFUSALS: Final = Columns[RefusedAttempt](
    Column("refusal_id", "uuid"),
    Column("refuse_time", "timestamptz"),
    Column("kind", "smallint", read=member_of(AttemptKind)),
    Column("told", "text", lambda it: _reasons_json(it.told), _reasons),
    Column("untold", "text", lambda it: _reasons_json(it.untold), _reasons),
    Column("code", "text"),
    Column("book_id", "uuid"),
    Column("business_id", "text"),
    Column("user_id", "text"),
    Column("order_id", "text", lambda it: it.order_id or None, lambda text: text or ""),
    Nested("order_amount", _money, AMOUNT),
    Column("caller", "text"),
    Column("request_id", "text"),
)


def _made(*values: Any) -> RefusedAttempt:
    return RefusedAttempt(**dict(zip(REFUSALS.fields, values, strict=True)))


refusal_from_row = REFUSALS.reader(_made)

# --- written ------------------------------------------------------------------------------------

_ONCE: Final[LiteralString] = "ON CONFLICT DO NOTHING"

CLOCKS_DIFFER: Final = timedelta(seconds=5)
"""By so much at most."""

# None of a user who was erased since: it may have waited to be written, on a clock that is ahead.
# Nearly always nobody was, and no pseudonyms are needed to say so.
INSERT_REFUSALS: Final[LiteralString] = f"""
INSERT INTO coupon_refusals (
    {REFUSALS.names})
SELECT
    {REFUSALS.unnested}
WHERE NOT EXISTS (SELECT FROM coupon_erased_users WHERE state < 3)
    AND NOT EXISTS (SELECT FROM coupon_erased_users WHERE erase_time > %s)
"""
INSERT_REFUSALS_OF_OTHERS: Final[LiteralString] = f"""
INSERT INTO coupon_refusals (
    {REFUSALS.names})
SELECT * FROM unnest(
    {REFUSALS.arrays}) AS made (
    {REFUSALS.names})
WHERE NOT EXISTS (
    SELECT FROM unnest(%s::text[], %s::text[]) AS known (of_user, pseudonym)
    JOIN coupon_erased_users AS erased USING (pseudonym)
    WHERE of_user = made.user_id
        AND (state < 3 OR made.refuse_time - erase_time < interval '5 seconds'))
"""


async def insert_refusals(
    connection: Connection,
    refusals: Collection[RefusedAttempt],
    pseudonyms: Pseudonyms = NO_PSEUDONYMS,
) -> None:
    """Writes them, also when an earlier try may have done so; but for those of users who were
    erased since, whom `pseudonyms` finds."""
    validated = [it for it in refusals if it.kind is AttemptKind.VALIDATE_CODE]
    if validated:  # alone, since it costs a fifth more; what is there already is another worker's
        await _insert(connection, validated, pseudonyms, _ONCE)
    others = [it for it in refusals if it.kind is not AttemptKind.VALIDATE_CODE]
    if others:
        with suppress(UniqueViolation):  # all of them were written by an earlier try
            await _insert(connection, others, pseudonyms, "")


async def _insert(
    connection: Connection,
    refusals: Sequence[RefusedAttempt],
    pseudonyms: Pseudonyms,
    ending: LiteralString,
) -> None:
    arrays = REFUSALS.array_parameters(refusals)
    oldest = min(it.refuse_time for it in refusals) - CLOCKS_DIFFER
    cursor = await connection.execute(INSERT_REFUSALS + ending, (*arrays, oldest))
    if cursor.rowcount:
        return
    users = {it.user_id for it in refusals}
    known = [(it, name) for it, names in pseudonyms.of_users(users).items() for name in names]
    of_users, names = text_array([it for it, _ in known]), text_array([it for _, it in known])
    await connection.execute(INSERT_REFUSALS_OF_OTHERS + ending, (*arrays, of_users, names))


# --- pages --------------------------------------------------------------------------------------

LOOKED_AT_MAX: Final = 10_000
"""Of a business, that are read for a page of a book, also where hardly one is of it."""

_MATCHING: Final[LiteralString] = """
    (refuse_time, refusal_id) < (%(time)s, %(id)s)
    AND refuse_time >= %(start_time)s AND refuse_time < %(end_time)s
    AND (%(business_id)s = '' OR business_id = %(business_id)s)
    AND (%(book_id)s::uuid IS NULL OR book_id = %(book_id)s)
    AND (%(user_id)s = '' OR user_id = %(user_id)s)
    AND (%(order_id)s = '' OR order_id = %(order_id)s)
    AND (%(any_code)s OR code = ANY(%(codes)s::text[]))
"""
_NEWEST_FIRST: Final[LiteralString] = "ORDER BY refuse_time DESC, refusal_id DESC LIMIT %(count)s"

REFUSALS_OF_ORDER: Final[LiteralString] = f"""
SELECT {REFUSALS.selected} FROM coupon_refusals
WHERE order_id = %(order_id)s AND {_MATCHING} {_NEWEST_FIRST}
"""
REFUSALS_OF_CODE: Final[LiteralString] = f"""
SELECT {REFUSALS.selected}
FROM unnest(%(codes)s::text[]) AS wanted (kept_as)
CROSS JOIN LATERAL (
    SELECT * FROM coupon_refusals WHERE code = kept_as AND {_MATCHING} {_NEWEST_FIRST}
) AS refusal
{_NEWEST_FIRST}
"""
REFUSALS_OF_USER: Final[LiteralString] = f"""
SELECT {REFUSALS.selected} FROM coupon_refusals
WHERE user_id = %(user_id)s AND {_MATCHING} {_NEWEST_FIRST}
"""
# There is no index of books: each refusal would pay for it. Of those of its business only so many
# are looked at for a page, and the last of these is returned as well: there the next page begins.
REFUSALS_OF_BOOK: Final[LiteralString] = f"""
SELECT {REFUSALS.selected}, looked_at
FROM (
    SELECT *, row_number() OVER newest_first AS looked_at
    FROM coupon_refusals
    WHERE business_id = (CASE %(business_id)s WHEN '' THEN (
            SELECT business_id FROM coupon_books WHERE book_id = %(book_id)s)
        ELSE %(business_id)s END)
        AND (refuse_time, refusal_id) < (%(time)s, %(id)s)
        AND refuse_time >= %(start_time)s AND refuse_time < %(end_time)s
    WINDOW newest_first AS (ORDER BY refuse_time DESC, refusal_id DESC)
    ORDER BY refuse_time DESC, refusal_id DESC
    LIMIT %(looked_at_max)s
) AS newest
WHERE book_id = %(book_id)s OR looked_at = %(looked_at_max)s {_NEWEST_FIRST}
"""
REFUSALS_OF_BUSINESS: Final[LiteralString] = f"""
SELECT {REFUSALS.selected} FROM coupon_refusals
WHERE business_id = %(business_id)s AND {_MATCHING} {_NEWEST_FIRST}
"""
# The primary key begins with the business, and there is no other index of times: an index more
# would be paid for by each refusal. One probe of it finds the next business.
BUSINESSES: Final[LiteralString] = """
WITH RECURSIVE businesses (of_business) AS (
    (SELECT business_id FROM coupon_refusals ORDER BY business_id LIMIT 1)
    UNION ALL
    SELECT (SELECT business_id FROM coupon_refusals
            WHERE business_id > of_business ORDER BY business_id LIMIT 1)
    FROM businesses WHERE of_business IS NOT NULL)
"""
ALL_REFUSALS: Final[LiteralString] = f"""
{BUSINESSES}
SELECT {REFUSALS.selected}
FROM businesses
CROSS JOIN LATERAL (
    SELECT * FROM coupon_refusals
    WHERE business_id = of_business AND {_MATCHING} {_NEWEST_FIRST}
) AS refusal
{_NEWEST_FIRST}
"""


async def select_refusals(
    connection: Connection,
    wanted: RefusalFilter,
    page_size: int,
    after: Position | None,
    looked_at_max: int = LOOKED_AT_MAX,
) -> tuple[list[RefusedAttempt], Position | None]:
    """A page of them, newest first, and the position to go on from. In a transaction.

    That of a book ends, perhaps before it is full, where so many were looked at.
    """
    time, refusal_id = time_and_id(after, wanted.end_time)
    statement = _statement(wanted)
    await connection.execute(PLAN_FOR_PAGES)
    cursor = await connection.execute(
        statement,
        {
            "business_id": wanted.business_id,
            "book_id": wanted.book_id,
            "user_id": wanted.user_id,
            "order_id": wanted.order_id,
            "any_code": not wanted.codes,
            "codes": text_array(wanted.codes),
            "start_time": wanted.start_time or datetime.min.replace(tzinfo=UTC),
            "end_time": wanted.end_time or datetime.max.replace(tzinfo=UTC),
            "time": time,
            "id": refusal_id,
            "count": page_size + 1,
            "looked_at_max": looked_at_max,
        },
    )
    rows = await cursor.fetchall()
    found = [refusal_from_row(row[: len(REFUSALS.columns)]) for row in rows]
    page, end = page_of(found, page_size, refusal_position)
    if statement is not REFUSALS_OF_BOOK:
        return page, end
    if end is None and rows and rows[-1][-1] == looked_at_max:
        end = refusal_position(found[-1])
    return [it for it in page if it.book_id == wanted.book_id], end


def refusal_position(refusal: RefusedAttempt) -> Position:
    """Where a page goes on after this one."""
    return time_position(refusal.refuse_time, refusal.refusal_id)


def _statement(wanted: RefusalFilter) -> LiteralString:
    """That of the narrowest filter."""
    if wanted.order_id:
        return REFUSALS_OF_ORDER
    if wanted.codes:
        return REFUSALS_OF_CODE
    if wanted.user_id:
        return REFUSALS_OF_USER
    if wanted.book_id is not None:
        return REFUSALS_OF_BOOK
    return REFUSALS_OF_BUSINESS if wanted.business_id else ALL_REFUSALS


# --- deleted ------------------------------------------------------------------------------------

# Rows that are in use are left to the next time, so that two who delete never wait for each other.
DELETE_OLD_REFUSALS: Final[LiteralString] = f"""
DELETE FROM coupon_refusals WHERE ctid = ANY(ARRAY(
    {BUSINESSES}
    SELECT row_id FROM businesses
    CROSS JOIN LATERAL (
        SELECT ctid AS row_id FROM coupon_refusals
        WHERE business_id = of_business AND refuse_time < %(before)s
        LIMIT %(count)s FOR UPDATE SKIP LOCKED
    ) AS old
    LIMIT %(count)s))
"""


async def delete_old_refusals(connection: Connection, before: datetime, count: int) -> int:
    """Deletes so many, at most, of those of before this time; says how many it were."""
    cursor = await connection.execute(DELETE_OLD_REFUSALS, {"before": before, "count": count})
    return cursor.rowcount
