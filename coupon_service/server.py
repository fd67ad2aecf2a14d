"""The one place where the parts are put together, started and stopped in order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from coupon_service.batching.batcher import CommandLanes, MicroBatcher, MicroBatcherSettings
from coupon_service.checkout import Checkout
from coupon_service.leases import Leases
from coupon_service.locks.acquire import BATCHES_IN_FLIGHT, LockAcquirer
from coupon_service.locks.extend import LockExtender
from coupon_service.locks.history import LockHistory
from coupon_service.locks.limits import LockLimits
from coupon_service.locks.release import LockReleaser
from coupon_service.locks.service import LockService
from coupon_service.locks.token import LockTokens
from coupon_service.maintenance.lock_sweeper import LockSweeper
from coupon_service.maintenance.periodic import run_periodically
from coupon_service.maintenance.readiness_monitor import ReadinessMonitor
from coupon_service.maintenance.stock_monitor import StockMonitor
from coupon_service.ratelimit.callers import CallerLimits
from coupon_service.ratelimit.code_guessing import GuessGuard
from coupon_service.ratelimit.limiter import RateLimiter
from coupon_service.ratelimit.windows import Windows
from coupon_service.rpc.handler import RpcHandler, RpcHandlerSettings
from coupon_service.rpc.listener import Listener, ListenerError
from coupon_service.rpc.servicers.assignments import AssignmentServicer
from coupon_service.rpc.servicers.audit import AuditServicer
from coupon_service.rpc.servicers.books import CouponBookServicer
from coupon_service.rpc.servicers.codes import CouponCodeServicer
from coupon_service.rpc.servicers.redemptions import RedemptionServicer
from coupon_service.security.tls import TlsError, TlsReader, read_certificate
from coupon_service.settings import Settings
from coupon_service.store.books import Books
from coupon_service.store.bulk.chunks import CodeChunks
from coupon_service.store.commands.executor import Executor
from coupon_service.store.database import Database, DatabaseSettings
from coupon_service.store.queries.lookups import Lookups
from coupon_service.store.queries.reads import Reads
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

SERVICES: Final = tuple(
    f"coupon_service.v1.{name}"
    for name in (
        "CouponBookService",
        "CouponCodeService",
        "AssignmentService",
        "RedemptionService",
        "AuditService",
    )
)


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
        readiness_changed: Callable[[Readiness], None] = lambda _: None,
        gauges: ReplicaGauges | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._tracer = tracer
        self._settings = settings
        self._registry = registry
        self._gauges = gauges or ReplicaGauges()
        self._now = now
        self._readiness_changed = readiness_changed
        self._log = structlog.get_logger("coupon_service.server")
        self._background: set[asyncio.Task[Any]] = set()
        self._tokens: Tokens | None = None
        self._tls: TlsReader | None = None
        self.port = 0
        self.failed = asyncio.Event()
        """Set when gRPC closes its port without being told to."""

    async def start(self) -> None:
        """Connects, listens, and answers as soon as PostgreSQL does. Raises ServerError."""
        settings = self._settings
        if settings.database_url is None or settings.redis_url is None:
            raise ServerError("COUPON_DATABASE_URL and COUPON_REDIS_URL have to be set.")
        if settings.lock_token_secret is None:
            raise ServerError("COUPON_LOCK_TOKEN_SECRET has to be set.")
        try:
            self._tls = read_certificate(settings, utc_now)
        except TlsError as error:
            raise ServerError(str(error)) from error
        self._metrics = Metrics(self._registry)
        self._registry.register(self._gauges)
        self._tracer = self._tracer or _tracer(settings)
        self._connect(
            settings.database_url.get_secret_value(), settings.redis_url.get_secret_value()
        )
        self._join()
        # types-grpcio does not know the asyncio half of grpc_health.
        self._health: Any = cast("Any", health).aio.HealthServicer()
        self._handler = self._make_handler()
        self._add_servicers(self._handler)
        await self._database.open()
        self._grpc = Listener(settings, self._tls, self._handler, SERVICES)
        try:
            self.port = await self._grpc.open()
        except ListenerError as error:
            await self._close()
            raise ServerError(str(error)) from error
        await self._tell(Readiness(0))
        self._spawn(self._watch_port())
        self._watch()

    def _connect(self, database_url: str, redis_url: str) -> None:
        settings, metrics, tracer = self._settings, self._metrics, self._tracer
        self._database = Database(_database_settings(database_url, settings), metrics, tracer)
        self._leases = Leases(
            redis_url,
            timeout_ms=settings.redis_timeout_ms,
            grace_ms=settings.lock_grace_ms,
            locks_per_user_max=settings.locks_per_user_max,
            metrics=metrics,
            tracer=tracer,
        )
        self._windows = Windows(redis_url, settings.redis_timeout_ms)

    def _join(self) -> None:
        """What is done for many callers at once: changes, looks before them, and small reads."""
        settings, metrics, tracer = self._settings, self._metrics, self._tracer
        executor = Executor(self._database, self._now, metrics)
        batches = _batches(settings)
        one = replace(batches, batches_in_flight=1)
        self._coalescer = CommandLanes(
            MicroBatcher(executor.execute, batches, metrics, tracer=tracer),
            # Large calls are enough as they are.
            MicroBatcher(
                executor.execute, replace(one, batch_max_wait_ms=0), metrics, "bulk", tracer
            ),
        )
        self._looks = MicroBatcher(executor.preview, one, metrics, "looks", tracer)
        lookups = MicroBatcher(Lookups(self._database).execute, one, metrics, "lookups", tracer)
        self._reads = Reads(self._database, lookups.submit)

    def _make_handler(self) -> RpcHandler:
        settings, metrics = self._settings, self._metrics
        return RpcHandler(
            _handler_settings(settings),
            structlog.get_logger("coupon_service.rpc"),
            metrics,
            self._authentication() if settings.auth == "jwt" else None,
            limiter=_limiter(settings, self._windows, metrics),
            guesses=_guesses(settings, self._windows, metrics),
            tracer=self._tracer,
        )

    def _authentication(self) -> Authorizer:
        """What tells callers by their tokens. Raises ServerError."""
        # They take a tenth of a second to import, which only who needs them waits for.
        from coupon_service.rpc.authorization import Authorizer  # noqa: PLC0415
        from coupon_service.security.bearer_tokens import (  # noqa: PLC0415
            POLL_INTERVAL_S,
            KeysError,
            tokens_of,
        )

        try:
            tokens = tokens_of(self._settings)
        except KeysError as error:
            raise ServerError(str(error)) from error
        self._tokens = tokens
        refresh = partial(asyncio.to_thread, tokens.refresh)
        self._spawn(run_periodically(refresh, lambda: POLL_INTERVAL_S, failed="key check failed"))
        return Authorizer(tokens)

    def _add_servicers(self, handler: RpcHandler) -> None:
        settings, now = self._settings, self._now
        changes, looks, reads = self._coalescer, self._looks, self._reads
        tokens = LockTokens(_token_secrets(settings))
        locks = self._make_locks(tokens)
        transient_ttl_ms = settings.default_deadline_ms + settings.statement_timeout_ms
        checkout = Checkout(looks, changes, self._leases, tokens, transient_ttl_ms, now)
        books, chunks = Books(self._database, now), CodeChunks(self._database, now)
        handler.add(
            coupon_book_service_pb2_grpc.add_CouponBookServiceServicer_to_server,
            CouponBookServicer(books, now),
        )
        handler.add(
            coupon_code_service_pb2_grpc.add_CouponCodeServiceServicer_to_server,
            CouponCodeServicer(books, reads, chunks, changes, locks, now),
        )
        handler.add(
            assignment_service_pb2_grpc.add_AssignmentServiceServicer_to_server,
            AssignmentServicer(changes, reads, locks, now),
        )
        handler.add(
            redemption_service_pb2_grpc.add_RedemptionServiceServicer_to_server,
            RedemptionServicer(checkout, locks, reads),
        )
        handler.add(
            audit_service_pb2_grpc.add_AuditServiceServicer_to_server,
            AuditServicer(reads),
        )
        register_health: Any = cast("Any", health_pb2_grpc).add_HealthServicer_to_server
        handler.add(register_health, self._health)

    def _make_locks(self, tokens: LockTokens) -> LockService:
        """Locks, of which those that are requested, or released, at the same time go together."""
        settings, leases, now = self._settings, self._leases, self._now
        limits = _lock_limits(settings)
        history = LockHistory(self._looks, self._coalescer, self._reads, tokens, now)
        acquire = LockAcquirer(history, leases, limits, now).acquire
        release = LockReleaser(history, leases).release
        few = replace(_batches(settings), batches_in_flight=BATCHES_IN_FLIGHT)
        self._acquirer = MicroBatcher(acquire, few, self._metrics, "locks", self._tracer)
        self._releaser = MicroBatcher(release, few, self._metrics, "unlocks", self._tracer)
        extender = LockExtender(history, leases, limits, now)
        return LockService(self._acquirer, self._releaser, extender, history, leases, tokens)

    def _watch(self) -> None:
        """Starts what looks and tidies up for as long as the server runs."""
        settings, metrics = self._settings, self._metrics
        self._sweeper = LockSweeper(
            self._coalescer, self._reads, self._leases, self._now, settings.sweep_interval_ms
        )
        stock = StockMonitor(
            self._database,
            self._leases,
            self._gauges,
            metrics,
            self._now,
            interval_ms=settings.stock_interval_ms,
            series_max=settings.book_series_max,
        )
        readiness = ReadinessMonitor(self._database, self._leases, metrics, self._tell)
        for watch in (readiness, self._sweeper, stock):
            self._spawn(watch.run())

    async def stop(self, *, replaced: bool = False) -> None:
        """Tells everybody, waits for load balancers, finishes what is in flight, and closes.

        `replaced`: another worker serves at the port, so that nobody has to be told.
        """
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        if not replaced:
            await self._tell(Readiness.LOOKED)
            await self._health.enter_graceful_shutdown()
            await asyncio.sleep(self._settings.drain_grace_ms / 1000)
        await self._grpc.close()
        await self._acquirer.drain()
        await self._releaser.drain()
        await self._coalescer.drain()
        self._handler.close()
        await self._close()

    async def _close(self) -> None:
        await self._windows.close()
        await self._leases.close()
        await self._database.close()
        if self._tracer is not None:
            await self._tracer.close()

    def reload(self, settings: Settings) -> None:
        """Takes up what may change while it runs: the log level, keys, and the files of TLS."""
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

    async def _tell(self, found: Readiness) -> None:
        self._readiness_changed(found)
        serving = Readiness.SERVING in found
        status = health_pb2.HealthCheckResponse
        for service in ("", *SERVICES):
            await self._health.set(service, status.SERVING if serving else status.NOT_SERVING)


def _tracer(settings: Settings) -> Tracer | None:
    if not settings.tracing:
        return None
    from coupon_service.telemetry.tracing import otlp_tracer  # noqa: PLC0415 - its packages may not be there

    return otlp_tracer()


def _database_settings(url: str, settings: Settings) -> DatabaseSettings:
    return DatabaseSettings(
        url=url,
        pool_min_size=settings.pool_min_size,
        pool_max_size=settings.pool_max_size,
        pool_timeout_ms=settings.pool_timeout_ms,
        lock_timeout_ms=settings.lock_timeout_ms,
        statement_timeout_ms=settings.statement_timeout_ms,
        idle_in_transaction_timeout_ms=settings.idle_in_transaction_timeout_ms,
        tcp_user_timeout_ms=settings.tcp_user_timeout_ms,
        attempts_max=settings.transaction_attempts_max,
        # One connection is for large calls, one for looks, one for lookups, the rest are for what
        # is read without being joined.
        reads_max=max(1, settings.pool_max_size - settings.batches_in_flight - 3),
    )


def _batches(settings: Settings) -> MicroBatcherSettings:
    return MicroBatcherSettings(
        batch_max_size=settings.batch_max_size,
        batches_in_flight=settings.batches_in_flight,
        batch_max_wait_ms=settings.batch_max_wait_ms,
        queue_max_size=settings.queue_max_size,
    )


def _handler_settings(settings: Settings) -> RpcHandlerSettings:
    return RpcHandlerSettings(
        default_deadline_ms=settings.default_deadline_ms,
        request_max_bytes=settings.request_max_bytes,
        import_request_max_bytes=settings.import_request_max_bytes,
        stream_idle_ms=settings.stream_idle_ms,
        calls_max=settings.calls_max,
    )


def _limiter(settings: Settings, windows: Windows, metrics: Metrics) -> RateLimiter | None:
    """None where nobody has a limit, so that nobody pays for it."""
    limits = CallerLimits(
        end_users=settings.rate_limit_end_users,
        services=settings.rate_limit_services,
        peers=settings.rate_limit_peers,
        loopback="rate_limit_peers" in settings.model_fields_set,
    )
    if settings.auth == "none" and not settings.peers_limited:
        return None
    return RateLimiter(limits, windows, metrics)


def _guesses(settings: Settings, windows: Windows, metrics: Metrics) -> GuessGuard:
    limits = CallerLimits(
        end_users=settings.guess_limit_end_users,
        services=settings.guess_limit_services,
        peers=settings.guess_limit_peers,
        loopback="guess_limit_peers" in settings.model_fields_set,
    )
    return GuessGuard(limits, windows, metrics, structlog.get_logger("coupon_service.guesses"))


def _lock_limits(settings: Settings) -> LockLimits:
    return LockLimits(
        ttl_default_ms=settings.lock_ttl_default_ms,
        ttl_max_ms=settings.lock_ttl_max_ms,
        grace_ms=settings.lock_grace_ms,
        extensions_max=settings.lock_extensions_max,
        locks_per_user_max=settings.locks_per_user_max,
    )


def _token_secrets(settings: Settings) -> list[bytes]:
    secrets = (settings.lock_token_secret, settings.lock_token_secret_previous)
    return [secret.get_secret_value().encode() for secret in secrets if secret is not None]
