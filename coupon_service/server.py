"""The one place where the parts are put together, started and stopped in order."""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, cast

import grpc
import grpc.aio
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry

from coupon_service.checkout import Checkout
from coupon_service.coalesce import Changes, Coalescer, CoalescerSettings
from coupon_service.guessing import Guesses
from coupon_service.leases import Leases
from coupon_service.locking import Locks, LockTimes, LockTokens
from coupon_service.metrics import Metrics
from coupon_service.ratelimit import CallerLimits, RateLimiter, Windows
from coupon_service.rpc.assignments import AssignmentServicer
from coupon_service.rpc.audit import AuditServicer
from coupon_service.rpc.books import CouponBookServicer
from coupon_service.rpc.codes import CouponCodeServicer
from coupon_service.rpc.edge import HEADERS_MAX_BYTES, Edge, EdgeSettings
from coupon_service.rpc.redemptions import RedemptionServicer
from coupon_service.settings import Settings
from coupon_service.store.books import Books
from coupon_service.store.chunks import CodeChunks
from coupon_service.store.db import Database, DatabaseSettings
from coupon_service.store.execute import Executor
from coupon_service.store.lookups import Lookups
from coupon_service.store.migrations import schema_is_current
from coupon_service.store.reads import Reads
from coupon_service.sweeper import Sweeper
from coupon_service.v1 import (
    assignment_service_pb2_grpc,
    audit_service_pb2_grpc,
    coupon_book_service_pb2_grpc,
    coupon_code_service_pb2_grpc,
    redemption_service_pb2_grpc,
)

if TYPE_CHECKING:
    from coupon_service.rpc.access import Access

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

READINESS_INTERVAL_S: Final = 1.0
"""Time between two looks at PostgreSQL and its schema."""

