"""What has to catch the mutants of times of day and of the calendar."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from zoneinfo import ZoneInfo

from mutants.harness import CALLERS, PAIR, ROUNDS, Stack
from support.calls import extend, tried
from support.service import books, new_codes

ZONE = "Asia/Kathmandu"
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


def limited_a_day(**limits: int) -> dict[str, Any]:
    """The fields of a book with a limit a day, whose codes have none."""
    period = books.PeriodLimits(period=books.PERIOD_DAY, time_zone=ZONE, **limits)
    return {"period_limits": period, "limits": books.BookLimits(max_redemptions_per_code=0)}


def to_midnight(it: Stack) -> None:
    """Goes on to a minute before midnight of ZONE, which no hour of UTC begins with."""
    local = it.clock.now().astimezone(ZoneInfo(ZONE))
    today_ms = ((local.hour * 60 + local.minute) * 60 + local.second) * 1_000
    it.clock.advance((86_340_000 - today_ms) % 86_400_000)


def another_day(it: Stack) -> None:
    """A user can redeem again at midnight of the zone of the book."""
    api = it.apis[0]
    to_midnight(it)
    code = api.code(**limited_a_day(max_redemptions_per_user=1))
    for expected in ("OK", "USER_PERIOD_LIMIT_EXCEEDED"):
        assert tried(lambda: api.redeem(code, "user")) == expected
    it.clock.advance(61_000)
    assert tried(lambda: api.redeem(code, "user")) == "OK"
    it.conserved()


def roll_back_on_another_day(it: Stack) -> None:
    """What is rolled back makes room on the day on which it was redeemed."""
    api = it.apis[0]
    to_midnight(it)
    code = api.code(**limited_a_day(max_redemptions=1))
    of_yesterday = api.redeem(code, "user").redemption
    it.clock.advance(61_000)
    api.redeem(code, "user")
    api.rollback(of_yesterday.redemption_id)
    assert tried(lambda: api.redeem(code, "user")) == "BOOK_PERIOD_LIMIT_EXCEEDED"
    it.conserved()


def race_for_a_day(it: Stack) -> None:
    """A day has room for as many as its limit says, however many try."""
    api = it.apis[0]
    for callers, room in (PAIR, 1), *[(CALLERS, 3)] * ROUNDS:
        names = new_codes(callers)
        api.book(codes=names, **limited_a_day(max_redemptions=room + 1))
        api.redeem(names[0], "first")
        found = it.all_at_once(
            lambda api, n, names=names: api.redeem(names[n], f"user-{n}"), callers
        )
        it.conserved()
        late = ["BOOK_PERIOD_LIMIT_EXCEEDED"] * (callers - room)
        assert found == [*late, *["OK"] * room], found
