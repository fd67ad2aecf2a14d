"""`coupon-service generate`, `import` and `export`: the codes of a book by the million.

Each goes on where it was when the connection breaks, for as long as there is hope.
"""

from __future__ import annotations

import csv
import sys
import uuid
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final, TextIO

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from coupon_service.cli.client import (
    Address,
    BlockingService,
    Tls,
    TlsCa,
    TlsCertificate,
    TlsKey,
    TlsName,
    Token,
    connect_blocking,
    lasting,
)
from coupon_service.cli.failure import CommandError
from coupon_service.v1.coupon_book_service_pb2 import GetCouponBookStatsRequest
from coupon_service.v1.coupon_book_service_pb2_grpc import CouponBookServiceStub
from coupon_service.v1.coupon_code_service_pb2 import (
    CouponCode,
    CouponCodeState,
    ExportCodesRequest,
    ExportCodesResponse,
    GenerateCodesRequest,
    GenerateCodesResponse,
)
from coupon_service.v1.coupon_code_service_pb2_grpc import CouponCodeServiceStub

Book = Annotated[str, typer.Argument(metavar="BOOK", help="The book_id.")]
RequestId = Annotated[
    str | None,
    typer.Option(
        help="The one that was printed at the start, to go on with a broken run.",
        show_default=False,
    ),
]

EXPORTED: Final = (
    "code",
    "display_code",
    "state",
    "redemption_count",
    "max_redemptions",
    "assignment_count",
)


class StoredState(StrEnum):
    """The states that a code can be exported by."""

    AVAILABLE = "available"
    ASSIGNED = "assigned"
    REDEEMED = "redeemed"
    DISABLED = "disabled"


def generate(
    book: Book,
    count: Annotated[int, typer.Argument(min=1, metavar="COUNT", help="How many codes.")],
    request_id: RequestId = None,
    address: Address = None,
    token: Token = None,
    tls_ca: TlsCa = None,
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
    tls_name: TlsName = None,
) -> None:
    """Make random codes in a book, in the book's code format."""
    request = GenerateCodesRequest(
        book_id=book, count=count, request_id=announced(request_id, "generate")
    )
    with connect_blocking(
        address, token, Tls(tls_ca, tls_certificate, tls_key, tls_name)
    ) as service:
        stub = CouponCodeServiceStub(service.channel)

        def go_on() -> Iterable[GenerateCodesResponse]:
            return stub.GenerateCodes(request, metadata=service.metadata)

        generated = 0
        with progress_bar("Generating", request.count) as bar:
            for answer in lasting(go_on):
                generated = answer.generated_count
                bar.update(bar.task_ids[0], completed=generated)
    typer.echo(f"{generated:,} codes generated.")


def export(
    book: Book,
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE",
            help="Where to; it appears when it is complete. Default: standard output.",
            show_default=False,
        ),
    ] = None,
    *,
    state: Annotated[
        StoredState | None, typer.Option(help="Only codes in this state.", show_default=False)
    ] = None,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="CSV with all that is known of each code.")
    ] = False,
    address: Address = None,
    token: Token = None,
    tls_ca: TlsCa = None,
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
    tls_name: TlsName = None,
) -> None:
    """Write the codes of a book, one a line."""
    with (
        connect_blocking(
            address, token, Tls(tls_ca, tls_certificate, tls_key, tls_name)
        ) as service,
        _destination(file) as out,
    ):
        _export(book, state, out, as_csv, service)


def _export(
    book: str, state: StoredState | None, out: TextIO, as_csv: bool, service: BlockingService
) -> None:
    request = ExportCodesRequest(book_id=book)
    if state is not None:
        request.state = CouponCodeState.Value(f"COUPON_CODE_STATE_{state.name}")
    writer = csv.writer(out, lineterminator="\n")
    if as_csv:
        writer.writerow(EXPORTED)
    stub = CouponCodeServiceStub(service.channel)

    def go_on() -> Iterable[ExportCodesResponse]:
        return stub.ExportCodes(request, metadata=service.metadata)

    found = CouponBookServiceStub(service.channel).GetCouponBookStats(
        GetCouponBookStatsRequest(book_id=book), metadata=service.metadata
    )
    counted = f"{state}_count" if state else "code_count"
    with progress_bar("Exporting", getattr(found.stats, counted)) as bar:
        for answer in lasting(go_on):
            writer.writerows(_cells(code) if as_csv else (code.code,) for code in answer.codes)
            bar.advance(bar.task_ids[0], len(answer.codes))
            request.page_token = answer.next_page_token
            if not request.page_token:
                break  # a break from now on is not one of the export


def _cells(code: CouponCode) -> tuple[object, ...]:
    values = {name: getattr(code, name) for name in EXPORTED}
    values["state"] = CouponCodeState.Name(code.state).removeprefix("COUPON_CODE_STATE_")
    return tuple(values.values())


@contextmanager
def _destination(file: Path | None) -> Generator[TextIO]:
    """Where to write: a file that takes its name when all of it is there."""
    if file is None:
        yield sys.stdout
        return
    complete = not file.exists() or file.is_file()  # a pipe or a device cannot be replaced
    path = file.with_name(f"{file.name}.partial") if complete else file
    try:
        with path.open("w", encoding="utf-8", newline="") as out:
            yield out
        if complete:
            path.replace(file)
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {error.strerror}.") from error
    finally:
        if complete:
            path.unlink(missing_ok=True)


def announced(request_id: str | None, command: str) -> str:
    """The request_id of a run, which is told at its start."""
    named = request_id or f"{command}-{uuid.uuid4().hex}"
    typer.echo(f"After a break, go on with --request-id {named}", err=True)
    return named


def progress_bar(title: str, total: float | None) -> Progress:
    """A bar on standard error with one task; silent where nobody is looking."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    bar.add_task(title, total=total)
    return bar
