"""Weekly opening hours in a time zone."""

from __future__ import annotations

from enum import IntEnum
from typing import Final
from zoneinfo import ZoneInfo

from coupon_service.model.values import value

DAY_MINUTES: Final = 24 * 60


class Weekday(IntEnum):
    """A day of the week, numbered as in ISO 8601 and in the contract."""

    MONDAY = 1
    TUESDAY = 2
    WEDNESDAY = 3
    THURSDAY = 4
    FRIDAY = 5
    SATURDAY = 6
    SUNDAY = 7

    @property
    def before(self) -> Weekday:
        """The day before."""
        return Weekday(self - 1 or 7)


@value
class WeeklyWindow:
    """Open from `start_minute` to `end_minute` of the local day, exclusive, on each of `days`.

    An end that is not after the start is one of the next day.
    """

    days: tuple[Weekday, ...]
    start_minute: int
    end_minute: int


@value
class Schedule:
    """When a book is open, by the clocks of a time zone. Open is what any of the windows covers."""

    time_zone: ZoneInfo
    windows: tuple[WeeklyWindow, ...]
