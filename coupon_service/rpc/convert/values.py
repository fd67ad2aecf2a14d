"""Times, amounts and metadata: between the messages of protobuf and the values of the service.

Nothing here is bounded beyond what the target can hold; see `fields.py` for the bounds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp

from coupon_service.v1.money_pb2 import Money

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

INT64_MAX: Final = 2**63 - 1
"""What sums and sizes that are greater are answered as."""

METADATA_MAX_BYTES: Final = 4_096
METADATA_MAX_LEVELS: Final = 5


def to_timestamp(time: datetime) -> Timestamp:
    """The time, exact to the microsecond."""
    timestamp = Timestamp()
    put_time(timestamp, time)
    return timestamp


# Filling the message inside of another one takes half as long as making one that is copied into it.


def put_time(timestamp: Timestamp, time: datetime) -> None:
    """Makes the timestamp that of the time, exact to the microsecond."""
    since = time - EPOCH
    timestamp.seconds = since.days * 86_400 + since.seconds
    timestamp.nanos = since.microseconds * 1_000


def put_money(money: Money, amount_minor: int, currency_code: str | None) -> None:
    """Makes it this amount."""
    money.amount_minor = amount_minor
    money.currency_code = currency_code or ""


def put_struct(struct: Struct, text: str) -> None:
    """Makes it the stored metadata (JSON text of an object)."""
    struct.update(json.loads(text))


def from_timestamp(timestamp: Timestamp) -> datetime:
    """The time in UTC, rounded down to the microsecond.

    Raises:
        ValueError: it is no valid timestamp (years 1 to 9999).
    """
    try:
        if 0 <= timestamp.nanos < 1_000_000_000:
            return EPOCH + timedelta(
                seconds=timestamp.seconds, microseconds=timestamp.nanos // 1_000
            )
    except OverflowError:
        pass
    raise ValueError("expected a time between the years 1 and 9999")


def from_duration_ms(duration: Duration) -> int:
    """How many milliseconds it is.

    Raises:
        ValueError: it is not a whole number of them, or not a positive one.
    """
    milliseconds, rest = divmod(duration.nanos, 1_000_000)
    if rest or not 0 <= milliseconds < 1_000:
        raise ValueError("expected whole milliseconds")
    return duration.seconds * 1_000 + milliseconds


def to_money(amount_minor: int | None, currency_code: str | None) -> Money | None:
    """The amount; None when there is none."""
    if amount_minor is None:
        return None
    money = Money()
    put_money(money, amount_minor, currency_code)
    return money


def to_struct(text: str | None) -> Struct | None:
    """Stored metadata (JSON text of an object) as a message; None when there is none."""
    if text is None:
        return None
    struct = Struct()
    put_struct(struct, text)
    return struct


def from_struct(struct: Struct) -> str | None:
    """Metadata as compact JSON text with sorted keys, so that equal metadata are equal texts.

    None for an empty object.

    Raises:
        ValueError: it is too large or too deep, or has what JSON or PostgreSQL does not know. The
            message says what was expected.
    """
    if not struct.fields:
        return None
    text = _object(struct.fields, METADATA_MAX_LEVELS)
    if len(text.encode()) > METADATA_MAX_BYTES:
        raise ValueError(f"expected at most {METADATA_MAX_BYTES} bytes as JSON")
    return text


def _object(fields: Mapping[str, Value], levels: int) -> str:
    pairs = (f"{_string(key)}:{_json(fields[key], levels)}" for key in sorted(fields))
    return f"{{{','.join(pairs)}}}"


def _array(values: Iterable[Value], levels: int) -> str:
    return f"[{','.join(_json(value, levels) for value in values)}]"


def _json(value: Value, levels: int) -> str:
    match value.WhichOneof("kind"):
        case "string_value":
            return _string(value.string_value)
        case "number_value":
            return _number(value.number_value)
        case "bool_value":
            return "true" if value.bool_value else "false"
        case "null_value":
            return "null"
        case "struct_value" | "list_value" if levels <= 1:
            raise ValueError(f"expected at most {METADATA_MAX_LEVELS} levels")
        case "struct_value":
            return _object(value.struct_value.fields, levels - 1)
        case "list_value":
            return _array(value.list_value.values, levels - 1)
        case _:
            raise ValueError("expected a JSON value everywhere")


def _string(text: str) -> str:
    if "\0" in text:
        raise ValueError("expected no NUL characters")
    return json.dumps(text, ensure_ascii=False)


def _number(number: float) -> str:
    if not math.isfinite(number):
        raise ValueError("expected finite numbers")
    # PostgreSQL knows no negative zero, and spells numbers out: 1e300 has 301 digits there.
    text = repr(number or 0.0)
    return format(Decimal(text), "f") if "e" in text else text.removesuffix(".0")
