"""Columns of a table, listed once: the lists in its statements, what they write, how a row is read.

The statements themselves stay SQL, written where they are run; only their lists come from here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import IntEnum
from operator import attrgetter
from typing import Any, Final, Generic, LiteralString, TypeVar

from coupon_service.store.arrays import ARRAYS

Row = tuple[Any, ...]
T = TypeVar("T")
V = TypeVar("V")

BETWEEN: Final = ",\n    "


@dataclass(frozen=True, slots=True)
class Column(Generic[T]):
    """A column, by its name and type in PostgreSQL, of the rows that hold a T.

    `value`: what of a T is written, the field of the same name by default. `read`: what makes the
    value of the field from what PostgreSQL returns, where that is not the value itself.
    """

    name: LiteralString
    type: LiteralString
    value: Callable[[T], Any] | None = None
    read: Callable[[Any], Any] | None = None

    @property
    def field(self) -> Callable[[T], Any]:
        """What of a T is written."""
        return self.value or attrgetter(self.name)


class Columns(Generic[T]):
    """The columns that hold a T, in the order of its fields.

    `names`, `selected` (JSONB as text: the service never looks into it), `arrays` (for `unnest`)
    and `unnested` (as a list of SELECT, for which PostgreSQL stores no rows in between) are lists
    for statements.
    """

    def __init__(self, *parts: Column[T] | Nested[T, Any]) -> None:
        self._parts = parts
        self.columns = tuple(it for part in parts for it in _columns_of(part))
        self._written = [(it.name, it.type, it.field) for it in self.columns]
        self.fields: tuple[str, ...] = tuple(part.name for part in parts)
        self.names: LiteralString = self.each("{0}")
        self.arrays: LiteralString = BETWEEN.join([f"%s::{it.type}[]" for it in self.columns])
        self.unnested: LiteralString = BETWEEN.join(
            [f"unnest(%s::{it.type}[])" for it in self.columns]
        )
        self.selected: LiteralString = BETWEEN.join(
            [it.name + "::text" if it.type == "jsonb" else it.name for it in self.columns]
        )

    def each(self, template: LiteralString, *, without: Collection[str] = ()) -> LiteralString:
        """The template, with {0} for the name of a column, for each column but those left out."""
        names: list[LiteralString] = [it.name for it in self.columns if it.name not in without]
        return BETWEEN.join([template.replace("{0}", name) for name in names])

    def parameters(self, item: T) -> dict[str, object]:
        """The values of one T by the names of the columns."""
        return {name: field(item) for name, _, field in self._written}

    def array_parameters(self, items: Collection[T]) -> tuple[str, ...]:
        """What `arrays` and `unnested` stand for."""
        return tuple([ARRAYS[type_](map(field, items)) for _, type_, field in self._written])

    def reader(self, make: Callable[..., T]) -> Callable[[Row], T]:
        """What makes a T of a row of `selected`. `make` takes the fields in their order."""
        conversions = [
            (index, it.read) for index, it in enumerate(self.columns) if it.read is not None
        ]
        nested: list[tuple[int, int, Callable[..., Any]]] = []
        start = 0
        for part in self._parts:
            end = start + len(_columns_of(part))
            if isinstance(part, Nested):
                nested.insert(0, (start, end, part.make))  # last first: the others stay in place
            start = end

        def read(row: Row) -> T:
            values: list[Any] = [*row]
            for index, convert in conversions:
                values[index] = convert(values[index])
            for start, end, make_field in nested:
                values[start:end] = [make_field(*values[start:end])]
            return make(*values)

        return read


class Nested(Generic[T, V]):
    """Columns that hold the field `name` of a T, a value of its own; `make` makes it of them."""

    def __init__(
        self,
        name: LiteralString,
        make: Callable[..., V],
        columns: Columns[V],
        *,
        prefix: LiteralString = "",
    ) -> None:
        self.name = name
        self.make = make
        self.columns: tuple[Column[T], ...] = tuple(
            Column(prefix + it.name, it.type, _of_field(name, it.field), it.read)
            for it in columns.columns
        )


def member_of(enum: type[IntEnum]) -> Callable[[int], IntEnum]:
    """What finds the member of an enum by its number, faster than calling the enum does."""
    return {it.value: it for it in enum}.__getitem__


def _columns_of(part: Column[T] | Nested[T, Any]) -> tuple[Column[T], ...]:
    return part.columns if isinstance(part, Nested) else (part,)


def _of_field(name: str, value: Callable[[Any], Any]) -> Callable[[Any], Any]:
    get = attrgetter(name)
    return lambda item: value(get(item))
