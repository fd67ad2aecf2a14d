"""`coupon-service audit export` and `follow`, and `redemptions export`: the ledger in files.

A file of tokens says how far each has come, so that it goes on there: after a break, after it was
stopped, and when it is called again later.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final, TextIO

import typer
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from pydantic import TypeAdapter

from coupon_service.cli.client import (
    BlockingService,
    lasting,
)
from coupon_service.cli.connection import Connection, takes_connection
from coupon_service.cli.exported_rows import (
    CsvWriter,
    Format,
    JsonWriter,
    ParquetWriter,
    RowWriter,
)
from coupon_service.cli.failure import CommandError
from coupon_service.cli.fields import time_option
from coupon_service.cli.progress import progress
from coupon_service.v1.audit_service_pb2 import (
    AuditEvent,
    WatchAuditEventsRequest,
    WatchAuditEventsResponse,
)
from coupon_service.v1.audit_service_pb2_grpc import AuditServiceStub
from coupon_service.v1.redemption_service_pb2 import ListRedemptionsRequest, Redemption
from coupon_service.v1.redemption_service_pb2_grpc import RedemptionServiceStub

File = Annotated[
    Path,
    typer.Argument(metavar="FILE", help="Where to. Beside it FILE.token says how far it is."),
]
Since = Annotated[
    datetime | None,
    typer.Option(
        metavar="TIME",
        parser=time_option,
        help="From this time on: 2026-01-31, which is in UTC, or 2026-01-31T08:00:00+0100.",
        show_default=False,
    ),
]
Until = Annotated[
    datetime | None,
    typer.Option(
        metavar="TIME",
        parser=time_option,
        help="Before this time.",
        show_default=False,
    ),
]
As = Annotated[Format, typer.Option("--format", help="How it is written.", case_sensitive=False)]
OfBook = Annotated[str, typer.Option("--book", help="Only of this book_id.", show_default=False)]
OfBusiness = Annotated[
    str, typer.Option("--business", help="Only of this business_id.", show_default=False)
]

PAGE_SIZE: Final = 1_000


@dataclass(slots=True)
class Progress:
    """How far an export is: the token, and how many rows and bytes of the file are before it.

    `of`: what it is of, which is the same when it goes on.
    """

    of: dict[str, str]
    token: str = ""
    rows: int = 0
    size: int = 0
    done: bool = False


class ProgressFile:
    """The file that has the progress. It is replaced as a whole."""

    def __init__(self, path: Path, of: dict[str, str]) -> None:
        """Raises CommandError when it is that of another export."""
        self._path = path
        self.progress = Progress(of)
        if path.exists():
            try:
                self.progress = TypeAdapter(Progress).validate_json(path.read_bytes())
            except (OSError, ValueError) as error:
                raise CommandError(f"{path} is not what an export has left.") from error
            if self.progress.of != of:
                raise CommandError(
                    f"{path} is of another export: {self.progress.of}. Delete it to begin anew,"
                    " or name another FILE."
                )

    def keep(self, token: str, rows: int, size: int, *, done: bool = False) -> None:
        """Replaces the progress. Raises CommandError."""
        self.progress = Progress(self.progress.of, token, rows, size, done)
        partial = self._path.with_name(f"{self._path.name}.partial")
        try:
            partial.write_text(json.dumps(asdict(self.progress)), "utf-8")
            partial.replace(self._path)
        except OSError as error:
            raise _not_written(self._path, error) from error


@takes_connection
def export(
    file: File,
    *,
    since: Since = None,
    until: Until = None,
    as_: As = Format.JSONL,
    book: OfBook = "",
    business: OfBusiness = "",
    connection: Connection,
) -> None:
    """Write the events of the ledger to a file, oldest first.

    Called again it goes on where it was: after it was cut off, or, without --until, with the events
    of since then.
    """
    of = _of("events", since, until, as_, book, business)
    request = WatchAuditEventsRequest(book_id=book, business_id=business, stop_at_end=True)
    if since is not None:
        request.start_time.FromDatetime(since)
    with connection.open() as service:
        _export(file, of, as_, AuditEvent.DESCRIPTOR, _events(service, request, until), until)


@takes_connection
def export_redemptions(
    file: File,
    *,
    since: Since = None,
    until: Until = None,
    as_: As = Format.JSONL,
    book: OfBook = "",
    business: OfBusiness = "",
    connection: Connection,
) -> None:
    """Write redemptions to a file as they are now, newest first, with what was rolled back.

    Called again after it was cut off it goes on where it was.
    """
    of = _of("redemptions", since, until, as_, book, business)
    request = ListRedemptionsRequest(book_id=book, business_id=business, page_size=PAGE_SIZE)
    if since is not None:
        request.start_time.FromDatetime(since)
    if until is not None:
        request.end_time.FromDatetime(until)
    with connection.open() as service:
        _export(file, of, as_, Redemption.DESCRIPTOR, _redemptions(service, request), until)


@takes_connection
def follow(
    *,
    since: Since = None,
    from_now: Annotated[bool, typer.Option("--from-now", help="Only events from now on.")] = False,
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Says how far it is, after each message: it goes on there.",
            show_default=False,
        ),
    ] = None,
    book: OfBook = "",
    business: OfBusiness = "",
    connection: Connection,
) -> None:
    """Print the events of the ledger, oldest first, and new ones as they are recorded."""
    if since is not None and from_now:
        raise CommandError("Give either --since or --from-now.")
    request = WatchAuditEventsRequest(book_id=book, business_id=business)
    if since is not None:
        request.start_time.FromDatetime(since)
    elif from_now:
        request.from_now = True
    of = _of("followed", since, None, Format.JSONL, book, business)
    kept = ProgressFile(token_file, of) if token_file is not None else None
    rows = kept.progress.rows if kept is not None else 0
    request.resume_token = kept.progress.token if kept is not None else ""
    writer = JsonWriter(sys.stdout)
    with connection.open() as service:
        for message in _watched(service, request):
            try:
                writer.write(message.events)
            except BrokenPipeError:  # of a reader that has enough, such as head
                raise
            except OSError as error:
                raise _not_written("Standard output", error) from error
            rows += len(message.events)
            if kept is not None:
                kept.keep(message.resume_token, rows, 0)
            if message.HasField("stall"):
                typer.echo(f"held up by {'; '.join(message.stall.holders)}", err=True)


def _of(
    what: str,
    since: datetime | None,
    until: datetime | None,
    as_: Format,
    book: str,
    business: str,
) -> dict[str, str]:
    return {
        "what": what,
        "since": since.isoformat() if since is not None else "",
        "until": until.isoformat() if until is not None else "",
        "format": as_.value,
        "book": book,
        "business": business,
    }


# --- what is exported -----------------------------------------------------------------------------

Pages = Callable[[str], Iterable[tuple[Sequence[Message], str]]]
"""From a token on: rows, and the token after them; empty after the last."""


def _watched(
    service: BlockingService, request: WatchAuditEventsRequest
) -> Generator[WatchAuditEventsResponse]:
    stub = AuditServiceStub(service.channel)

    def go_on() -> Iterable[WatchAuditEventsResponse]:
        return stub.WatchAuditEvents(request, metadata=service.metadata)

    for message in lasting(go_on):
        yield message
        request.resume_token = message.resume_token


def _events(
    service: BlockingService, request: WatchAuditEventsRequest, until: datetime | None
) -> Pages:
    end = None if until is None else until.timestamp()

    def pages(token: str) -> Generator[tuple[Sequence[Message], str]]:
        request.resume_token = token
        for message in _watched(service, request):
            events = [it for it in message.events if end is None or _seconds(it) < end]
            yield events, message.resume_token

    return pages


def _seconds(event: AuditEvent) -> float:
    return event.event_time.ToMicroseconds() / 1_000_000


def _redemptions(service: BlockingService, request: ListRedemptionsRequest) -> Pages:
    stub = RedemptionServiceStub(service.channel)

    def pages(token: str) -> Generator[tuple[Sequence[Message], str]]:
        request.page_token = token

        def go_on() -> Generator[Any]:
            while True:
                page = stub.ListRedemptions(request, metadata=service.metadata, timeout=30)
                yield page
                if not page.next_page_token:
                    return
                request.page_token = page.next_page_token

        for page in lasting(go_on):
            yield page.redemptions, page.next_page_token

    return pages


# --- where to -------------------------------------------------------------------------------------


def _export(
    file: Path, of: dict[str, str], as_: Format, descriptor: Descriptor, pages: Pages, until: Any
) -> None:
    kept = ProgressFile(file.with_name(f"{file.name}.token"), of)
    if kept.progress.size > (file.stat().st_size if file.exists() else 0):
        raise CommandError(
            f"{file} has lost rows that were exported: put it back, or delete {file}.token to begin"
            " anew."
        )
    if kept.progress.done and (until is not None or of["what"] == "redemptions"):
        typer.echo(f"{file} is complete: {kept.progress.rows:,} rows.", err=True)
        return
    rows, token = kept.progress.rows, kept.progress.token
    try:
        with _writer(file, as_, descriptor, kept.progress) as (writer, size):
            with progress("Exporting", "rows") as update:
                for messages, after in pages(token):
                    writer.write(messages)
                    rows += len(messages)
                    token = after
                    if as_ is not Format.PARQUET:  # which cannot be gone on with
                        kept.keep(token, rows, size())
                    update(rows, 0)
            writer.close()
            kept.keep(token, rows, size(), done=True)
    except OSError as error:
        raise _not_written(file, error) from error
    typer.echo(f"{rows:,} rows exported.", err=True)


def _not_written(file: Path | str, error: OSError) -> CommandError:
    return CommandError(
        f"{file} cannot be written: {error.strerror or error}. When it can, run this again: it goes"
        " on where it was."
    )


@contextmanager
def _writer(
    file: Path, as_: Format, descriptor: Descriptor, before: Progress
) -> Generator[tuple[RowWriter, Callable[[], int]]]:
    """What writes to the file, after what is in it up to the token, and how long it is by now."""
    if as_ is Format.PARQUET:
        if before.token:
            raise CommandError(
                f"{file} has been exported, and rows cannot be added to Parquet: name another FILE"
                " with its own --since, or export as jsonl or csv."
            )
        yield ParquetWriter(file, descriptor), lambda: file.stat().st_size
        return
    with file.open("a+", encoding="utf-8", newline="") as out:
        out.truncate(before.size)  # what came after the token was kept comes again
        out.seek(0, os.SEEK_END)
        yield _text_writer(out, as_, descriptor, is_new=not before.size), out.tell


def _text_writer(out: TextIO, as_: Format, descriptor: Descriptor, *, is_new: bool) -> RowWriter:
    return CsvWriter(out, descriptor, header=is_new) if as_ is Format.CSV else JsonWriter(out)
