"""Messages, answers and refusals as the plain model writes them, to be compared with its own."""

# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from model.state import PAST, Refusal, Unknown
from support.service import Refused

CONTRACT = Path(__file__).parents[2] / "proto/coupon_service/v1/error_reason.proto"
STATUS_OF = {
    reason: status
    for status, reason in re.findall(
        r"// \[([A-Z_]+)\](?:(?!// \[).)*?ERROR_REASON_([A-Z_]+) = ",
        CONTRACT.read_text("utf-8"),
        re.DOTALL,
    )
}
"""The status that the contract promises for each reason."""

SECRET = {"message", "code_format", "peer", "user_agent", "sequence"}
"""Fields that the model does not know, or that are for people."""


def plain(message: Any) -> Any:
    """A message as a dict of what is set in it."""
    if isinstance(message, Timestamp):
        return message.ToMilliseconds()
    if isinstance(message, Duration):
        return message.ToMilliseconds()
    if isinstance(message, Struct):
        return MessageToDict(message)
    if not isinstance(message, Message):
        return message
    return {
        field.name: _value(field, value)
        for field, value in message.ListFields()
        if field.name not in SECRET
    }


def _value(field: Any, value: Any) -> Any:
    if field.message_type and field.message_type.GetOptions().map_entry:
        return dict(value)
    if field.is_repeated:
        return [_one(field, it) for it in value]
    return _one(field, value)


def _one(field: Any, value: Any) -> Any:
    if field.enum_type is None:
        return plain(value)
    names = field.enum_type.values_by_number
    return names[value].name.removeprefix(names[0].name.removesuffix("UNSPECIFIED"))


def clean(value: Any) -> Any:
    """Without what is not set: a message does not tell it from a zero. Codes of CLOSED books have
    the names that they had."""
    if isinstance(value, dict):
        cleaned = {key: clean(it) for key, it in value.items() if not key.startswith("_")}  # pyright: ignore[reportUnknownVariableType]
        return {key: it for key, it in cleaned.items() if isinstance(it, Unknown) or it}
    if isinstance(value, list):
        return [clean(it) for it in value]  # pyright: ignore[reportUnknownVariableType]
    return value.partition(PAST)[0] if isinstance(value, str) else value


def answered(call: Callable[[], Any]) -> Any:
    """What a call is answered, or why it is refused."""
    try:
        return plain(call())
    except grpc.RpcError as error:
        refused = Refused()
        refused.error = error
        return {
            "refused": {"reason": refused.reason, "metadata": refused.metadata},
            "status": refused.status.name,
        }


def expected(answer: Callable[[], Any]) -> Any:
    """The same of the model."""
    try:
        return answer()
    except Refusal as refusal:
        return refused_with(refusal.error)


def refused_with(error: dict[str, Any]) -> Any:
    """What a call is answered that is refused."""
    return {"refused": error, "status": STATUS_OF.get(error["reason"])}
