"""Checks after each fault: resources, conservation, statuses."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

import psutil
import psycopg
from faults.load import Account, Seen
from faults.stack import Stack
from grpc import StatusCode
from psycopg.rows import TupleRow
from support.invariants import assert_adds_up

from coupon_service.model import EventType


@dataclass(frozen=True, slots=True)
class Resources:
    """Resources of an idle service: tasks by name, and descriptors other than those of lines."""

    tasks: Counter[str]
    descriptors: int


def resources(stack: Stack) -> Resources:
    """The resources that the service holds now."""

    async def names() -> Counter[str]:
        own = asyncio.current_task()
        return Counter(
            getattr(task.get_coro(), "__qualname__", "?")
            for task in asyncio.all_tasks()
            if task is not own
        )

    tasks = stack.server.run(names())
    lines = stack.to_postgres.lines + stack.to_redis.lines
    return Resources(tasks, psutil.Process().num_fds() - 3 * lines)


def why_not_restored(stack: Stack, before: Resources) -> str:
    """Empty when the pools are full, nothing is in flight and nothing leaked; else the cause."""
    sizes = 0
    (shard,) = stack.parts().shards
    for database in (shard.database, shard.bulk_database):
        pool = database.pool.get_stats()
        size, available = pool.get("pool_size", 0), pool.get("pool_available", 0)
        waiting = pool.get("requests_waiting", 0)
        if database._running:
            return f"{len(database._running)} transactions are in flight"
        if waiting or size != available or size < database.settings.pool_min_size:
            return f"the pool has {available} of {size} connections, {waiting} wait"
        sizes += size
    with stack.connect() as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'coupon_service%'"
        ).fetchone()
    if row != (sizes,):
        return f"PostgreSQL has {row} connections, the pools {sizes}"
    if stack.to_postgres.lines != sizes:
        return f"{stack.to_postgres.lines} lines to PostgreSQL are open, the pools have {sizes}"
    now = resources(stack)
    more = now.tasks - before.tasks
    if more:
        return f"tasks are left: {dict(more)}"
    if now.descriptors > before.descriptors:
        return f"{now.descriptors} descriptors, {before.descriptors} before"
    return ""


def assert_conserved(
    connection: psycopg.Connection[TupleRow], account: Account, book_ids: list[str]
) -> None:
    """Assert that acknowledged effects exist, refused ones do not, and all sums agree."""
    assert_adds_up(connection, book_ids, clock_jumped=True)
    for event, acknowledged in (
        (EventType.REDEEMED, account.redeemed),
        (EventType.ROLLED_BACK, account.rolled_back),
    ):
        rows: list[Any] = connection.execute(
            "SELECT request_id, coalesce(redemption_id, event_id)::text FROM redemption_audit"
            " WHERE type = %s AND book_id = ANY(%s)",
            (event, book_ids),
        ).fetchall()
        ledger = dict(rows)
        assert len(ledger) == len(rows), "an attempt took effect twice"
        lost = {it: id_ for it, id_ in acknowledged.items() if ledger.get(it) != id_}
        assert not lost, f"{len(lost)} acknowledged effects are missing: {lost}"
        refused = ledger.keys() - acknowledged.keys() - account.unknown
        assert not refused, f"{len(refused)} refused calls had an effect: {refused}"


# --- statuses -----------------------------------------------------------------------------------

ADVISED: Final = {
    "DATABASE_UNAVAILABLE": StatusCode.UNAVAILABLE,
    "LOCKS_UNAVAILABLE": StatusCode.UNAVAILABLE,
    "CONTENTION": StatusCode.ABORTED,
    "OVERLOADED": StatusCode.RESOURCE_EXHAUSTED,
}
"""Reasons of failures and their statuses. Each has RetryInfo."""

OF_A_SLOW_MACHINE: Final = frozenset({"CONTENTION", "DEADLINE_EXCEEDED"})
"""Outcomes that an overloaded machine may cause at any time."""

OF_BUSINESS: Final = frozenset(
    {"OK", "CODE_ALREADY_REDEEMED", "CODE_LIMIT_EXCEEDED", "CODE_LOCKED"}
)
"""Outcomes of the load without faults. CODE_LOCKED is about codes that clients share."""


def assert_outcomes(seen: list[Seen], expected: frozenset[str]) -> None:
    """Assert that clients saw only expected outcomes, with the documented status and RetryInfo."""
    unexpected = [it for it in seen if it.name not in expected | OF_A_SLOW_MACHINE | OF_BUSINESS]
    assert not unexpected, f"{len(unexpected)} unexpected outcomes: {unexpected[:3]}"
    for it in seen:
        if it.reason in ADVISED:
            assert it.status is ADVISED[it.reason], it
            assert it.advises_retry, it
        if it.own:  # no other client uses its code, so the rules must not refuse it
            assert it.name not in OF_BUSINESS - {"OK"}, it
