"""Opening hours, minute by minute, as the contract describes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from model.state import Message, Refusal

MINUTE_MS = 60_000
SEARCHED_MS = 15 * 1_440 * MINUTE_MS
DAYS = ("MONDAY", "TUESDAY", "WEDNESDAY", "THURSDAY", "FRIDAY", "SATURDAY", "SUNDAY")


def around(began: int, *, zone: str, today: bool, spans: Sequence[tuple[int, int]]) -> Message:
    """A schedule with windows from so many minutes after `began` to so many; `today`: on that day
    of the week alone."""
    time = datetime.fromtimestamp(began / 1_000, UTC)
    if zone.isdigit():  # those of Etc count to the west
        ahead = (int(zone) - time.hour + 12) % 24 - 12
        zone = f"Etc/GMT{-ahead:+}"
    clock = time.astimezone(ZoneInfo(zone))
    windows = list[Message]()
    for span in spans:
        opens, closes = (clock + timedelta(minutes=it) for it in span)
        days = [DAYS[opens.weekday()]] if today else []
        windows.append({"days": days, "opens": f"{opens:%H:%M}", "closes": f"{closes:%H:%M}"})
    return {"time_zone": zone, "windows": windows}


def is_open(book: Message, time: int) -> bool:
    """Whether it is within a window, or there are none."""
    schedule = book["schedule"]
    if not schedule:
        return True
    clock = datetime.fromtimestamp(time / 1_000, ZoneInfo(schedule["time_zone"]))
    return any(_within(it, clock) for it in schedule["windows"])


def _within(window: Message, clock: datetime) -> bool:
    shown = f"{clock:%H:%M}"
    begun, ended = shown >= window["opens"], shown >= window["closes"]
    if window["opens"] < window["closes"]:
        return begun and not ended and _on(window, clock)
    return (begun and _on(window, clock)) or (not ended and _on(window, clock - timedelta(days=1)))


def _on(window: Message, clock: datetime) -> bool:
    return not window["days"] or DAYS[clock.weekday()] in window["days"]


def changes(book: Message, time: int, searched: int = SEARCHED_MS) -> Iterator[int]:
    """When it opens or closes, from then on."""
    before = is_open(book, time)
    first = time - time % MINUTE_MS + MINUTE_MS
    for minute in range(first, time + searched, MINUTE_MS) if book["schedule"] else ():
        if is_open(book, minute) != before:
            yield minute
            before = not before


def closed(book: Message, now: int, locked: int) -> Iterator[Refusal]:
    """It is closed, and was so when the lock was acquired."""
    if not is_open(book, now) and not is_open(book, locked):
        opens = datetime.fromtimestamp(next(changes(book, now)) / 1_000, UTC)
        yield Refusal("OUTSIDE_SCHEDULE", next_open_time=opens.isoformat())
