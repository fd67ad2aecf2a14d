"""Requests in JSON: read as protobuf does, with what people write for short."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final, cast

from google.protobuf import descriptor_pool, json_format
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from coupon_service.cli.contract import short_name, snake_case
from coupon_service.cli.failure import CommandError

# Messages of json_format.
NO_FIELD: Final = re.compile(r'Message type "([\w.]+)" has no field named "(.*?)"')
NO_VALUE: Final = re.compile(r"Invalid enum value (.+?) for enum type ([\w.]+)")
IN_FIELD: Final = re.compile(r"Failed to parse (\w+) field: ")

DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhd])")
EXPECTED: Final = {
    "google.protobuf.Timestamp": (
        'expected a time such as 2026-12-31, "2026-12-31 18:00" or 2026-12-31T18:00:00+01:00.'
    ),
    "google.protobuf.Duration": "expected a duration such as 90s, 5m or 1h30m.",
}
"""The form of values that json_format describes in the words of Python."""
UNITS_S: Final = {"ms": "0.001", "s": "1", "m": "60", "h": "3600", "d": "86400"}
DATE: Final = re.compile(r"(\d{4}-\d\d-\d\d)(?:[ T](\d\d:\d\d)(:\d\d)?)?")


def read_messages(text: str, method: MethodDescriptor) -> list[Message]:
    """The requests in the text, JSON objects one after the other, with what `in_full` takes.

    Raises CommandError.
    """
    kind = GetMessageClass(method.input_type)
    requests: list[Message] = []
    for value in _json_values(text):
        if not isinstance(value, dict):
            raise CommandError(f"Expected a JSON object, not {json.dumps(value)[:60]}.")
        try:
            fields = cast(dict[str, Any], value)
            requests.append(json_format.ParseDict(in_full(fields, method.input_type), kind()))
        except json_format.ParseError as error:
            name = method.input_type.name
            explained = _explained(error, method.input_type)
            raise CommandError(f"This is not a {name}: {explained}") from error
    if len(requests) != 1 and not method.client_streaming:
        raise CommandError(f"{short_name(method)} takes one JSON object, not {len(requests)}.")
    return requests


def _explained(error: json_format.ParseError, kind: Descriptor) -> str:
    """The error of a request of this kind in plain words, with field names as in the proto."""
    text = str(error).partition("\n")[0].rstrip(".") + "."
    pool = descriptor_pool.Default()
    if found := NO_FIELD.search(text):
        message = pool.FindMessageTypeByName(found[1])
        return _unknown(message.name, "field", found[2], [it.name for it in message.fields])
    if found := NO_VALUE.search(text):
        enum = pool.FindEnumTypeByName(found[2])
        return _unknown(enum.name, "value", found[1], [*short_values(enum)])
    names = IN_FIELD.findall(text)
    if not names:
        return text
    return f"{'.'.join(names)}: {_expected(names, kind) or IN_FIELD.sub('', text)}"


def _expected(names: Sequence[str], kind: Descriptor) -> str | None:
    """The form of the field to which the names lead, where it has one of its own."""
    inner: Descriptor | None = kind
    for name in names:
        if inner is None or (field := _fields(inner).get(name)) is None:
            return None
        inner = field.message_type
    return EXPECTED.get(inner.full_name) if inner is not None else None


def _fields(kind: Descriptor) -> dict[str, FieldDescriptor]:
    """By both names that they have in JSON."""
    return {field.json_name: field for field in kind.fields} | dict(kind.fields_by_name)


def _unknown(kind: str, what: str, name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    meant = f" Did you mean {near[0]}?" if near else ""
    return f'{kind} has no {what} "{name}".{meant} It has {", ".join(known)}.'


def _json_values(text: str) -> Iterator[Any]:
    decoder = json.JSONDecoder()
    text = text.removeprefix("\ufeff").rstrip()
    position = 0
    while position < len(text):
        if text[position].isspace():
            position += 1
            continue
        try:
            value, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise CommandError(f"This is not JSON: {error}.") from error
        yield value


def in_full(fields: Mapping[str, Any], kind: Descriptor) -> dict[str, Any]:
    """The fields in the syntax of protobuf, from what may also be written for short:

    values of an enum without its name, in any case (optional for LOCK_POLICY_OPTIONAL); durations
    such as 5m or 1h30m; times as a date, or as date and time, in UTC; and masks in snake_case.
    """
    known = _fields(kind)
    full = dict(fields)
    for name, value in fields.items():
        if (field := known.get(name)) is None:
            continue
        if field.is_repeated and isinstance(value, list):
            full[name] = [_value_in_full(each, field) for each in cast("list[Any]", value)]
        else:
            full[name] = _value_in_full(value, field)
    return full


def short_values(enum: EnumDescriptor) -> dict[str, str]:
    """The values of an enum that can be given, without its name, and in full."""
    prefix = snake_case(enum.name).upper() + "_"
    values = (it.name for it in enum.values if it.number or not it.name.endswith("_UNSPECIFIED"))
    return {name.removeprefix(prefix): name for name in values}


def _value_in_full(value: Any, field: FieldDescriptor) -> Any:
    if field.message_type is not None and isinstance(value, dict):
        inner = cast("dict[str, Any]", value)
        google = field.message_type.full_name.startswith("google.")
        return inner if google else in_full(inner, field.message_type)
    if not isinstance(value, str):
        return value
    if field.enum_type is not None:
        return short_values(field.enum_type).get(value.upper().replace("-", "_"), value)
    match field.message_type.full_name if field.message_type is not None else "":
        case "google.protobuf.Duration":
            return _duration(value)
        case "google.protobuf.Timestamp":
            return _time(value)
        case "google.protobuf.FieldMask":
            return re.sub(r"_([a-z])", lambda it: it[1].upper(), value.replace(" ", ""))
        case _:
            return value


def _duration(text: str) -> str:
    """In seconds, where it has units."""
    parts = DURATION.findall(text)
    if "".join(number + unit for number, unit in parts) != text or not parts:
        return text
    return f"{sum(Decimal(number) * Decimal(UNITS_S[unit]) for number, unit in parts):f}s"


def _time(text: str) -> str:
    """With all its parts, where it has some of them."""
    found = DATE.fullmatch(text)
    return f"{found[1]}T{found[2] or '00:00'}{found[3] or ':00'}Z" if found else text
