"""The rows of a file of codes, in chunks that are the same each time the file is read."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from coupon_service.cli.failure import CommandError
from coupon_service.cli.fields import new_code
from coupon_service.v1.coupon_code_service_pb2 import NewCode

CHUNK_ROWS: Final = 5_000
TERMS_ROWS: Final = 1_000
"""Of a chunk whose codes say something for themselves."""

CHUNK_CHARACTERS: Final = 200_000
"""Less than the 1 MiB of a message, whatever the characters."""

ROW_CHARACTERS: Final = 200
"""What is sent of a row; more than a code can have, so that a longer one is refused."""

SOURCE_CHARACTERS: Final = 2_000
"""What is kept of a row as it stands in the file, for the report."""


@dataclass(frozen=True, slots=True)
class Record:
    """A line, or a record of CSV. `line`: its first line, counted from 1."""

    line: int
    cells: list[str]
    source: str

    @property
    def blank(self) -> bool:
        """Whether all its cells are empty."""
        return not any(map(str.strip, self.cells))


@dataclass(frozen=True, slots=True)
class Column:
    """A column, from 0, and what of a code it holds."""

    field: str
    index: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the codes of a file are.

    `delimiter`: of CSV, None of a file with a code a line. `column`: from 0. `width`: how many
    columns there are, 0 if that is not known. `skipped_lines`: a header and the lines before it.
    `title`: the name of the column in the header. `header_detected`: whether the header was
    detected rather than asked for. `names`: of all columns, as the header has them. `columns`:
    those that are imported, where codes are not all of it.
    """

    delimiter: str | None = None
    column: int = 0
    skipped_lines: int = 0
    title: str = ""
    header_detected: bool = False
    width: int = 0
    names: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """A code, its line in the file, and the row as it stands there.

    `new`: with what the other columns say of it; `problems`: what is wrong with them.
    """

    line: int
    text: str
    source: str
    cells: Sequence[str] = ()
    new: NewCode | None = None
    problems: Sequence[str] = ()


@dataclass(slots=True)
class Chunk:
    """Some rows of a file, in order; `number` counts from 1. `bad`: those that cannot be sent."""

    number: int
    rows: list[Row] = field(default_factory=list[Row])
    bad: list[Row] = field(default_factory=list[Row])


def read_records(
    lines: Iterable[str], delimiter: str | None, *, strict: bool = True
) -> Iterator[Record]:
    """The lines, or with a delimiter the records of CSV. Raises CommandError if `strict`."""
    if delimiter is None:
        for number, line in enumerate(lines, start=1):
            text = line.removesuffix("\n")
            yield Record(number, [text], text)
        return
    taken: list[str] = []

    def noted() -> Iterator[str]:
        for line in lines:
            taken.append(line)
            yield line

    first = 1
    try:
        for cells in csv.reader(noted(), delimiter=delimiter, strict=strict):
            yield Record(first, cells, "".join(taken).removesuffix("\n"))
            first += len(taken)
            taken.clear()
    except csv.Error as error:
        if strict:
            raise CommandError(
                f"Line {first:,} is not CSV: {error}."
                ' A quotation mark (") may be missing or misplaced.'
            ) from error


def read_rows(lines: Iterable[str], layout: Layout) -> Iterator[Row]:
    """The codes, without spaces around them. Blank records are left out; a record without a code
    is a row without text; of one with more cells than there are columns, all cells are the text,
    which is no code. Raises CommandError.
    """
    for record in read_records(lines, layout.delimiter):
        if record.line <= layout.skipped_lines or record.blank:
            continue
        cells = record.cells
        text = cells[layout.column].strip() if layout.column < len(cells) else ""
        if layout.width and any(map(str.strip, cells[layout.width :])):
            text = ",".join(cells).strip()  # a comma without quotation marks has moved the cells
        if len(text) > ROW_CHARACTERS:
            # The last character is no space, so the service sees a row that is too long.
            text = text[: ROW_CHARACTERS - 1] + text[-1]
        source = record.source
        if len(source) > SOURCE_CHARACTERS:
            source = source[: SOURCE_CHARACTERS - 1] + "…"
        if not layout.columns:
            yield Row(record.line, text, source)
            continue
        said = [(it.field, _cell(cells, it.index)) for it in layout.columns if it.field != "code"]
        new, problems = new_code([("code", text), *said])
        yield Row(record.line, text, source, cells, new, problems)


def _cell(cells: Sequence[str], index: int) -> str:
    return cells[index].strip() if index < len(cells) else ""


def chunked(rows: Iterable[Row]) -> Iterator[Chunk]:
    """The rows in chunks, as full as a message may be."""
    chunk, size = Chunk(1), 0
    for row in rows:
        if row.problems:
            chunk.bad.append(row)
            continue
        added = len(row.text) if row.new is None else row.new.ByteSize()
        rows_max = CHUNK_ROWS if row.new is None else TERMS_ROWS
        if chunk.rows and (len(chunk.rows) == rows_max or size + added > CHUNK_CHARACTERS):
            yield chunk
            chunk, size = Chunk(chunk.number + 1), 0
        chunk.rows.append(row)
        size += added
    if chunk.rows or chunk.bad:
        yield chunk
