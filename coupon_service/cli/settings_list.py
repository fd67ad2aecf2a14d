"""`coupon-service settings`: the settings in effect, or all that there are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from coupon_service.settings import load_settings, settings_table, values_in_effect

ENV_FILE: Final = Path(".env")


def settings(
    *,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="List all settings with their meaning instead.")
    ] = False,
) -> None:
    """List the settings in effect, and where each comes from.

    Settings are environment variables, or lines of .env in this folder. Secrets are masked.
    """
    if markdown:
        typer.echo(settings_table(), nl=False)
        return
    rows = values_in_effect(load_settings(ENV_FILE), ENV_FILE)
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for name, value, source in rows:
        typer.echo(f"{name:{widths[0]}}  {value:{widths[1]}}  {source}")
