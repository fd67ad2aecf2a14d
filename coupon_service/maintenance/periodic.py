"""The one polling loop: work that is done again and again for as long as a worker runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from coupon_service.errors import CouponServiceError


async def run_periodically(
    work: Callable[[], Awaitable[object]],
    interval_s: Callable[[], float],
    *,
    failed: str,
    at_once: bool = False,
) -> None:
    """Does the work every `interval_s` until it is cancelled; `at_once`: also before the first.

    What fails is tried again after the next interval, and logged as `failed`, unless it is that
    PostgreSQL or Redis cannot be reached, which readiness reports.
    """
    log = structlog.get_logger(__name__)
    if not at_once:
        await asyncio.sleep(interval_s())
    while True:
        try:
            await work()
        except CouponServiceError:
            pass
        except Exception as error:  # noqa: BLE001 - such as a schema that is not there yet
            log.warning(failed, cause=repr(error))
        await asyncio.sleep(interval_s())
