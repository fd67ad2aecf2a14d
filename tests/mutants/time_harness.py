"""What has to catch the mutants of times of day and of the calendar."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from mutants.harness import Stack
from support.calls import extend, tried
from support.service import books

OPTIONAL = books.LOCK_POLICY_OPTIONAL


def ahead_h(it: Stack, hour: int) -> int:
    """By how much the clocks are ahead of UTC where it is some time after this hour."""
    return (hour - it.clock.now().hour + 12) % 24 - 12


def hours(it: Stack, days: list[Any], opens: str, closes: str, hour: int) -> books.Schedule:
    """Opening hours in a time zone in which it is some time after `hour`."""
    window = books.WeeklyWindow(days=days, opens=opens, closes=closes)
    zone = f"Etc/GMT{-ahead_h(it, hour):+}"  # those of Etc count to the west
    return books.Schedule(time_zone=zone, windows=[window])


def night_out(it: Stack) -> None:
    """A window over midnight is one of the evening on which it opens."""
    api = it.apis[0]
    today = it.clock.now() + timedelta(hours=ahead_h(it, 0))
    yesterday = today - timedelta(days=1)
    for day, expected in ((yesterday, "OK"), (today, "OUTSIDE_SCHEDULE")):
        code = api.code(schedule=hours(it, [day.isoweekday()], "23:00", "02:00", 0))
        assert tried(lambda code=code: api.redeem(code, "user")) == expected


def lock_taken_before_it_closed(it: Stack) -> None:
    """A lock from within the opening hours is honoured, and gets no more time."""
    api = it.apis[0]
    left_ms = -it.clock.now_ms % 3_600_000
    it.clock.advance(max(left_ms - 60_000, 0))
    code = api.code(lock_policy=OPTIONAL, schedule=hours(it, [], "09:00", "10:00", 9))
    held = api.lock(code, "user", ttl_s=600)
    it.clock.advance(60_001)
    assert tried(lambda: api.redeem(code, "user")) == "OUTSIDE_SCHEDULE"
    assert tried(lambda: extend(api, held.lock_token)) == "OUTSIDE_SCHEDULE"
    assert tried(lambda: api.redeem(code, "user", lock_token=held.lock_token)) == "OK"
