"""Schedules, and limits of periods, as they are stored: JSON."""

from __future__ import annotations

import json
from functools import lru_cache

from coupon_service.model import Period, PeriodLimits, Schedule, Weekday, WeeklyWindow
from coupon_service.model.time_zones import time_zone


def schedule_json(schedule: Schedule) -> str:
    """The schedule as JSON: {"zone": name, "windows": [[days, start_minute, end_minute]]}."""
    windows = [[it.days, it.start_minute, it.end_minute] for it in schedule.windows]
    return json.dumps({"zone": schedule.time_zone.key, "windows": windows})


@lru_cache
def schedule_of(text: str | None) -> Schedule | None:
    """The schedule that `schedule_json` wrote; remembered, as each batch reads its books anew."""
    if text is None:
        return None
    stored = json.loads(text)
    windows = [WeeklyWindow(tuple(map(Weekday, days)), *span) for days, *span in stored["windows"]]
    return Schedule(time_zone(stored["zone"]), tuple(windows))


def period_limits_json(limits: PeriodLimits) -> str:
    """The limits as JSON: {"period": number, "zone": name, "book": limit, "user": limit}."""
    return json.dumps(
        {
            "period": limits.period,
            "zone": limits.time_zone.key,
            "book": limits.max_redemptions,
            "user": limits.max_redemptions_per_user,
        }
    )


@lru_cache
def period_limits_of(text: str | None) -> PeriodLimits | None:
    """The limits that `period_limits_json` wrote; remembered as well."""
    if text is None:
        return None
    stored = json.loads(text)
    zone = time_zone(stored["zone"])
    return PeriodLimits(Period(stored["period"]), zone, stored["book"], stored["user"])
