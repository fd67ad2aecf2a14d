"""Schedules as they are stored: JSON."""

from __future__ import annotations

import json
from functools import lru_cache

from coupon_service.model import Schedule, Weekday, WeeklyWindow
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
