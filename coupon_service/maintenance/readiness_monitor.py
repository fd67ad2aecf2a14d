"""Whether a worker can serve: polls PostgreSQL, its schema, and Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from coupon_service.errors import LocksUnavailable
from coupon_service.leases import Leases
from coupon_service.maintenance.periodic import run_periodically
from coupon_service.store.database import Database
from coupon_service.store.migrations import schema_is_current
from coupon_service.telemetry.metrics import Metrics
from coupon_service.telemetry.readiness import Readiness

INTERVAL_S: Final = 1.0
"""Time between two checks; a tenth of it while the worker does not serve."""

CHECKED: Final = ("POSTGRESQL", "SCHEMA", "REDIS")


class ReadinessMonitor:
    """A worker is SERVING while PostgreSQL answers with a schema that is new enough."""

    def __init__(
        self,
        database: Database,
        leases: Leases,
        metrics: Metrics,
        notify: Callable[[Readiness], Awaitable[None]],
    ) -> None:
        """`notify` is called with what was found whenever it has changed."""
        self._database = database
        self._leases = leases
        self._metrics = metrics
        self._notify = notify
        self._found = Readiness(0)
        self._log = structlog.get_logger("coupon_service.telemetry.readiness")

    async def run(self) -> None:
        """Checks until it is cancelled, at once to begin with."""
        await run_periodically(
            self._check, self._interval_s, failed="readiness check failed", at_once=True
        )

    def _interval_s(self) -> float:
        return INTERVAL_S if self._found & Readiness.SERVING else INTERVAL_S / 10

    async def _check(self) -> None:
        database, redis = await asyncio.gather(self._check_database(), self._check_redis())
        found = Readiness.PROBED | database | redis
        if found != self._found:
            state = {what.lower(): bool(found & Readiness[what]) for what in CHECKED}
            degraded = not all(state.values())
            (self._log.warning if degraded else self._log.info)("readiness", **state)
            if state["postgresql"] and not state["schema"]:
                self._log.warning("schema missing or too old", run="coupon-service migrate up")
            self._found = found
            await self._notify(found)
        for what in CHECKED:
            self._metrics.dependency_probed(what.lower(), reached=bool(found & Readiness[what]))
        stats = self._database.pool.get_stats()
        self._metrics.pool_sampled(
            "postgresql",
            stats.get("pool_size", 0),
            stats.get("pool_available", 0),
            stats.get("requests_waiting", 0),
        )

    async def _check_database(self) -> Readiness:
        try:
            current = await self._database.read_at_once("readiness", schema_is_current)
        except Exception as error:  # noqa: BLE001 - whatever it is, we are not ready
            self._log.debug("not ready", cause=repr(error))
            return Readiness(0)
        if not current:
            return Readiness.POSTGRESQL
        return Readiness.POSTGRESQL | Readiness.SCHEMA | Readiness.SERVING

    async def _check_redis(self) -> Readiness:
        """Without it the service goes on: only what needs a new lock does not."""
        try:
            await self._leases.ping()
        except LocksUnavailable as error:
            if Readiness.REDIS in self._found or not self._found:
                self._log.warning("Redis cannot be reached", cause=str(error.__cause__))
            return Readiness(0)
        return Readiness.REDIS
