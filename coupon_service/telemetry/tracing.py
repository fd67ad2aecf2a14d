"""Spans of calls, batches, transactions and Redis pipelines, where tracing is enabled.

The span of a call continues the trace of its `traceparent` (W3C Trace Context). A batch works for
many callers: its span belongs to the trace of the first, links to the spans of all of them, and
they link back. No span names a code, a user or a token.

Only this module needs the packages of the extra `tracing`. It is imported only where
`COUPON_TRACING` is on; other modules take an optional Tracer.
"""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from collections.abc import Awaitable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Final, TypeVar

from opentelemetry import context, trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from coupon_service import __version__

T = TypeVar("T")

PARENT_KEYS: Final = ("traceparent", "tracestate")

SERVER_ERRORS: Final = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)
"""Statuses that are errors of the server, by OpenTelemetry's semantic conventions for RPC."""

FLUSH_S: Final = 2.0
"""How long a worker that stops waits for its last spans to be exported."""


class Tracer:
    """Creates the spans of one worker."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("coupon_service", __version__)
        self._propagator = TraceContextTextMapPropagator()
        # The message of an exception may name a code or a user.
        self._span = functools.partial(
            self._tracer.start_as_current_span,
            record_exception=False,
            set_status_on_exception=False,
        )

    def call_started(self, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> Span:
        """Start the span of a call to `Service/Method`, current in the caller's context."""
        carrier = {key: value for key, value in metadata if key in PARENT_KEYS}
        span = self._tracer.start_span(
            f"coupon_service.v1.{method}",
            self._propagator.extract(carrier, context.Context()),
            SpanKind.SERVER,
            {"rpc.system.name": "grpc", "rpc.method": f"coupon_service.v1.{method}"},
        )
        context.attach(trace.set_span_in_context(span))
        return span

    def call_finished(self, span: Span, status: str, reason: str) -> str:
        """End the span of a call; returns its trace id in hexadecimal."""
        span.set_attribute("rpc.response.status_code", status)
        if status != "OK":
            span.set_attribute("error.type", reason or status)
            if status in SERVER_ERRORS:
                span.set_status(StatusCode.ERROR, reason)
        span.end()
        return trace.format_trace_id(span.get_span_context().trace_id)

    def caller(self) -> Span:
        """The current span."""
        return trace.get_current_span()

    @contextmanager
    def batch(self, kind: str, commands: int, callers: Sequence[Span]) -> Generator[None]:
        """A span around the work for these callers, if any of them is traced."""
        traced = list({id(span): span for span in callers if span.is_recording()}.values())
        # The current span here is that of whichever call happened to start this batch.
        token = context.attach(
            trace.set_span_in_context(traced[0]) if traced else context.Context()
        )
        try:
            if not traced:
                yield
                return
            links = [Link(span.get_span_context()) for span in traced]
            sizes = {"coupon.batch.commands": commands, "coupon.batch.callers": len(callers)}
            with self._span(f"batch {kind}", attributes=sizes, links=links) as span:
                for other in traced[1:]:
                    other.add_link(span.get_span_context())
                yield
        finally:
            context.detach(token)

    async def around(self, name: str, system: str, work: Awaitable[T]) -> T:
        """Await `work`, in a child span when the current span is traced.

        `system`: the database, by its `db.system.name` in OpenTelemetry.
        """
        if not trace.get_current_span().is_recording():
            return await work
        attributes = {"db.system.name": system}
        with self._span(name, kind=SpanKind.CLIENT, attributes=attributes) as span:
            try:
                return await work
            except Exception as error:
                span.set_attribute("error.type", type(error).__name__)
                span.set_status(StatusCode.ERROR)
                raise

    async def close(self) -> None:
        """Export the remaining spans, within FLUSH_S."""
        # Exit does not join a daemon thread: a collector that is away does not delay it.
        flush = threading.Thread(target=self._provider.shutdown, daemon=True)
        flush.start()
        await asyncio.to_thread(flush.join, FLUSH_S)


def otlp_tracer() -> Tracer:
    """A tracer that exports to an OTLP collector by gRPC, configured by the OTEL_* variables."""
    name = os.environ.get("OTEL_SERVICE_NAME", "coupon-service")
    provider = TracerProvider(
        resource=Resource.create({SERVICE_NAME: name}), shutdown_on_exit=False
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracer(provider)
