"""All commands, put together."""

from __future__ import annotations

import sys
from typing import Annotated, Final

import typer

from coupon_service import __version__
from coupon_service.cli import (
    audit_archive,
    audit_events,
    audit_proofs,
    call,
    code_changes,
    codes,
    describe,
    dev,
    health,
    migrate,
    serve,
    settings_list,
    shards,
    signals,
    token,
    top,
    upload,
)
from coupon_service.cli.failure import CommandError
from coupon_service.embedded import EmbeddedError
from coupon_service.settings import SettingsError

RUNNING: Final = "Running a service"
USING: Final = "Using a service that runs"


def run() -> None:
    """Run the command line. What a user can do something about ends it with a sentence, code 1."""
    try:
        application()()
    except (CommandError, EmbeddedError, SettingsError) as error:
        sys.exit(str(error))


def application() -> typer.Typer:
    """All commands."""
    app = typer.Typer(
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(coupon_service)
    app.command(rich_help_panel=RUNNING)(dev.dev)
    app.command(rich_help_panel=RUNNING)(serve.serve)
    app.command(rich_help_panel=RUNNING)(signals.reload)
    app.command(rich_help_panel=RUNNING)(signals.restart)
    app.command(rich_help_panel=RUNNING)(health.health)
    app.command(rich_help_panel=RUNNING)(top.top)
    app.command("settings", rich_help_panel=RUNNING)(settings_list.settings)
    schema = typer.Typer(no_args_is_help=True, help="Change or look at the database schema.")
    schema.command()(migrate.up)
    schema.command()(migrate.finish)
    schema.command()(migrate.down)
    schema.command()(migrate.status)
    schema.command()(migrate.grants)
    app.add_typer(schema, name="migrate", rich_help_panel=RUNNING)
    sharding = typer.Typer(no_args_is_help=True, help="Look at the shards, and move them.")
    sharding.command()(shards.status)
    sharding.command()(shards.move)
    app.add_typer(sharding, name="shards", rich_help_panel=RUNNING)
    audit = typer.Typer(no_args_is_help=True, help="Follow, export, prove and archive the ledger.")
    audit.command("export")(audit_events.export)
    audit.command("follow")(audit_events.follow)
    audit.command()(audit_proofs.verify)
    audit.command()(audit_proofs.checkpoint)
    audit.command()(audit_archive.archive)
    audit.command()(audit_archive.restore)
    audit.command("verify-archive")(audit_archive.verify_archive)
    app.add_typer(audit, name="audit", rich_help_panel=USING)
    redemptions = typer.Typer(no_args_is_help=True, help="Export redemptions.")
    redemptions.command("export")(audit_events.export_redemptions)
    redemptions.callback()(lambda: None)
    app.add_typer(redemptions, name="redemptions", rich_help_panel=USING)
    app.command(rich_help_panel=USING)(token.token)
    app.command(rich_help_panel=USING)(call.call)
    app.command(rich_help_panel=USING)(describe.describe)
    app.command(rich_help_panel=USING)(codes.generate)
    app.command("import", rich_help_panel=USING)(upload.import_codes)
    app.command(rich_help_panel=USING)(codes.export)
    app.command(rich_help_panel=USING)(code_changes.codes)
    return app


def print_version(wanted: bool) -> None:
    """What --version does."""
    if wanted:
        typer.echo(f"coupon-service {__version__}")
        raise typer.Exit


def coupon_service(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", is_eager=True, callback=print_version),
    ] = False,
) -> None:
    """Coupons that are issued, assigned, locked and redeemed exactly once, over gRPC."""
