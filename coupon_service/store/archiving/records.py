"""What the database knows of archives."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import Any, Final, LiteralString
from uuid import UUID

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow

from coupon_service.audit.balances import BookBalance
from coupon_service.errors import Contention, DatabaseUnavailable
from coupon_service.store.sessions import sentence_of, url_parts

Connection = psycopg.Connection[TupleRow]

ARCHIVE_LOCK: Final = 0x61726368697665
"""The advisory lock that lets one process at a time archive or restore."""

LOCK_WAIT_S: Final = 5
"""A process that was killed goes on to hold the lock until PostgreSQL notices."""

APPLICATION_NAME: Final = "coupon_service audit archive"
"""Of its connection, in pg_stat_activity."""


class CannotArchiveError(Exception):
    """Something is in the way; one clear sentence."""


class HeldUpError(CannotArchiveError):
    """It is not in the way of one book, but of all."""


class ArchiveState(IntEnum):
    """How far an archive is."""

    WRITING = 1
    WRITTEN = 2
    DELETING = 3
    DONE = 4
    RESTORING = 5
    RESTORED = 6


@dataclass(frozen=True, slots=True)
class Archive:
    """A row of coupon_audit_archives. `digest`: of the file, None before it was written."""

    number: int
    book_id: UUID
    state: ArchiveState
    file_name: str
    create_time: datetime
    digest: bytes | None
    row_count: int
    last_sequence: int


@contextmanager
def connected(database_url: str) -> Generator[Connection]:
    """A connection in autocommit mode, of which there is one at a time. Raises Contention and
    DatabaseUnavailable."""
    parts = {
        **url_parts(database_url),
        "application_name": APPLICATION_NAME,
        "client_encoding": "UTF8",
    }
    try:
        with psycopg.connect(make_conninfo(**parts), autocommit=True) as connection:
            connection.execute(SET_UP, [f"{LOCK_WAIT_S}s"])
            try:
                connection.execute("SELECT pg_advisory_lock(%s)", [ARCHIVE_LOCK])
            except psycopg.errors.LockNotAvailable:
                raise Contention("Another process is archiving or restoring.") from None
            connection.execute("SET lock_timeout = '60s'")
            yield connection
    except psycopg.Error as error:
        raise DatabaseUnavailable(sentence_of(error)) from error


SET_UP: Final = """
SELECT set_config('lock_timeout', %s, false), set_config('statement_timeout', '0', false),
    set_config('timezone', 'UTC', false), set_config('synchronous_commit', 'on', false)
"""

# --- books --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ClosedBook:
    """A closed book. `events`: about its codes, in the ledger; `unnumbered` of them are from before
    events had numbers, `unsealed` are not sealed yet."""

    book_id: UUID
    business_id: str
    name: str
    close_time: datetime
    events: int
    unnumbered: int
    unsealed: int


# 5 is BOOK_CLOSED, 4 the state CLOSED.
SELECT_CLOSED_BOOKS: Final = """
SELECT b.book_id, b.business_id, b.name, closed.event_time, events.*
FROM coupon_books AS b
CROSS JOIN LATERAL (
    SELECT max(event_time) AS event_time FROM redemption_audit
    WHERE book_id = b.book_id AND type = 5
) AS closed
CROSS JOIN coupon_audit_head AS head
CROSS JOIN LATERAL (
    SELECT count(*), count(*) FILTER (WHERE sequence IS NULL),
        count(*) FILTER (WHERE sequence > head.last_sequence)
    FROM redemption_audit WHERE book_id = b.book_id AND code IS NOT NULL
) AS events
WHERE b.state = 4 AND closed.event_time < %(before)s
    AND (%(books)s::uuid[] IS NULL OR b.book_id = ANY(%(books)s))
ORDER BY closed.event_time, b.book_id
"""


def select_closed_books(
    connection: Connection, before: datetime, books: Sequence[UUID] | None
) -> list[ClosedBook]:
    """The books (None: all) that were closed before that time."""
    parameters = {"before": before, "books": None if books is None else list(books)}
    rows = connection.execute(SELECT_CLOSED_BOOKS, parameters)
    return [ClosedBook(*row) for row in rows.fetchall()]


# --- archives -----------------------------------------------------------------------------------

_ARCHIVE: Final[LiteralString] = (
    "archive, book_id, state, file_name, create_time, digest, row_count, last_sequence"
)
SELECT_ARCHIVE: Final[LiteralString] = f"""
SELECT {_ARCHIVE} FROM coupon_audit_archives WHERE archive = %s
"""
SELECT_UNFINISHED: Final[LiteralString] = f"""
SELECT {_ARCHIVE} FROM coupon_audit_archives WHERE state IN (1, 2, 3) ORDER BY archive
"""
SELECT_RESTORING: Final = """
SELECT file_name FROM coupon_audit_archives WHERE state = 5 LIMIT 1
"""
INSERT_ARCHIVE: Final[LiteralString] = f"""
INSERT INTO coupon_audit_archives (archive, book_id, state, file_name, create_time)
SELECT next.number, %(book_id)s::uuid, 1,
    concat(%(book_id)s::uuid, '-', next.number, %(suffix)s::text), clock_timestamp()
