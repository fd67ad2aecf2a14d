"""Events as they are archived and restored, with all of their columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, LiteralString
from uuid import UUID

from psycopg.rows import dict_row

from coupon_service.audit.seals import Link, Position, Seal
from coupon_service.store.archiving.records import Connection
from coupon_service.store.seals import seal_from_row

COLUMNS: Final[tuple[LiteralString, ...]] = (
    "sequence",
    "event_id",
    "book_id",
    "event_time",
    "fingerprint",
    "bucket",
    "type",
    "state_before",
    "state_after",
    "code_redemptions",
    "code_redemption_limit",
    "user_code_redemptions",
    "order_amount_minor",
    "discount_minor",
    "fence",
    "expire_time",
    "redemption_id",
    "lock_id",
    "code",
    "user_id",
    "order_id",
    "order_user_id",
    "other_user_id",
    "caller",
    "peer",
    "user_agent",
    "request_id",
    "currency_code",
    "benefit",
    "metadata",
    "book_version",
    "commitments",
)
"""All columns of the ledger."""

_SELECTED: Final[LiteralString] = ", ".join(
    ["metadata::text" if it == "metadata" else it for it in COLUMNS]
)

ROWS_OF_FETCH: Final = 2_000

# Those about its codes: what is about the book as a whole is little, and stays.
SELECT_EVENTS: Final[LiteralString] = f"""
SELECT {_SELECTED} FROM redemption_audit
WHERE book_id = %(book_id)s AND code IS NOT NULL AND sequence <= %(until)s
ORDER BY sequence
"""


def select_events(connection: Connection, book_id: UUID, until: int) -> Iterator[dict[str, Any]]:
    """The events about codes of a book up to that number, in their order. In a transaction."""
    with connection.cursor(name="archived", row_factory=dict_row) as cursor:
        cursor.itersize = ROWS_OF_FETCH
        cursor.execute(SELECT_EVENTS, {"book_id": book_id, "until": until})
        yield from cursor


LATE_EVENTS: Final = """
SELECT count(*) FROM redemption_audit
WHERE book_id = %s AND type IN (17, 22) AND sequence > %s
"""
"""Roll-backs and adjustments that were under way."""


def count_late(connection: Connection, book_id: UUID, after: int) -> int:
    """Events after that number about redemptions of before."""
    (row,) = connection.execute(LATE_EVENTS, [book_id, after]).fetchall()
    return row[0]


SELECT_KEYS: Final = "SELECT user_id, key FROM coupon_user_keys WHERE user_id = ANY(%s)"


def select_keys(connection: Connection, users: Sequence[str]) -> dict[str, bytes]:
    """The keys of those users who have one."""
    return dict(connection.execute(SELECT_KEYS, [list(users)]).fetchall())


ALL_KEYS: Final = "SELECT key FROM coupon_user_keys"


def all_keys(connection: Connection) -> Iterator[bytes]:
    """The keys of all users. In a transaction."""
    with connection.cursor(name="keys") as cursor:
        cursor.itersize = 10_000
        cursor.execute(ALL_KEYS)
        for (key,) in cursor:
            yield key


LOCK_ERASURES: Final = "SELECT erasures FROM coupon_audit_head FOR UPDATE"


def lock_erasures(connection: Connection) -> int:
    """How many chunks of users were erased so far; none is until the end of the transaction."""
    (row,) = connection.execute(LOCK_ERASURES).fetchall()
    return row[0]


# 2 is ERASING.
IS_ERASING: Final = "SELECT EXISTS (SELECT FROM coupon_erased_users WHERE state = 2)"


def is_erasing(connection: Connection) -> bool:
    """Whether a part of what is stored of a user may be erased, and the rest not yet."""
    (row,) = connection.execute(IS_ERASING).fetchall()
    return row[0]


_SEAL: Final[LiteralString] = (
    "number, first_sequence, last_sequence, row_count, root, leaves_hash, seal_time, version"
)
SELECT_HEAD: Final = "SELECT log_id, number, last_sequence FROM coupon_audit_head"
SELECT_LINK: Final[LiteralString] = f"""
SELECT {_SEAL}, chain, leaves FROM coupon_audit_seals
WHERE last_sequence >= %s ORDER BY last_sequence LIMIT 1
"""
SELECT_SEALS: Final[LiteralString] = f"""
SELECT {_SEAL} FROM coupon_audit_seals WHERE number BETWEEN %s AND %s ORDER BY number
"""
SELECT_POSITION: Final = """
SELECT number, last_sequence, chain FROM coupon_audit_seals WHERE number = %s
"""


def select_head(connection: Connection) -> tuple[UUID, int, int]:
    """The id of the ledger, the number of the newest seal, and up to which number it seals."""
    (row,) = connection.execute(SELECT_HEAD).fetchall()
    return row[0], row[1], row[2]


def select_link(connection: Connection, sequence: int) -> Link | None:
    """The seal that has the event of this number."""
    row = connection.execute(SELECT_LINK, [sequence]).fetchone()
    if row is None or row[1] > sequence:
        return None
    return Link(seal_from_row(row[:8]), row[8], row[9])


def select_seals(connection: Connection, first: int, last: int) -> Iterator[Seal]:
    """The seals with these numbers. In a transaction."""
    with connection.cursor(name="seals") as cursor:
        cursor.itersize = 10_000
        cursor.execute(SELECT_SEALS, [first, last])
        for row in cursor:
            yield seal_from_row(row)


def select_position(connection: Connection, number: int) -> Position | None:
    """Where the chain is after the seal of this number."""
    row = connection.execute(SELECT_POSITION, [number]).fetchone()
    return None if row is None else Position(*row)


# COPY cannot pass over what is there: so it goes to a table of the session first.
MAKE_RESTORED: Final = """
CREATE TEMPORARY TABLE IF NOT EXISTS restored (LIKE redemption_audit) ON COMMIT DELETE ROWS
"""
COPY_RESTORED: Final[LiteralString] = f"COPY restored ({', '.join(COLUMNS)}) FROM STDIN"
RESTORE_EVENTS: Final[LiteralString] = f"""
WITH copied AS (SELECT * FROM restored)
INSERT INTO redemption_audit ({", ".join(COLUMNS)})
SELECT {", ".join(COLUMNS)} FROM copied
ON CONFLICT DO NOTHING
"""
FORGET_ARCHIVED: Final = """
WITH copied AS (SELECT event_id FROM restored)
DELETE FROM coupon_archived_events
WHERE archive = %s AND event_id IN (SELECT event_id FROM copied)
"""


def restore_events(connection: Connection, archive: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """Puts the events back, those that are not there yet. In a transaction."""
    with connection.cursor() as cursor:
        cursor.execute(MAKE_RESTORED)
        with cursor.copy(COPY_RESTORED) as copy:
            for row in rows:
                copy.write_row([row[it] for it in COLUMNS])
        cursor.execute(RESTORE_EVENTS)
        cursor.execute(FORGET_ARCHIVED, [archive])
