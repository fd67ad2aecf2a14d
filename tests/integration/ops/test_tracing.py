"""Traces: what a collector is told of calls, batches, transactions and Redis."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as collector
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from support.idle import settle
from support.secret_scan import Log
from support.service import Api, ServerThread, all_at_once, new_codes, refused, settings_for
from support.waiting import until

from coupon_service.embedded.machine import free_port
from coupon_service.server import Server
from coupon_service.settings import SettingsError, load_settings
from coupon_service.telemetry.tracing import FLUSH_S, Tracer
from coupon_service.v1 import redemption_service_pb2 as pb
from coupon_service.v1.coupon_book_service_pb2 import LOCK_POLICY_OPTIONAL

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"

NewDatabase = Callable[[], AbstractContextManager[str]]


class Traced:
    """A server whose spans are kept here, and a client of it."""

    def __init__(self, server: ServerThread, api: Api, exporter: InMemorySpanExporter) -> None:
        self.api = api
        self.server = server
        self._exporter = exporter

    def spans(self, name: str = "") -> list[ReadableSpan]:
        """Those that have ended, with this in their name, in the order in which they ended."""
        return [it for it in self._exporter.get_finished_spans() if name in it.name]

    def redeem(self, code: str, user_id: str, parent: str, **fields: Any) -> None:
        """Uses a code, as part of the trace of the caller."""
        request = self.api.redeem_request(code, user_id, **fields)
        self.api.redemptions.RedeemCode(request, metadata=(("traceparent", parent),))

    def have_batches(self, *calls: ReadableSpan) -> bool:
        """Whether each of the calls was carried out by a batch whose span has ended."""
        batches = self.spans("batch")
        return set(map(ids, calls)) <= {it for batch in batches for it in linked(batch)}

    def forget(self) -> None:
        """Starts anew, once all spans have ended."""
        settle(self.server)
        self._exporter.clear()


@pytest.fixture(scope="module")
def traced(new_database: NewDatabase, redis_server_url: str) -> Iterator[Traced]:
    """A server of its own with an exporter in memory."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with new_database() as url:
        thread = ServerThread(settings_for(url, redis_server_url))
        thread.server = Server(thread.settings, thread.registry, tracer=Tracer(provider))
        with thread, closing(Api(thread.address)) as api:
            yield Traced(thread, api, exporter)


def parent_of(sampled: bool) -> str:
    """A traceparent header."""
    return f"00-{TRACE}-{CALLER}-{'01' if sampled else '00'}"


def ids(span: ReadableSpan) -> tuple[int, int]:
    """Which trace, and which span of it."""
    assert span.context is not None
    return span.context.trace_id, span.context.span_id


def linked(span: ReadableSpan) -> set[tuple[int, int]]:
    """The spans that it has links to."""
    return {(it.context.trace_id, it.context.span_id) for it in span.links}


def test_a_call_goes_on_with_the_trace_of_its_caller_down_to_the_transaction(
    traced: Traced, service_log: Log
) -> None:
    code = traced.api.code()
    traced.forget()
    traced.redeem(code, "ann", parent_of(sampled=True))
    until(lambda: traced.spans("batch changes"))
    (call,) = traced.spans("coupon_service.v1.RedemptionService/RedeemCode")
    assert ids(call)[0] == int(TRACE, 16)
    assert call.parent is not None
    assert call.parent.span_id == int(CALLER, 16)
    assert dict(call.attributes or {}) == {
        "rpc.system.name": "grpc",
        "rpc.method": "coupon_service.v1.RedemptionService/RedeemCode",
        "rpc.response.status_code": "OK",
    }
    (batch,) = traced.spans("batch changes")
    assert batch.parent is not None
    assert (batch.parent.trace_id, batch.parent.span_id) == ids(call)
    assert linked(batch) == {ids(call)}
    (transaction,) = traced.spans("transaction commands")
    assert transaction.parent is not None
    assert (transaction.parent.trace_id, transaction.parent.span_id) == ids(batch)
    until(lambda: f'"trace_id":"{TRACE}"' in service_log.take())


