"""Outcomes of the rows of an import: counted, shown, and written to a file."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TextIO

import typer
from rich.console import Console
from rich.table import Table

from coupon_service.cli.failure import CommandError
from coupon_service.cli.rows import Chunk, Row
from coupon_service.v1.coupon_code_service_pb2 import ImportCodesResponse, ImportOutcome, ImportRow
from coupon_service.v1.error_reason_pb2 import ErrorReason, ItemError

SHOWN_MAX: Final = 20
"""Rejected rows that are shown; a file takes them all."""

COLUMNS: Final = ("line", "code", "outcome", "reason", "message", "row")
"""Of the file of rejected rows. `row`: as it stands in the imported file."""

NUMBERED: Final = re.compile(r"\b(?:codes\[\d+\]: |rows\[\d+\]\.(?:code: |terms\.)?)")
"""The place of a row in its chunk, which means nothing to the reader of a file."""


@dataclass(slots=True)
class ImportReport:
    """Counts of outcomes, and the rejected rows, which are written to `out`."""

    out: TextIO | None = None
    counts: Counter[str] = field(default_factory=Counter[str])
    shown: list[tuple[str, ...]] = field(default_factory=list[tuple[str, ...]])
    sent_chunks: int = 0
    last_line: int = 0
    assigned: int = 0

    @property
    def rows(self) -> int:
        """Rows that have an outcome."""
        return self.counts.total()

    @property
    def rejected(self) -> int:
        """Rows that did not become codes."""
        return self.rows - self.counts["created"]

    def add(self, chunk: Chunk, answer: ImportCodesResponse) -> None:
        """The answer to a chunk."""
        self.counts["created"] += answer.created_count
        self.counts["twice in the file"] += answer.duplicate_count
        self.counts["there already"] += answer.existing_count
        self.counts["invalid"] += answer.invalid_count + len(chunk.bad)
        if answer.not_assigned_count:
            self.counts["not assigned"] += answer.not_assigned_count
        self.assigned += answer.assigned_count
        self.last_line = max(row.line for row in (*chunk.rows[-1:], *chunk.bad[-1:]))
        refused = [(chunk.rows[row.index], row) for row in answer.rejected_rows]
        refused += [(row, _bad(row)) for row in chunk.bad]
        rejected = [_cells(*it) for it in sorted(refused, key=lambda it: it[0].line)]
        self.shown += rejected[: SHOWN_MAX - len(self.shown)]
        if self.out is not None:
            _write(self.out, rejected)

    def show_rejected(self, hint: str) -> None:
        """Shows the first rejected rows. `hint`: how to get all, if there is no file."""
        if not self.shown:
            return
        table = Table("Line", "Code", "Outcome", "Message")
        for line, code, outcome, _, message, _ in self.shown:
            table.add_row(line, code, outcome, message)
        Console(stderr=True, markup=False, emoji=False).print(table)
        if left := self.rejected - len(self.shown):
            where = f"{self.out.name} has them all." if self.out is not None else hint
            typer.echo(f"and {left:,} more: {where}", err=True)

    def summary(self) -> str:
        """The counts, for people."""
        counts = [f"{count:,} {outcome}" for outcome, count in self.counts.items()]
        return ", ".join([*counts, *([f"{self.assigned:,} assigned"] if self.assigned else [])])


def _bad(row: Row) -> ImportRow:
    """What is reported of a row that cannot be sent."""
    error = ItemError(
        reason=ErrorReason.ERROR_REASON_INVALID_ARGUMENT, message="; ".join(row.problems)
    )
    return ImportRow(outcome=ImportOutcome.IMPORT_OUTCOME_INVALID, error=error)


def _cells(row: Row, rejected: ImportRow) -> tuple[str, ...]:
    return (
        str(row.line),
        row.text,
        ImportOutcome.Name(rejected.outcome).removeprefix("IMPORT_OUTCOME_"),
        ErrorReason.Name(rejected.error.reason).removeprefix("ERROR_REASON_"),
        NUMBERED.sub("", rejected.error.message),
        row.source,
    )


@contextmanager
def report_to(rejects: Path | None) -> Generator[ImportReport]:
    """A report that writes rejected rows to this file. Raises CommandError."""
    if rejects is None:
        yield ImportReport()
        return
    try:
        out = rejects.open("w", encoding="utf-8", newline="")
    except OSError as error:
        raise CommandError(f"{rejects} cannot be written: {error.strerror}.") from error
    try:
        _write(out, [COLUMNS])
        yield ImportReport(out)
    finally:
        with suppress(OSError):  # a failed write has been reported
            out.close()


def _write(out: TextIO, rows: Sequence[Sequence[str]]) -> None:
    try:
        csv.writer(out, lineterminator="\n").writerows(rows)
        out.flush()  # so that the rows are there after Ctrl-C
    except OSError as error:
        raise CommandError(f"{out.name} cannot be written: {error.strerror}.") from error
