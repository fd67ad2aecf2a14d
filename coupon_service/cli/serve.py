"""`coupon-service serve`: the service alone, with the settings of the environment and `.env`."""

# What the server imports takes longer than a call to one: only who starts one waits for it.
# ruff: noqa: PLC0415

from __future__ import annotations

import asyncio
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
    from coupon_service.log import configure_logging
    from coupon_service.supervisor import Supervisor, SupervisorError

    settings = load_settings()
    for name in ("database_url", "redis_url", "lock_token_secret"):
        if getattr(settings, name) is None:
            raise CommandError(f"COUPON_{name.upper()} has to be set.")
    configure_logging(settings.log_level, settings.log_format)

    async def supervise() -> None:
        await Supervisor(settings).run()

    try:
        asyncio.run(supervise())
    except SupervisorError as error:
        raise CommandError(str(error)) from error


async def serve_until_stopped(
    settings: Settings, ready: Callable[[Server], None] | None = None
) -> None:
    """Serve until SIGTERM or Ctrl-C; `ready` is called when it listens. Raises CommandError."""
    from coupon_service import server

    try:
        await server.serve(settings, ready=ready)
    except server.ServerError as error:
        raise CommandError(str(error)) from error
