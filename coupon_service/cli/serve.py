"""`coupon-service serve`: the service alone, with the settings of the environment and `.env`."""

# What the server imports takes longer than a call to one: only who starts one waits for it.
# ruff: noqa: PLC0415

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from coupon_service.cli.failure import CommandError
from coupon_service.settings import Settings, load_settings

if TYPE_CHECKING:
    from coupon_service.server import Server


def serve() -> None:
    """Run the service until SIGTERM or Ctrl-C.

    Needs COUPON_DATABASE_URL, COUPON_REDIS_URL and COUPON_LOCK_TOKEN_SECRET, from the environment
    or from .env in this folder. The schema has to be up to date: coupon-service migrate up.
    coupon-service settings lists all settings.
    """
    import uvloop

    from coupon_service.log import configure_logging

    settings = load_settings()
    configure_logging(settings.log_level, settings.log_format)
    uvloop.run(serve_until_stopped(settings))


async def serve_until_stopped(
    settings: Settings, ready: Callable[[Server], None] | None = None
) -> None:
    """Serve until SIGTERM or Ctrl-C; `ready` is called when it listens. Raises CommandError."""
    from coupon_service import server

    try:
        await server.serve(settings, ready=ready)
    except server.ServerError as error:
        raise CommandError(str(error)) from error
