"""Mutants of what depends on the time of day and on the calendar."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest import mock
from zoneinfo import ZoneInfo

from mutants.mutants import Mutant, _all, loaded_with_another

from coupon_service.model import Book
from coupon_service.rules import opening_hours, periods, refusals
from coupon_service.rules.draft import Draft
from coupon_service.store.commands import period_counters


def window_ends_at_midnight() -> Mutant:
    """What lies after midnight is of the day after, on which the window does not open."""

    def covers(window: Any, today: Any, minute: int) -> bool:
        until = window.end_minute if window.end_minute > window.start_minute else 1_440
        return today in window.days and window.start_minute <= minute < until

    return mock.patch.object(opening_hours, "_covers", covers)


def closed_for_locks() -> Mutant:
    """Whoever comes when it is closed comes too late, whatever they have locked."""
    real = refusals._ends_judged_at

    def judged_at(*arguments: Any) -> Any:
        (book,), now = [it for it in arguments if isinstance(it, Book)], arguments[-1]
        return now if refusals._is_closed(book, now) else real(*arguments)

    return mock.patch.object(refusals, "_ends_judged_at", judged_at)


def periods_in_utc() -> Mutant:
    """A day is one of UTC, wherever the book is."""

    def start(limits: Any, now: Any) -> Any:
        return real(replace(limits, time_zone=ZoneInfo("UTC")), now)

    real = periods.period_start
    return mock.patch.object(periods, "period_start", start)


def roll_back_credits_today() -> Mutant:
    """What is rolled back makes room in the period in which it is."""
    real = Draft.count_period

    def count(self: Draft, book: Any, user_id: str, _: Any, redemptions: int) -> None:
        real(self, book, user_id, self.now, redemptions)

    return mock.patch.object(Draft, "count_period", count)


def periods_not_locked() -> Mutant:
    """What a period has left was read without a lock."""
    unlocked = period_counters.SELECT_PERIODS
    return _all(mock.patch.object(period_counters, "LOCK_PERIODS", unlocked), loaded_with_another())
