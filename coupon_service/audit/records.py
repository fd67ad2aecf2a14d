"""Values in bytes that are the same for everyone: the binary form of a record of PostgreSQL.

A count, then for each value the number of its type, its length (-1 for none) and its bytes, all
numbers big-endian. So no two rows of values have the same bytes, and PostgreSQL makes them itself,
with `record_send`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Generic, TypeVar
from uuid import UUID

T = TypeVar("T")

_COUNT: Final = struct.Struct(">i")
_HEADER: Final = struct.Struct(">Ii")
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
"""From which PostgreSQL counts microseconds."""


class MalformedError(ValueError):
    """Bytes that are none of what they should be; one clear sentence."""


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """A type of PostgreSQL: its number in pg_type, and what its values are in bytes."""

    oid: int
    encode: Callable[[T], bytes]
    decode: Callable[[bytes], T]


def microseconds_of(time: datetime) -> int:
    """Since the year 2000, as PostgreSQL counts them."""
    return (time - _EPOCH) // timedelta(microseconds=1)


def time_of(microseconds: int) -> datetime:
    """The time that is so long after the year 2000."""
    return _EPOCH + timedelta(microseconds=microseconds)


def _number(oid: int, size: int) -> Kind[int]:
    return Kind(
        oid,
        lambda value: value.to_bytes(size, "big", signed=True),
        lambda content: int.from_bytes(content, "big", signed=True),
    )


SMALLINT: Final = _number(21, 2)
INTEGER: Final = _number(23, 4)
BIGINT: Final = _number(20, 8)


def _bytes_of(value: UUID) -> bytes:
    return value.bytes


TEXT: Final = Kind(25, str.encode, bytes.decode)
UUIDS: Final = Kind(2950, _bytes_of, lambda content: UUID(bytes=content))
TIME: Final = Kind(
    1184,
    lambda value: BIGINT.encode(microseconds_of(value)),
    lambda content: time_of(BIGINT.decode(content)),
)

Layout = Sequence[tuple[str, Kind[Any]]]
"""The names and types of the values of a record, in their order."""


def encode(layout: Layout, values: Sequence[Any]) -> bytes:
    """The record of these values; None where there is none."""
    parts = [_COUNT.pack(len(layout))]
    for (_, kind), value in zip(layout, values, strict=True):
        if value is None:
            parts.append(_HEADER.pack(kind.oid, -1))
        else:
            content = kind.encode(value)
            parts += (_HEADER.pack(kind.oid, len(content)), content)
    return b"".join(parts)


def decode(layout: Layout, record: bytes) -> dict[str, Any]:
    """The values of a record by their names. Raises MalformedError."""
    values: dict[str, Any] = {}
    try:
        if _COUNT.unpack_from(record) != (len(layout),):
            raise MalformedError("A record has another number of values.")
        end = _COUNT.size
        for name, kind in layout:
            oid, length = _HEADER.unpack_from(record, end)
            end += _HEADER.size
            content = record[end : end + max(length, 0)]
            if oid != kind.oid or length < -1 or len(content) != max(length, 0):
                raise MalformedError(f"The value of {name} in a record is malformed.")
            end += len(content)
            values[name] = None if length < 0 else kind.decode(content)
    except (struct.error, UnicodeDecodeError, ValueError, OverflowError) as error:
        if isinstance(error, MalformedError):
            raise
        raise MalformedError("A record is malformed.") from error
    if end != len(record):
        raise MalformedError("There is more after a record.")
    return values