HTTP2_OPTIONS: Final = (
    ("grpc.so_reuseport", 1),
    ("grpc.max_concurrent_streams", 2_000),
    # Above a softer limit gRPC would refuse some calls by chance.
    ("grpc.max_metadata_size", HEADERS_MAX_BYTES),
    ("grpc.absolute_max_metadata_size", HEADERS_MAX_BYTES),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    # Until it has confirmed our settings, which takes a round trip, a client may ignore them.
    ("grpc.http2.settings_timeout", 5_000),
    ("grpc.server_handshake_timeout_ms", 10_000),
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
        readiness_changed: Callable[[bool], None] = lambda _: None,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._now = now
        self._readiness_changed = readiness_changed
        self._log = structlog.get_logger("coupon_service.server")
        self._background: set[asyncio.Task[Any]] = set()
        self.port = 0
        self.serving = False
        self.failed = asyncio.Event()
        """Set when gRPC closes its port without being told to."""

    async def start(self) -> None:
        """Connects, listens, and answers as soon as PostgreSQL does. Raises ServerError."""
        settings = self._settings
        if settings.database_url is None or settings.redis_url is None:
            raise ServerError("COUPON_DATABASE_URL and COUPON_REDIS_URL have to be set.")
        if settings.lock_token_secret is None:
            raise ServerError("COUPON_LOCK_TOKEN_SECRET has to be set.")
        metrics = Metrics(self._registry)
        database_url = settings.database_url.get_secret_value()
        self._database = Database(_database_settings(database_url, settings), metrics)
        redis_url = settings.redis_url.get_secret_value()
        self._leases = Leases(
            redis_url,
            timeout_ms=settings.redis_timeout_ms,
            grace_ms=settings.lock_grace_ms,
            locks_per_user_max=settings.locks_per_user_max,
        )
        executor = Executor(self._database, self._now)
        batches = CoalescerSettings(
            batch_max_size=settings.batch_max_size,
            batches_in_flight=settings.batches_in_flight,
            batch_max_wait_ms=settings.batch_max_wait_ms,
            queue_max_size=settings.queue_max_size,
        )
        one = replace(batches, batches_in_flight=1)
        self._coalescer = Changes(
            Coalescer(executor.execute, batches, metrics),
            Coalescer(executor.execute, one, metrics, "bulk"),
        )
        looks = Coalescer(executor.look, one, metrics, "looks")
        lookups = Coalescer(Lookups(self._database).execute, one, metrics, "lookups")
        reads = Reads(self._database, lookups.submit)
        books = Books(self._database, self._now)
        tokens = LockTokens(_token_secrets(settings))
        locks = Locks(
            looks,
            self._coalescer,
            reads,
            self._leases,
            tokens,
            LockTimes(
                ttl_default_ms=settings.lock_ttl_default_ms,
                ttl_max_ms=settings.lock_ttl_max_ms,
                grace_ms=settings.lock_grace_ms,
                extensions_max=settings.lock_extensions_max,
                locks_per_user_max=settings.locks_per_user_max,
            ),
            self._now,
        )
        checkout = Checkout(
            looks,
            self._coalescer,
            self._leases,
            tokens,
            settings.default_deadline_ms + settings.statement_timeout_ms,
            self._now,
        )
        self._sweeper = Sweeper(
            self._database,
            self._coalescer,
            reads,
            self._leases,
            self._now,
            settings.sweep_interval_ms,
        )
        self._metrics = metrics
        # types-grpcio does not know the asyncio half of grpc_health.
        self._health: Any = cast("Any", health).aio.HealthServicer()
        self._windows = Windows(redis_url, settings.redis_timeout_ms)
        edge = Edge(
            _edge_settings(settings),
            structlog.get_logger("coupon_service.rpc"),
            metrics,
            self._authentication() if settings.auth == "jwt" else None,
            limiter=_limiter(settings, self._windows, metrics),
            guesses=_guesses(settings, self._windows, metrics),
        )
        self._add_servicers(edge, books, reads, locks, checkout)
        await self._database.open()
        await self._listen(edge)
        await self._set_serving(False)
        self._spawn(self._watch_port())
        self._spawn(self._watch_readiness())
        self._spawn(self._sweeper.run())

    def _authentication(self) -> Access:
        """What tells callers by their tokens. Raises ServerError."""
        # They take a tenth of a second to import, which only who needs them waits for.
        from coupon_service.auth import KeysError, tokens_of  # noqa: PLC0415
        from coupon_service.rpc.access import Access  # noqa: PLC0415

        try:
            tokens = tokens_of(self._settings)
        except KeysError as error:
            raise ServerError(str(error)) from error
        self._spawn(tokens.watch())
        return Access(tokens)

    def _add_servicers(
        self, edge: Edge, books: Books, reads: Reads, locks: Locks, checkout: Checkout
    ) -> None:
        now = self._now
        chunks = CodeChunks(self._database, now)
        edge.add(
            coupon_book_service_pb2_grpc.add_CouponBookServiceServicer_to_server,
            CouponBookServicer(books, now),
        )
        edge.add(
            coupon_code_service_pb2_grpc.add_CouponCodeServiceServicer_to_server,
            CouponCodeServicer(books, reads, chunks, self._coalescer, locks, now),
        )
        edge.add(
            assignment_service_pb2_grpc.add_AssignmentServiceServicer_to_server,
            AssignmentServicer(self._coalescer, reads, locks, now),
        )
        edge.add(
            redemption_service_pb2_grpc.add_RedemptionServiceServicer_to_server,
            RedemptionServicer(checkout, locks, reads),
        )
        edge.add(
            audit_service_pb2_grpc.add_AuditServiceServicer_to_server,
            AuditServicer(reads),
        )
        register_health: Any = cast("Any", health_pb2_grpc).add_HealthServicer_to_server
        edge.add(register_health, self._health)

    async def _listen(self, edge: Edge) -> None:
        settings = self._settings
        max_bytes = max(settings.request_max_bytes, settings.import_request_max_bytes)
        self._grpc = grpc.aio.server(
            options=(
                *HTTP2_OPTIONS,
                # The edge refuses what is too large for a method, and says so; this only protects.
                ("grpc.max_receive_message_length", max_bytes + 65_536),
                ("grpc.max_allowed_incoming_connections", settings.connections_max),
                # Calls that the edge has not seen yet. gRPC's own bound of 1,000 cancels by chance
                # what a burst brings, and a client does not repeat what was cancelled.
                ("grpc.server.max_pending_requests", settings.calls_max),
                ("grpc.server.max_pending_requests_hard_limit", settings.calls_max),
            )
        )
        self._grpc.add_generic_rpc_handlers((edge,))
        if settings.reflection:
            names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._grpc)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        try:
            self.port = self._grpc.add_insecure_port(f"{host}:{settings.port}")
        except RuntimeError as error:
            await self._close()
            raise ServerError(
                f"The server cannot listen on {settings.host} port {settings.port}:"
                " is the port in use? COUPON_HOST and COUPON_PORT say where it listens."
            ) from error
        await self._grpc.start()

    async def stop(self) -> None:
        """Tells everybody, waits for load balancers, finishes what is in flight, and closes."""
        settings = self._settings
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._set_serving(False)
        await self._health.enter_graceful_shutdown()
        await asyncio.sleep(settings.drain_grace_ms / 1000)
        await self._grpc.stop(settings.shutdown_timeout_ms / 1000)
        await self._coalescer.drain()
        await self._close()

    async def _close(self) -> None:
        await self._windows.close()
        await self._leases.close()
        await self._database.close()

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)

    async def _watch_port(self) -> None:
        """gRPC closes its port at some requests, such as one whose path is not UTF-8.

        Its wait_for_termination does not return then (grpcio 1.85).
        """
        listening: Any = cast("Any", self._grpc)._server  # noqa: SLF001 - nothing public tells
        while listening.is_running():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(READINESS_INTERVAL_S)
        self._log.error("gRPC has closed its port")
        self.failed.set()

    async def _watch_readiness(self) -> None:
        """SERVING while PostgreSQL answers with a schema that is new enough."""
        while True:
            ready = await self._is_ready()
            if ready != self.serving:
                self._log.info("ready" if ready else "not ready")
                await self._set_serving(ready)
            stats = self._database.pool.get_stats()
            self._metrics.pool_sampled(
                "postgresql",
                stats.get("pool_size", 0),
                stats.get("pool_available", 0),
                stats.get("requests_waiting", 0),
            )
            await asyncio.sleep(READINESS_INTERVAL_S if ready else READINESS_INTERVAL_S / 10)

    async def _set_serving(self, serving: bool) -> None:
        self.serving = serving
        self._readiness_changed(serving)
        status = health_pb2.HealthCheckResponse
        for service in ("", *SERVICES):
            await self._health.set(service, status.SERVING if serving else status.NOT_SERVING)

    async def _is_ready(self) -> bool:
        try:
            return await self._database.read_at_once("readiness", schema_is_current)
        except Exception as error:  # noqa: BLE001 - whatever it is, we are not ready
            self._log.debug("not ready", cause=repr(error))
            return False


