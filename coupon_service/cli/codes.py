"""`coupon-service generate`, `import` and `export`: the codes of a book by the million.

Each goes on where it was when the connection breaks, for as long as there is hope.
"""

from __future__ import annotations

import csv
import sys
import uuid
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final, TextIO

import grpc
import typer

from coupon_service.cli.client import (
    BlockingService,
    Patience,
    explain,
    is_outcome_unknown,
    lasting,
)
from coupon_service.cli.connection import Connection, takes_connection
from coupon_service.cli.details import DETAILS, detail_cells
from coupon_service.cli.failure import CommandError
from coupon_service.cli.progress import progress
from coupon_service.v1.coupon_book_service_pb2 import (
    CouponBookStats,
    GetCouponBookStatsRequest,
)
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
        help="Request id that a stopped run printed: resumes that run.",
        show_default=False,
    ),
]

LISTED: Final = "coupon-service call ListCouponBooks lists the books."
FIND_TIMEOUT_S: Final = 10.0

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


@takes_connection
def generate(
    book: Book,
    count: Annotated[int, typer.Argument(min=1, metavar="COUNT", help="How many codes.")],
    request_id: RequestId = None,
    *,
    connection: Connection,
) -> None:
    """Make random codes in a book, in the book's code format."""
    request = GenerateCodesRequest(
        book_id=book, count=count, request_id=request_id or f"generate-{uuid.uuid4().hex}"
    )
    again = f"the same command and --request-id {request.request_id}"
    with connection.open() as service:
        stub = CouponCodeServiceStub(service.channel)

        def go_on() -> Iterable[GenerateCodesResponse]:
            return stub.GenerateCodes(request, metadata=service.metadata)

        find_book(service, book)
        patience = Patience()
        patience.answered()
        generated = 0
        try:
            with progress("Generating", "codes", count) as update:
                for answer in lasting(go_on, patience):
                    if not generated and answer.generated_count < count:
                        typer.echo(f"After a break, resume with {again}", err=True)
                    generated = answer.generated_count
                    update(generated, 0)
        except (KeyboardInterrupt, grpc.RpcError) as error:
            if generated or is_outcome_unknown(error):
                typer.echo(
                    f"{generated:,} of {count:,} codes were generated. Resume with {again}",
                    err=True,
                )
            raise
    typer.echo(f"{generated:,} codes generated.")


@takes_connection
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
        StoredState | None,
        typer.Option(help="Only codes in this state.", case_sensitive=False, show_default=False),
    ] = None,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="CSV with the state and the counts of each code.")
    ] = False,
    details: Annotated[
        bool,
        typer.Option(
            "--details",
            help="CSV with all that is known of each code: what it says for itself, its user, and"
            " its last redemption. import --map all reads it.",
        ),
    ] = False,
    connection: Connection,
) -> None:
    """Write the codes of a book as they are shown, one a line."""
    with (
        connection.open() as service,
        _destination(file) as out,
    ):
        _export(book, state, out, _DETAILED if details else _CSV if as_csv else _PLAIN, service)


@dataclass(frozen=True, slots=True)
class _Form:
    """What is written of each code. `header`: empty = none."""

    header: Sequence[str]
    cells: Callable[[CouponCode], Sequence[object]]
    with_details: bool = False


def _export(
    book: str, state: StoredState | None, out: TextIO, form: _Form, service: BlockingService
) -> None:
    request = ExportCodesRequest(book_id=book, with_details=form.with_details)
    if state is not None:
        request.state = CouponCodeState.Value(f"COUPON_CODE_STATE_{state.name}")
    writer = csv.writer(out, lineterminator="\n")
    if form.header:
        writer.writerow(form.header)
    stub = CouponCodeServiceStub(service.channel)

    def go_on() -> Iterable[ExportCodesResponse]:
        return stub.ExportCodes(request, metadata=service.metadata)

    stats = find_book(service, book)
    counted = f"{state}_count" if state else "code_count"
    exported = 0
    with progress("Exporting", "codes", getattr(stats, counted)) as update:
        for answer in lasting(go_on):
            writer.writerows(map(form.cells, answer.codes))
            exported += len(answer.codes)
            update(exported, 0)
            request.page_token = answer.next_page_token
            if not request.page_token:
                break  # a break from now on is not one of the export


def _cells(code: CouponCode) -> tuple[object, ...]:
    values = {name: getattr(code, name) for name in EXPORTED}
    values["state"] = CouponCodeState.Name(code.state).removeprefix("COUPON_CODE_STATE_")
    return tuple(values.values())


_PLAIN: Final = _Form((), lambda code: (code.display_code,))
_CSV: Final = _Form(EXPORTED, _cells)
_DETAILED: Final = _Form(DETAILS, detail_cells, with_details=True)


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


def find_book(service: BlockingService, book: str) -> CouponBookStats:
    """The counts of the book. Raises CommandError if there is no such book."""
    try:
        return (
            CouponBookServiceStub(service.channel)
            .GetCouponBookStats(
                GetCouponBookStatsRequest(book_id=book),
                timeout=FIND_TIMEOUT_S,
                metadata=service.metadata,
            )
            .stats
        )
    except grpc.RpcError as error:
        if error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND):
            raise CommandError(f"{explain(error)}\n  {LISTED}") from error
        raise
