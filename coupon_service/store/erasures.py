"""Users who are erased: what is stored of them, chunk by chunk, and how far it has come.

`coupon_erase_user` of the schema does the replacing, with the rights of who owns the tables.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from secrets import token_bytes
from typing import Final, LiteralString
from uuid import UUID

from coupon_service.audit.leaves import KEY_BYTES, erased, users_of
from coupon_service.model import ErasureState, Event, rollback_id
from coupon_service.model.normalization import canonical_id, id_spellings
from coupon_service.model.pseudonyms import Pseudonyms
from coupon_service.store.arrays import int_array, text_array, uuid_array
from coupon_service.store.ledger_rows import select_keys, select_rows_by_id
from coupon_service.store.pipeline import Connection
from coupon_service.store.rows import EVENTS, bucket_of_event_row, event_from_row
from coupon_service.store.seals import select_head

CHUNK: Final = 500
"""Ledger rows of a user that are erased in one transaction."""

ERASURES: Final[LiteralString] = """
    CASE WHEN EXISTS (SELECT FROM coupon_erased_users) THEN ARRAY(
        SELECT state || pseudonym FROM coupon_erased_users AS under_way WHERE state < 3) END"""
"""NULL while nobody was ever erased; then who is being erased now, as `erasures_of` reads it.
Statements that go by it wait for nobody: see `unaware`."""


def erasures_of(found: Sequence[str] | None) -> Mapping[str, ErasureState]:
    """What ERASURES says: how far it has come with those who are being erased, by pseudonym."""
    return {it[1:]: ErasureState(int(it[0])) for it in found or ()}


@dataclass(frozen=True, slots=True)
class ErasedUsers:
    """Under which pseudonyms users may be known from before they were erased, and how far it has
    come with those of them that are being erased, by pseudonym."""

    pseudonyms: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    under_way: Mapping[str, ErasureState] = field(default_factory=dict[str, ErasureState])


NOBODY_ERASED: Final = ErasedUsers()

SELECT_ERASURES: Final[LiteralString] = f"SELECT {ERASURES}"


async def select_erased_users(
    connection: Connection, users: Iterable[str], pseudonyms: Pseudonyms
) -> ErasedUsers:
    """What there is to know of these users. In a transaction that has another lock before: see
    `unaware`."""
    cursor = await connection.execute(SELECT_ERASURES)
    ((found,),) = await cursor.fetchall()
    if found is None:
        return NOBODY_ERASED
    return ErasedUsers(pseudonyms.of_users(users), erasures_of(found))


@dataclass(frozen=True, slots=True)
class Erased:
    """A row of coupon_erased_users. `rows`: that were changed, by table."""

    pseudonym: str
    state: ErasureState
    begin_time: datetime
    erase_time: datetime | None
    rows: Mapping[str, int]


# --- how far it has come --------------------------------------------------------------------------

_COLUMNS: Final[LiteralString] = "pseudonym, state, begin_time, erase_time, erased"

SELECT_ERASED: Final[LiteralString] = f"""
SELECT {_COLUMNS} FROM coupon_erased_users WHERE pseudonym = ANY(%s)
ORDER BY begin_time DESC LIMIT 1
"""
LOCK_ERASED: Final[LiteralString] = f"""
SELECT {_COLUMNS} FROM coupon_erased_users WHERE pseudonym = %s FOR UPDATE
"""


async def select_erased(connection: Connection, pseudonyms: Sequence[str]) -> Erased | None:
    """How far it has come with a user, if it has begun."""
    cursor = await connection.execute(SELECT_ERASED, [list(pseudonyms)])
    row = await cursor.fetchone()
    return _erased(*row) if row is not None else None


async def lock_erased(connection: Connection, pseudonym: str) -> Erased:
    """As `select_erased`, of one that has begun, against other calls for the same user."""
    cursor = await connection.execute(LOCK_ERASED, [pseudonym])
    row = await cursor.fetchone()
    if row is None:
        raise AssertionError("an erasure that has not begun")
    return _erased(*row)


def _erased(
    pseudonym: str,
    state: int,
    begin_time: datetime,
    erase_time: datetime | None,
    rows: Mapping[str, int],
) -> Erased:
    return Erased(pseudonym, ErasureState(state), begin_time, erase_time, rows)


# One that is under way goes on where it is; one that is done begins anew.
BEGIN: Final = """
INSERT INTO coupon_erased_users AS u (pseudonym, state, begin_time) VALUES (%s, 1, %s)
ON CONFLICT (pseudonym) DO UPDATE
SET state = 1, begin_time = excluded.begin_time, erase_time = NULL, erased = '{}' WHERE u.state = 3
"""


async def begin_erasure(connection: Connection, pseudonym: str, now: datetime) -> None:
    """From the commit on, the user gets nothing new: see `unaware`."""
    await connection.execute(BEGIN, [pseudonym, now])


SET_STATE: Final = """
UPDATE coupon_erased_users
SET state = %s, erase_time = coalesce(%s, erase_time),
    erased = erased || (
        SELECT coalesce(
            jsonb_object_agg(key, value::bigint + coalesce((erased->>key)::bigint, 0)), '{}')
        FROM jsonb_each_text(%s::jsonb))
