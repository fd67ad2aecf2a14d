"""A gRPC server with the RPC handler, and servicers with the behaviour that a test gives."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import pytest
import structlog
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from structlog.testing import LogCapture

from coupon_service.batching import BatchingSettings
from coupon_service.ratelimit.code_guessing import GuessGuard
from coupon_service.ratelimit.limiter import RateLimiter
from coupon_service.rpc.checkout_streams import CheckoutStreams, CheckoutStreamSettings
from coupon_service.rpc.context import RequestContext
from coupon_service.rpc.handler import RpcHandler, RpcHandlerSettings
from coupon_service.telemetry.logs import EACH
from coupon_service.v1 import coupon_code_service_pb2_grpc as codes_grpc
from coupon_service.v1 import redemption_service_pb2_grpc as pb_grpc

# These packages have no types.
HEALTH = importlib.import_module("grpc_health.v1.health")
HEALTH_PB = importlib.import_module("grpc_health.v1.health_pb2")
HEALTH_GRPC = importlib.import_module("grpc_health.v1.health_pb2_grpc")
REFLECTION = importlib.import_module("grpc_reflection.v1alpha.reflection")
REFLECTION_GRPC = importlib.import_module("grpc_reflection.v1alpha.reflection_pb2_grpc")

DEADLINE_MS = 300
"""Of tests that let it pass."""
LONG_MS = 60_000
"""Of all others: what they await comes earlier, however busy the machine is."""
MAX_BYTES = 2_000
CALLS_MAX = 200
CONNECTIONS_MAX = 30
STREAMS = CheckoutStreamSettings(
    streams_max=20,
    streams_of_connection_max=5,
    operations_max=10,
    age_max_ms=3_600_000,
    idle_ms=LONG_MS,
    message_max_bytes=10 * MAX_BYTES,
    request_max_bytes=MAX_BYTES,
)


class AnyServicer:
    """Handles each method with the function that the test gives."""

    def __init__(self, behavior: Callable[..., Any]) -> None:
        self._behavior = behavior

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return self._behavior


@dataclass
class Observer:
    """Counts the calls."""

    counted: list[tuple[str, str, str]]
    open_streams: int = 0

    def rpcs_finished(
        self, method: str, status: str, reason: str, seconds: Sequence[float]
    ) -> None:
        assert min(seconds) >= 0
        self.counted += [(method, status, reason)] * len(seconds)

    def operations_finished(
        self, method: str, status: str, reason: str, seconds: Sequence[float]
    ) -> None:
        self.rpcs_finished(f"stream {method}", status, reason, seconds)

    def streams_changed(self, count: int) -> None:
        self.open_streams = count


@dataclass
class Running:
    """A server with the RPC handler, its log and its counts."""

    target: str
    channel: grpc.aio.Channel
    handler: RpcHandler
    log: LogCapture
    counted: list[tuple[str, str, str]]
    streams: CheckoutStreams

    @property
    def redemptions(self) -> pb_grpc.RedemptionServiceAsyncStub:
        return pb_grpc.RedemptionServiceStub(self.channel)

    @property
    def codes(self) -> codes_grpc.CouponCodeServiceAsyncStub:
        return codes_grpc.CouponCodeServiceStub(self.channel)

    async def line(self) -> dict[str, Any]:
        """The only log line. It may be written after the client got its answer."""
        await until(lambda: bool(self.log.entries))
        (line,) = self.lines
        return line

    @property
    def lines(self) -> list[dict[str, Any]]:
        """All log lines."""
        return [
            {key: value for key, value in {**entry, **fields}.items() if key != EACH}
            for entry in self.log.entries
            for fields in entry.get(EACH, ({},))
        ]


@asynccontextmanager
async def running(
    behavior: Callable[..., Any],
    authenticate: Callable[[str, RequestContext], None] | None = None,
    limiter: RateLimiter | None = None,
    guesses: GuessGuard | None = None,
    batching: BatchingSettings | None = None,
    streams: CheckoutStreamSettings = STREAMS,
    deadline_ms: int = LONG_MS,
) -> AsyncGenerator[Running]:
    capture = LogCapture()
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    target = f"127.0.0.1:{port}"
    async with grpc.aio.insecure_channel(target) as channel:
        log = structlog.wrap_logger(None, processors=[capture])
        settings = RpcHandlerSettings(
            default_deadline_ms=deadline_ms,
            request_max_bytes=MAX_BYTES,
            import_request_max_bytes=10 * MAX_BYTES,
            stream_idle_ms=deadline_ms,
            calls_max=CALLS_MAX,
            connections_max=CONNECTIONS_MAX,
            batching=batching or BatchingSettings(),
        )
        counted: list[tuple[str, str, str]] = []
        observer = Observer(counted)
        handler = RpcHandler(settings, log, observer, authenticate, limiter, guesses)
        checkout = CheckoutStreams(handler.operations, streams, observer)
        run = Running(target, channel, handler, capture, counted, checkout)
        servicer: Any = AnyServicer(behavior)

        async def serve(_: object, context: Any) -> None:
            await checkout.serve(context)

        servicer.Checkout = serve
        handler.add(pb_grpc.add_RedemptionServiceServicer_to_server, servicer)
        handler.add(codes_grpc.add_CouponCodeServiceServicer_to_server, servicer)
        handler.add(HEALTH_GRPC.add_HealthServicer_to_server, HEALTH.aio.HealthServicer())
        handler.add(
            REFLECTION_GRPC.add_ServerReflectionServicer_to_server,
            REFLECTION.aio.ReflectionServicer(()),
        )
        server.add_generic_rpc_handlers((handler,))
        await server.start()
        try:
            yield run
        finally:
            checkout.end(spread_s=0)
            await server.stop(0.3 if checkout.open else 0)


async def until(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds; fails after half a minute."""
    for _ in range(3_000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError


async def failed(call: Awaitable[object]) -> tuple[grpc.StatusCode, str, Status]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = caught.value
    metadata = dict(error.trailing_metadata() or ())
    status = Status.FromString(metadata.get("grpc-status-details-bin", b""))  # pyright: ignore[reportArgumentType]
    return error.code(), error.details() or "", status


def info_of(status: Status) -> ErrorInfo:
    info = ErrorInfo()
    assert status.details[0].Unpack(info)
    return info
