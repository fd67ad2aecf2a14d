"""`coupon-service serve`: the service alone, with settings from the environment and `.env`."""

# Imports of the server are slow, so only commands that start one pay for them.
# ruff: noqa: PLC0415

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable

from coupon_service.cli.failure import CommandError
from coupon_service.settings import Purpose, Settings, load_settings


def serve() -> None:
    """Run the service until SIGTERM or Ctrl-C.

    Needs COUPON_DATABASE_URL, COUPON_REDIS_URL and COUPON_LOCK_TOKEN_SECRET, and with
    COUPON_AUTH=jwt keys of tokens, from the environment or from .env in this folder. The schema
    has to be up to date: coupon-service migrate up. coupon-service settings lists all settings.
    """
    read_settings = functools.partial(load_settings, purpose=Purpose.SERVE)
    asyncio.run(supervise(read_settings(), read_settings))


async def supervise(settings: Settings, read_settings: Callable[[], Settings]) -> None:
    """Serve until SIGTERM or Ctrl-C. `read_settings` reads them again. Raises CommandError."""
    import structlog

    from coupon_service.process.supervisor import Supervisor, SupervisorError
    from coupon_service.telemetry.logs import configure_logging

    configure_logging(settings.log_level, settings.log_format)
    if settings.open_without_auth:
        structlog.get_logger("coupon_service.process.supervisor").warning(
            "authentication is off: every client that reaches the port may do everything",
            host=settings.host,
            auth=settings.auth,
        )
    if settings.auth == "jwt":
        _check_keys(settings)
    _check_batching(settings)
    try:
        await Supervisor(settings, read_settings).run()
    except SupervisorError as error:
        raise CommandError(str(error)) from error


def _check_batching(settings: Settings) -> None:
    """Check the delays of batching before workers start. Raises CommandError."""
    from coupon_service.batching import BatchingError
    from coupon_service.wiring import batching_settings

    try:
        batching_settings(settings)
    except BatchingError as error:
        raise CommandError(str(error)) from error


def _check_keys(settings: Settings) -> None:
    """Check the keys of tokens before workers start. Raises CommandError."""
    from coupon_service.security.bearer_tokens import tokens_of
    from coupon_service.security.keys import KeysError

    try:
        tokens_of(settings)
    except KeysError as error:
        raise CommandError(str(error)) from error
