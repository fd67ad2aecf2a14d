"""Mutants of how the ledger is followed: bugs, in this process and for a test only."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

from datetime import timedelta
from typing import Any
from unittest import mock

from mutants.mutants import Mutant, _all

from coupon_service.store import ledger_feed, ledger_horizon
from coupon_service.store.queries.followed_events import FIRST_TIME, LedgerPage, LedgerPosition
from coupon_service.store.rows import EVENTS, event_from_row

BY_TIME = f"""
SELECT {EVENTS.selected} FROM redemption_audit WHERE event_time > %s ORDER BY event_time, sequence
"""
BY_ID = f"""
SELECT {EVENTS.selected}, xmin::text::bigint FROM redemption_audit
WHERE xmin::text::bigint > %s
    AND xmin::text::bigint < pg_snapshot_xmin(pg_current_snapshot())::text::bigint
ORDER BY xmin::text::bigint, sequence
"""


def numbers_shown_when_drawn() -> Mutant:
    """A number is read as soon as it was drawn, whoever has not committed yet."""
    return mock.patch.object(ledger_horizon, "IDS", "SELECT 1::bigint, 0::bigint")


def bound_by_the_last_that_ended() -> Mutant:
    """Waits for the transactions below the last that has ended, not for all that have an id."""
    ids = """
    SELECT pg_snapshot_xmin(snapshot)::text::bigint, pg_snapshot_xmax(snapshot)::text::bigint
    FROM pg_current_snapshot() AS snapshot
    """
    return mock.patch.object(ledger_horizon, "IDS", ids)


def ids_read_before_the_number() -> Mutant:
    """Who draws between the two reads is not waited for."""

    async def look(pipeline: Any) -> tuple[Any, Any]:
        ids = pipeline.add(ledger_horizon.IDS)
        return pipeline.add(ledger_horizon.LAST_NUMBER), ids

    return mock.patch.object(ledger_horizon, "_look", look)


def followed_by_time() -> Mutant:
    """The ledger is read in the order of the times of its events."""

    async def select(connection: Any, _: Any, after: LedgerPosition, __: int) -> LedgerPage:
        cursor = await connection.execute(BY_TIME, [after.time])
        events = [event_from_row(row) for row in await cursor.fetchall()]
        end = LedgerPosition(0, events[-1].event_time, events[-1].event_id) if events else after
        return LedgerPage(events, end, is_last=True)

    return _all(
        mock.patch.object(ledger_feed, "select_followed", select), numbers_shown_when_drawn()
    )


def followed_by_transaction() -> Mutant:
    """The ledger is read in the order of the ids of its transactions, once all below have ended."""

    async def select(connection: Any, _: Any, after: LedgerPosition, __: int) -> LedgerPage:
        cursor = await connection.execute(BY_ID, [(after.time - FIRST_TIME).total_seconds()])
        rows = await cursor.fetchall()
        events = [event_from_row(row[:-1]) for row in rows]
        last = FIRST_TIME + timedelta(seconds=rows[-1][-1]) if rows else after.time
        return LedgerPage(events, LedgerPosition(0, last, after.event_id), is_last=True)

    return _all(
        mock.patch.object(ledger_feed, "select_followed", select), numbers_shown_when_drawn()
    )
