"""Which columns of a file hold what is said of a code, as `--map` names them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import typer
from rich.console import Console
from rich.table import Table

from coupon_service.cli.columns import find_column, plain_name, shown
from coupon_service.cli.failure import CommandError
from coupon_service.cli.fields import FIELDS, TIMES, UTC_ASSUMED, is_field
from coupon_service.cli.rows import Column, Layout, Row

ALL: Final = "all"


@dataclass(frozen=True, slots=True)
class Map:
    """What was asked for: the columns of fields, by name or number; `every`: also those of the file
    that are called as fields are."""

    columns: dict[str, str]
    every: bool = False

    @property
    def code(self) -> str:
        """The column of the codes, unless it is given elsewhere."""
        return self.columns.get("code", "code")

    def resolve(self, layout: Layout) -> tuple[Column, ...]:
        """The columns of the file in the order in which they are read. Raises CommandError."""
        found = {field: find_column(layout, column) for field, column in self.columns.items()}
        found["code"] = layout.column
        if self.every:
            for index, name in enumerate(layout.names):
                field = plain_name(name).replace(" ", "_")
                if field in FIELDS:
                    found.setdefault(field, index)
        for field, index in found.items():
            same = [it for it, at in found.items() if at == index]
            if len(same) > 1:
                raise CommandError(
                    f"{shown(_name(layout, index))} cannot be {field} and {same[-1]} at once."
                )
        order = [*FIELDS]
        fields = sorted(found, key=lambda it: order.index(it) if it in order else len(order))
        return tuple(Column(it, found[it]) for it in fields)


def read_map(options: Iterable[str]) -> Map | None:
    """What `--map` says; None when it is not there. Raises CommandError."""
    columns, every = dict[str, str](), False
    for option in options:
        field, given, column = option.partition("=")
        field, column = field.strip(), column.strip()
        if field == ALL and not given:
            every = True
            continue
        if not is_field(field):
            near = difflib.get_close_matches(field, FIELDS, n=1)
            meant = f" Did you mean {near[0]}?" if near else ""
            raise CommandError(
                f"{shown(field)} is nothing that a code can say.{meant}"
                f" Use one of {', '.join(FIELDS)}, metadata.NAME, or all."
            )
        if field in columns:
            raise CommandError(f"{field} is mapped twice.")
        columns[field] = column if given else field
    return Map(columns, every) if columns or every else None


def report_columns(layout: Layout, first: Row | None) -> None:
    """Says what each column is taken for, with the first row as an example."""
    cells = first.cells if first is not None else ()
    table = Table("Column", "Is", "First row")
    for column in layout.columns:
        value = cells[column.index] if column.index < len(cells) else ""
        table.add_row(_name(layout, column.index), column.field, value.strip())
    Console(stderr=True, markup=False, emoji=False).print(table)
    used = {it.index for it in layout.columns}
    others = [_name(layout, at) for at in range(layout.width) if at not in used]
    if others:
        typer.echo(f"Not imported: {', '.join(map(shown, others))}.", err=True)
    if any(it.field in TIMES for it in layout.columns):
        typer.echo(UTC_ASSUMED, err=True)


def _name(layout: Layout, index: int) -> str:
    """The name of a column, or its number."""
    names: Sequence[str] = layout.names
    return names[index] if index < len(names) and names[index] else f"column {index + 1}"
