"""`coupon-service migrate`: the schema of the database of COUPON_DATABASE_URL."""

# What this imports takes longer than a call to a service: only who changes a schema waits for it.
# ruff: noqa: PLC0415

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Annotated

import typer

from coupon_service.cli.failure import CommandError
from coupon_service.errors import CouponServiceError
from coupon_service.settings import Settings, load_settings


def up() -> None:
    """Bring the schema up to date."""
    for step in apply_steps(load_settings()):
        typer.echo(f"applied {step}")
    typer.echo("The schema is up to date.")


def down(
    to: Annotated[
        str | None,
        typer.Option(
            metavar="STEP",
            help="Keep this step and those before it. Default: keep none.",
            show_default=False,
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Take steps of the schema back, and delete what is stored in their tables.

    Without --to all of them, which leaves nothing. Asks before it does.
    """
    from coupon_service.store import migrations

    with database_of(load_settings()) as url:
        applied = [step for step, is_applied in migrations.status(url) if is_applied]
        if to is not None and to not in applied:
            raise CommandError(
                f"{to} is not an applied step. Applied: {', '.join(applied) or 'none'}."
            )
        doomed = applied[applied.index(to) + 1 :] if to else applied
        if not doomed:
            typer.echo("There is nothing to take back.")
            return
        if not yes:
            typer.confirm(
                f"Take back {', '.join(reversed(doomed))}, and delete all that their tables hold?",
                abort=True,
            )
        for step in migrations.rollback(url, count=len(doomed)):
            typer.echo(f"took back {step}")


def status() -> None:
    """List the steps of the schema, and whether they have been applied.

    Exit code 1 when the schema is not up to date.
    """
    from coupon_service.store import migrations

    with database_of(load_settings()) as url:
        steps = migrations.status(url)
    for step, is_applied in steps:
        typer.echo(f"{'applied' if is_applied else 'missing'} {step}")
    if not all(is_applied for _, is_applied in steps):
        raise typer.Exit(1)


def apply_steps(settings: Settings) -> list[str]:
    """Bring the schema up to date; returns what was needed. Raises CommandError."""
    from coupon_service.store import migrations

    with database_of(settings) as url:
        return migrations.apply(url)


@contextmanager
def database_of(settings: Settings) -> Generator[str]:
    """The URL of the database. What goes wrong with it leaves as CommandError."""
    if settings.database_url is None:
        raise CommandError("Which database? Set DATABASE_URL.")
    try:
        yield settings.database_url.get_secret_value()
    except CouponServiceError as error:
        cause = str(error.__cause__ or error).strip().splitlines()[-1]
        raise CommandError(f"The database cannot be used: {cause}") from error
