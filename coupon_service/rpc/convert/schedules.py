"""Opening hours, and limits of periods, between proto and model."""

from __future__ import annotations

import re
from typing import Final

from coupon_service.model import Period, PeriodLimits, Schedule, Weekday, WeeklyWindow
from coupon_service.model.schedules import DAY_MINUTES
from coupon_service.rpc.convert.fields import Fields
from coupon_service.v1 import coupon_book_service_pb2 as pb

WINDOWS_MAX: Final = 50
EVERY_DAY: Final = tuple(Weekday)
TIME: Final = re.compile(r"([01][0-9]|2[0-4]):([0-5][0-9])")


def read_schedule(fields: Fields, message: pb.Schedule) -> Schedule:
    """The opening hours; their fields are `fields`."""
    zone = fields.time_zone("time_zone", message.time_zone)
    if not 1 <= len(message.windows) <= WINDOWS_MAX:
        fields.refuse("windows", f"expected 1 to {WINDOWS_MAX} windows")
        return Schedule(zone, ())
    windows = [
        _window(fields.within(f"windows[{index}]"), it) for index, it in enumerate(message.windows)
    ]
    return Schedule(zone, tuple(windows))


def _window(fields: Fields, message: pb.WeeklyWindow) -> WeeklyWindow:
    days = tuple(it for it in Weekday if it in message.days)
    if len(days) != len(message.days):
        fields.refuse("days", "expected days of the week, each once")
    start = _minute(fields, "opens", message.opens, DAY_MINUTES - 1)
    end = _minute(fields, "closes", message.closes, DAY_MINUTES)
    if start is not None and start == end:
        fields.refuse("closes", "expected another time than `opens`; a whole day is 00:00 to 24:00")
    return WeeklyWindow(days or EVERY_DAY, start or 0, end or 0)


def _minute(fields: Fields, field: str, text: str, latest: int) -> int | None:
    found = TIME.fullmatch(text)
    minute = int(found[1]) * 60 + int(found[2]) if found else None
    if minute is not None and minute <= latest:
        return minute
    fields.refuse(field, f"expected a time from 00:00 to {_time(latest)}")
    return None


def schedule_message(schedule: Schedule) -> pb.Schedule:
    """The opening hours as a client sees them."""
    return pb.Schedule(
        time_zone=schedule.time_zone.key, windows=map(_window_message, schedule.windows)
    )


def _window_message(window: WeeklyWindow) -> pb.WeeklyWindow:
    return pb.WeeklyWindow(
        days=() if window.days == EVERY_DAY else map(pb.Weekday.ValueType, window.days),
        opens=_time(window.start_minute),
        closes=_time(window.end_minute),
    )


def _time(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


def read_period_limits(fields: Fields, message: pb.PeriodLimits) -> PeriodLimits:
    """The limits of a period; their fields are `fields`."""
    period = fields.choice("period", message.period, Period, None)
    if period is None and not message.period:
        fields.refuse("period", "expected DAY, WEEK or MONTH")
    limits = PeriodLimits(
        period=period or Period.DAY,
        time_zone=fields.time_zone("time_zone", message.time_zone),
        max_redemptions=fields.whole("max_redemptions", message.max_redemptions, 0, 10**12),
        max_redemptions_per_user=fields.whole(
            "max_redemptions_per_user", message.max_redemptions_per_user, 0, 10**9
        ),
    )
    if not limits.max_redemptions and not limits.max_redemptions_per_user:
        fields.refuse("max_redemptions", "expected a limit of the book, or of its users, or both")
    return limits


def period_limits_message(limits: PeriodLimits) -> pb.PeriodLimits:
    """The limits of a period as a client sees them."""
    return pb.PeriodLimits(
        period=pb.Period.ValueType(limits.period),
        time_zone=limits.time_zone.key,
        max_redemptions=limits.max_redemptions,
        max_redemptions_per_user=limits.max_redemptions_per_user,
    )
