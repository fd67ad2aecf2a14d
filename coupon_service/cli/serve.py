"""`coupon-service serve`: the service alone, with the settings of the environment and `.env`."""

from __future__ import annotations

import uvloop

from coupon_service.log import configure_logging
from coupon_service.server import serve as serve_until_stopped
from coupon_service.settings import load_settings


def serve() -> None:
    """Run the service until SIGTERM or Ctrl-C.

    Needs COUPON_DATABASE_URL, COUPON_REDIS_URL and COUPON_LOCK_TOKEN_SECRET, from the environment
    or from .env in this folder. The schema has to be up to date: coupon-service migrate up.
    coupon-service settings lists all settings.
    """
    settings = load_settings()
    configure_logging(settings.log_level, settings.log_format)
    uvloop.run(serve_until_stopped(settings))