async def work(
    settings: Settings, readiness_changed: Callable[[bool], None], orphaned: int | None
) -> None:
    """Runs one of several workers until SIGTERM, or until the supervisor is gone.

    `orphaned`: a descriptor that becomes readable then. The supervisor serves the metrics.
    """
    stopped = _stop_signals(signal.SIGTERM)
    if orphaned is not None:
        asyncio.get_running_loop().add_reader(orphaned, stopped.set)
    server = Server(settings, CollectorRegistry(), readiness_changed=readiness_changed)
    await server.start()
    try:
        await _until_stopped(server, stopped)
    finally:
        if orphaned is not None:
            asyncio.get_running_loop().remove_reader(orphaned)


async def _until_stopped(server: Server, stopped: asyncio.Event) -> None:
    """Stops the server when it is told to, or when it failed. Raises ServerError then."""
    # What has been made so far stays; an RPC leaves little that only the collector can free.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    waits = [asyncio.ensure_future(event.wait()) for event in (stopped, server.failed)]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    await server.stop()
    if server.failed.is_set():
        raise ServerError("gRPC has closed its port.")


def _stop_signals(*numbers: signal.Signals) -> asyncio.Event:
    stopped = asyncio.Event()
    for number in numbers:
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    return stopped


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


def _edge_settings(settings: Settings) -> EdgeSettings:
    return EdgeSettings(
        default_deadline_ms=settings.default_deadline_ms,
        request_max_bytes=settings.request_max_bytes,
        request_max_bytes_of={
            "ImportCodes": settings.import_request_max_bytes,
            "BatchRedeemCodes": settings.import_request_max_bytes,
            "BatchAssignRandomCodes": settings.import_request_max_bytes,
        },
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


def _guesses(settings: Settings, windows: Windows, metrics: Metrics) -> Guesses:
    limits = CallerLimits(
        end_users=settings.guess_limit_end_users,
        services=settings.guess_limit_services,
        peers=settings.guess_limit_peers,
        loopback="guess_limit_peers" in settings.model_fields_set,
    )
    return Guesses(limits, windows, metrics, structlog.get_logger("coupon_service.guesses"))


def _token_secrets(settings: Settings) -> list[bytes]:
    secrets = (settings.lock_token_secret, settings.lock_token_secret_previous)
    return [secret.get_secret_value().encode() for secret in secrets if secret is not None]
