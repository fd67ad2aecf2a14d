"""A fault under load, and what was promised of the time after it."""

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
from support.waiting import until

FIRST_SUCCESS_S: Final = 5.0
"""After the end of a fault, until a call succeeds."""

CALM_S: Final = 10.0
"""After the end of a fault, until latencies are what they were, and everything is whole."""

CALM_P95_S: Final = 0.25
"""Latencies up to this are calm."""

WINDOW: Final = 40
"""Calls whose p95 tells whether it is calm."""


@dataclass(frozen=True, slots=True)
class Survival:
    """How long it took after a fault, in seconds, and what clients saw from its beginning on."""

    first_success_s: float
    calm_s: float
    whole_s: float
    seen: list[Seen]


def survive(
    load: Load,
    fault: AbstractContextManager[None],
    holds_s: float,
    connect: Callable[[], psycopg.Connection[TupleRow]],
    why_not_whole: Callable[[], str] = str,
) -> Survival:
    """Lets it happen for so long, and checks that nothing is lost and the service is well again.

    `connect`: to PostgreSQL. `why_not_whole`: empty when everything is as it was.
    """
    until(lambda: is_calm(load, time.monotonic() - 3), CALM_S)
    began_s = time.monotonic()
    with fault:
        time.sleep(holds_s)
    ended_s = time.monotonic()
    first_s = until(lambda: succeeded(load, ended_s), FIRST_SUCCESS_S)
    until(lambda: is_calm(load, ended_s), CALM_S)
    calm_s = time.monotonic() - ended_s
    with load.paused():
        until(lambda: not why_not_whole(), CALM_S, why_not_whole)
        whole_s = time.monotonic() - ended_s
        with connect() as connection:
            assert_conserved(connection, load.account, load.book_ids)
        seen = load.account.ended_since(began_s)
    return Survival(first_s, calm_s, whole_s, seen)


def succeeded(load: Load, since_s: float) -> bool:
    """Whether a call that was sent since then was answered OK."""
    recent = load.account.ended_since(since_s)
    return any(it.status is StatusCode.OK and it.sent_s >= since_s for it in recent)


def is_calm(load: Load, since_s: float) -> bool:
    """Whether the last calls of this time succeeded, and fast."""
    last = load.account.ended_since(since_s)[:WINDOW]
    took_s = sorted(it.took_s for it in last if it.status is StatusCode.OK)
    return len(took_s) >= WINDOW * 0.8 and took_s[int(len(took_s) * 0.95)] < CALM_P95_S
