"""IANA time zones by their names, with the data of the system, or else of the package `tzdata`."""

from __future__ import annotations

import re
from typing import Final
from zoneinfo import ZoneInfo

NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+_-]*(/[A-Za-z0-9][A-Za-z0-9+_-]*){0,2}")
NAME_LENGTH_MAX: Final = 64
NOT_ZONES: Final = ("Factory", "localtime", "posix", "posixrules", "right")
"""Files and folders beside those of zones: what the machine is set to, other forms of them all."""


def time_zone(name: str) -> ZoneInfo:
    """The zone with this name. Its data is read once.

    Raises ValueError when there is none.
    """
    known = len(name) <= NAME_LENGTH_MAX and NAME.fullmatch(name) is not None
    if known and name.partition("/")[0] not in NOT_ZONES:
        try:
            return ZoneInfo(name)
        except (KeyError, OSError, ValueError):  # no such file, a folder, or a file of another kind
            pass
    raise ValueError("expected the name of an IANA time zone, such as Europe/Berlin")
