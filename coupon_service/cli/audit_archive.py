"""`coupon-service audit archive`, `restore`, `verify-archive`: closed books leave the ledger."""

# Imports of the archives are slow, so only commands that use them pay for them.
# ruff: noqa: PLC0415

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import typer

from coupon_service.cli.audit_proofs import kept_checkpoints
from coupon_service.cli.failure import CommandError
from coupon_service.cli.fields import time_option
from coupon_service.cli.migrate import database_of
from coupon_service.cli.progress import Update, progress
from coupon_service.model.scopes import shard_of_book
from coupon_service.settings import Purpose, Settings, load_settings

Folder = Annotated[
    Path,
    typer.Argument(
        metavar="FOLDER",
        exists=True,
        file_okay=False,
        writable=True,
        help="Where the files go. Keep them: they are the only copy of what they have.",
    ),
]
File = Annotated[
    Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="The archive.")
]
ClosedBefore = Annotated[
    datetime | None,
    typer.Option(
        metavar="TIME",
        parser=time_option,
        help="Books that were closed before then: 2026-06-30, or 2026-06-30T12:00:00Z.",
        show_default=False,
    ),
]
OlderThan = Annotated[
    int | None,
    typer.Option(
        "--older-than-days",
        metavar="DAYS",
        min=0,
        max=36_500,
        help="Books that have been closed for longer than that.",
        show_default=False,
    ),
]
Books = Annotated[
    list[UUID] | None,
    typer.Option("--book", metavar="BOOK_ID", help="Only this book. Can be given several times."),
]


def archive(
    folder: Folder,
    closed_before: ClosedBefore = None,
    older_than_days: OlderThan = None,
    book: Books = None,
    shard: Annotated[
        str,
        typer.Option(
            metavar="SHARD",
            help="Only books of this shard, such as coupon_01. Default: of all shards.",
            show_default=False,
        ),
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be archived, and change nothing.")
    ] = False,
) -> None:
    """Archive the ledger of closed books: a file for each, verified before anything is deleted.

    As the owner of the tables, while the service goes on. Events about codes of the book go, once
    all of them are sealed; those about the book as a whole stay. What is asked of an archived
    redemption is answered ARCHIVED, with the name of the file.

    It can be called again after it was cut off, with the same folder. Of several shards it does one
    after the other, and those that it can when another cannot be reached.
    """
    before = _time(closed_before, older_than_days)
    settings = load_settings(purpose=Purpose.MIGRATE)
    failed: list[str] = []
    found: set[UUID] = set()
    for name, url in _databases(settings, shard, book):
        try:
            with database_of(settings), refusals(folder):
                found |= _archive(url, name, folder, before, book, dry_run=dry_run)
        except CommandError as error:
            if not name:
                raise
            failed.append(f"{name}: {error}")
    if failed:
        raise CommandError("\n".join(failed))
    for book_id in set(book or ()) - found:
        typer.echo(f"Book {book_id} has nothing to archive, or is not closed for that long.")
    if not found and not book:
        typer.echo("Nothing to archive.")


def _databases(settings: Settings, shard: str, books: list[UUID] | None) -> list[tuple[str, str]]:
    """The shards, or that of this name, or those of these books: the name of each, and a URL that
    leads to its tables."""
    places = _places(settings)
    numbers = (
        range(len(places))
        if books is None
        else sorted({shard_of_book(str(it), len(places)) for it in books})
    )
    found = [places[it] for it in numbers if shard in ("", places[it][0])]
    if not found:
        raise CommandError(f"There is no shard {shard}, or it has no such book.")
    return found


def _places(settings: Settings) -> list[tuple[str, str]]:
    """The name of each shard, and a URL that leads to its tables."""
    from coupon_service import wiring
    from coupon_service.store import shards
    from coupon_service.store.sessions import shard_url

    with database_of(settings) as (_, pooled):
        if pooled and settings.shards > 1:
            raise CommandError(
                "Through a pooler a session cannot keep to the schema of a shard: name PostgreSQL"
                " itself, and set COUPON_SESSION_PARAMETERS=startup."
            )
        found = shards.located(wiring.shard_places(settings))
        return [(it.schema, shard_url(url, it)) for url, it in found]


def _archive(
    url: str,
    name: str,
    folder: Path,
    before: datetime,
    books: list[UUID] | None,
    *,
    dry_run: bool,
) -> set[UUID]:
    """Returns the books that have events to archive, or were archived."""
    from coupon_service.store.archiving import archive as archiving

    where = f"{name}: " if name else ""
    found: set[UUID] = set()
    for planned in archiving.plan(url, before, books):
        found.add(planned.book.book_id)
        closed = planned.book
        named = f"{where}{closed.business_id}/{closed.name} ({closed.book_id})"
        if planned.why_not:
            typer.echo(f"{named} cannot be archived: {planned.why_not}.")
        elif dry_run:
            typer.echo(f"{named} would be archived: {closed.events:,} events.")
    if dry_run:
        return found
    with reports() as report:
        for done in archiving.archive(url, folder, before, books, report):
            found.add(done.book_id)
            typer.echo(f"{folder / done.file_name}: {done.row_count:,} events, archived.")
    return found


