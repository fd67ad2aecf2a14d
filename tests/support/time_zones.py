"""Time zones in which no day ends while a test goes on."""

from __future__ import annotations

from datetime import UTC, datetime


def zone_at_noon() -> str:
    """One in which it is some time after noon, and the day, week and month go on for long."""
    ahead_h = (24 - datetime.now(UTC).hour) % 24 - 12
    return f"Etc/GMT{-ahead_h:+}"  # those of Etc count to the west
