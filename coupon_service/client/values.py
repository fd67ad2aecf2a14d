"""Plain arguments to values of messages."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

Metadata = Mapping[str, Any]
"""A JSON object that is stored with a change."""


def new_request_id() -> str:
    """An id for one change, such as one redemption for one order. Store it where you repeat calls
    of an earlier run.
    """
    return secrets.token_hex(16)


def struct(values: Metadata | None) -> Struct | None:
    """A JSON object as a message."""
    if values is None:
        return None
    made = Struct()
    made.update(values)
    return made


def duration(seconds: float | None) -> Duration | None:
    """Seconds as a message, in whole milliseconds."""
    if seconds is None:
        return None
    made = Duration()
    made.FromMilliseconds(round(seconds * 1000))
    return made


def timestamp(time: datetime | None) -> Timestamp | None:
    """A time, which has to have a zone, as a message. Raises ValueError."""
    if time is None:
        return None
    if time.tzinfo is None:
        raise ValueError("a time needs a time zone: datetime.now(UTC)")
    made = Timestamp()
    made.FromDatetime(time)
    return made