WHERE pseudonym = %s
"""


async def set_erasure(
    connection: Connection,
    pseudonym: str,
    state: ErasureState,
    rows: Mapping[str, int],
    erase_time: datetime | None = None,
) -> None:
    """How far it has come, and which rows were changed for that."""
    await connection.execute(SET_STATE, [state, erase_time, json.dumps(rows), pseudonym])


UNFINISHED: Final = """
SELECT coalesce(extract(epoch FROM clock_timestamp() - min(begin_time)), 0)::float8
FROM coupon_erased_users WHERE state < 3
"""


async def unfinished_s(connection: Connection) -> float:
    """How long ago the oldest erasure began that is not finished, in seconds; 0 without one."""
    cursor = await connection.execute(UNFINISHED)
    ((age_s,),) = await cursor.fetchall()
    return max(age_s, 0.0)


# Whoever reads the table locks it until the end of the transaction, as PostgreSQL does for every
# table; one that changes something has another lock, or took its turn as bulk work does.
SELECT_UNAWARE: Final = """
SELECT DISTINCT virtualtransaction FROM pg_locks AS aware
WHERE locktype = 'relation' AND relation = 'coupon_erased_users'::regclass
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND pid IS DISTINCT FROM pg_backend_pid()
    AND (%s::text[] IS NULL OR virtualtransaction = ANY(%s))
    AND EXISTS (
        SELECT FROM pg_locks AS changing
        WHERE changing.virtualtransaction = aware.virtualtransaction
            AND changing.locktype IN ('relation', 'advisory')
            AND changing.mode <> 'AccessShareLock')
"""


async def unaware(connection: Connection, of: Sequence[str] | None = None) -> list[str]:
    """The transactions that may have read how it was before this one, and change something.

    Whoever has committed a change of `coupon_erased_users` calls it until none of these is left
    (`of`: those of the first call). All others know of the change then.
    """
    among = None if of is None else list(of)
    cursor = await connection.execute(SELECT_UNAWARE, [among, among])
    return [it for (it,) in await cursor.fetchall()]


# --- what ends before -----------------------------------------------------------------------------

LOCKS_KEPT: Final = timedelta(hours=51)
"""For how long Redis may name the user of a lock: it lives for a day, and waits for the sweeper for
another."""

SELECT_LOCKS: Final = """
SELECT DISTINCT lock_id FROM redemption_audit
WHERE user_id = ANY(%s) AND event_time > %s AND type IN (12, 13) AND lock_id IS NOT NULL
"""


async def select_recent_locks(connection: Connection, user_id: str, now: datetime) -> list[UUID]:
    """The locks of the user that Redis may still know of, live or not."""
    names = list(id_spellings(user_id))
    cursor = await connection.execute(SELECT_LOCKS, [names, now - LOCKS_KEPT])
    return [it for (it,) in await cursor.fetchall()]


SELECT_ASSIGNED: Final = """
SELECT code, book_id, business_id, assign_time
FROM coupon_assignments JOIN coupon_books USING (book_id)
WHERE user_id = %s AND assign_time IS NOT NULL AND coupon_assignments.state = 1 -- ACTIVE
ORDER BY code
LIMIT %s
"""


async def select_assigned(
    connection: Connection, user_id: str, count: int
) -> list[tuple[str, UUID, str, datetime]]:
    """Codes that the user has: each with its book, business, and since when."""
    cursor = await connection.execute(SELECT_ASSIGNED, [user_id, count])
    return await cursor.fetchall()


SELECT_BUSINESSES: Final = "SELECT DISTINCT business_id FROM coupon_books"


async def select_businesses(connection: Connection) -> list[str]:
    """All that have books."""
    cursor = await connection.execute(SELECT_BUSINESSES)
    return [it for (it,) in await cursor.fetchall()]


# --- what is stored -------------------------------------------------------------------------------

SELECT_CHUNK: Final[LiteralString] = f"""
SELECT {EVENTS.selected} FROM redemption_audit WHERE user_id = ANY(%s)
ORDER BY user_id, event_time, event_id LIMIT %s
"""
# The row of the other user of a transfer, written at the same moment.
SELECT_COUNTERPARTS: Final[LiteralString] = f"""
SELECT {EVENTS.selected}
FROM unnest(%s::text[], %s::timestamptz[], %s::text[]) AS wanted (of_code, of_time, other_user)
JOIN redemption_audit AS e
    ON e.code IS NOT NULL AND e.code || '' = wanted.of_code AND e.event_time = wanted.of_time
    AND e.other_user_id = ANY(%s) AND e.user_id = wanted.other_user
