"""A file of codes: its rows, and whether they look like codes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, islice
from typing import Final

import typer

from coupon_service.cli.columns import doubt, find_layout, shown
from coupon_service.cli.failure import CommandError
from coupon_service.cli.mapping import Map, report_columns
from coupon_service.cli.progress import progress
from coupon_service.cli.rows import CHUNK_ROWS, Row, read_rows
from coupon_service.cli.text_files import TextFile

SAMPLE_ROWS: Final = CHUNK_ROWS
"""Rows that layout and content are judged by: the first chunk, before anything is sent."""

HEAD_CHARACTERS: Final = 1_000_000


class CodeFile:
    """The rows of a file, with the layout that its first lines have. Raises CommandError."""

    def __init__(
        self,
        source: TextFile,
        *,
        column: str | None,
        header: bool | None,
        is_csv: bool,
        fields: Map | None = None,
    ) -> None:
        """`fields`: which other columns say something of the codes."""
        self.source = source
        self.total: int | None = None
        lines = source.lines()
        head, complete = _head(lines)
        wanted = column or (fields.code if fields is not None else None)
        self._layout = find_layout(
            head, column=wanted, header=header, is_csv=is_csv, complete=complete
        )
        if fields is not None:
            self._layout = replace(self._layout, columns=fields.resolve(self._layout))
        self._rest = read_rows(chain(head, lines), self._layout)
        self._sample = list(islice(self._rest, SAMPLE_ROWS))

    def refuse_other_data(self) -> None:
        """Raises CommandError if the first rows do not look like codes."""
        if found := doubt([row.text for row in self._sample]):
            title = self._layout.title
            raise CommandError(
                f"{f'The column {shown(title)}' if title else self.source.name} looks like {found},"
                " not like codes. Nothing was imported. Use --force to import it anyway."
            )

    def report_header(self) -> None:
        """Says that the first line is skipped, if nobody asked for that."""
        if self._layout.header_detected:
            skipped = f"The first line, {shown(self._layout.title)}, is a header and is skipped."
            typer.echo(f"{skipped} Use --no-header to import it.", err=True)

    def report_columns(self) -> None:
        """Says what the columns are taken for, if there are others than that of the codes."""
        if self._layout.columns:
            report_columns(self._layout, self._sample[0] if self._sample else None)

    def count(self) -> None:
        """Checks and counts all rows of a file that can be read twice. Raises CommandError."""
        if not self.source.repeatable:
            return
        total = 0
        with progress("Checking", "rows", None, self.source.size_bytes) as update:
            for _ in self:
                total += 1
                if not total % CHUNK_ROWS:
                    update(total, self.source.bytes_read)
        self.total = total

    def __iter__(self) -> Iterator[Row]:
        if self.source.repeatable:
            return read_rows(self.source.lines(), self._layout)
        return chain(self._sample, self._rest)


def _head(lines: Iterator[str]) -> tuple[list[str], bool]:
    """The first lines, and whether these are all."""
    head, characters = list[str](), 0
    for line in lines:
        head.append(line)
        characters += len(line)
        if len(head) == SAMPLE_ROWS or characters > HEAD_CHARACTERS:
            return head, False
    return head, True
