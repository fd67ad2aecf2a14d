"""Whether a worker can serve: polls PostgreSQL, its schema, and Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from types import MappingProxyType
from typing import Final

import structlog

from coupon_service.errors import CouponServiceError, LocksUnavailable
from coupon_service.leases import Leases
from coupon_service.maintenance.periodic import run_periodically
from coupon_service.store.database import Database
from coupon_service.store.migrations import schema_is_current
from coupon_service.store.pipeline import Connection
from coupon_service.store.replica import ReadReplica, ReplicaState
from coupon_service.store.server_check import check_server, connection_problem
from coupon_service.telemetry.metrics import Metrics
from coupon_service.telemetry.readiness import REDIS_PROBLEMS, Readiness, problems_of

INTERVAL_S: Final = 1.0
"""Time between two checks; a tenth of it while the worker does not serve."""

USABLE: Final = Readiness.SERVING | Readiness.SCHEMA
"""What makes one shard better than another."""

CHECKED: Final = ("POSTGRESQL", "SCHEMA", "REDIS")


REPLICA_WARNINGS: Final = MappingProxyType(
    {
        ReplicaState.OK: Readiness(0),
        ReplicaState.BEHIND: Readiness.REPLICA_BEHIND,
        ReplicaState.AWAY: Readiness.REPLICA_AWAY,
    }
)


class ReadinessMonitor:
    """A worker is SERVING while PostgreSQL can be used, with a schema that is new enough; where
    there are several shards, at least one of them.
    """

    def __init__(
        self,
        databases: Sequence[Database],
        leases: Leases,
        metrics: Metrics,
        notify: Callable[[Readiness, Sequence[Readiness]], Awaitable[None]],
        replica: ReadReplica | None = None,
    ) -> None:
        """`notify` is called with what was found whenever it has changed: of the worker and, where
        there are several, of each shard."""
        self._replica = replica
        self._databases = databases
        self._leases = leases
        self._metrics = metrics
        self._notify = notify
        self._found = Readiness(0)
        self._shards: list[Readiness] = []
        self._log = structlog.get_logger("coupon_service.telemetry.readiness")

    async def run(self) -> None:
        """Checks until it is cancelled, at once to begin with."""
        await run_periodically(
            self._check, self._interval_s, failed="readiness check failed", at_once=True
        )

    def _interval_s(self) -> float:
        return INTERVAL_S if self._found & Readiness.SERVING else INTERVAL_S / 10

    async def _check(self) -> None:
        databases, redis = await asyncio.gather(
            asyncio.gather(*map(self._check_database, self._databases)), self._check_redis()
        )
        for checked, (readiness, _) in zip(self._databases, databases, strict=True):
            checked.is_unfit = Readiness.SERVING not in readiness
        database, causes = max(databases, key=lambda it: (it[0] & USABLE, it[0]))
        found = Readiness.PROBED | database | redis
        if self._replica is not None:
            found |= REPLICA_WARNINGS[self._replica.state]
        shards = self._check_shards(databases)
        if found != self._found:
            state = {what.lower(): bool(found & Readiness[what]) for what in CHECKED}
            state["postgresql"] = state["postgresql"] and not problems_of(found)
            degraded = not all(state.values())
            told = {"cause": " ".join(causes)} if causes else {}
            (self._log.warning if degraded else self._log.info)("readiness", **state, **told)
            if state["postgresql"] and not state["schema"]:
                self._log.warning("schema missing or too old", run="coupon-service migrate up")
        if (found, shards) != (self._found, self._shards):
            self._found, self._shards = found, shards
            await self._notify(found, shards)
        for what in CHECKED:
            self._metrics.dependency_probed(what.lower(), reached=bool(found & Readiness[what]))
        stats = [it.pool.get_stats() for it in self._databases]
        self._metrics.pool_sampled(
            "postgresql",
            sum(it.get("pool_size", 0) for it in stats),
            sum(it.get("pool_available", 0) for it in stats),
            sum(it.get("requests_waiting", 0) for it in stats),
        )

    def _check_shards(self, found: Sequence[tuple[Readiness, Sequence[str]]]) -> list[Readiness]:
        """The readiness of each shard; empty where there is only one."""
        places = [it.settings.shard for it in self._databases]
        if len(found) == 1:
            reached = Readiness.SERVING in found[0][0]
            self._metrics.shard_probed(places[0].schema, reached=reached)
            return []
        before = self._shards or [Readiness.SERVING] * len(found)
        for place, (readiness, causes), earlier in zip(places, found, before, strict=True):
            is_serving = Readiness.SERVING in readiness
            self._metrics.shard_probed(place.schema, reached=is_serving)
            if is_serving == (Readiness.SERVING in earlier):
                continue
            if is_serving:
                self._log.info("shard serves", shard=place.schema)
            else:
                cause = " ".join(causes) or "schema missing, too old or of another COUPON_SHARDS"
                self._log.warning("shard does not serve", shard=place.schema, cause=cause)
        return [readiness for readiness, _ in found]

    async def _check_database(self, database: Database) -> tuple[Readiness, list[str]]:
        """What was found, and why it is not good enough."""

        async def look(connection: Connection) -> tuple[dict[Readiness, str], bool]:
            problems = await check_server(connection, database.settings)
            shard = database.settings.shard
            return problems, not problems and await schema_is_current(connection, shard)

        try:
            if database.settings.on_citus:  # where a node answers for others as well
                await database.look_for_move()
            problems, current = await database.read_at_once("readiness", look)
        except CouponServiceError as error:
            failed = await database.connection_error()
            if failed is not None:
                flags, cause = connection_problem(failed)
                return flags, [cause]
            return Readiness(0), [str(error.__cause__ or error)]
        except Exception as error:  # noqa: BLE001 - whatever it is, we are not ready
            return Readiness(0), [repr(error)]
        if not current and database.settings.shard.schema and await database.look_for_move():
            return await self._check_database(database)
        if problems:
            flags = Readiness.POSTGRESQL
            for problem in problems:
                flags |= problem
            return flags, list(problems.values())
        if not current:
            return Readiness.POSTGRESQL, []
        moved = Readiness.MOVED if database.has_moved else Readiness(0)
        return Readiness.POSTGRESQL | Readiness.SCHEMA | Readiness.SERVING | moved, []

    async def _check_redis(self) -> Readiness:
        """Without it the service goes on: only what needs a new lock does not."""
        try:
            findings = await self._leases.check()
        except LocksUnavailable as error:
            if Readiness.REDIS in self._found or not self._found:
                self._log.warning("Redis cannot be reached", cause=str(error.__cause__))
            return Readiness(0)
        found = Readiness(sum(findings))
        if found & ~self._found:
            self._log.warning("Redis is not what it should be", cause=" ".join(findings.values()))
        return found if findings.keys() & REDIS_PROBLEMS.keys() else found | Readiness.REDIS
