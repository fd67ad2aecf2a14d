"""`coupon-service shards`: the shards of COUPON_SHARDS."""

# Imports of the migrations are slow, so only commands that use them pay for them.
# ruff: noqa: PLC0415

from __future__ import annotations

import typer

from coupon_service.cli.migrate import database_of
from coupon_service.settings import Purpose, load_settings

MOVED = "ok, moved: update COUPON_SHARD_URLS"

COLUMNS = ("SHARD", "SERVER", "SCHEMA", "VERSION", "BOOKS", "STATE")


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
    states = [it.problem or (MOVED if it.has_moved else "ok") for it in found]
    rows = [COLUMNS] + [
        (
            str(number),
            it.server,
            it.schema,
            it.step,
            f"{it.books:,}",
            state,
        )
        for number, (it, state) in enumerate(zip(found, states, strict=True))
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (f"{cell:{width}}" for cell, width in zip(row, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())
    if any(it.problem for it in found):
        raise typer.Exit(1)
