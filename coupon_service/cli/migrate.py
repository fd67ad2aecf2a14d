"""`coupon-service migrate`: the schema of the database of COUPON_DATABASE_URL."""

# Imports of the migrations are slow, so only commands that use them pay for them.
# ruff: noqa: PLC0415

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Annotated, Final

import typer

from coupon_service.cli.failure import CommandError
from coupon_service.errors import CouponServiceError
from coupon_service.settings import Purpose, Settings, load_settings

SCOPES: Final = "0020.code_scopes"
"""The step that migrate finish completes."""


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
    from coupon_service.store import finishing, migrations

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
        with refusals():
            for progress in finishing.unfinish(url) if SCOPES in steps else ():
                typer.echo(progress)
        for step in migrations.rollback(url, count=len(steps), pooled=pooled):
            typer.echo(f"rolled back {step}")


def finish() -> None:
    """Make codes of new books unique within their business, once no earlier version is connected.

    The service goes on meanwhile. Refused while a service of an earlier version is connected. It
    can be called again after it was cut off.
    """
    from coupon_service.store import finishing

    with database_of(load_settings(purpose=Purpose.MIGRATE)) as (url, _), refusals():
        for progress in finishing.finish(url):
            typer.echo(progress)
    typer.echo("Codes of new books are unique within their business.")


@contextmanager
def refusals() -> Generator[None]:
    """Turns what is in the way of a step into CommandError."""
    from coupon_service.store.finishing import CannotFinishError

    try:
        yield
    except CannotFinishError as error:
        raise CommandError(str(error)) from error


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
