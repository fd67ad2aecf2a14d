"""Looks all the time whether a worker can serve: at PostgreSQL, its schema, and Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from coupon_service.errors import LocksUnavailable
from coupon_service.leases import Leases
from coupon_service.store.database import Database
from coupon_service.store.migrations import schema_is_current
from coupon_service.telemetry.metrics import Metrics
from coupon_service.telemetry.readiness import Readiness

INTERVAL_S: Final = 1.0
"""Time between two looks; a tenth of it while the worker does not serve."""

LOOKED_AT: Final = ("POSTGRESQL", "SCHEMA", "REDIS")


class ReadinessMonitor:
    """A worker is SERVING while PostgreSQL answers with a schema that is new enough."""

    def __init__(
        self,
        database: Database,
        leases: Leases,
        metrics: Metrics,
        tell: Callable[[Readiness], Awaitable[None]],
    ) -> None:
        """`tell` is called with what was found whenever that is something else than before."""
        self._database = database
        self._leases = leases
        self._metrics = metrics
        self._tell = tell
        self._found = Readiness(0)
        self._log = structlog.get_logger("coupon_service.telemetry.readiness")

    async def run(self) -> None:
        """Looks until it is cancelled."""
        while True:
            found = await self._look()
            if found != self._found:
                state = {what.lower(): bool(found & Readiness[what]) for what in LOOKED_AT}
                degraded = not all(state.values())
                (self._log.warning if degraded else self._log.info)("readiness", **state)
                self._found = found
                await self._tell(found)
            for what in LOOKED_AT:
                self._metrics.looked(what.lower(), reached=bool(found & Readiness[what]))
            stats = self._database.pool.get_stats()
            self._metrics.pool_sampled(
                "postgresql",
                stats.get("pool_size", 0),
                stats.get("pool_available", 0),
                stats.get("requests_waiting", 0),
            )
            await asyncio.sleep(INTERVAL_S if found & Readiness.SERVING else INTERVAL_S / 10)

    async def _look(self) -> Readiness:
        database, redis = await asyncio.gather(self._look_at_database(), self._look_at_redis())
        return Readiness.LOOKED | database | redis

    async def _look_at_database(self) -> Readiness:
        try:
            current = await self._database.read_at_once("readiness", schema_is_current)
        except Exception as error:  # noqa: BLE001 - whatever it is, we are not ready
            self._log.debug("not ready", cause=repr(error))
            return Readiness(0)
        if not current:
            return Readiness.POSTGRESQL
        return Readiness.POSTGRESQL | Readiness.SCHEMA | Readiness.SERVING

    async def _look_at_redis(self) -> Readiness:
        """Without it the service goes on: only what needs a new lock does not."""
        try:
            await self._leases.ping()
        except LocksUnavailable as error:
            if Readiness.REDIS in self._found or not self._found:
                self._log.warning("Redis cannot be reached", cause=str(error.__cause__))
            return Readiness(0)
        return Readiness.REDIS