FROM (SELECT 1 + coalesce(max(archive), 0) AS number FROM coupon_audit_archives) AS next
RETURNING {_ARCHIVE}
"""


def select_archive(connection: Connection, number: int) -> Archive | None:
    """The archive of this number."""
    row = connection.execute(SELECT_ARCHIVE, [number]).fetchone()
    return None if row is None else _archive(row)


def select_unfinished(connection: Connection) -> list[Archive]:
    """Archives that were begun, and are not done."""
    return list(map(_archive, connection.execute(SELECT_UNFINISHED).fetchall()))


def restoring(connection: Connection) -> str | None:
    """The file of an archive whose restoration was begun, and is not done."""
    row = connection.execute(SELECT_RESTORING).fetchone()
    return None if row is None else row[0]


SELECT_SINCE: Final = """
SELECT file_name FROM coupon_audit_archives
WHERE book_id = %s AND archive > %s AND state IN (3, 4, 5) LIMIT 1
"""


def archived_since(connection: Connection, archive: Archive) -> str | None:
    """The file of a later archive of its book, which has all that this one had."""
    row = connection.execute(SELECT_SINCE, [archive.book_id, archive.number]).fetchone()
    return None if row is None else row[0]


def insert_archive(connection: Connection, book_id: UUID, suffix: str) -> Archive:
    """Begins an archive of the book."""
    parameters = {"book_id": book_id, "suffix": suffix}
    (row,) = connection.execute(INSERT_ARCHIVE, parameters).fetchall()
    return _archive(row)


def _archive(row: Sequence[Any]) -> Archive:
    number, book_id, state, *rest = row
    return Archive(number, book_id, ArchiveState(state), *rest)


SET_STATE: Final = "UPDATE coupon_audit_archives SET state = %s WHERE archive = %s"


def set_state(connection: Connection, archive: Archive, state: ArchiveState) -> None:
    """Records how far the archive is."""
    connection.execute(SET_STATE, [state, archive.number])


BEGIN_ANEW: Final = "UPDATE coupon_audit_archives SET state = 1, digest = NULL WHERE archive = %s"


def begin_anew(connection: Connection, archive: Archive) -> None:
    """Has the file of the archive written anew."""
    connection.execute(BEGIN_ANEW, [archive.number])


SET_WRITTEN: Final = """
UPDATE coupon_audit_archives
SET state = 2, digest = %(digest)s, row_count = %(row_count)s,
    first_sequence = %(first_sequence)s, last_sequence = %(last_sequence)s,
    redemptions = %(redemptions)s, rollbacks = %(rollbacks)s, assignments = %(assignments)s,
    discount_minor = %(discount_minor)s, on_orders = %(on_orders)s,
    order_discount_minor = %(order_discount_minor)s
WHERE archive = %(archive)s
"""


def set_written(
    connection: Connection, archive: Archive, values: Mapping[str, Any], balance: BookBalance
) -> None:
    """Records what the file has. `values`: digest, row_count, first_sequence, last_sequence."""
    parameters = {**values, **balance.as_json(), "archive": archive.number}
    connection.execute(SET_WRITTEN, parameters)


# From a book its codes may have gone to the next, and on from there.
MARK_BOOKS: Final = """
WITH RECURSIVE later AS (
    SELECT %(book_id)s::uuid AS book_id
    UNION
    SELECT past.next_book_id FROM later
    CROSS JOIN LATERAL (
        SELECT DISTINCT next_book_id FROM coupon_past_codes WHERE book_id = later.book_id
    ) AS past
), marked AS (
    UPDATE coupon_books SET archived_until = 0
    WHERE archived_until IS NULL AND book_id <> %(book_id)s
        AND book_id IN (SELECT book_id FROM later)
)
UPDATE coupon_books SET archived_until = %(until)s WHERE book_id = %(book_id)s
"""


def mark_books(connection: Connection, archive: Archive, until: int) -> None:
    """Has commands look into archives for what the ledger has no more of the book's codes."""
    parameters = {"book_id": archive.book_id, "until": until}
    connection.execute(MARK_BOOKS, parameters)


