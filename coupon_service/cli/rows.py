"""The rows of a file of codes, in chunks that are the same each time the file is read."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from coupon_service.cli.failure import CommandError

CHUNK_ROWS: Final = 5_000
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
class Layout:
    """Where the codes of a file are.

    `delimiter`: of CSV, None of a file with a code a line. `column`: from 0. `width`: how many
    columns there are, 0 if that is not known. `skipped_lines`: a header and the lines before it.
    `title`: the name of the column in the header. `header_detected`: whether the header was
    detected rather than asked for.
    """

    delimiter: str | None = None
    column: int = 0
    skipped_lines: int = 0
    title: str = ""
    header_detected: bool = False
    width: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """A code, its line in the file, and the row as it stands there."""

    line: int
    text: str
    source: str


@dataclass(slots=True)
class Chunk:
    """Some rows of a file, in order; `number` counts from 1."""

    number: int
    rows: list[Row] = field(default_factory=list[Row])


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
        yield Row(record.line, text, source)


def chunked(rows: Iterable[Row]) -> Iterator[Chunk]:
    """The rows in chunks, as full as a message may be."""
    chunk, characters = Chunk(1), 0
    for row in rows:
        if len(chunk.rows) == CHUNK_ROWS or characters + len(row.text) > CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = Chunk(chunk.number + 1), 0
        chunk.rows.append(row)
        characters += len(row.text)
    if chunk.rows:
        yield chunk
