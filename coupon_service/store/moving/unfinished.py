"""In which step a move is that was cut off, or that another process carries out now."""

from __future__ import annotations

from typing import Final

from coupon_service.store.migrations import lock_of
from coupon_service.store.moving.copying import is_guarded
from coupon_service.store.moving.sides import MOVE_LOCK, Connection, Names
from coupon_service.store.sessions import ShardPlace

IS_PUBLISHED: Final = """
SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = %s)
    OR EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = %s)
"""

IS_APPLYING: Final = """
SELECT subenabled FROM pg_subscription WHERE subname = %s AND subdbid = (
    SELECT oid FROM pg_database WHERE datname = current_database())
"""

IS_LOCKED: Final = """
SELECT EXISTS (SELECT FROM pg_locks
    WHERE locktype = 'advisory' AND objsubid = 1 AND granted
        AND classid::bigint << 32 | objid::bigint = %s
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
"""


def is_moving(source: Connection, shard: ShardPlace) -> bool:
    """Whether another process moves the shard now."""
    found = source.execute(IS_LOCKED, [lock_of(shard) + MOVE_LOCK]).fetchone()
    return found == (True,)


def step_of(source: Connection, target: Connection, names: Names) -> str:
    """What a move was at that has not switched over; empty when there is none."""
    applying = target.execute(IS_APPLYING, [names.move]).fetchone()
    if applying is not None:
        return "catching up and comparing" if applying[0] else "copying the rows"
    if is_guarded(target, names):
        return "making the tables"
    published = source.execute(IS_PUBLISHED, [names.move, names.slot(source)]).fetchone()
    return "replicating to another place, or being undone" if published == (True,) else ""