"""
ERASE: Final = """
SELECT coupon_erase_user(
    %s, %s, %s::uuid[], %s::smallint[], %s::text[], %s::text[], %s::uuid[], %s::bytea[])
"""


# What archived redemptions have on orders, where the ledger has them no more.
SELECT_ARCHIVED: Final = """
SELECT redemption_id, order_id FROM coupon_archived_orders WHERE user_id = ANY(%s)
ORDER BY user_id, redemption_id LIMIT %s
"""
ERASE_ARCHIVED: Final = """
SELECT coupon_erase_archived_orders(%s, %s, %s::uuid[], %s::text[])
"""


async def erase_chunk(
    connection: Connection, user_id: str, pseudonym: str, pseudonyms: Pseudonyms
) -> Mapping[str, int]:
    """Erases some of the ledger rows of the user, and what goes with them; then what archived ones
    have on orders, and what is left elsewhere. Returns how many rows of which table were changed:
    none when nothing is left."""
    names = list(id_spellings(user_id))
    await select_head(connection, lock=True)  # so that nothing is sealed meanwhile
    cursor = await connection.execute(SELECT_CHUNK, [names, CHUNK])
    events = [event_from_row(it) for it in await cursor.fetchall()]
    if not events and (rows := await _erase_archived(connection, names, pseudonym, pseudonyms)):
        return rows
    if handed_over := [it for it in events if it.other_user_id is not None]:
        cursor = await connection.execute(
            SELECT_COUNTERPARTS,
            [
                [it.code for it in handed_over],
                [it.event_time for it in handed_over],
                [it.other_user_id for it in handed_over],
                names,
            ],
        )
        events += map(event_from_row, await cursor.fetchall())
    each = list({it.event_id: it for it in events}.values())
    commitments = await _commitments(connection, each, names)
    parameters = _parameters(each, commitments, names, pseudonym, pseudonyms)
    cursor = await connection.execute(ERASE, parameters)
    ((rows,),) = await cursor.fetchall()
    if each and not rows:  # an archive has taken them in between
        return await erase_chunk(connection, user_id, pseudonym, pseudonyms)
    return rows


async def _erase_archived(
    connection: Connection, names: list[str], pseudonym: str, pseudonyms: Pseudonyms
) -> Mapping[str, int]:
    cursor = await connection.execute(SELECT_ARCHIVED, [names, CHUNK])
    found = await cursor.fetchall()
    if not found:
        return {}
    ids = uuid_array(it for it, _ in found)
    erased_orders = text_array(pseudonyms.of_order(order_id) for _, order_id in found)
    cursor = await connection.execute(ERASE_ARCHIVED, [pseudonym, names, ids, erased_orders])
    ((rows,),) = await cursor.fetchall()
    return rows


async def _commitments(
    connection: Connection, events: Iterable[Event], names: list[str]
) -> dict[UUID, bytes]:
    """Those to what is erased of these rows, so that they still prove what they were.

    Of a row that is not sealed yet they are made with a key that nobody keeps.
    """
    rows = await select_rows_by_id(connection, [it.event_id for it in events])
    users = users_of(rows)
    keys = await select_keys(connection, users)
    keys |= {it: token_bytes(KEY_BYTES) for it in users - keys.keys()}
    return {
        UUID(bytes=row.event_id): erased(
            row, keys, user=row.user_id in names, other=row.other_user_id in names
        )
        for row in rows
    }


def _parameters(
    each: Sequence[Event],
    commitments: Mapping[UUID, bytes],
    names: list[str],
    pseudonym: str,
    pseudonyms: Pseudonyms,
) -> list[object]:
    orders = [it.order_id and canonical_id(it.order_id) for it in each]
    return [
        pseudonym,
        names,
        uuid_array(it.event_id for it in each),
        int_array(map(bucket_of_event_row, each)),
        text_array(orders),
        text_array([it and pseudonyms.of_order(it) for it in orders]),
        uuid_array(rollback_id(it.event_id) for it in each),
        [commitments.get(it.event_id) for it in each],
    ]
