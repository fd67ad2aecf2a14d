"""`coupon-service codes`: many codes are disabled, enabled, deleted or revoked."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Annotated, Final

import grpc
import typer

from coupon_service.cli.client import (
    BlockingService,
    Patience,
    is_outcome_unknown,
    lasting,
)
from coupon_service.cli.code_file import CodeFile
from coupon_service.cli.codes import Book, RequestId, StoredState, find_book
from coupon_service.cli.connection import Connection, takes_connection
from coupon_service.cli.failure import CommandError
from coupon_service.cli.fields import time_option
from coupon_service.cli.progress import Update, progress
from coupon_service.cli.text_files import open_text
from coupon_service.cli.upload import CSV_SUFFIXES, REJECTED
from coupon_service.v1.coupon_code_service_pb2 import (
    ChangeCodesRequest,
    ChangeCodesResponse,
    CodeChange,
    CodeFilter,
    CouponCodeState,
)
from coupon_service.v1.coupon_code_service_pb2_grpc import CouponCodeServiceStub
from coupon_service.v1.error_reason_pb2 import ErrorReason

CODES_MAX: Final = 1_000
"""Codes of a file that are sent in one call."""

SHOWN_MAX: Final = 20
"""Refused codes that are shown."""


class Change(StrEnum):
    """What is done to codes."""

    DISABLE = "disable"
    ENABLE = "enable"
    DELETE = "delete"
    REVOKE = "revoke"


DONE: Final = {
    Change.DISABLE: "codes disabled",
    Change.ENABLE: "codes enabled",
    Change.DELETE: "codes deleted",
    Change.REVOKE: "assignments revoked",
}


@takes_connection
def codes(
    change: Annotated[
        Change,
        typer.Argument(
            metavar="CHANGE",
            help="disable, enable, delete (codes that were never assigned, locked or redeemed), or"
            " revoke (all active assignments of the codes).",
            case_sensitive=False,
        ),
    ],
    book: Book,
    *,
    file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The codes of this file: text with one per line, or CSV, plain or gzipped. - is"
            " standard input.",
            show_default=False,
        ),
    ] = None,
    state: Annotated[
        StoredState | None,
        typer.Option(help="Codes in this state.", case_sensitive=False, show_default=False),
    ] = None,
    upload: Annotated[
        str | None,
        typer.Option(
            metavar="REQUEST_ID",
            help="Codes that the import or generation with this request id has made.",
            show_default=False,
        ),
    ] = None,
    upload_caller: Annotated[
        str | None,
        typer.Option(
            metavar="CALLER",
            help="Who made that upload, where several callers have one with this request id.",
            show_default=False,
        ),
    ] = None,
    assigned_before: Annotated[
        datetime | None,
        typer.Option(
            metavar="TIME",
            parser=time_option,
            help="Codes with an active assignment from before this time, in UTC unless it has an"
            " offset.",
            show_default=False,
        ),
    ] = None,
    prefix: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Codes that begin with this.", show_default=False),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count what would be done, and change nothing.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask for confirmation before a deletion.")
    ] = False,
    request_id: RequestId = None,
    connection: Connection,
) -> None:
    """Disable, enable, delete or revoke many codes of a book.

    Those of a file, or all that match what is given of state, upload, assigned before and prefix.
    Codes that cannot be changed are named with the reason, and the others are changed; the exit
    code is then 3. To resume a stopped run, run the same command with the --request-id that it
    printed: nothing is done twice. A deletion asks for confirmation.
    """
    wanted = CodeFilter(
        upload_request_id=upload or "", upload_caller=upload_caller or "", prefix=prefix or ""
    )
    if state is not None:
        wanted.state = CouponCodeState.Value(f"COUPON_CODE_STATE_{state.name}")
    if assigned_before is not None:
        wanted.assigned_before.FromDatetime(assigned_before)
    filtered = bool(wanted.ByteSize())
    if filtered is (file is not None):
        raise CommandError(
            "Say which codes: either --file, or at least one of --state, --upload,"
            " --assigned-before and --prefix."
        )
    request = ChangeCodesRequest(
        book_id=book,
        change=CodeChange.Value(f"CODE_CHANGE_{change.name}"),
        request_id=request_id or f"{change}-{uuid.uuid4().hex}",
    )
    if filtered:
        request.filter.CopyFrom(wanted)
        requests: Sequence[ChangeCodesRequest] = [request]
    else:
        requests = list(_of_file(request, file or Path("-")))
    with connection.open() as service:
        find_book(service, book)
        run = _Run(service, change, request.request_id, requests)
        if dry_run or (change is Change.DELETE and not yes):
            run.carry_out(dry=True)
        if dry_run:
            typer.echo(f"Dry run, nothing was changed: {run.summary}")
        else:
            if change is Change.DELETE and not yes:
                typer.confirm(f"{run.changed:,} codes would be deleted. Delete them?", abort=True)
                run = _Run(service, change, request.request_id, requests)
            run.carry_out(dry=False)
            typer.echo(run.summary)
    run.show_refused()
    if run.refused:
        raise typer.Exit(REJECTED)


class _Run:
    """Calls for the codes, and what came of them."""

    def __init__(
        self,
        service: BlockingService,
        change: Change,
        name: str,
        requests: Sequence[ChangeCodesRequest],
    ) -> None:
        self._service = service
        self._change = change
        self._again = f"the same command and --request-id {name}"
        self._requests = requests
        self._examined_before = 0
        self.changed = self.refused = 0
        self._shown: list[str] = []

    @property
    def summary(self) -> str:
        """How many were changed and refused."""
        done = f"{self.changed:,} {DONE[self._change]}"
        return f"{done}, {self.refused:,} codes refused." if self.refused else f"{done}."

    def carry_out(self, *, dry: bool) -> None:
        """Make the calls. When it stops early, says how to resume."""
        listed = sum(len(it.list.codes) for it in self._requests)
        title = "Dry run" if dry else "Changing"
        begun = False
        try:
            with progress(title, "codes", listed or None) as update:
                for request in self._requests:
                    request.validate_only = dry
                    for answer in self._answers(request, update):
                        if not (begun or dry or (answer.done and len(self._requests) == 1)):
                            typer.echo(f"After a break, resume with {self._again}", err=True)
                        begun = True
        except (KeyboardInterrupt, grpc.RpcError) as error:
            if not dry and (begun or is_outcome_unknown(error)):
                typer.echo(f"{self.summary} Resume with {self._again}", err=True)
            raise

    def _answers(
        self, request: ChangeCodesRequest, update: Update
    ) -> Iterator[ChangeCodesResponse]:
        """The answers of one call, each chunk once however often the stream breaks."""
        stub = CouponCodeServiceStub(self._service.channel)

        def go_on() -> Iterable[ChangeCodesResponse]:
            return stub.ChangeCodes(request, metadata=self._service.metadata)

        patience = Patience()
        patience.answered()
        seen = examined = 0
        for answer in lasting(go_on, patience):
            examined = max(examined, answer.total_examined_count)
            update(self._examined_before + examined, 0)
            if answer.chunk_number > seen:
                seen = answer.chunk_number
                self.changed += answer.changed_count
                self.refused += len(answer.refused)
                for it in answer.refused[: SHOWN_MAX - len(self._shown)]:
                    reason = ErrorReason.Name(it.error.reason).removeprefix("ERROR_REASON_")
                    self._shown.append(f"{it.code}: {reason}: {it.error.message}")
            yield answer
        self._examined_before += examined

    def show_refused(self) -> None:
        """Show some of the codes that were refused."""
        for line in self._shown:
            typer.echo(line, err=True)
        if self.refused > len(self._shown):
            typer.echo(f"and {self.refused - len(self._shown):,} others", err=True)


def _of_file(request: ChangeCodesRequest, file: Path) -> Iterator[ChangeCodesRequest]:
    """A call for each thousand codes of the file, with a request id of its own."""
    with open_text(file, None) as source:
        is_csv = any(suffix.lower() in CSV_SUFFIXES for suffix in file.suffixes)
        rows = iter(CodeFile(source, column=None, header=None, is_csv=is_csv))
        number = 0
        while part := [row.text for row in islice(rows, CODES_MAX) if row.text.strip()]:
            number += 1
            call = ChangeCodesRequest()
            call.CopyFrom(request)
            call.request_id = f"{request.request_id}.{number}"
            call.list.codes.extend(part)
            yield call
