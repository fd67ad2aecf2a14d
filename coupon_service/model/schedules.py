"""What the calendar of a time zone decides: opening hours, and limits a day, week or month."""

from __future__ import annotations

from enum import IntEnum
from typing import Final
from zoneinfo import ZoneInfo

from coupon_service.model.values import value

DAY_MINUTES: Final = 24 * 60
EVERYBODY: Final = ""
"""Stands for a user in what all users together have redeemed in a period."""


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


class Period(IntEnum):
    """A stretch of the calendar."""

    DAY = 1
    WEEK = 2
    MONTH = 3


@value
class PeriodLimits:
    """Limits on the redemptions of each period, of the book and of each user. 0 = no limit."""

    period: Period
    time_zone: ZoneInfo
    max_redemptions: int = 0
    max_redemptions_per_user: int = 0

    def of(self, user_id: str) -> int:
        """The limit of this user, or of all together (EVERYBODY)."""
        return self.max_redemptions if user_id == EVERYBODY else self.max_redemptions_per_user
