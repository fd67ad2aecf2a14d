"""A file of codes: its rows, and whether they look like codes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from typing import Final

import typer

from coupon_service.cli.columns import doubt, find_layout, shown
from coupon_service.cli.failure import CommandError
from coupon_service.cli.progress import progress
from coupon_service.cli.rows import CHUNK_ROWS, Row, read_rows
from coupon_service.cli.text_files import TextFile

SAMPLE_ROWS: Final = CHUNK_ROWS
"""By which a file is judged: as many as are waited for before anything can be sent."""

HEAD_CHARACTERS: Final = 1_000_000


class CodeFile:
    """The rows of a file, whose layout was found by its first lines. Raises CommandError."""

    def __init__(
        self, source: TextFile, *, column: str | None, header: bool | None, is_csv: bool
    ) -> None:
        self.source = source
        self.total: int | None = None
        lines = source.lines()
        head, complete = _head(lines)
        self._layout = find_layout(
            head, column=column, header=header, is_csv=is_csv, complete=complete
        )
        self._rest = read_rows(chain(head, lines), self._layout)
        self._sample = list(islice(self._rest, SAMPLE_ROWS))
        if self._layout.title and column is None and header is None:
            typer.echo(
                f"The first line, {shown(self._layout.title)}, is taken for a header;"
                " --no-header imports it.",
                err=True,
            )

    def refuse_other_things(self) -> None:
        """Raises CommandError where the first rows look like something else than codes."""
        if found := doubt([row.text for row in self._sample]):
            title = self._layout.title
            raise CommandError(
                f"{f'The column {shown(title)}' if title else self.source.name} looks like {found},"
                " and not like codes. Nothing was imported; --force imports it all the same."
            )

    def count(self) -> None:
        """Reads the file to its end, if it can be read again. Raises CommandError."""
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
    """The first lines, and whether there are no others."""
    head, characters = list[str](), 0
    for line in lines:
        head.append(line)
        characters += len(line)
        if len(head) == SAMPLE_ROWS or characters > HEAD_CHARACTERS:
            return head, False
    return head, True