def test_an_operation_of_a_stream_goes_on_with_its_own_trace(traced: Traced) -> None:
    code = traced.api.code()
    traced.forget()
    request = traced.api.redeem_request(code, "ann")
    operation = pb.CheckoutOperation(
        tag=1, traceparent=parent_of(sampled=True), redeem_code=request
    )
    list(traced.api.redemptions.Checkout(iter([pb.CheckoutRequest(operations=[operation])])))
    settle(traced.server)
    (call,) = traced.spans("RedemptionService/RedeemCode")
    assert ids(call)[0] == int(TRACE, 16)
    assert call.parent is not None
    assert call.parent.span_id == int(CALLER, 16)
    (stream,) = traced.spans("RedemptionService/Checkout")
    assert ids(stream)[0] != int(TRACE, 16)
    (batch,) = traced.spans("batch changes")
    assert linked(batch) == {ids(call)}


def test_a_batch_and_its_callers_have_links_to_each_other(traced: Traced) -> None:
    count = 40
    codes = new_codes(count)
    traced.api.book(codes=codes)
    traced.forget()
    all_at_once([lambda code=code: traced.api.redeem(code, "ann") for code in codes])
    calls = {ids(it): it for it in traced.spans("RedeemCode")}
    assert len(calls) == count
    assert len({trace for trace, _ in calls}) == count, "each call is a trace of its own"

    def all_are_linked() -> bool:
        return {it for batch in traced.spans("batch changes") for it in linked(batch)} == set(calls)

    until(all_are_linked)
    batches = traced.spans("batch changes")
    assert len(batches) < count, "some were joined"
    for batch in batches:
        assert batch.parent is not None
        first = (batch.parent.trace_id, batch.parent.span_id)
        assert first in linked(batch)
        for caller in linked(batch) - {first}:
            assert ids(batch) in linked(calls[caller])


def test_a_lock_shows_its_time_in_redis(traced: Traced) -> None:
    code = traced.api.code(lock_policy=LOCK_POLICY_OPTIONAL)
    traced.forget()
    traced.api.lock(code, "ann")
    (call,) = traced.spans("LockCode")
    redis = [it for it in traced.spans("redis") if ids(it)[0] == ids(call)[0]]
    assert redis
    assert all((it.attributes or {})["db.system.name"] == "redis" for it in redis)


def test_a_refusal_is_no_error_of_the_server_and_an_unreachable_redis_is(
    traced: Traced, new_database: NewDatabase
) -> None:
    code = traced.api.code()
    traced.api.redeem(code, "ann")
    traced.forget()
    with refused("CODE_ALREADY_REDEEMED"):
        traced.api.redeem(code, "bob")
    (call,) = traced.spans("RedeemCode")
    assert call.status.status_code is StatusCode.UNSET
    assert (call.attributes or {})["error.type"] == "CODE_ALREADY_REDEEMED"

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with new_database() as url:
        thread = ServerThread(settings_for(url, f"redis://127.0.0.1:{free_port()}/0"))
        thread.server = Server(thread.settings, thread.registry, tracer=Tracer(provider))
        with thread, closing(Api(thread.address)) as api:
            code = api.code(lock_policy=LOCK_POLICY_OPTIONAL)
            with refused("LOCKS_UNAVAILABLE"):
                api.lock(code, "ann")
    failed = [
        it for it in exporter.get_finished_spans() if it.status.status_code is StatusCode.ERROR
    ]
    assert {it.name.rpartition("/")[2] for it in failed} == {"redis", "LockCode"}


def test_a_caller_who_is_not_sampled_costs_no_span_but_has_the_id_in_the_log(
    traced: Traced, service_log: Log
) -> None:
    code = traced.api.code()
    traced.forget()
    traced.redeem(code, "ann", parent_of(sampled=False))
    until(lambda: f'"trace_id":"{TRACE}"' in service_log.take())
    settle(traced.server)
    assert traced.spans() == []