# It stays at 0: another book may have had codes of it in between.
UNMARK_BOOK: Final = """
UPDATE coupon_books SET archived_until = coalesce((
    SELECT max(other.last_sequence) FROM coupon_audit_archives AS other
    WHERE other.book_id = coupon_books.book_id AND other.archive <> %(archive)s
        AND other.state IN (3, 4, 5)), 0)
WHERE book_id = %(book_id)s
"""


def unmark_book(connection: Connection, archive: Archive) -> None:
    """Takes that back, for what this archive has."""
    connection.execute(UNMARK_BOOK, {"archive": archive.number, "book_id": archive.book_id})


# --- what is in an archive ----------------------------------------------------------------------

DELETE_RANGES: Final = "DELETE FROM coupon_archived_ranges WHERE archive = %s"
DELETE_CODES: Final = "DELETE FROM coupon_archived_codes WHERE archive = %s"
COPY_RANGES: Final = "COPY coupon_archived_ranges (seal, archive, sequences) FROM STDIN"
COPY_CODES: Final = """
COPY coupon_archived_codes (
    book_id, archive, code, redemptions, assignments, user_redemptions) FROM STDIN
"""


def insert_contents(
    connection: Connection,
    archive: Archive,
    ranges: Mapping[int, Sequence[int]],
    codes: Iterator[tuple[str, int, int, int]],
) -> None:
    """Records which events an archive has, by their seals, and the opening balances of codes."""
    with connection.cursor() as cursor:
        with cursor.copy(COPY_RANGES) as copy:
            for seal, sequences in ranges.items():
                copy.write_row((seal, archive.number, list(sequences)))
        with cursor.copy(COPY_CODES) as copy:
            for balance in codes:
                copy.write_row((archive.book_id, archive.number, *balance))


def delete_contents(connection: Connection, archive: Archive) -> None:
    """Takes that back."""
    connection.execute(DELETE_RANGES, [archive.number])
    connection.execute(DELETE_CODES, [archive.number])


SELECT_SEALS_OF: Final = """
SELECT seal, cardinality(sequences) FROM coupon_archived_ranges WHERE archive = %s ORDER BY seal
"""


def select_seals_of(connection: Connection, archive: Archive) -> list[tuple[int, int]]:
    """The seals that an archive has events of, and how many."""
    return connection.execute(SELECT_SEALS_OF, [archive.number]).fetchall()


DELETE_ARCHIVED: Final = "SELECT coupon_delete_archived(%s, %s)"


def delete_archived(connection: Connection, archive: Archive, seal: int) -> int:
    """Deletes the archived events of a seal from the ledger; returns how many were there."""
    (deleted,) = connection.execute(DELETE_ARCHIVED, [archive.number, seal]).fetchall()
    return deleted[0]


# Bearers have no time of an assignment. The rows that are moved are not read by anyone meanwhile:
# the book is closed.
_BEARER: Final[LiteralString] = (
    "book_id, redemptions, redemption_limit, bucket, state, code, user_id, fence"
)
MOVE_BEARERS: Final[LiteralString] = f"""
WITH moved AS (
    DELETE FROM coupon_assignments WHERE book_id = %s AND assign_time IS NULL RETURNING {_BEARER}
)
INSERT INTO coupon_archived_assignments ({_BEARER}, archive)
SELECT {_BEARER}, %s FROM moved
"""
# Who was erased more than once has several rows under one pseudonym.
RETURN_BEARERS: Final[LiteralString] = f"""
WITH moved AS (
    DELETE FROM coupon_archived_assignments WHERE archive = %s RETURNING {_BEARER}
)
INSERT INTO coupon_assignments ({_BEARER})
SELECT book_id, sum(redemptions), max(redemption_limit), bucket, max(state), code, user_id,
    max(fence)
FROM moved GROUP BY book_id, bucket, code, user_id
"""


def move_bearers(connection: Connection, archive: Archive) -> None:
    """Puts the assignments of bearers aside, where they are found by their users."""
    connection.execute(MOVE_BEARERS, [archive.book_id, archive.number])


def return_bearers(connection: Connection, archive: Archive) -> None:
    """Takes that back."""
    connection.execute(RETURN_BEARERS, [archive.number])