def restore(file: File) -> None:
    """Put the events of an archive back into the ledger, with their numbers.

    As the owner of the tables, while the service goes on. Values of users who were erased since do
    not come back. It can be called again after it was cut off. With several shards they go to that
    of their book.
    """
    from coupon_service.audit.archive_files import read_header
    from coupon_service.store.archiving.restore import restore as put_back

    settings = load_settings(purpose=Purpose.MIGRATE)
    places = _places(settings)
    with database_of(settings), refusals(file), reports() as report, file.open("rb") as opened:
        _, url = places[shard_of_book(str(read_header(opened).book_id), len(places))]
        done = put_back(url, opened, report)
    typer.echo(f"{file}: {done.row_count:,} events, restored.")


def verify_archive(
    file: File,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="A checkpoint that was kept, of which the archive has the seal; or those of all"
            " shards.",
            show_default=False,
        ),
    ] = None,
    public_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY", help="What verifies the checkpoint's signature.", show_default=False
        ),
    ] = None,
    event: Annotated[
        UUID | None,
        typer.Option(metavar="EVENT_ID", help="Prove this event, and show it.", show_default=False),
    ] = None,
) -> None:
    """Verify an archive, without the database. Exit code 1 when it is not what was sealed."""
    from coupon_service.audit import archive_proofs
    from coupon_service.audit.checkpoints import NotVerifiedError
    from coupon_service.audit.records import MalformedError

    if public_key is not None and checkpoint is None:
        raise CommandError("--public-key is of the checkpoint: name that with --checkpoint.")
    checkpoints = [] if checkpoint is None else kept_checkpoints(checkpoint, public_key)
    try:
        with file.open("rb") as opened, reports() as report:
            found = archive_proofs.verify_archive(
                opened, lambda done: report("verified", done, done)
            )
            if checkpoints:
                log_id = found.header.log_id
                kept = next((it for it in checkpoints if it.log_id == log_id), checkpoints[0])
                archive_proofs.verify_against(found, opened, kept)
            proved = None if event is None else archive_proofs.proved_event(found, opened, event)
    except (NotVerifiedError, MalformedError, OSError) as error:
        raise CommandError(f"{file}: {error}") from error
    header, trailer = found.header, found.trailer
    typer.echo(f"book {header.business_id}/{header.name} ({header.book_id})")
    typer.echo(f"archived {header.archive_time:%Y-%m-%d %H:%M:%S} UTC, as number {header.number}")
    typer.echo(
        f"{trailer.row_count:,} events, numbers {trailer.first_sequence} to {trailer.last_sequence}"
    )
    typer.echo(
        f"{trailer.balance.redemptions:,} redemptions, {trailer.balance.rollbacks:,} rolled back,"
        f" discount {trailer.balance.discount_minor:,}"
    )
    typer.echo(f"SHA-256 {found.digest.hex()}")
    typer.echo(f"chain {trailer.chain.hex()} after seal {trailer.last_seal}")
    for name, value in (proved or {}).items():
        typer.echo(f"  {name} {value}")
    if event is not None and proved is None:
        raise CommandError(f"{file} has no event {event}.")
    against = "" if checkpoint is None else " and its chain is that of the checkpoint"
    typer.echo(f"It is what was sealed{against}.")


def _time(closed_before: datetime | None, older_than_days: int | None) -> datetime:
    if (closed_before is None) is (older_than_days is None):
        raise CommandError("Give either --closed-before or --older-than-days.")
    if closed_before is not None:
        return closed_before
    return datetime.now(UTC) - timedelta(days=older_than_days or 0)


@contextmanager
def refusals(place: Path) -> Generator[None]:
    """Turns what is in the way of archives in this place into CommandError."""
    from coupon_service.audit.archive_files import ArchiveError
    from coupon_service.store.archiving.records import CannotArchiveError

    try:
        yield
    except (ArchiveError, CannotArchiveError) as error:
        raise CommandError(str(error)) from error
    except OSError as error:
        raise CommandError(
            f"{error.filename or place} cannot be used: {error.strerror or error}. When it can, run"
            " this again: it goes on where it was."
        ) from error


@contextmanager
def reports() -> Generator[Callable[[str, int, int], None]]:
    """A function that reports each step of an archive: what, how many events, and of how many."""
    with ExitStack() as bars:
        current: list[Any] = []

        def report(what: str, done: int, count: int) -> None:
            if current[:1] != [what]:
                bars.close()
                total = count if count > done else None
                update: Update = bars.enter_context(progress(what, "events", total))
                current[:] = [what, update]
            current[1](done, 0)

        yield report
