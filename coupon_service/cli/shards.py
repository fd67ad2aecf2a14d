"""`coupon-service shards`: the shards of COUPON_SHARDS."""

# Imports of the migrations are slow, so only commands that use them pay for them.
# ruff: noqa: PLC0415

from __future__ import annotations

import signal
from contextlib import closing
from typing import Annotated

import typer

from coupon_service.cli.failure import CommandError
from coupon_service.cli.migrate import database_of
from coupon_service.settings import Purpose, load_settings

MOVED = "ok, moved: update COUPON_SHARD_URLS"

COLUMNS: tuple[str, ...] = ("SHARD", "SERVER", "SCHEMA", "VERSION", "BOOKS", "STATE")


def status() -> None:
    """List the shards: where each is, the last step of its schema, its books, and whether it can be
    used.

    Exit code 1 when one of them cannot.
    """
    from coupon_service import wiring
    from coupon_service.store import shards

    settings = load_settings(purpose=Purpose.MIGRATE)
    with database_of(settings):
        found = shards.look(wiring.shard_places(settings))
    rows = [COLUMNS]
    for number, it in enumerate(found):
        state = it.problem or (MOVED if it.has_moved else "ok")
        rows.append((str(number), it.server, it.schema, it.step, f"{it.books:,}", state))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (f"{cell:{width}}" for cell, width in zip(row, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())
    if any(it.problem for it in found):
        raise typer.Exit(1)


def move(
    shard: Annotated[int, typer.Argument(metavar="SHARD", min=0, help="Its number, from 0.")],
    to: Annotated[
        str,
        typer.Option(
            metavar="URL",
            help="The database to move it to. Without a user, as the one of the shard's URL.",
        ),
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done.")
    ] = False,
    undo: Annotated[
        bool, typer.Option("--undo", help="Undo what a move that was cut off has left behind.")
    ] = False,
    pause_max_ms: Annotated[
        int,
        typer.Option(metavar="MS", min=100, max=2_000, help="Longest pause of the shard's writes."),
    ] = 2_000,
) -> None:
    """Move a shard to another PostgreSQL server or database while it serves.

    Its rows are copied and kept up to date by logical replication, and compared. Then its writes
    pause for a moment, and go on at the new place. A move that fails or is interrupted is undone.
    One that was killed is undone, or brought to its end, by the same command.
    """
    from coupon_service import wiring
    from coupon_service.store.moving.move import Move
    from coupon_service.store.moving.sides import CannotMoveError

    settings = load_settings(purpose=Purpose.MIGRATE)
    if shard >= settings.shards:
        raise CommandError(f"There is no shard {shard}: COUPON_SHARDS is {settings.shards}.")
    if settings.shards == 1:
        raise CommandError("Without COUPON_SHARDS there is no shard to move.")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # undone as by Ctrl-C
    with database_of(settings) as (_, pooled):
        if pooled:
            raise CommandError(
                "A shard is not moved through a pooler in transaction mode: set the URLs of the"
                " servers themselves, and COUPON_SESSION_PARAMETERS=startup, for this command."
            )
        places = wiring.shard_places(settings)
        url, place = places[shard]
        try:
            moving = Move(url, place, to, [it for it, _ in places], pause_max_ms)
            steps = moving.plan() if dry_run else moving.undo() if undo else moving.run()
            with closing(steps):  # undone as well when nobody reads what it says
                for progress in steps:
                    typer.echo(progress)
        except CannotMoveError as error:
            raise CommandError(f"coupon_{shard:02}: {error}") from error
