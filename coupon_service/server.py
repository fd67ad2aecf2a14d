"""The one place where the parts are put together, started and stopped in order."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc
from prometheus_client import CollectorRegistry

from coupon_service import wiring
from coupon_service.batching import BatchingError, DetachedTasks, Rush
from coupon_service.errors import DatabaseUnavailable
from coupon_service.leases import Leases
from coupon_service.locks.held_in_shards import HeldInShards
from coupon_service.locks.token import LockTokens
from coupon_service.maintenance.periodic import run_periodically
from coupon_service.maintenance.readiness_monitor import ReadinessMonitor
from coupon_service.maintenance.stock_monitor import StockMonitor
from coupon_service.model.scopes import shard_of_book
from coupon_service.ratelimit.code_guessing import GuessGuard
from coupon_service.ratelimit.limiter import RateLimiter
from coupon_service.ratelimit.windows import Windows
from coupon_service.rpc.checkout_streams import CheckoutStreams
from coupon_service.rpc.connections import INTERVAL_S
from coupon_service.rpc.handler import RpcHandler
from coupon_service.rpc.listener import Listener, ListenerError
from coupon_service.rpc.paging import PageTokens
from coupon_service.rpc.shards.places import Places
from coupon_service.rpc.shards.router import Router
from coupon_service.security.tls import TlsError, TlsReader, read_certificate
from coupon_service.settings import Settings
from coupon_service.shard import Shard, SharedParts
from coupon_service.telemetry.logs import configure_logging
from coupon_service.telemetry.metrics import Metrics
from coupon_service.telemetry.readiness import Readiness
from coupon_service.telemetry.replica_gauges import ReplicaGauges
from coupon_service.v1 import (
    assignment_service_pb2_grpc,
    audit_service_pb2_grpc,
    coupon_book_service_pb2_grpc,
    coupon_code_service_pb2_grpc,
    redemption_service_pb2_grpc,
)

if TYPE_CHECKING:
    from coupon_service.rpc.authorization import Authorizer
    from coupon_service.security.bearer_tokens import Tokens
    from coupon_service.telemetry.tracing import Tracer

SERVICERS: Final[Mapping[str, tuple[str, Callable[[Any, Any], None]]]] = {
    "CouponBookService": (
        "books",
        coupon_book_service_pb2_grpc.add_CouponBookServiceServicer_to_server,
    ),
    "CouponCodeService": (
        "codes",
        coupon_code_service_pb2_grpc.add_CouponCodeServiceServicer_to_server,
    ),
    "AssignmentService": (
        "assignments",
        assignment_service_pb2_grpc.add_AssignmentServiceServicer_to_server,
    ),
    "RedemptionService": (
        "redemptions",
        redemption_service_pb2_grpc.add_RedemptionServiceServicer_to_server,
    ),
    "AuditService": ("audit", audit_service_pb2_grpc.add_AuditServiceServicer_to_server),
}
"""Which servicer of a shard answers the calls of each service, and what registers it."""

SERVICES: Final = tuple(f"coupon_service.v1.{name}" for name in SERVICERS)


STREAMS_SPREAD_S: Final = 1.0
"""Within which time from when the port is closed the streams end, so that their clients do not all
come to other workers at once."""

REPAIR_INTERVAL_S: Final = 1.0
"""Between two attempts to write entries of indexes of locks that could not be written."""


class ServerError(Exception):
    """The server cannot start; one clear sentence."""


def utc_now() -> datetime:
    """The time."""
    return datetime.now(UTC)


class Server:
    """One worker: a gRPC port with everything behind it."""

    def __init__(
        self,
        settings: Settings,
        registry: CollectorRegistry,
        now: Callable[[], datetime] = utc_now,
        readiness_changed: Callable[[Readiness, Sequence[Readiness]], None] = lambda _, __: None,
        gauges: ReplicaGauges | None = None,
        tracer: Tracer | None = None,
        kept_keys: Path | None = None,
    ) -> None:
        """`readiness_changed` is called with that of the worker and, where there are several, of
        each shard. `kept_keys`: a file with the keys of tokens that workers fetched."""
        self._kept_keys = kept_keys
        self._tracer = tracer
        self._settings = settings
        self._registry = registry
        self._gauges = gauges or ReplicaGauges()
        self._now = now
        self._readiness_changed = readiness_changed
        self._log = structlog.get_logger("coupon_service.server")
        self._background: set[asyncio.Task[Any]] = set()
        self._detached = DetachedTasks()
        self._tokens: Tokens | None = None
        self._tls: TlsReader | None = None
        self.port = 0
        self.failed = asyncio.Event()
        """Set when gRPC closes its port without being asked to."""

    async def start(self) -> None:
        """Connects, listens, and answers as soon as PostgreSQL does. Raises ServerError."""
        settings = self._settings
        if not settings.database_urls or settings.redis_url is None:
            raise ServerError("COUPON_DATABASE_URL and COUPON_REDIS_URL have to be set.")
        if settings.lock_token_secret is None:
            raise ServerError("COUPON_LOCK_TOKEN_SECRET has to be set.")
        try:
            self._tls = read_certificate(settings, utc_now)
            self._batching = wiring.batching_settings(settings)
        except (TlsError, BatchingError) as error:
            raise ServerError(str(error)) from error
        secrets = wiring.token_secrets(settings)
        self._lock_tokens, self._page_tokens = LockTokens(secrets), PageTokens(secrets)
        self._metrics = Metrics(self._registry)
        self._registry.register(self._gauges)
        self._tracer = self._tracer or _tracer(settings)
        self._connect(settings.redis_url.get_secret_value())
        # types-grpcio does not know the asyncio half of grpc_health.
        self._health: Any = cast("Any", health).aio.HealthServicer()
        self._handler = self._make_handler()
        self._streams = CheckoutStreams(
            self._handler.operations, wiring.stream_settings(settings), self._metrics
        )
        self._watchers = wiring.watchers(settings)
        try:
            self.shards = self._make_shards()
        except DatabaseUnavailable as error:
            raise ServerError(str(error)) from error
        self._add_servicers(self._handler)
        for shard in self.shards:
            await shard.open()
        self._grpc = Listener(settings, self._tls, self._handler)
        try:
            self.port = await self._grpc.open()
        except ListenerError as error:
            await self._close()
            raise ServerError(str(error)) from error
        await self._publish(Readiness(0), [])
        self._spawn(self._watch_port())
        self._start_maintenance()

    def _connect(self, redis_url: str) -> None:
        settings, metrics = self._settings, self._metrics
        self._leases = Leases(
            redis_url,
            timeout_ms=settings.redis_timeout_ms,
            grace_ms=settings.lock_grace_ms,
            locks_per_user_max=settings.locks_per_user_max,
            metrics=metrics,
            tracer=self._tracer,
            batching=self._batching,
        )
        self._windows = Windows(redis_url, settings.redis_timeout_ms, self._batching)

    def _make_shards(self) -> list[Shard]:
        """Raises DatabaseUnavailable."""
        shared = SharedParts(
            settings=self._settings,
            batching=self._batching,
            leases=self._leases,
            windows=self._windows,
            pseudonyms=wiring.pseudonyms(self._settings),
            tokens=self._lock_tokens,
            page_tokens=self._page_tokens,
            rushes=defaultdict(Rush),
            streams=self._streams,
            watchers=self._watchers,
            authenticate=self._handler.authenticate,
            detached=self._detached,
            metrics=self._metrics,
            tracer=self._tracer,
            now=self._now,
        )
        shards = [Shard(url, shared, place) for url, place in wiring.shard_places(self._settings)]
        if len(shards) > 1:
            held = HeldInShards(
                partial(shard_of_book, shards=len(shards)), [it.locks.held for it in shards]
            )
            for shard in shards:
                shard.locks.held = held
        return shards

    def _make_handler(self) -> RpcHandler:
        settings, windows, metrics = self._settings, self._windows, self._metrics
        limits = wiring.call_limits(settings)
        guesses_log = structlog.get_logger("coupon_service.guesses")
        return RpcHandler(
            wiring.handler_settings(settings),
            structlog.get_logger("coupon_service.rpc"),
            metrics,
            self._authentication() if settings.auth == "jwt" else None,
            limiter=RateLimiter(limits, windows, metrics) if limits is not None else None,
            guesses=GuessGuard(wiring.guess_limits(settings), windows, metrics, guesses_log),
            tracer=self._tracer,
        )

    def _authentication(self) -> Authorizer:
        """What knows callers by their tokens. Raises ServerError."""
        # They take a tenth of a second to import, which only who needs them waits for.
        from coupon_service.rpc.authorization import Authorizer  # noqa: PLC0415
        from coupon_service.security.bearer_tokens import POLL_INTERVAL_S, tokens_of  # noqa: PLC0415
        from coupon_service.security.key_fetcher import FETCH_INTERVAL_S, KeyFetcher  # noqa: PLC0415
        from coupon_service.security.keys import KeysError  # noqa: PLC0415

        try:
            tokens = tokens_of(self._settings, self._kept_keys)
        except KeysError as error:
            raise ServerError(str(error)) from error
        self._tokens = tokens
        refresh = partial(asyncio.to_thread, tokens.refresh)
        self._spawn(run_periodically(refresh, lambda: POLL_INTERVAL_S, failed="key check failed"))
        fetcher = KeyFetcher(tokens.fetch) if tokens.published else None
        if fetcher is not None:
            every = FETCH_INTERVAL_S
            self._spawn(run_periodically(fetcher.refresh, lambda: every, failed="keys not fetched"))
        return Authorizer(
            tokens,
            roles_claim=self._settings.jwt_roles_claim,
            business_claim=self._settings.jwt_business_claim,
            fetcher=fetcher,
        )

    def _add_servicers(self, handler: RpcHandler) -> None:
        """Has the calls answered by the servicers of the only shard, or by those that lead to the
        shard of each call."""
        only, *others = self.shards
        router = Router(Places(len(self.shards), self._lock_tokens), self._page_tokens)
        for service, (name, register) in SERVICERS.items():
            servicer = getattr(only, name)
            if others:
                servicer = router.servicer(service, [getattr(it, name) for it in self.shards])
            handler.add(register, servicer)
        register_health: Any = cast("Any", health_pb2_grpc).add_HealthServicer_to_server
        handler.add(register_health, self._health)
        if self._settings.reflection:
            names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
            register: Any = cast("Any", reflection_pb2_grpc).add_ServerReflectionServicer_to_server
            handler.add(register, reflection.aio.ReflectionServicer(names))

    def _start_maintenance(self) -> None:
        """Starts what monitors and tidies up for as long as the server runs."""
        settings, metrics = self._settings, self._metrics
        databases = [it.database for it in self.shards]
        stock = StockMonitor(
            databases,
            self._leases,
            self._gauges,
            metrics,
            self._now,
            interval_ms=settings.stock_interval_ms,
            series_max=settings.book_series_max,
            sealing=settings.seal_interval_ms > 0,
        )
        replica = self.shards[0].replica_state
        readiness = ReadinessMonitor(databases, self._leases, metrics, self._publish, replica)
        tidying = (each for shard in self.shards for each in shard.maintenance())
        for work in (readiness.run(), stock.run(), *tidying):
            self._spawn(work)
        repair = self._leases.repair
        self._spawn(run_periodically(repair, lambda: REPAIR_INTERVAL_S, failed="repair failed"))
        self._spawn(run_periodically(self._make_room, lambda: INTERVAL_S, failed="no room made"))

    async def _make_room(self) -> None:
        await asyncio.to_thread(self._handler.connections.make_room, self.port)

    async def stop(self, *, replaced: bool = False) -> None:
        """Says that it stops, waits for load balancers, finishes what is in flight, and closes.

        `replaced`: another worker serves at the port, so that nobody has to know.
        """
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        if not replaced:
            await self._publish(Readiness.PROBED, [])
            await self._health.enter_graceful_shutdown()
            await asyncio.sleep(self._settings.drain_grace_ms / 1000)
        spread_s = min(STREAMS_SPREAD_S, self._settings.shutdown_timeout_ms / 4_000)
        self._streams.end(spread_s)
        self._watchers.end(spread_s)
        await self._grpc.close()
        # What callers no longer wait for goes on; each of these begins work of those after it.
        await self._handler.operations.drain()
        await asyncio.gather(*(it.drain_locks() for it in self.shards))
        await self._detached.drain()
        await asyncio.gather(*(it.commands.drain() for it in self.shards))
        self._handler.close()
        await self._close()

    async def _close(self) -> None:
        await self._windows.close()
        await self._leases.close()
        await asyncio.gather(*(it.close() for it in self.shards))
        if self._tracer is not None:
            await self._tracer.close()

    def reload(self, settings: Settings) -> None:
        """Applies what may change while it runs: the log level, keys, and the files of TLS."""
        configure_logging(settings.log_level, settings.log_format)
        if self._tokens is not None:
            self._tokens.refresh()
        if self._tls is not None:
            self._tls.refresh()
        self._log.warning("reloaded", log_level=settings.log_level)

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        """What goes on for as long as the server must not end before it."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error("the server cannot go on", exc_info=error)
            self.failed.set()

    async def _watch_port(self) -> None:
        await self._grpc.closed()
        self._log.error("gRPC has closed its port")
        self.failed.set()

    async def _publish(self, readiness: Readiness, shards: Sequence[Readiness]) -> None:
        self._readiness_changed(readiness, shards)
        serving = Readiness.SERVING in readiness
        status = health_pb2.HealthCheckResponse
        for service in ("", *SERVICES):
            await self._health.set(service, status.SERVING if serving else status.NOT_SERVING)


def _tracer(settings: Settings) -> Tracer | None:
    if not settings.tracing:
        return None
    from coupon_service.telemetry.tracing import otlp_tracer  # noqa: PLC0415 - its packages may not be there

    return otlp_tracer()
