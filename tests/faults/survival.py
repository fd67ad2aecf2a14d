"""A fault under load, and the guarantees for the time after it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final

import psycopg
from faults.checks import assert_conserved
from faults.load import Load, Seen
from grpc import StatusCode
from psycopg.rows import TupleRow
from support.waiting import PATIENCE, until

FIRST_SUCCESS_S: Final = 5.0
"""Time from the end of a fault until a call succeeds."""

RECOVERY_S: Final = 10.0
"""Time from the end of a fault until latencies are normal and all resources are restored."""

NORMAL_S: Final = 0.25 * PATIENCE
"""The greatest p95 of latencies that counts as normal."""

WINDOW: Final = 40
"""Number of latest calls whose p95 is judged."""


@dataclass(frozen=True, slots=True)
class Survival:
    """Times after a fault in seconds, and the attempts of clients since its start.

    Until the first success, until latencies are normal, and until all resources are restored.
    """

    first_success_s: float
    normal_s: float
    restored_s: float
    seen: list[Seen]


def survive(
    load: Load,
    fault: AbstractContextManager[None],
    holds_s: float,
    connect: Callable[[], psycopg.Connection[TupleRow]],
    why_not_restored: Callable[[], str] = str,
) -> Survival:
    """Hold the fault for `holds_s`, and check that no effect is lost and the service recovers.

    `connect`: to PostgreSQL. `why_not_restored`: empty when all resources are restored.
    """
    until(lambda: is_normal(load, time.monotonic() - 3), RECOVERY_S)
    began_s = time.monotonic()
    with fault:
        time.sleep(holds_s)
    ended_s = time.monotonic()
    first_s = until(lambda: succeeded(load, ended_s), FIRST_SUCCESS_S)
    until(lambda: is_normal(load, ended_s), RECOVERY_S)
    normal_s = time.monotonic() - ended_s
    with load.paused():
        until(lambda: not why_not_restored(), RECOVERY_S, why_not_restored)
        restored_s = time.monotonic() - ended_s
        with connect() as connection:
            assert_conserved(connection, load.account, load.book_ids)
        seen = load.account.ended_since(began_s)
    return Survival(first_s, normal_s, restored_s, seen)


def succeeded(load: Load, since_s: float) -> bool:
    """Whether a call that was sent since then was answered OK."""
    recent = load.account.ended_since(since_s)
    return any(it.status is StatusCode.OK and it.sent_s >= since_s for it in recent)


def is_normal(load: Load, since_s: float) -> bool:
    """Whether the latest calls since then succeeded, with a normal latency."""
    last = load.account.ended_since(since_s)[:WINDOW]
    took_s = sorted(it.took_s for it in last if it.status is StatusCode.OK)
    return len(took_s) >= WINDOW * 0.8 and took_s[int(len(took_s) * 0.95)] < NORMAL_S
