"""Mutants of what depends on the time of day and on the calendar."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

from typing import Any
from unittest import mock

from coupon_service.rules import opening_hours, refusals

Mutant = Any


def window_ends_at_midnight() -> Mutant:
    """What lies after midnight is of the day after, on which the window does not open."""

    def covers(window: Any, today: Any, minute: int) -> bool:
        until = window.end_minute if window.end_minute > window.start_minute else 1_440
        return today in window.days and window.start_minute <= minute < until

    return mock.patch.object(opening_hours, "_covers", covers)


def closed_for_locks() -> Mutant:
    """Whoever comes when it is closed comes too late, whatever they have locked."""
    real = refusals._ends_judged_at

    def judged_at(command: Any, assignment: Any, book: Any, state: Any, now: Any) -> Any:
        closed = refusals._is_closed(book, now)
        return now if closed else real(command, assignment, book, state, now)

    return mock.patch.object(refusals, "_ends_judged_at", judged_at)
