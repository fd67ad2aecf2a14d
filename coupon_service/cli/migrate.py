"""`coupon-service migrate`: the schema of the database of COUPON_DATABASE_URL."""

# Imports of the migrations are slow, so only commands that use them pay for them.
# ruff: noqa: PLC0415

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from coupon_service.cli.failure import CommandError
from coupon_service.errors import CouponServiceError
from coupon_service.settings import Purpose, Settings, load_settings


def up() -> None:
    """Bring the schema up to date.

    With COUPON_SHARDS the schemas of all shards, which it makes, at once. Where it was cut off, or
    a shard could not be reached, it can be called again.
    """
    settings = load_settings(purpose=Purpose.MIGRATE)
    for progress in apply_steps(settings):
        typer.echo(progress)
    are = f"schemas of {settings.shards} shards are" if settings.shards > 1 else "schema is"
    typer.echo(f"The {are} up to date.")


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

    settings = load_settings(purpose=Purpose.MIGRATE)
    if settings.shards > 1:
        _shards_down(settings, to, yes=yes)
        return
    with database_of(settings) as (url, pooled):
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
            for progress in finishing.unfinish(url) if finishing.COMPLETED_STEP in steps else ():
                typer.echo(progress)
        for step in migrations.rollback(url, count=len(steps), pooled=pooled):
            typer.echo(f"rolled back {step}")


def _shards_down(settings: Settings, to: str | None, *, yes: bool) -> None:
    """As `down`, in all shards at once."""
    from coupon_service import wiring
    from coupon_service.store import migrations, shards

    places = wiring.shard_places(settings)
    with database_of(settings) as (_, pooled), refusals():
        places = shards.located(places)
        url, first = places[0]
        steps = shards.steps_after(to, migrations.status(url, pooled=pooled, shard=first))
    if not yes:
        what = ", ".join(reversed(steps)) or "what is left"
        typer.confirm(
            f"Roll back {what} in {len(places)} shards, and delete all data in their tables?",
            abort=True,
        )
    with refusals():
        for progress in shards.down(places, to):
            typer.echo(progress)


def finish() -> None:
    """Make codes of new books unique within their business, once no earlier version is connected.

    The service goes on meanwhile. Refused while a service of an earlier version is connected. It
    can be called again after it was cut off.
    """
    from coupon_service.store import finishing

    settings = load_settings(purpose=Purpose.MIGRATE)
    if settings.shards > 1:
        raise CommandError(
            "Shards are made so by coupon-service migrate up: there is nothing to do."
        )
    with database_of(settings) as (url, _), refusals():
        for progress in finishing.finish(url):
            typer.echo(progress)
    typer.echo("Codes of new books are unique within their business.")


@contextmanager
def refusals() -> Generator[None]:
    """Turns what is in the way of a step into CommandError."""
    from coupon_service.store.finishing import CannotFinishError
    from coupon_service.store.shards import ShardsFailedError, WrongSchemaError

    try:
        yield
    except (CannotFinishError, ShardsFailedError, WrongSchemaError) as error:
        raise CommandError(str(error)) from error


def status() -> None:
    """List the steps of the schema, applied and missing ones.

    Exit code 1 when the schema is not up to date.
    """
    from coupon_service import wiring
    from coupon_service.store import migrations, shards

    settings = load_settings(purpose=Purpose.MIGRATE)
    missing = False
    with database_of(settings) as (_, pooled):
        for url, shard in shards.located(wiring.shard_places(settings)):
            named = f"{shard.schema}: " if shard.schema else ""
            for step, is_applied in migrations.status(url, pooled=pooled, shard=shard):
                typer.echo(f"{named}{'applied' if is_applied else 'missing'} {step}")
                missing = missing or not is_applied
    if missing:
        raise typer.Exit(1)


def grants(
    role: Annotated[str, typer.Argument(metavar="ROLE", help="The role of the service.")],
    apply: Annotated[bool, typer.Option("--apply", help="Execute them as well.")] = False,
) -> None:
    """Print the GRANT statements that the role of the service needs, and no more.

    With COUPON_SESSION_PARAMETERS=role also the parameters of its sessions.
    """
    from coupon_service import wiring
    from coupon_service.store import shards
    from coupon_service.store.privileges import grant

    settings = load_settings(purpose=Purpose.MIGRATE)
    with database_of(settings):
        for url, shard in shards.located(wiring.shard_places(settings)):
            parameters = wiring.database_settings(url, settings).role_parameters
            for statement in grant(url, role, parameters, shard=shard, execute=apply):
                typer.echo(f"{statement};")


def apply_steps(settings: Settings) -> Iterator[str]:
    """Bring the schema, or those of all shards, up to date; says how far it is. Raises
    CommandError."""
    from coupon_service import wiring
    from coupon_service.store import migrations, shards

    with database_of(settings) as (url, pooled), refusals():
        if settings.shards > 1:
            yield from shards.up(wiring.shard_places(settings), pooled=pooled)
        else:
            shards.refuse_shards(url)
            for step in migrations.apply(url, pooled=pooled):
                yield f"applied {step}"


@contextmanager
def database_of(settings: Settings) -> Generator[tuple[str, bool]]:
    """The URL of the database, or of the first of the shards, and whether a pooler in transaction
    mode is between. Turns errors of the database into CommandError."""
    if not settings.database_urls:
        raise CommandError("COUPON_DATABASE_URL has to be set.")
    try:
        yield settings.database_urls[0], settings.session_parameters != "startup"
    except CouponServiceError as error:
        raise CommandError(f"The database cannot be used: {error}") from error