def test_a_malformed_traceparent_starts_a_trace(traced: Traced) -> None:
    code = traced.api.code()
    traced.forget()
    traced.redeem(code, "ann", "00-nonsense")
    (call,) = traced.spans("RedeemCode")
    assert call.parent is None


def test_no_span_names_a_code_a_user_or_a_token(traced: Traced) -> None:
    code = traced.api.code(lock_policy=LOCK_POLICY_OPTIONAL)
    traced.forget()
    token = traced.api.lock(code, "secretive-user").lock_token
    traced.api.redeem(code, "secretive-user", lock_token=token, order_id="secret-order")
    with refused("CODE_ALREADY_REDEEMED"):
        traced.api.redeem(code, "secretive-user")
    calls = [*traced.spans("LockCode"), *traced.spans("RedeemCode")]
    assert len(calls) == 3
    until(lambda: traced.have_batches(*calls))
    output = "".join(it.to_json() for it in traced.spans())
    assert "RedeemCode" in output
    for secret in (code, "secretive-user", token, "secret-order"):
        assert secret not in output


async def test_what_an_error_says_is_not_in_its_span() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = Tracer(provider)

    async def work() -> None:
        raise ValueError("Key (code)=(SECRET-1) already exists")

    with provider.get_tracer("").start_as_current_span("call"):
        with pytest.raises(ValueError, match="SECRET-1"):
            await tracer.around("transaction", "postgresql", work())
    span, _ = exporter.get_finished_spans()
    assert (span.attributes or {})["error.type"] == "ValueError"
    assert span.status.status_code is StatusCode.ERROR
    assert "SECRET-1" not in span.to_json()


def test_who_has_not_switched_it_on_does_not_need_it() -> None:
    script = (
        "import sys\n"
        "sys.modules['opentelemetry'] = None\n"
        "import coupon_service.cli.application, coupon_service.server\n"
        "sys.exit('coupon_service.telemetry.tracing' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize("missing", ["opentelemetry.exporter.otlp.proto.grpc", "opentelemetry"])
def test_its_packages_are_asked_for_when_they_are_missing(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setenv("COUPON_TRACING", "true")
    assert load_settings(None).tracing
    for name in [it for it in sys.modules if it.startswith(missing)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SettingsError, match=r"^COUPON_TRACING: needs pip install .*\[tracing\]'$"):
        load_settings(None)


@contextmanager
def listening() -> Generator[tuple[str, list[Any]]]:
    """A collector, and the spans that it was sent."""
    spans: list[Any] = []

    def export(request: Any, _: object) -> Any:
        spans.extend(
            (resource.resource, span)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        )
        return collector.ExportTraceServiceResponse()

    server = grpc.server(ThreadPoolExecutor(2))
    handler = grpc.unary_unary_rpc_method_handler(
        export,
        collector.ExportTraceServiceRequest.FromString,
        collector.ExportTraceServiceResponse.SerializeToString,
    )
    service = "opentelemetry.proto.collector.trace.v1.TraceService"
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {"Export": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"http://127.0.0.1:{port}", spans
    server.stop(None).wait()


def test_a_collector_gets_every_span_by_the_time_that_the_service_has_stopped(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening() as (endpoint, spans):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
        settings = settings_for(database_url, redis_url, tracing=True)
        with ServerThread(settings) as server, closing(Api(server.address)) as api:
            api.redeem(api.code(), "ann")
    names = [span.name for _, span in spans]
    assert names.count("coupon_service.v1.RedemptionService/RedeemCode") == 1
    assert "transaction commands" in names
    described = {it.key: it.value.string_value for it in spans[0][0].attributes}
    assert described["service.name"] == "coupon-service"
    assert described["deployment.environment.name"] == "test"


def test_a_collector_that_is_away_holds_up_neither_calls_nor_the_end(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    settings = settings_for(database_url, redis_url, tracing=True)
    with ServerThread(settings) as server, closing(Api(server.address)) as api:
        api.redeem(api.code(), "ann")
        started = time.monotonic()
    assert time.monotonic() - started < FLUSH_S + 10
