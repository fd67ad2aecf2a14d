"""Limits a day, week or month, as the contract describes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

from model.state import Message, Refusal

FIXED = ("period", "time_zone")
LIMITS = ("max_redemptions", "max_redemptions_per_user")


def first_day(limits: Message, time: int) -> date:
    """The first day of the period of a time."""
    day = datetime.fromtimestamp(time / 1_000, ZoneInfo(limits["time_zone"])).date()
    if limits["period"] == "WEEK":
        while day.isoweekday() != 1:
            day -= timedelta(days=1)
    return day.replace(day=1) if limits["period"] == "MONTH" else day


def next_period(book: Message, now: int) -> int:
    """When the next period begins: the first full minute in which it is another."""
    limits = book["period_limits"]
    start, day = first_day(limits, now), 86_400_000
    time = now - now % 60_000
    while first_day(limits, time + day) == start:
        time += day
    while first_day(limits, time) == start:
        time += 60_000
    return time


def used_up(
    book: Message, user: str, now: int, live: Callable[..., Sequence[Message]]
) -> Iterator[Refusal]:
    """Which limits of the period are reached."""
    limits = book["period_limits"]
    if not limits:
        return
    of_book = [
        it
        for it in live(book_id=book["book_id"])
        if first_day(limits, it["redeem_time"]) == first_day(limits, now)
    ]
    counts = {
        "USER": ("max_redemptions_per_user", sum(it["_user"] == user for it in of_book)),
        "BOOK": ("max_redemptions", len(of_book)),
    }
    for whose, (name, count) in counts.items():
        if 0 < limits[name] <= count:
            begins = datetime.fromtimestamp(next_period(book, now) / 1_000, UTC)
            yield Refusal(
                f"{whose}_PERIOD_LIMIT_EXCEEDED",
                limit=limits[name],
                period=limits["period"],
                next_period_time=begins.isoformat(),
            )


def fixed(before: Message | None, after: Message | None) -> str:
    """Which field cannot be changed like this once the book was active, if any."""
    if not after:
        return ""
    if not before:
        return "period_limits"
    names = [name for name in FIXED if after[name] != before[name]]
    names += [name for name in LIMITS if after[name] and not before[name]]
    return f"period_limits.{names[0]}" if names else ""
