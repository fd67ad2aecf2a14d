"""`coupon-service migrate`: the schema of the database of COUPON_DATABASE_URL."""

# Imports of the migrations are slow, so only commands that use them pay for them.
# ruff: noqa: PLC0415

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Annotated

import typer

from coupon_service.cli.failure import CommandError
from coupon_service.errors import CouponServiceError
from coupon_service.settings import Purpose, Settings, load_settings


def up() -> None:
    """Bring the schema up to date."""
    for step in apply_steps(load_settings(purpose=Purpose.MIGRATE)):
        typer.echo(f"applied {step}")
    typer.echo("The schema is up to date.")


def down(
    to: Annotated[
        str | None,
        typer.Option(
            metavar="STEP",
            help="Keep this step and those before it. Default: roll back all.",
            show_default=False,
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
) -> None:
    """Roll steps of the schema back, and delete the data in their tables.

    Without --to it rolls back all steps and deletes all data. Asks for confirmation.
    """
    from coupon_service.store import migrations

    with database_of(load_settings(purpose=Purpose.MIGRATE)) as (url, pooled):
        applied = [step for step, is_applied in migrations.status(url, pooled=pooled) if is_applied]
        if to is not None and to not in applied:
            raise CommandError(
                f"{to} is not an applied step. Applied: {', '.join(applied) or 'none'}."
            )
        steps = applied[applied.index(to) + 1 :] if to else applied
        if not steps:
            typer.echo("There is nothing to roll back.")
            return
        if not yes:
            typer.confirm(
                f"Roll back {', '.join(reversed(steps))}, and delete all data in their tables?",
                abort=True,
            )
        for step in migrations.rollback(url, count=len(steps), pooled=pooled):
            typer.echo(f"rolled back {step}")


def status() -> None:
    """List the steps of the schema, applied and missing ones.

    Exit code 1 when the schema is not up to date.
    """
    from coupon_service.store import migrations

    with database_of(load_settings(purpose=Purpose.MIGRATE)) as (url, pooled):
        steps = migrations.status(url, pooled=pooled)
    for step, is_applied in steps:
        typer.echo(f"{'applied' if is_applied else 'missing'} {step}")
    if not all(is_applied for _, is_applied in steps):
        raise typer.Exit(1)


def grants(
    role: Annotated[str, typer.Argument(metavar="ROLE", help="The role of the service.")],
    apply: Annotated[bool, typer.Option("--apply", help="Execute them as well.")] = False,
) -> None:
    """Print the GRANT statements that the role of the service needs, and no more.

    With COUPON_SESSION_PARAMETERS=role also the parameters of its sessions.
    """
    from coupon_service import wiring
    from coupon_service.store.privileges import grant

    settings = load_settings(purpose=Purpose.MIGRATE)
    with database_of(settings) as (url, _):
        parameters = wiring.database_settings(url, settings).role_parameters
        for statement in grant(url, role, parameters, execute=apply):
            typer.echo(f"{statement};")


def apply_steps(settings: Settings) -> list[str]:
    """Bring the schema up to date; returns the applied steps. Raises CommandError."""
    from coupon_service.store import migrations

    with database_of(settings) as (url, pooled):
        return migrations.apply(url, pooled=pooled)


@contextmanager
def database_of(settings: Settings) -> Generator[tuple[str, bool]]:
    """The URL of the database, and whether a pooler in transaction mode is between. Turns errors of
    the database into CommandError."""
    if settings.database_url is None:
        raise CommandError("COUPON_DATABASE_URL has to be set.")
    try:
        yield settings.database_url.get_secret_value(), settings.session_parameters != "startup"
    except CouponServiceError as error:
        raise CommandError(f"The database cannot be used: {error}") from error
