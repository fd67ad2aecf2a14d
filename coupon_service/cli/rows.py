"""The rows of a file of codes, in chunks that are the same each time the file is read."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import BinaryIO, Final

from coupon_service.cli.failure import CommandError

CHUNK_ROWS: Final = 5_000
CHUNK_CHARACTERS: Final = 200_000
"""Less than the 1 MiB of a message, whatever the characters."""

ROW_CHARACTERS: Final = 200
"""What is sent of a row; more than a code can have, so that a longer one is refused."""

DELIMITERS: Final = (",", ";", "\t")


@dataclass(frozen=True, slots=True)
class Row:
    """A code as it stands in the file, and its line, counted from 1."""

    line: int
    text: str


@dataclass(slots=True)
class Chunk:
    """Some rows of a file, in order; `number` counts from 1."""

    number: int
    rows: list[Row] = field(default_factory=list[Row])


def read_rows(file: BinaryIO, column: str | None) -> Iterator[Row]:
    """The codes of a text file, one a line, or of a column of a CSV file with a header.

    Empty ones are left out. A byte-order mark and any kind of line end are understood; bytes that
    are not UTF-8 become a character that no code has, so that the row is refused and not the file.
    Raises CommandError.
    """
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="replace")
    try:
        for row in _csv_rows(text, column) if column is not None else _lines(text):
            if code := row.text.strip():
                yield Row(row.line, code[:ROW_CHARACTERS])
    finally:
        with suppress(ValueError):  # closed already
            text.detach()  # whoever opened the file closes it


def _lines(text: Iterable[str]) -> Iterator[Row]:
    for line, content in enumerate(text, start=1):
        yield Row(line, content)


def _csv_rows(text: Iterator[str], column: str) -> Iterator[Row]:
    header = next(text, "")
    delimiter, index = _find_column(header, column)
    reader = csv.reader(text, delimiter=delimiter)
    try:
        for cells in reader:
            if index < len(cells):
                yield Row(reader.line_num + 1, cells[index])
    except csv.Error as error:
        raise CommandError(f"Line {reader.line_num + 1} is not CSV: {error}.") from error


def _find_column(header: str, column: str) -> tuple[str, int]:
    """The delimiter of the file and the place of the column."""
    wanted = column.strip().casefold()
    for delimiter in DELIMITERS:
        names = [
            name.strip().casefold() for name in next(csv.reader([header], delimiter=delimiter))
        ]
        if wanted in names:
            return delimiter, names.index(wanted)
    raise CommandError(f'There is no column "{column}" in the first line: {header.strip()[:200]}')


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
