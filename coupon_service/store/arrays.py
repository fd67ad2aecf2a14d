"""Arrays as parameters of a statement, in PostgreSQL's text form.

A list as a parameter gets the type of its largest number (smallint[] today, bigint[] tomorrow) or
none when it is all None, and every combination of types is another prepared statement. The text
form with a cast in the statement (%s::bigint[]) has one type, and is faster to make.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime
from itertools import repeat
from operator import attrgetter, is_
from typing import Any, Final, TypeVar, cast
from uuid import UUID

T = TypeVar("T")

NUL: Final = "\0"


def int_array(values: Iterable[int | None]) -> str:
    """PostgreSQL's text form of an array of numbers."""
    return _array(values, int.__repr__)  # of an IntEnum, too, the number


def uuid_array(values: Iterable[UUID | None]) -> str:
    """PostgreSQL's text form of an array of UUIDs."""
    return _array(values, attrgetter("hex"))


def time_array(values: Iterable[datetime | None]) -> str:
    """PostgreSQL's text form of an array of times with a time zone."""
    return _array(values, datetime.isoformat)


def date_array(values: Iterable[date | None]) -> str:
    """PostgreSQL's text form of an array of dates."""
    return _array(values, date.isoformat)


def text_array(values: Iterable[str | None]) -> str:
    """PostgreSQL's text form of an array of texts, or of JSON texts."""
    column = list(values)
    if None in column:
        return _array(column, _quoted)
    # All at once, which takes a fraction of the time: no text of PostgreSQL has a NUL.
    joined = NUL.join(cast("list[str]", column))
    if joined.count(NUL) != len(column) - 1:
        return _array(column, _quoted)
    return "{" + _quoted(joined).replace(NUL, '","') + "}"


ARRAYS: Final[Mapping[str, Callable[[Iterable[Any]], str]]] = {
    "smallint": int_array,
    "integer": int_array,
    "bigint": int_array,
    "numeric": int_array,
    "uuid": uuid_array,
    "timestamptz": time_array,
    "date": date_array,
    "text": text_array,
    "jsonb": text_array,
}
"""What writes an array of each type of PostgreSQL."""


def _array(values: Iterable[T | None], written: Callable[[T], str]) -> str:
    column = list(values)
    if column and all(map(is_, column, repeat(column[0]))):
        # Most columns of a batch are: what is the same all the way down is written once.
        first = column[0]
        texts = ["NULL" if first is None else written(first)] * len(column)
    else:
        texts = ["NULL" if value is None else written(value) for value in column]
    return "{" + ",".join(texts) + "}"


def _quoted(text: str) -> str:
    if '"' in text or "\\" in text:
        text = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
