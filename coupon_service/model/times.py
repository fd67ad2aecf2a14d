"""Conversion of times to and from milliseconds since 1970, as in Redis and lock tokens."""

from __future__ import annotations

from datetime import UTC, datetime


def time_of(milliseconds: int) -> datetime:
    """Milliseconds since 1970 as a time."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def milliseconds_of(time: datetime) -> int:
    """A time as milliseconds since 1970."""
    return round(time.timestamp() * 1000)
