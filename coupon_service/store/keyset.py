"""Pages of lists: where one ends and the next begins (keyset, never OFFSET).

A position is what a client carries from page to page: the key of the last row, as texts. It comes
back from outside, so it is read with care.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final, TypeVar
from uuid import UUID

from coupon_service.errors import FieldViolation, InvalidArgument
from coupon_service.model.normalization import normalize_code

T = TypeVar("T")

Position = tuple[str, ...]
"""The key of the last row of a page."""

BEFORE_FIRST_NEWEST = (datetime.max.replace(tzinfo=UTC), UUID(int=2**128 - 1))
"""Before the first of rows by (time, id), newest first."""


# By a bitmap, which the planner prefers where what is listed is short on average, all of a long one
# would be read and sorted for each of its pages.
IN_ORDER: Final = "SET LOCAL enable_bitmapscan = off"
"""Has the statements of a transaction read an index in its order."""


def page_of(
    items: Sequence[T], page_size: int, position: Callable[[T], Position]
) -> tuple[list[T], Position | None]:
    """The page, and the position of its end unless it is the last one.

    `items`: up to `page_size` + 1, since one more means that there is a next page.
    """
    page = list(items[:page_size])
    return page, position(page[-1]) if len(items) > page_size else None


def time_position(time: datetime, key: UUID | str) -> Position:
    """The position of a row that is sorted by a time and, in that, by its key."""
    return time.isoformat(), str(key)


def time_and_id(after: Position | None, end_time: datetime | None = None) -> tuple[datetime, UUID]:
    """Reads a position by time and id; None is before the newest. Raises InvalidArgument.

    `end_time`: no row is as new. An index is read from the position on, so that it must not be
    before the first row that is wanted.
    """
    read = BEFORE_FIRST_NEWEST if after is None else (_read(after, 0, _time), _read(after, 1, UUID))
    return read if end_time is None else min(read, (end_time, UUID(int=0)))


def time_and_code(after: Position | None) -> tuple[datetime, str]:
    """Reads a position by time and code; None is before the newest. Raises InvalidArgument."""
    if after is None:
        return BEFORE_FIRST_NEWEST[0], ""
    return _read(after, 0, _time), _read(after, 1, normalize_code)


def time_code_and_user(after: Position | None) -> tuple[datetime, str, str]:
    """Reads a position by time, code and user; None is before the newest.

    Raises InvalidArgument.
    """
    return (*time_and_code(after), "" if after is None else _read(after, 2, str))


def code_only(after: Position | None) -> str:
    """Reads a position by code; None is before the first. Raises InvalidArgument."""
    return "" if after is None else _read(after, 0, normalize_code)


def _time(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _read(after: Position, index: int, read: Callable[[str], T]) -> T:
    try:
        return read(after[index])
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise InvalidArgument(
            (FieldViolation("page_token", "expected the next_page_token of the answer before"),)
        ) from error
