"""Opening hours: whether a book with a schedule is open, and when it opens next.

Windows are read off the clocks of their zone. An hour that comes twice, when clocks are put back,
is within them both times; what is within an hour that clocks skip does not come, and a window that
begins in it begins when it is over.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, time
from typing import Final

from coupon_service.errors import OutsideSchedule
from coupon_service.model import Schedule, Weekday, WeeklyWindow
from coupon_service.rules.local_times import first_time

WITHIN_DAYS: Final = 22
"""A weekly window is open within two weeks, also where its day or hour is skipped once."""


def is_open(schedule: Schedule, now: datetime) -> bool:
    """Whether the clocks of its zone are within one of the windows."""
    local = now.astimezone(schedule.time_zone)
    today, minute = Weekday(local.isoweekday()), local.hour * 60 + local.minute
    return any(_covers(window, today, minute) for window in schedule.windows)


def _covers(window: WeeklyWindow, today: Weekday, minute: int) -> bool:
    start, end = window.start_minute, window.end_minute
    if start < end:
        return today in window.days and start <= minute < end
    return (today in window.days and minute >= start) or (
        today.before in window.days and minute < end
    )


def next_open_time(schedule: Schedule, now: datetime) -> datetime | None:
    """When it opens next, in UTC, while it is closed; None where that is never."""

    def openings(day: date) -> Iterator[datetime]:
        weekday = Weekday(day.isoweekday())
        for window in schedule.windows:
            if weekday in window.days:
                yield datetime.combine(day, time(*divmod(window.start_minute, 60)))

    return first_time(
        schedule.time_zone, now, WITHIN_DAYS, openings, lambda time: is_open(schedule, time)
    )


def outside_schedule(schedule: Schedule, now: datetime) -> OutsideSchedule:
    """The refusal while it is closed."""
    opens = next_open_time(schedule, now)
    return OutsideSchedule(**({"next_open_time": opens.isoformat()} if opens else {}))
