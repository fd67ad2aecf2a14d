"""Limits a day, week or month, by the calendar of a time zone."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.rules.commands import lock, redeem, rollback, token, user_call
from unit.rules.world import BOOK_ID, MINUTE, MOMENT, NOW, World, book

from coupon_service.errors import (
    BookPeriodLimitExceeded,
    Contention,
    UserLimitExceeded,
    UserPeriodLimitExceeded,
)
from coupon_service.model import CommandGroup, Done, LockPolicy, Period, PeriodLimits
from coupon_service.model.time_zones import time_zone
from coupon_service.rules import decide
from coupon_service.rules.periods import next_period_time, period_end, period_keys, period_start

DAY, WEEK, MONTH = Period
ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Asia/Kathmandu",
    "Australia/Lord_Howe",
    "Asia/Beirut",
    "America/Sao_Paulo",
    "Pacific/Apia",
]


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def a(period: Period, zone: str = "UTC", **limits: int) -> PeriodLimits:
    return PeriodLimits(period, time_zone(zone), **limits)


PERIODS = [
    pytest.param(DAY, "UTC", "2026-01-15T23:59:59.999999", "2026-01-15", "2026-01-16T00:00"),
    pytest.param(DAY, "UTC", "2026-01-16T00:00", "2026-01-16", "2026-01-17T00:00"),
    # A week begins on Monday, also over the end of a year.
    pytest.param(WEEK, "UTC", "2027-01-03T12:00", "2026-12-28", "2027-01-04T00:00"),
    pytest.param(WEEK, "UTC", "2027-01-04T00:00", "2027-01-04", "2027-01-11T00:00"),
    pytest.param(MONTH, "UTC", "2028-02-29T12:00", "2028-02-01", "2028-03-01T00:00"),
    pytest.param(MONTH, "UTC", "2026-12-31T12:00", "2026-12-01", "2027-01-01T00:00"),
    # Days of 23 and of 25 hours.
    pytest.param(DAY, "Europe/Berlin", "2026-03-28T23:00", "2026-03-29", "2026-03-29T22:00"),
    pytest.param(DAY, "Europe/Berlin", "2026-10-24T22:00", "2026-10-25", "2026-10-25T23:00"),
    pytest.param(MONTH, "Europe/Berlin", "2026-03-15T00:00", "2026-03-01", "2026-03-31T22:00"),
    pytest.param(DAY, "America/New_York", "2026-03-08T05:00", "2026-03-08", "2026-03-09T04:00"),
    pytest.param(DAY, "America/New_York", "2026-11-01T04:00", "2026-11-01", "2026-11-02T05:00"),
    pytest.param(WEEK, "America/New_York", "2026-11-02T04:59", "2026-10-26", "2026-11-02T05:00"),
    pytest.param(DAY, "Asia/Kathmandu", "2026-01-15T18:14", "2026-01-15", "2026-01-15T18:15"),
    pytest.param(DAY, "Asia/Kathmandu", "2026-01-15T18:15", "2026-01-16", "2026-01-16T18:15"),
    pytest.param(DAY, "Australia/Lord_Howe", "2026-04-04T13:00", "2026-04-05", "2026-04-05T13:30"),
    # The clocks skip midnight: the day begins at one.
    pytest.param(DAY, "America/Sao_Paulo", "2018-11-04T02:59", "2018-11-03", "2018-11-04T03:00"),
    pytest.param(DAY, "America/Sao_Paulo", "2018-11-04T03:00", "2018-11-04", "2018-11-05T02:00"),
    pytest.param(DAY, "Asia/Beirut", "2026-03-28T21:59", "2026-03-28", "2026-03-28T22:00"),
    # The hour before midnight comes twice: the day is not over before its second end.
    pytest.param(DAY, "America/Sao_Paulo", "2019-02-17T01:59", "2019-02-16", "2019-02-17T03:00"),
    pytest.param(DAY, "America/Sao_Paulo", "2019-02-17T02:00", "2019-02-16", "2019-02-17T03:00"),
    pytest.param(DAY, "Asia/Beirut", "2026-10-24T20:59", "2026-10-24", "2026-10-24T22:00"),
    # A day that never was.
    pytest.param(DAY, "Pacific/Apia", "2011-12-30T09:59", "2011-12-29", "2011-12-30T10:00"),
    pytest.param(DAY, "Pacific/Apia", "2011-12-30T10:00", "2011-12-31", "2011-12-31T10:00"),
]


@pytest.mark.parametrize(("period", "zone", "now", "start", "following"), PERIODS)
def test_a_period_goes_from_midnight_to_midnight_of_its_zone(
    period: Period, zone: str, now: str, start: str, following: str
) -> None:
    limits = a(period, zone)
    assert period_start(limits, at(now)) == date.fromisoformat(start)
    assert next_period_time(limits, at(now)) == at(following)
    assert period_start(limits, at(following) - MOMENT) == date.fromisoformat(start)


@given(
    st.sampled_from(Period),
    st.sampled_from(ZONES),
    st.integers(0, 20 * 366 * 1_440).map(lambda it: at("2010-01-01") + it * MINUTE),
)
def test_periods_follow_each_other(period: Period, zone: str, now: datetime) -> None:
    limits = a(period, zone)
    start = period_start(limits, now)
    following = next_period_time(limits, now)
    assert following is not None
    assert following > now
    assert period_start(limits, following - MOMENT) == start
    assert period_start(limits, following) >= period_end(limits, start)


# --- what is refused ----------------------------------------------------------------------------

TOMORROW = {"next_period_time": at("2026-01-16").isoformat()}
LIMITS = a(DAY, max_redemptions_per_user=1)


def limited(limits: PeriodLimits = LIMITS, **fields: Any) -> World:
    """A book with limits of periods whose codes have no end of uses."""
    return World(book(period_limits=limits, max_redemptions_per_code=0, **fields))


def test_a_user_has_a_limit_a_day() -> None:
    world = limited()
    world.does(redeem())
    for by in (None, user_call()):
        error = world.refuses(redeem("B", by=by))
        assert type(error) is UserPeriodLimitExceeded
        assert error.metadata == {"limit": "1", "period": "DAY", **TOMORROW}
    world.does(redeem("B", user="bob"))
    world.now = at("2026-01-16") - MOMENT
    world.refuses(redeem())
    world.now = at("2026-01-16")
    world.does(redeem())


def test_a_book_has_a_limit_a_day() -> None:
    world = limited(a(DAY, max_redemptions=2))
    world.does(redeem())
    world.does(redeem())
    error = world.refuses(redeem(user="bob"))
    assert type(error) is BookPeriodLimitExceeded
    assert error.metadata == {"limit": "2", "period": "DAY", **TOMORROW}
    world.now = at("2026-01-16")
    world.does(redeem(user="bob"))


def test_the_user_hears_of_its_own_limit_first() -> None:
    world = limited(a(DAY, max_redemptions=1, max_redemptions_per_user=1))
    world.does(redeem())
    assert type(world.refuses(redeem())) is UserPeriodLimitExceeded
    assert type(world.refuses(redeem(user="bob"))) is BookPeriodLimitExceeded


def test_a_limit_for_ever_is_said_before_one_of_a_day() -> None:
    world = limited(max_redemptions_per_user=1)
    world.does(redeem())
    assert type(world.refuses(redeem())) is UserLimitExceeded


def test_limits_hold_within_a_batch() -> None:
    world = limited(a(DAY, max_redemptions=2, max_redemptions_per_user=1))
    redeemed = world.batch(*(redeem(user=user) for user in ("ann", "ann", "bob", "cid")))
    kinds = [type(outcome) for outcome in redeemed]
    assert kinds == [Done, UserPeriodLimitExceeded, Done, BookPeriodLimitExceeded]
    assert sorted(world.state.periods.values()) == [1, 1, 2]


def test_what_an_atomic_batch_would_have_counted_is_not() -> None:
    world = limited(a(DAY, max_redemptions=1))
    world.all_or_nothing(redeem("A"), redeem("B"))
    assert not any(world.state.periods.values())


def test_a_roll_back_credits_the_period_of_the_redemption() -> None:
    world = limited(a(DAY, max_redemptions_per_user=2))
    first = world.does(redeem()).event
    world.now += timedelta(days=1)
    world.does(redeem())
    world.does(redeem())
    world.does(rollback(first))
    assert list(world.state.periods.values()) == [0, 2]
    assert type(world.refuses(redeem())) is UserPeriodLimitExceeded


def test_a_roll_back_gives_the_place_back_on_the_same_day() -> None:
    world = limited()
    first = world.does(redeem()).event
    world.now = at("2026-01-16") - MOMENT
    world.does(rollback(first))
    world.does(redeem())


def test_of_a_period_whose_count_is_gone_nothing_is_taken_off() -> None:
    world = limited()
    first = world.does(redeem()).event
    world.now += timedelta(days=9)
    world.state.periods.clear()
    world.does(rollback(first))
    assert not any(world.state.periods.values())
    world.does(redeem())


def test_a_lock_is_refused_at_the_limit_and_holds_no_place() -> None:
    world = limited(lock_policy=LockPolicy.OPTIONAL)
    held = world.does(lock("B", expire_time=NOW + MINUTE)).event
    world.does(redeem(lease=lock().lease))
    assert type(world.refuses(lock())) is UserPeriodLimitExceeded
    assert type(world.refuses(redeem("B", lock=token(held)))) is UserPeriodLimitExceeded


def test_a_redemption_with_a_lock_counts_in_the_period_in_which_it_is_made() -> None:
    world = limited(lock_policy=LockPolicy.OPTIONAL)
    world.now = at("2026-01-16") - MINUTE
    held = world.does(lock(expire_time=at("2026-01-16") + MINUTE)).event
    world.now = at("2026-01-16")
    world.does(redeem(lock=token(held)))
    assert list(world.state.periods) == [(BOOK_ID, "ann", date(2026, 1, 16))]


def test_a_lifted_limit_is_not_counted_any_more() -> None:
    world = limited(a(DAY, max_redemptions=1, max_redemptions_per_user=1))
    first = world.does(redeem()).event
    world.change_book(period_limits=a(DAY, max_redemptions=9))
    world.does(redeem())
    world.change_book(period_limits=None)
    world.does(rollback(first))
    assert sorted(world.state.periods.values()) == [1, 2]


def test_a_period_that_began_after_its_counts_were_read_is_tried_again() -> None:
    state = limited().state
    read = period_keys(state.books[BOOK_ID], "ann", NOW - timedelta(days=1))
    state.periods.update(dict.fromkeys(read, 0))
    ((outcome,),), _ = decide([CommandGroup((redeem(),))], state, NOW)
    assert type(outcome) is Contention
