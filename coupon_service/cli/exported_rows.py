"""Rows of messages in a file: JSON, CSV or Parquet, with one column for each simple value."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import IO, Any, Final, Protocol, TextIO

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from coupon_service.cli.failure import CommandError

TIMESTAMP: Final = "google.protobuf.Timestamp"
MONEY: Final = "coupon_service.v1.Money"

NO_PYARROW: Final = "Parquet needs pyarrow: pip install 'coupon-service[parquet]'"

INTEGERS: Final = frozenset(
    {
        FieldDescriptor.CPPTYPE_INT32,
        FieldDescriptor.CPPTYPE_INT64,
        FieldDescriptor.CPPTYPE_UINT32,
        FieldDescriptor.CPPTYPE_UINT64,
    }
)


class Format(StrEnum):
    """How rows are written."""

    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"


class RowWriter(Protocol):
    """Writes messages as rows."""

    def write(self, messages: Sequence[Message]) -> None:
        """Adds them, as far as the end of what is written by now."""
        ...

    def close(self) -> None:
        """No more come."""
        ...


class JsonWriter:
    """A JSON object a line, as grpcurl shows messages: with their own names, and times in UTC."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def write(self, messages: Sequence[Message]) -> None:
        """Adds a line for each."""
        for message in messages:
            named = MessageToDict(message, preserving_proto_field_name=True)
            fields = {name: _in_order(value) for name, value in named.items()}
            self._out.write(json.dumps(fields, ensure_ascii=False) + "\n")
        self._out.flush()

    def close(self) -> None:
        """Nothing is left."""


class CsvWriter:
    """CSV; `header`: with the names of the columns in the first line."""

    def __init__(self, out: TextIO, descriptor: Descriptor, *, header: bool) -> None:
        self._out = out
        self._columns = columns_of(descriptor)
        self._writer = csv.writer(out, lineterminator="\n")
        if header:
            self._writer.writerow(self._columns)

    def write(self, messages: Sequence[Message]) -> None:
        """Adds a line for each."""
        for message in messages:
            self._writer.writerow([_text(read(message)) for _, read in self._columns.values()])
        self._out.flush()

    def close(self) -> None:
        """Nothing is left."""


class ParquetWriter:
    """Parquet, with a row group for some thousand rows. Raises CommandError without pyarrow."""

    GROUP_ROWS: Final = 50_000

    def __init__(self, out: IO[bytes] | Path, descriptor: Descriptor) -> None:
        try:
            # It is large, and only who asks for it needs it.
            arrow: Any = import_module("pyarrow")
            parquet: Any = import_module("pyarrow.parquet")
        except ImportError:
            raise CommandError(NO_PYARROW) from None
        types = {
            "integer": arrow.int64(),
            "time": arrow.timestamp("us", tz="UTC"),
            "boolean": arrow.bool_(),
            "text": arrow.string(),
        }
        self._columns = columns_of(descriptor)
        self._schema = arrow.schema([(it, types[kind]) for it, (kind, _) in self._columns.items()])
        self._arrow = arrow
        self._file = parquet.ParquetWriter(out, self._schema)
        self._rows: list[Message] = []

    def write(self, messages: Sequence[Message]) -> None:
        """Adds a row for each."""
        self._rows += messages
        if len(self._rows) >= self.GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        values = [[read(it) for it in self._rows] for _, read in self._columns.values()]
        arrays = [
            self._arrow.array(column, field.type)
            for column, field in zip(values, self._schema, strict=True)
        ]
        self._file.write_table(self._arrow.Table.from_arrays(arrays, schema=self._schema))
        self._rows = []

    def close(self) -> None:
        """Writes what is left, and the end of the file."""
        if self._rows:
            self._flush()
        self._file.close()


# --- columns --------------------------------------------------------------------------------------

Read = Callable[[Any], Any]
"""The value of a column in a message; None where it has none."""


def columns_of(descriptor: Descriptor) -> Mapping[str, tuple[str, Read]]:
    """For each column its kind (integer, time, boolean or text), and what reads its value."""
    columns: dict[str, tuple[str, Read]] = {}
    for field in descriptor.fields:
        kind = field.message_type.full_name if field.message_type is not None else ""
        if kind == MONEY:
            columns[f"{field.name}_minor"] = "integer", _part(field.name, "amount_minor")
            columns[f"{field.name}_currency"] = "text", _part(field.name, "currency_code")
        elif kind == TIMESTAMP:
            columns[field.name] = "time", _time(field.name)
        elif kind:
            columns[field.name] = "text", _json(field.name)
        elif field.enum_type is not None:
            columns[field.name] = "text", _enum(field)
        elif field.cpp_type in INTEGERS:
            columns[field.name] = "integer", _plain(field.name)
        elif field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
            columns[field.name] = "boolean", _plain(field.name)
        else:
            columns[field.name] = "text", _plain(field.name)
    return columns


def _plain(name: str) -> Read:
    return lambda message: getattr(message, name)


def _part(name: str, part: str) -> Read:
    return lambda message: getattr(getattr(message, name), part) if message.HasField(name) else None


def _time(name: str) -> Read:
    return lambda message: (
        getattr(message, name).ToDatetime(UTC) if message.HasField(name) else None
    )


def _json(name: str) -> Read:
    return lambda message: (
        json.dumps(MessageToDict(getattr(message, name)), ensure_ascii=False, sort_keys=True)
        if message.HasField(name)
        else None
    )


def _in_order(value: Any) -> Any:
    """With the keys of objects sorted: those of metadata come in any order, each time another, and
    two exports of the same rows are to be the same."""
    return json.loads(json.dumps(value, sort_keys=True)) if isinstance(value, dict) else value


def _enum(field: FieldDescriptor) -> Read:
    enum: Any = field.enum_type
    names = {it.number: it.name for it in enum.values}
    # AUDIT_EVENT_TYPE_REDEEMED, as all values of an enum begin with its name.
    prefix = "".join(f"_{it}" if it.isupper() else it for it in enum.name).upper().lstrip("_") + "_"
    return lambda message: names.get(getattr(message, field.name), "").removeprefix(prefix)


def _text(value: Any) -> Any:
    return value.isoformat() if hasattr(value, "isoformat") else value
