"""Opening hours, by the clocks of time zones: also when these are put forward and back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.rules.commands import extend, lock, redeem, token, user_call
from unit.rules.world import MINUTE, MOMENT, NOW, World, book

from coupon_service.errors import BookExpired, CodeAlreadyRedeemed, OutsideSchedule
from coupon_service.model import LockPolicy, Schedule, Weekday, WeeklyWindow
from coupon_service.model.time_zones import time_zone
from coupon_service.rules.opening_hours import is_open, next_open_time

EVERY_DAY = tuple(Weekday)
SATURDAY, SUNDAY = (Weekday.SATURDAY,), (Weekday.SUNDAY,)
FRIDAY = (Weekday.FRIDAY,)


def minute(text: str) -> int:
    hour, minutes = text.split(":")
    return int(hour) * 60 + int(minutes)


def window(days: tuple[Weekday, ...], opens: str, closes: str) -> WeeklyWindow:
    return WeeklyWindow(days, minute(opens), minute(closes))


def hours(zone: str, days: tuple[Weekday, ...], opens: str, closes: str) -> Schedule:
    return Schedule(time_zone(zone), (window(days, opens, closes),))


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


LIVES = [
    pytest.param(
        hours("UTC", FRIDAY, "17:00", "19:00"),
        "2026-01-10T00:00",
        [("2026-01-16T17:00", "2026-01-16T19:00"), ("2026-01-23T17:00", "2026-01-23T19:00")],
        id="every week",
    ),
    pytest.param(
        hours("UTC", EVERY_DAY, "00:00", "24:00"),
        "2026-01-10T00:00",
        [("2026-01-10T00:00", None)],
        id="always",
    ),
    pytest.param(
        hours("Europe/Berlin", FRIDAY, "22:00", "02:00"),
        "2026-01-10T00:00",
        [("2026-01-16T21:00", "2026-01-17T01:00")],
        id="over midnight",
    ),
    pytest.param(
        hours("Europe/Berlin", SUNDAY, "22:00", "00:00"),
        "2026-01-10T00:00",
        [("2026-01-11T21:00", "2026-01-11T23:00"), ("2026-01-18T21:00", "2026-01-18T23:00")],
        id="until midnight",
    ),
    pytest.param(
        hours("Europe/Berlin", EVERY_DAY, "09:00", "10:00"),
        "2026-03-28T00:00",
        [("2026-03-28T08:00", "2026-03-28T09:00"), ("2026-03-29T07:00", "2026-03-29T08:00")],
        id="Berlin, at the same hour of the clock in summer",
    ),
    pytest.param(
        hours("Europe/Berlin", EVERY_DAY, "02:15", "02:45"),
        "2026-03-28T12:00",
        [("2026-03-30T00:15", "2026-03-30T00:45")],
        id="Berlin, within the hour that is skipped",
    ),
    pytest.param(
        hours("Europe/Berlin", SUNDAY, "02:30", "04:00"),
        "2026-03-28T12:00",
        [("2026-03-29T01:00", "2026-03-29T02:00")],
        id="Berlin, from the hour that is skipped on",
    ),
    pytest.param(
        hours("Europe/Berlin", SUNDAY, "02:00", "03:00"),
        "2026-10-24T12:00",
        [("2026-10-25T00:00", "2026-10-25T02:00")],
        id="Berlin, the hour that comes twice",
    ),
    pytest.param(
        hours("Europe/Berlin", SUNDAY, "01:30", "02:30"),
        "2026-10-24T12:00",
        [("2026-10-24T23:30", "2026-10-25T00:30"), ("2026-10-25T01:00", "2026-10-25T01:30")],
        id="Berlin, half of the hour that comes twice",
    ),
    pytest.param(
        hours("Europe/Berlin", SUNDAY, "02:30", "02:45"),
        "2026-10-24T12:00",
        [("2026-10-25T00:30", "2026-10-25T00:45"), ("2026-10-25T01:30", "2026-10-25T01:45")],
        id="Berlin, within the hour that comes twice",
    ),
    pytest.param(
        hours("America/New_York", SATURDAY, "22:00", "02:00"),
        "2026-10-31T12:00",
        [("2026-11-01T02:00", "2026-11-01T07:00")],
        id="New York, a night of an hour more",
    ),
    pytest.param(
        hours("America/New_York", SATURDAY, "22:00", "03:30"),
        "2026-03-07T12:00",
        [("2026-03-08T03:00", "2026-03-08T07:30")],
        id="New York, a night of an hour less",
    ),
    pytest.param(
        hours("Asia/Kathmandu", EVERY_DAY, "09:00", "17:00"),
        "2026-01-10T00:00",
        [("2026-01-10T03:15", "2026-01-10T11:15")],
        id="Kathmandu, 5:45 from UTC",
    ),
    pytest.param(
        hours("Australia/Lord_Howe", SUNDAY, "01:30", "02:00"),
        "2026-04-04T00:00",
        [("2026-04-04T14:30", "2026-04-04T15:30")],
        id="Lord Howe, half an hour comes twice",
    ),
    pytest.param(
        hours("America/Sao_Paulo", SATURDAY, "22:00", "00:30"),
        "2018-11-03T12:00",
        [("2018-11-04T01:00", "2018-11-04T03:00")],
        id="Sao Paulo, until the midnight that is skipped",
    ),
    pytest.param(
        hours("America/Sao_Paulo", SUNDAY, "00:00", "02:00"),
        "2018-11-03T12:00",
        [("2018-11-04T03:00", "2018-11-04T04:00")],
        id="Sao Paulo, from the midnight that is skipped on",
    ),
    pytest.param(
        hours("America/Sao_Paulo", SATURDAY, "23:00", "24:00"),
        "2019-02-16T12:00",
        [("2019-02-17T01:00", "2019-02-17T03:00")],
        id="Sao Paulo, the hour before midnight comes twice",
    ),
    pytest.param(
        hours("Asia/Beirut", SUNDAY, "00:00", "01:30"),
        "2026-03-28T12:00",
        [("2026-03-28T22:00", "2026-03-28T22:30")],
        id="Beirut, from the midnight that is skipped on",
    ),
    pytest.param(
        hours("Asia/Beirut", SATURDAY, "23:30", "00:30"),
        "2026-10-24T12:00",
        [("2026-10-24T20:30", "2026-10-24T21:00"), ("2026-10-24T21:30", "2026-10-24T22:30")],
        id="Beirut, half of the hour before midnight comes twice",
    ),
    pytest.param(
        hours("Pacific/Apia", FRIDAY, "00:00", "24:00"),
        "2011-12-28T12:00",
        [("2012-01-05T10:00", "2012-01-06T10:00")],
        id="Apia, on the day that was skipped",
    ),
]


@pytest.mark.parametrize(("schedule", "begin", "spans"), LIVES)
def test_it_is_open_from_then_to_then(
    schedule: Schedule, begin: str, spans: list[tuple[str, str | None]]
) -> None:
    now = at(begin)
    for opens, closes in spans:
        if not is_open(schedule, now):
            assert next_open_time(schedule, now) == at(opens)
            assert not is_open(schedule, at(opens) - MOMENT)
        assert is_open(schedule, at(opens))
        if closes is not None:
            now = at(closes)
            assert is_open(schedule, now - MOMENT)
            assert not is_open(schedule, now)


def test_a_schedule_is_open_in_any_of_its_windows() -> None:
    lunch, night = window(EVERY_DAY, "12:00", "14:00"), window(FRIDAY, "22:00", "02:00")
    schedule = Schedule(time_zone("UTC"), (night, lunch))
    found = [is_open(schedule, at(f"2026-01-16T{it}")) for it in ("11:59", "12:00", "14:00")]
    assert found == [False, True, False]
    assert next_open_time(schedule, at("2026-01-16T14:00")) == at("2026-01-16T22:00")
    assert next_open_time(schedule, at("2026-01-17T02:00")) == at("2026-01-17T12:00")


def test_what_never_opens_says_no_time() -> None:
    world = World(book(schedule=Schedule(time_zone("UTC"), ())))
    assert world.refuses(redeem()).metadata == {}


ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Asia/Kathmandu",
    "Australia/Lord_Howe",
    "Asia/Beirut",
    "America/Sao_Paulo",
]
windows = st.builds(
    WeeklyWindow,
    st.lists(st.sampled_from(Weekday), min_size=1, unique=True).map(tuple),
    st.integers(0, 1_439),
    st.integers(0, 1_440),
)
schedules = st.builds(
    Schedule,
    st.sampled_from(ZONES).map(time_zone),
    st.lists(windows, min_size=1, max_size=3).map(tuple),
)
times = st.integers(0, 180 * 1_440).map(lambda minutes: at("2018-10-01") + minutes * MINUTE)


@settings(max_examples=60)
@given(schedules, times)
def test_it_is_closed_until_it_opens(schedule: Schedule, now: datetime) -> None:
    opens = next_open_time(schedule, now)
    assert opens is not None
    assert is_open(schedule, opens)
    if is_open(schedule, now):
        return
    while now < opens:
        assert not is_open(schedule, now)
        now += MINUTE


# --- what is refused ----------------------------------------------------------------------------

CLOSED_AT_NOON = hours("UTC", EVERY_DAY, "11:00", "12:00")
OPENS = {"next_open_time": (NOW + timedelta(hours=23)).isoformat()}
"""NOW is noon."""


def closing(**fields: Any) -> World:
    """A book that closes now; a minute ago it is open."""
    return World(
        book(schedule=CLOSED_AT_NOON, lock_policy=LockPolicy.OPTIONAL, **fields), now=NOW - MINUTE
    )


def test_outside_its_hours_nothing_is_redeemed_or_locked() -> None:
    world = closing(max_redemptions_per_code=9)
    world.does(redeem(lease=lock().lease))
    world.now = NOW
    for command in (redeem(), lock(), redeem(by=user_call())):
        error = world.refuses(command)
        assert type(error) is OutsideSchedule
        assert error.metadata == OPENS
    world.now = NOW + timedelta(hours=23)
    world.does(redeem(lease=lock().lease))


def test_what_is_over_for_good_is_said_first() -> None:
    world = closing()
    world.does(redeem(lease=lock().lease))
    world.now = NOW
    assert type(world.refuses(redeem())) is CodeAlreadyRedeemed
    world.change_book(end_time=NOW)
    assert type(world.refuses(redeem())) is BookExpired


def test_a_lock_from_within_the_hours_is_honoured_and_not_extended() -> None:
    world = closing()
    held = world.does(lock(expire_time=NOW + MINUTE)).event
    world.now = NOW
    assert type(world.refuses(extend(held, NOW + 2 * MINUTE))) is OutsideSchedule
    assert type(world.refuses(redeem(user="bob"))) is OutsideSchedule
    world.does(redeem(lock=token(held)))


def test_within_the_hours_a_lock_from_outside_them_is_as_good() -> None:
    world = closing()
    held = world.does(lock(expire_time=NOW + 2 * MINUTE)).event
    world.change_book(schedule=hours("UTC", EVERY_DAY, "12:00", "12:01"))
    assert type(world.refuses(redeem(lock=token(held)))) is OutsideSchedule
    world.now = NOW + MINUTE - MOMENT
    world.does(redeem(lock=token(held)))


def test_a_lock_that_is_over_does_not_open_the_book() -> None:
    world = closing()
    held = world.does(lock(expire_time=NOW)).event
    world.now = NOW
    assert type(world.refuses(redeem(lock=token(held)))) is OutsideSchedule
