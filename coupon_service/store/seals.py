"""Seals of the ledger, the newest of them, and the keys of users that are made for them."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, LiteralString
from uuid import UUID

from coupon_service.audit.leaves import KEY_BYTES
from coupon_service.audit.seals import Link, Position, Seal, begin_chain
from coupon_service.store.arrays import text_array
from coupon_service.store.ledger_rows import select_keys
from coupon_service.store.pipeline import Connection


@dataclass(frozen=True, slots=True)
class Head:
    """Where the chain of seals is. `erasures`: how often values were erased. `time`: PostgreSQL's.

    `log_id`: of this ledger.
    """

    log_id: UUID
    position: Position
    erasures: int
    time: datetime


SELECT_HEAD: Final[LiteralString] = """
SELECT log_id, number, last_sequence, chain, erasures, clock_timestamp() FROM coupon_audit_head
"""


async def select_head(connection: Connection, *, lock: bool = False) -> Head:
    """Where the chain is. `lock`: until the transaction ends, nobody moves it or erases values."""
    statement: LiteralString = SELECT_HEAD + ("FOR UPDATE" if lock else "")
    cursor = await connection.execute(statement)
    row = await cursor.fetchone()
    if row is None:
        raise LookupError("coupon_audit_head has no row")
    log_id, number, last_sequence, chain, erasures, time = row
    position = Position(number, last_sequence, chain or begin_chain(log_id))
    return Head(log_id, position, erasures, time)


INSERT_KEYS: Final = """
INSERT INTO coupon_user_keys (user_id, key, create_time)
SELECT user_id, substring(%s::bytea FROM (number::integer - 1) * %s::integer + 1 FOR %s), now()
FROM unnest(%s::text[]) WITH ORDINALITY AS made (user_id, number)
ON CONFLICT DO NOTHING
"""


async def insert_keys(
    connection: Connection, users: Collection[str], head: Head
) -> dict[str, bytes] | None:
    """Makes keys for those of the users who have none, in a transaction, and returns all of theirs.

    None, and none made, when values were erased since `head`: perhaps those of one of the users.
    """
    now = await select_head(connection, lock=True)
    if now.erasures != head.erasures:
        return None
    names, keys = sorted(users), secrets.token_bytes(KEY_BYTES * len(users))
    parameters = [keys, KEY_BYTES, KEY_BYTES, text_array(names)]
    cursor = await connection.execute(INSERT_KEYS, parameters)
    if cursor.rowcount < len(names):  # others have made some meanwhile
        return await select_keys(connection, names)
    starts = range(0, len(keys), KEY_BYTES)
    return dict(zip(names, [keys[it : it + KEY_BYTES] for it in starts], strict=True))


MOVE_HEAD: Final = """
UPDATE coupon_audit_head
SET number = %(number)s, last_sequence = %(last_sequence)s, chain = %(chain)s
WHERE number = %(number)s - 1 AND erasures = %(erasures)s
"""
INSERT_SEAL: Final = """
INSERT INTO coupon_audit_seals (
    number, first_sequence, last_sequence, seal_time, row_count, version, root, leaves_hash, chain,
    leaves)
VALUES (
    %(number)s, %(first_sequence)s, %(last_sequence)s, %(seal_time)s, %(row_count)s, %(version)s,
    %(root)s, %(leaves_hash)s, %(chain)s, %(leaves)s)
"""


async def insert_seal(connection: Connection, link: Link, head: Head) -> bool:
    """Adds the seal after that of `head`, in a transaction.

    False, and nothing, when there is another one by now, or values were erased.
    """
    seal = link.seal
    parameters: dict[str, Any] = {
        "number": seal.number,
        "first_sequence": seal.first_sequence,
        "last_sequence": seal.last_sequence,
        "seal_time": seal.seal_time,
        "row_count": seal.row_count,
        "version": seal.version,
        "root": seal.root,
        "leaves_hash": seal.leaves_hash,
        "chain": link.chain,
        "leaves": link.leaves,
        "erasures": head.erasures,
    }
    cursor = await connection.execute(MOVE_HEAD, parameters)
    if not cursor.rowcount:
        return False
    await connection.execute(INSERT_SEAL, parameters)
    return True


_SEAL: Final[LiteralString] = """
    number, first_sequence, last_sequence, row_count, root, leaves_hash, seal_time, version, chain
"""
SELECT_SEALS: Final[LiteralString] = f"""
SELECT {_SEAL}, ''::bytea FROM coupon_audit_seals WHERE number >= %s ORDER BY number LIMIT %s
"""
SELECT_SEAL: Final[LiteralString] = f"""
SELECT {_SEAL}, leaves FROM coupon_audit_seals WHERE number >= %s ORDER BY number LIMIT 1
"""
SELECT_SEAL_OF: Final[LiteralString] = f"""
SELECT {_SEAL}, leaves FROM coupon_audit_seals WHERE last_sequence >= %s
ORDER BY last_sequence LIMIT 1
"""
SELECT_FIRST_SINCE: Final = """
SELECT number FROM coupon_audit_seals WHERE seal_time >= %s ORDER BY number LIMIT 1
"""


async def select_seal(connection: Connection, number: int) -> Link | None:
    """The first seal from this number on."""
    return await _one(connection, SELECT_SEAL, number)


async def select_seal_of(connection: Connection, sequence: int) -> Link | None:
    """The seal in whose range this number of the ledger is; None before it is sealed."""
    link = await _one(connection, SELECT_SEAL_OF, sequence)
    return link if link is not None and link.seal.first_sequence <= sequence else None


async def select_seals(connection: Connection, number: int, count: int) -> list[Link]:
    """So many seals from this number on, without their leaves."""
    cursor = await connection.execute(SELECT_SEALS, [number, count])
    return [_link(row) for row in await cursor.fetchall()]


async def select_first_since(connection: Connection, time: datetime) -> int | None:
    """The number of the first seal that was made at this time or later."""
    cursor = await connection.execute(SELECT_FIRST_SINCE, [time])
    row = await cursor.fetchone()
    return row[0] if row is not None else None


async def _one(connection: Connection, statement: LiteralString, number: int) -> Link | None:
    cursor = await connection.execute(statement, [number])
    row = await cursor.fetchone()
    return _link(row) if row is not None else None


def _link(row: tuple[Any, ...]) -> Link:
    *columns, chain, leaves = row
    return Link(seal_from_row(columns), chain, leaves)


def seal_from_row(row: Sequence[Any]) -> Seal:
    """The seal of the columns of coupon_audit_seals that go into its chain."""
    number, first, last, row_count, root, leaves_hash, seal_time, version = row
    return Seal(
        number=number,
        first_sequence=first,
        last_sequence=last,
        row_count=row_count,
        root=root,
        leaves_hash=leaves_hash,
        seal_time=seal_time,
        version=version,
    )


SEAL_STATUS: Final = """
SELECT head.last_sequence, coalesce((
    SELECT greatest(extract(epoch FROM clock_timestamp() - event_time), 0)
    FROM redemption_audit WHERE sequence > head.last_sequence ORDER BY sequence LIMIT 1), 0)::float8
FROM coupon_audit_head AS head
"""


async def seal_status(connection: Connection) -> tuple[int, float]:
    """The number up to which the ledger is sealed, and the age of the first row after it, in
    seconds; 0 without one."""
    cursor = await connection.execute(SEAL_STATUS)
    row = await cursor.fetchone()
    return (row[0], row[1]) if row is not None else (0, 0.0)
