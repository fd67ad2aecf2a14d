"""Limits a day, week or month: which period a redemption counts in, and when the next one begins.

A period is known by its first day, a date in the time zone of its book. A redemption counts in the
period of its own time, also when it is rolled back later.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from typing import Final

from coupon_service.errors import (
    BookPeriodLimitExceeded,
    Contention,
    CouponServiceError,
    UserPeriodLimitExceeded,
)
from coupon_service.model import Book, Period, PeriodKey, PeriodLimits, State
from coupon_service.model.schedules import EVERYBODY
from coupon_service.rules.erasures import in_period_before
from coupon_service.rules.local_times import first_time

SEARCHED_DAYS: Final = 35
"""A month, and what a time zone may skip of it."""


def period_start(limits: PeriodLimits, now: datetime) -> date:
    """The first day of the period: that day, the Monday of its week, the first of its month."""
    day = now.astimezone(limits.time_zone).date()
    match limits.period:
        case Period.DAY:
            return day
        case Period.WEEK:
            return day - timedelta(days=day.weekday())
        case _:
            return day.replace(day=1)


def period_end(limits: PeriodLimits, start: date) -> date:
    """The first day of the next period."""
    match limits.period:
        case Period.DAY:
            return start + timedelta(days=1)
        case Period.WEEK:
            return start + timedelta(days=7)
        case _:
            return (start + timedelta(days=31)).replace(day=1)


def next_period_time(limits: PeriodLimits, now: datetime) -> datetime | None:
    """When the next period begins, in UTC: at midnight, or where clocks skip that, right after."""
    start = period_start(limits, now)
    return first_time(
        limits.time_zone,
        now,
        SEARCHED_DAYS,
        lambda day: (datetime.combine(day, time()),),
        lambda it: period_start(limits, it) != start,
    )


def period_keys(book: Book, user_id: str, now: datetime) -> Iterator[PeriodKey]:
    """Under which keys the book, which has limits a period, counts redemptions of the user."""
    limits = book.period_limits
    if limits is None:
        return
    start = period_start(limits, now)
    if limits.max_redemptions_per_user:
        yield book.book_id, user_id, start
    if limits.max_redemptions:
        yield book.book_id, EVERYBODY, start


def period_refusals(
    limits: PeriodLimits, user_id: str, book: Book, state: State, now: datetime
) -> Iterator[CouponServiceError]:
    """Which of the limits of the book are reached in this period.

    Contention where the period began after the counts were read.
    """
    for key in period_keys(book, user_id, now):
        limit, counted = limits.of(key[1]), state.periods.get(key)
        if counted is None:
            yield Contention()
        elif counted + in_period_before(*key, state) >= limit:
            of_book = key[1] == EVERYBODY
            kind = BookPeriodLimitExceeded if of_book else UserPeriodLimitExceeded
            begins = next_period_time(limits, now)
            next_time = {"next_period_time": begins.isoformat()} if begins else {}
            yield kind(limit=limit, period=limits.period.name, **next_time)
