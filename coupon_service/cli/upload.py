"""`coupon-service import`: the codes of a file into a book."""

from __future__ import annotations

import csv
import os
import stat
import sys
from collections import Counter
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Annotated, BinaryIO, Final, TextIO

import grpc
import typer
from rich.console import Console
from rich.table import Table

from coupon_service.cli.client import (
    Address,
    BlockingService,
    Patience,
    Tls,
    TlsCa,
    TlsCertificate,
    TlsKey,
    TlsName,
    Token,
    connect_blocking,
)
from coupon_service.cli.codes import Book, RequestId, announced, progress_bar
from coupon_service.cli.failure import CommandError
from coupon_service.cli.rows import Chunk, chunked, read_rows
from coupon_service.v1.coupon_code_service_pb2 import (
    ImportChunk,
    ImportCodesRequest,
    ImportCodesResponse,
    ImportHeader,
    ImportOutcome,
    ImportRow,
)
from coupon_service.v1.coupon_code_service_pb2_grpc import CouponCodeServiceStub
from coupon_service.v1.error_reason_pb2 import ErrorReason

SHOWN_MAX: Final = 20
"""Rejected rows that are shown; a file takes them all."""


def import_codes(
    book: Book,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="Text with a code a line, or CSV. - is standard input."
        ),
    ],
    *,
    column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The column of a CSV file with the codes.", show_default=False
        ),
    ] = None,
    rejects: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write all rows that were not imported here.", show_default=False
        ),
    ] = None,
    request_id: RequestId = None,
    address: Address = None,
    token: Token = None,
    tls_ca: TlsCa = None,
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
    tls_name: TlsName = None,
) -> None:
    """Import codes from a file into a book.

    Rows that cannot be imported are reported with their line and do not stop the others.
    """
    if file.suffix.lower() == ".csv" and column is None:
        raise CommandError(f"{file} is CSV: which column has the codes? Name it with --column.")
    header = ImportHeader(book_id=book, request_id=announced(request_id, "import"))
    with (
        _opened(file) as source,
        _report_to(rejects) as report,
        connect_blocking(
            address, token, Tls(tls_ca, tls_certificate, tls_key, tls_name)
        ) as service,
    ):
        _import(header, source, column, report, service)
    report.show()


@dataclass(slots=True)
class Report:
    """What became of the rows. `out` gets those that were not imported."""

    out: TextIO | None
    counts: Counter[str] = field(default_factory=Counter[str])
    shown: list[tuple[str, ...]] = field(default_factory=list[tuple[str, ...]])

    def add(self, chunk: Chunk, answer: ImportCodesResponse) -> None:
        """The answer to a chunk."""
        self.counts["created"] += answer.created_count
        self.counts["twice in the file"] += answer.duplicate_count
        self.counts["there already"] += answer.existing_count
        self.counts["invalid"] += answer.invalid_count
        rejected = [_cells(chunk, row) for row in answer.rejected_rows]
        self.shown += rejected[: SHOWN_MAX - len(self.shown)]
        if self.out is not None:
            csv.writer(self.out, lineterminator="\n").writerows(rejected)

    def show(self) -> None:
        """Tell it to the user."""
        if self.shown:
            table = Table("Line", "Code", "Outcome", "Reason", "Message")
            for cells in self.shown:
                table.add_row(*cells)
            Console(stderr=True, markup=False, emoji=False).print(table)
            left = self.counts.total() - self.counts["created"] - len(self.shown)
            if left:
                typer.echo(f"and {left:,} more: --rejects FILE writes them all.", err=True)
        outcomes = ", ".join(f"{count:,} {outcome}" for outcome, count in self.counts.items())
        typer.echo(outcomes or "There was nothing to import.")


def _cells(chunk: Chunk, rejected: ImportRow) -> tuple[str, ...]:
    row = chunk.rows[rejected.index]
    return (
        str(row.line),
        row.text,
        ImportOutcome.Name(rejected.outcome).removeprefix("IMPORT_OUTCOME_"),
        ErrorReason.Name(rejected.error.reason).removeprefix("ERROR_REASON_"),
        rejected.error.message,
    )


def _import(
    header: ImportHeader,
    source: BinaryIO,
    column: str | None,
    report: Report,
    service: BlockingService,
) -> None:
    about = os.fstat(source.fileno())
    size = about.st_size if stat.S_ISREG(about.st_mode) else None
    with progress_bar("Importing bytes", size) as bar:
        for chunk, answer in uploaded(service, header, chunked(read_rows(source, column))):
            report.add(chunk, answer)
            if size is not None:
                bar.update(bar.task_ids[0], completed=source.tell())


def uploaded(
    service: BlockingService, header: ImportHeader, chunks: Iterable[Chunk]
) -> Generator[tuple[Chunk, ImportCodesResponse]]:
    """Each chunk with its answer. After a break the chunk that was not answered is sent again."""
    patience = Patience()
    upload: Upload | None = None
    for chunk in chunks:
        answer: ImportCodesResponse | None = None
        while answer is None:
            try:
                upload = upload or Upload(service, header)
                answer = upload.send(chunk)
            except grpc.RpcError as error:
                if upload is not None:
                    upload.end()
                upload = None
                patience.wait_after(error)
        patience.answered()
        yield chunk, answer
    if upload is not None:
        upload.end()


class Upload:
    """An open stream of ImportCodes.

    It sends one chunk at a time: with more on the way, a service that waits for us to take its
    answer and we, who wait for it to take a chunk, could wait for ever.
    """

    def __init__(self, service: BlockingService, header: ImportHeader) -> None:
        self._messages: SimpleQueue[ImportCodesRequest | None] = SimpleQueue()
        self._messages.put(ImportCodesRequest(header=header))
        self._answers = CouponCodeServiceStub(service.channel).ImportCodes(
            iter(self._messages.get, None), metadata=service.metadata
        )

    def send(self, chunk: Chunk) -> ImportCodesResponse:
        """The answer to a chunk. Raises CommandError when there is none."""
        message = ImportChunk(chunk_number=chunk.number, codes=[row.text for row in chunk.rows])
        self._messages.put(ImportCodesRequest(chunk=message))
        for answer in self._answers:
            return answer
        raise CommandError("The service ended the upload before its end.")

    def end(self) -> None:
        """There is no further chunk."""
        self._messages.put(None)


@contextmanager
def _opened(file: Path) -> Generator[BinaryIO]:
    if str(file) == "-":
        yield sys.stdin.buffer
        return
    try:
        with file.open("rb") as source:
            yield source
    except OSError as error:
        raise CommandError(f"{file} cannot be read: {error.strerror}.") from error


@contextmanager
def _report_to(rejects: Path | None) -> Generator[Report]:
    if rejects is None:
        yield Report(None)
        return
    try:
        with rejects.open("w", encoding="utf-8", newline="") as out:
            csv.writer(out, lineterminator="\n").writerow(
                ("line", "code", "outcome", "reason", "message")
            )
            yield Report(out)
    except OSError as error:
        raise CommandError(f"{rejects} cannot be written: {error.strerror}.") from error
