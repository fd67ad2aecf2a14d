"""Invalid requests, and values that no field accepts."""

from __future__ import annotations

from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import StatusCode
from support.service import Api, refused, struct

TTLS = [
    Duration(),
    Duration(seconds=-1),
    Duration(nanos=999_000_000),
    Duration(seconds=1, nanos=500_000),
    Duration(seconds=1, nanos=-1),
    Duration(seconds=1, nanos=2**31 - 1),
    Duration(seconds=86_400, nanos=1_000_000),
    Duration(seconds=365 * 86_400),
    Duration(seconds=2**63 - 1),
]
TIMES = [
    Timestamp(nanos=-1),
    Timestamp(nanos=1_000_000_000),
    Timestamp(seconds=-62_135_596_801),
    Timestamp(seconds=253_402_300_800),
    Timestamp(seconds=2**63 - 1),
]


def call(api: Api, method: str, request: Message) -> Any:
    """Call an RPC by its name, such as "books.GetCouponBook"."""
    service, _, name = method.partition(".")
    answer = getattr(getattr(api, service), name)(request)
    streamed = {"GenerateCodes", "ExportCodes", "ChangeCodes", "EraseUser"}
    return list(answer) if name in streamed else answer


def bad_fields(api: Api, method: str, request: Message) -> list[str]:
    """The fields of the violations that a request is refused for."""
    with refused("INVALID_ARGUMENT", StatusCode.INVALID_ARGUMENT) as it:
        call(api, method, request)
    assert it.metadata == {}
    return it.fields


def nested(levels: int) -> Struct:
    """An object with so many levels."""
    value: dict[str, Any] = {"a": 1}
    for _ in range(levels - 1):
        value = {"a": value}
    return struct(**value)


def not_a_number() -> Struct:
    struct = Struct()
    struct.fields["x"].number_value = float("nan")
    return struct


def no_value() -> Struct:
    struct = Struct()
    struct.fields["x"].SetInParent()
    return struct
