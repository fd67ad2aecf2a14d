"""How much a book has left, and when that is worth an event."""

from __future__ import annotations

import pytest

from coupon_service.model import BookLimits, EventType, StockLevel
from coupon_service.rules import crossed, stock_left, stock_level

ENOUGH, LOW, USED_UP = StockLevel
RUNNING_LOW, NOTHING_LEFT = EventType.BOOK_RUNNING_LOW, EventType.BOOK_USED_UP


@pytest.mark.parametrize(
    ("limits", "left"),
    [
        (BookLimits(), 50),
        (BookLimits(max_redemptions=100), 40),
        (BookLimits(max_redemptions=1_000), 50),
        (BookLimits(max_redemptions_per_code=0), 50),
        (BookLimits(max_redemptions=1_000, max_redemptions_per_code=0), 940),
        (BookLimits(max_redemptions=1_000, max_redemptions_per_code=9), 940),
        (BookLimits(max_redemptions=10), -50),
    ],
    ids=repr,
)
def test_codes_are_left_or_redemptions_or_the_fewer_of_both(limits: BookLimits, left: int) -> None:
    assert stock_left(limits, available=50, redemptions=60) == left


@pytest.mark.parametrize(
    ("left", "level"), [(11, ENOUGH), (10, LOW), (1, LOW), (0, USED_UP), (-1, USED_UP)]
)
def test_the_threshold_itself_is_low_and_nothing_is_used_up(left: int, level: StockLevel) -> None:
    assert stock_level(left, threshold=10) is level


@pytest.mark.parametrize(
    ("before", "after", "events"),
    [
        (ENOUGH, LOW, (RUNNING_LOW,)),
        (LOW, USED_UP, (NOTHING_LEFT,)),
        (ENOUGH, USED_UP, (RUNNING_LOW, NOTHING_LEFT)),
        (ENOUGH, ENOUGH, ()),
        (LOW, ENOUGH, ()),
        (USED_UP, LOW, ()),
        (USED_UP, ENOUGH, ()),
    ],
)
def test_each_level_that_is_come_down_to_is_an_event(
    before: StockLevel, after: StockLevel, events: tuple[EventType, ...]
) -> None:
    assert crossed(before, after) == events
