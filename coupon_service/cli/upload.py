"""`coupon-service import`: the codes of a file into a book."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Annotated, Final

import grpc
import typer

from coupon_service.cli.client import (
    BlockingService,
    explain,
    is_outcome_unknown,
    reason_of,
)
from coupon_service.cli.code_file import CodeFile
from coupon_service.cli.codes import Book, RequestId, find_book
from coupon_service.cli.connection import Connection, takes_connection
from coupon_service.cli.failure import CommandError
from coupon_service.cli.import_report import ImportReport, report_to
from coupon_service.cli.mapping import read_map
from coupon_service.cli.progress import progress
from coupon_service.cli.rows import CHUNK_ROWS, Chunk, chunked
from coupon_service.cli.text_files import open_text
from coupon_service.cli.upload_stream import uploaded
from coupon_service.v1.coupon_code_service_pb2 import ImportHeader

REJECTED: Final = 3
"""Exit code when rows were rejected."""

CSV_SUFFIXES: Final = (".csv", ".tsv")

REUSED: Final = "The file or an option differs from the run with this request id."


@takes_connection
def import_codes(
    book: Book,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="Text with one code per line, or CSV, plain or gzipped. - is standard input.",
        ),
    ],
    *,
    column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name or number of the column with the codes, if there are several.",
            show_default=False,
        ),
    ] = None,
    header: Annotated[
        bool | None,
        typer.Option(
            "--header/--no-header",
            help="Whether the first line is a header. Default: detected.",
            show_default=False,
        ),
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Encoding of the file, such as latin-1. Default: UTF-8 or UTF-16, detected.",
            show_default=False,
        ),
    ] = None,
    min_length: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            max=64,
            help="Reject codes with fewer letters and digits. Default: that of the book, or 4.",
            show_default=False,
        ),
    ] = None,
    fields: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="FIELD=COLUMN",
            help="What another column says of the codes, such as user_id=customer or"
            ' end_time="valid until"; can be given several times. FIELD alone: the column has'
            " that name. all: each column that has the name of a field.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Import a column that does not look like codes.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Report the outcome of each row, and change nothing.")
    ] = False,
    rejects: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write all rejected rows to this file.", show_default=False
        ),
    ] = None,
    max_rejects: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="Stop after more than N rejected rows. Rows are imported in chunks of"
            f" {CHUNK_ROWS:,}, and imported chunks stay.",
            show_default=False,
        ),
    ] = None,
    request_id: RequestId = None,
    connection: Connection,
) -> None:
    """Import codes from a file into a book.

    A file is checked completely before anything is sent; a pipe is sent as it comes. A row that
    cannot be imported is rejected with its line and the reason, and the others are imported; the
    exit code is then 3. To resume a stopped import, run the same command with the --request-id
    that it printed: nothing is imported twice.
    """
    if rejects is not None and rejects.exists() and file.exists() and rejects.samefile(file):
        raise CommandError("--rejects would overwrite the file that is imported.")
    run = ImportHeader(
        book_id=book,
        request_id=request_id or f"import-{uuid.uuid4().hex}",
        min_code_length=min_length or 0,
        validate_only=dry_run,
    )
    report = ImportReport()
    try:
        with open_text(file, encoding) as source:
            is_csv = any(suffix.lower() in CSV_SUFFIXES for suffix in file.suffixes)
            codes = CodeFile(
                source, column=column, header=header, is_csv=is_csv, fields=read_map(fields or ())
            )
            if not force:
                codes.refuse_other_data()
            codes.report_header()
            codes.report_columns()
            with connection.open() as service:
                find_book(service, book)
                codes.count()
                with report_to(rejects) as report:
                    _import(service, run, codes, report, max_rejects)
    except KeyboardInterrupt:
        if not report.sent_chunks:
            typer.echo("Nothing was imported.", err=True)
        raise
    if report.rejected:
        raise typer.Exit(REJECTED)


def _import(
    service: BlockingService,
    run: ImportHeader,
    codes: CodeFile,
    report: ImportReport,
    max_rejects: int | None,
) -> None:
    """Sends the rows and reports their outcomes. When it stops early, reports how far it got."""
    title = "Dry run" if run.validate_only else "Importing"
    stopped = False
    try:
        with (
            progress(title, "rows", codes.total, codes.source.size_bytes) as update,
            closing(uploaded(service, run, _announced(codes, run, report))) as answers,
        ):
            for chunk, answer in answers:
                report.add(chunk, answer)
                update(report.rows, codes.source.bytes_read)
                if max_rejects is not None and report.rejected > max_rejects:
                    stopped = report.rows != codes.total
                    break
    except (KeyboardInterrupt, CommandError, grpc.RpcError) as error:
        if isinstance(error, grpc.RpcError) and reason_of(error) == "REQUEST_ID_REUSED":
            raise CommandError(f"{explain(error)}\n  {REUSED}") from error
        if report.rows or (report.sent_chunks and is_outcome_unknown(error)):
            typer.echo(f"{_how_far(run, report)}\n{_summary(run, report)}", err=True)
        raise
    writes_all = "--rejects FILE writes them all"
    report.show_rejected(
        f"{writes_all}." if run.validate_only else f"{writes_all}, with {_again(run)}"
    )
    if stopped:
        more = f"Stopped: more than {max_rejects:,} rows were rejected."
        typer.echo(f"{more} {_how_far(run, report)}", err=True)
    typer.echo(_summary(run, report) if report.rows else "There was nothing to import.")


def _announced(codes: CodeFile, run: ImportHeader, report: ImportReport) -> Iterator[Chunk]:
    """The chunks of the file. Says how to resume as soon as the first one has been imported."""
    for chunk in chunked(codes):
        if chunk.number == 2 and not run.validate_only:
            typer.echo(f"After a break, resume with {_again(run)}", err=True)
        report.sent_chunks = chunk.number
        yield chunk


def _again(run: ImportHeader) -> str:
    return f"the same command and --request-id {run.request_id}"


def _how_far(run: ImportHeader, report: ImportReport) -> str:
    """The last line whose outcome is known, and how to resume."""
    far = f"It got to line {report.last_line:,}"
    if run.validate_only:
        return f"{far}. A dry run cannot be resumed."
    return f"{far}. Resume with {_again(run)}"


def _summary(run: ImportHeader, report: ImportReport) -> str:
    counts = report.summary() or "It is not known what was imported."
    return f"Dry run, nothing was changed: {counts}" if run.validate_only else counts
