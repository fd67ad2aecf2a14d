"""What the clocks of a time zone show, and when. Pure: the data of a zone is part of the zone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

DAY: Final = timedelta(days=1)


def first_time(
    zone: ZoneInfo,
    after: datetime,
    days: int,
    shown: Callable[[date], Iterable[datetime]],
    holds: Callable[[datetime], bool],
) -> datetime | None:
    """The first time after `after`, within so many days, from which on `holds`, if there is one.

    `shown`: the readings of the clocks (naive) on a local date at which that may begin. It may also
    begin when the clocks are changed: a reading that they skip begins with the first one after it,
    and one that they show twice begins twice.
    """
    begin = after.astimezone(UTC)
    for _ in range(days):
        end = begin + DAY
        dates = begin.astimezone(zone).date(), end.astimezone(zone).date()
        readings = (
            it
            for ordinal in range(min(dates).toordinal(), max(dates).toordinal() + 1)
            for it in shown(date.fromordinal(ordinal))
        )
        times = [time for it in readings for time in _times_of(it, zone) if begin < time <= end]
        times += _clock_changes(zone, begin, end)
        found = min(filter(holds, times), default=None)
        if found is not None:
            return found
        begin = end
    return None


def _times_of(reading: datetime, zone: ZoneInfo) -> set[datetime]:
    """When the clocks show this: once, twice when they are put back, or never."""
    times = (reading.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    return {it for it in times if it.astimezone(zone).replace(tzinfo=None) == reading}


def _clock_changes(zone: ZoneInfo, begin: datetime, end: datetime) -> Iterator[datetime]:
    """When the clocks are changed, in a span in which that happens once at most."""

    def offset(second: int) -> timedelta | None:
        return datetime.fromtimestamp(second, zone).utcoffset()

    low, high = int(begin.timestamp()), int(end.timestamp())
    before = offset(low)
    if before == offset(high):
        return
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if offset(middle) == before else (low, middle)
    yield datetime.fromtimestamp(high, UTC)
