"""Checkout streams, through real gRPC, with servicers that only do what a test needs."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from support.handler_server import (
    CALLS_MAX,
    DEADLINE_MS,
    LONG_MS,
    MAX_BYTES,
    STREAMS,
    Running,
    failed,
    info_of,
    running,
    until,
)

from coupon_service.batching import BatchingSettings
from coupon_service.errors import CodeLocked, DatabaseUnavailable, Unauthenticated
from coupon_service.rpc.context import KeyAwaitedError, RequestContext, current
from coupon_service.rpc.convert.checkout import METHODS
from coupon_service.v1 import redemption_service_pb2 as pb
from coupon_service.v1.error_reason_pb2 import ErrorReason

OPERATIONS = STREAMS.operations_max
STREAM = "/coupon_service.v1.RedemptionService/Checkout"
UNREAD_MS = 1_000
"""How long results may lie unread, where a client is to be left for that."""


async def answer(request: Any, context: Any) -> pb.RedeemCodeResponse:
    current().call(request.request_id)
    return pb.RedeemCodeResponse(redemption=pb.Redemption(code=request.code))


def redeem(tag: int, code: str = "", **fields: Any) -> pb.CheckoutOperation:
    """An operation that redeems a code."""
    request = pb.RedeemCodeRequest(code=code or f"C{tag}", request_id=f"r{tag}")
    return pb.CheckoutOperation(tag=tag, redeem_code=request, **fields)


class Client:
    """One stream, and its results in the order in which they came."""

    def __init__(self, run: Running, **call: Any) -> None:
        self.call: Any = run.redemptions.Checkout(**call)

    async def send(self, *operations: pb.CheckoutOperation) -> None:
        """Send a message with these operations."""
        await self.call.write(pb.CheckoutRequest(operations=operations))

    async def response(self) -> pb.CheckoutResponse:
        """The next message. Fails at the end of the stream."""
        response = await asyncio.wait_for(self.call.read(), 60)
        assert response is not grpc.aio.EOF, await self.call.code()
        return response

    async def results(self, count: int) -> dict[int, pb.CheckoutResult]:
        """So many results by their tags."""
        found: list[pb.CheckoutResult] = []
        while len(found) < count:
            found += (await self.response()).results
        assert len(found) == count
        return {it.tag: it for it in found}

    async def result(self, operation: pb.CheckoutOperation) -> pb.CheckoutResult:
        """Send an operation, and wait for its result."""
        await self.send(operation)
        return (await self.results(1))[operation.tag]

    async def end(self) -> grpc.StatusCode:
        """Half-close, and read to the end."""
        await self.call.done_writing()
        while await self.call.read() is not grpc.aio.EOF:
            pass
        return await self.call.code()


def reason_of(result: pb.CheckoutResult) -> str:
    """Why there is no response."""
    return ErrorReason.Name(result.error.error.reason).removeprefix("ERROR_REASON_")


class Held:
    """A servicer whose calls wait until they are released, by their code or all of them."""

    def __init__(self) -> None:
        self.began: list[str] = []
        self.finished: list[str] = []
        self._all = asyncio.Event()
        self._codes: dict[str, asyncio.Event] = {}

    async def __call__(self, request: Any, context: Any) -> pb.RedeemCodeResponse:
        self.began.append(request.code)
        own = self._codes.setdefault(request.code, asyncio.Event())
        waits = [asyncio.ensure_future(it.wait()) for it in (own, self._all)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        self.finished.append(request.code)
        return await answer(request, context)

    def release(self, *codes: str) -> None:
        for code in codes:
            self._codes.setdefault(code, asyncio.Event()).set()
        if not codes:
            self._all.set()


@asynccontextmanager
async def holding(
    deadline_ms: int = LONG_MS, **settings: Any
) -> AsyncGenerator[tuple[Running, Held]]:
    """A server whose operations wait, for half an hour if need be."""
    held = Held()

    async def behavior(request: Any, context: Any) -> pb.RedeemCodeResponse:
        return await held(request, context)

    streams = replace(STREAMS, **settings)
    async with running(behavior, streams=streams, deadline_ms=deadline_ms) as run:
        yield run, held
        held.release()


LONG = Duration(seconds=1_800)


# --- operations and results ---------------------------------------------------------------------


@pytest.mark.parametrize("field", METHODS)
async def test_every_kind_of_operation_is_answered_by_its_method(field: str) -> None:
    async def behavior(request: Any, context: Any) -> Any:
        name = type(request).__name__.removesuffix("Request")
        return getattr(pb, f"{name}Response")()

    async with running(behavior) as run:
        client = Client(run)
        kind = pb.CheckoutOperation.DESCRIPTOR.fields_by_name[field].message_type
        assert kind is not None
        request = getattr(pb, kind.name)()
        result = await client.result(pb.CheckoutOperation(tag=7, **{field: request}))
        assert result.WhichOneof("result") == field
        assert await client.end() is grpc.StatusCode.OK
        await until(lambda: len(run.counted) == 2)
        assert run.counted == [
            (f"stream {METHODS[field]}", "OK", ""),
            ("RedemptionService/Checkout", "OK", ""),
        ]


def test_every_request_of_the_contract_has_its_method_and_its_response() -> None:
    requests = pb.CheckoutOperation.DESCRIPTOR.oneofs_by_name["request"].fields
    responses = pb.CheckoutResult.DESCRIPTOR.fields_by_name
    assert list(METHODS) == [it.name for it in requests]
    for it in requests:
        method = METHODS[it.name].partition("/")[2]
        response = responses[it.name]
        assert it.message_type is not None
        assert response.message_type is not None
        assert it.message_type.name == f"{method}Request"
        assert response.message_type.name == f"{method}Response"
        assert response.number == it.number


async def test_results_come_as_they_are_ready() -> None:
    async with holding() as (run, held):
        client = Client(run)
        await client.send(redeem(1, timeout=LONG), redeem(2, timeout=LONG))
        held.release("C2")
        assert list(await client.results(1)) == [2]
        held.release("C1")
        assert list(await client.results(1)) == [1]


async def test_what_is_ready_at_the_same_time_comes_in_one_message() -> None:
    async with holding() as (run, held):
        client = Client(run)
        await client.send(*(redeem(tag, timeout=LONG) for tag in range(1, 6)))
        await until(lambda: len(held.began) == 5)
        held.release()
        assert {it.tag for it in (await client.response()).results} == {1, 2, 3, 4, 5}


async def test_operations_of_one_message_run_at_the_same_time_and_keep_their_callers_apart() -> (
    None
):
    async def behavior(request: Any, context: Any) -> pb.RedeemCodeResponse:
        current().call(request.request_id)
        await asyncio.sleep(0.05)
        return pb.RedeemCodeResponse(redemption=pb.Redemption(code=current().request_id))

    async with running(behavior) as run:
        client = Client(run)
        await client.send(*(redeem(tag) for tag in range(1, OPERATIONS + 1)))
        results = await client.results(OPERATIONS)
    assert all(it.redeem_code.redemption.code == f"r{tag}" for tag, it in results.items())


async def test_the_log_has_a_line_for_each_operation_and_one_for_the_stream() -> None:
    async with running(answer) as run:
        client = Client(run)
        await client.result(redeem(1))
        await client.end()
        await until(lambda: len(run.lines) == 2)
        operation, stream = run.lines
    assert operation["method"] == "RedemptionService/RedeemCode"
    assert operation["request_id"] == "r1"
    assert operation["peer"] == stream["peer"]
    assert stream["method"] == "RedemptionService/Checkout"
    assert operation["stream"] == stream["request_id"] != ""
    assert "stream" not in stream


async def test_an_error_is_the_operations_alone() -> None:
    async def behavior(request: Any, context: Any) -> Any:
        if request.code == "C1":
            raise CodeLocked(retry_after_ms=5_000)
        return await answer(request, context)

    async with running(behavior) as run:
        client = Client(run)
        await client.send(redeem(1), redeem(2))
        results = await client.results(2)
        assert results[2].redeem_code.redemption.code == "C2"
    error = results[1].error
    assert error.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]
    assert reason_of(results[1]) == "CODE_LOCKED"
    assert error.error.metadata == {"retry_after_ms": "5000"}
    assert error.retry_delay == Duration(seconds=5)


async def test_a_fault_tells_the_client_an_id_and_the_log_the_cause() -> None:
    async def behavior(request: Any, context: Any) -> Any:
        raise KeyError("secret")

    async with running(behavior) as run:
        result = await Client(run).result(redeem(1))
        line = await run.line()
    assert reason_of(result) == "INTERNAL"
    assert "secret" not in str(result)
    assert line["error_id"] == result.error.error.metadata["error_id"] != ""
    assert isinstance(line["exc_info"], KeyError)


async def test_the_cause_of_an_outage_is_in_the_log() -> None:
    async def behavior(request: Any, context: Any) -> Any:
        raise DatabaseUnavailable from OSError("no route")

    async with running(behavior) as run:
        result = await Client(run).result(redeem(1))
        line = await run.line()
    assert result.error.code == grpc.StatusCode.UNAVAILABLE.value[0]
    assert line["cause"] == "OSError('no route')"
    assert run.counted == [
        ("stream RedemptionService/RedeemCode", "UNAVAILABLE", "DATABASE_UNAVAILABLE")
    ]


@pytest.mark.parametrize("wrong", ["no message", pb.LockCodeResponse()])
async def test_an_answer_that_cannot_be_sent_is_a_fault(wrong: Any) -> None:
    async def behavior(request: Any, context: Any) -> Any:
        return wrong

    async with running(behavior) as run:
        assert reason_of(await Client(run).result(redeem(1))) == "INTERNAL"


async def test_something_cancelled_inside_is_a_fault_and_not_silence() -> None:
    async def behavior(request: Any, context: Any) -> Any:
        raise asyncio.CancelledError

    async with running(behavior) as run:
        assert reason_of(await Client(run).result(redeem(1))) == "INTERNAL"


# --- what is bad --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "field"),
    [
        (redeem(0), "tag"),
        (pb.CheckoutOperation(tag=1), "request"),
        (redeem(1, timeout=Duration()), "timeout"),
        (redeem(1, timeout=Duration(seconds=-1)), "timeout"),
        (redeem(1, timeout=Duration(seconds=86_401)), "timeout"),
    ],
    ids=["no tag", "no request", "no time", "negative", "long"],
)
async def test_a_bad_operation_is_its_own_answer(
    operation: pb.CheckoutOperation, field: str
) -> None:
    async with running(answer) as run:
        client = Client(run)
        result = await client.result(operation)
        assert reason_of(result) == "INVALID_ARGUMENT"
        assert [it.field for it in result.error.field_violations] == [field]
        assert (await client.result(redeem(2))).HasField("redeem_code")


async def test_a_tag_that_is_in_flight_is_refused_and_the_first_goes_on() -> None:
    async with holding() as (run, held):
        client = Client(run)
        await client.send(redeem(1, "A", timeout=LONG))
        again = await client.result(redeem(1, "B"))
        assert [it.field for it in again.error.field_violations] == ["tag"]
        assert held.began == ["A"]
        held.release("A")
        first = (await client.results(1))[1]
        assert first.redeem_code.redemption.code == "A"
        held.release("C")
        assert (await client.result(redeem(1, "C"))).HasField("redeem_code")


@pytest.mark.parametrize(
    "raw",
    [
        b"\xff\xff\xff",
        pb.CheckoutRequest().SerializeToString(),
        pb.CheckoutRequest(operations=[redeem(1)] * 1_001).SerializeToString(),
        pb.CheckoutRequest(
            operations=[redeem(tag, "x" * 2 * MAX_BYTES) for tag in range(1, 6)]
        ).SerializeToString(),
    ],
    ids=["no message", "nothing", "too many", "too large"],
)
async def test_a_message_that_is_bad_as_a_whole_is_its_own_answer(raw: bytes) -> None:
    async def behavior(request: Any, context: Any) -> Any:
        assert request.code == "good", "carried out"
        return await answer(request, context)

    async with running(behavior, streams=replace(STREAMS, message_max_bytes=20_000)) as run:
        channel: Any = run.channel
        call = channel.stream_stream(STREAM, None, pb.CheckoutResponse.FromString)()
        await call.write(raw)
        (result,) = (await call.read()).results
        assert (result.tag, reason_of(result)) == (0, "INVALID_ARGUMENT")
        await call.write(pb.CheckoutRequest(operations=[redeem(3, "good")]).SerializeToString())
        (result,) = (await call.read()).results
        assert result.HasField("redeem_code")


async def test_an_operation_may_be_as_large_as_a_call_and_a_message_larger() -> None:
    def sized(tag: int, size: int) -> pb.CheckoutOperation:
        request = pb.RedeemCodeRequest(user_id="x" * (size - 3))
        request.user_id = "x" * (2 * size - 3 - request.ByteSize())
        assert request.ByteSize() == size
        return pb.CheckoutOperation(tag=tag, redeem_code=request)

    async with running(answer) as run:
        client = Client(run)
        await client.send(sized(1, MAX_BYTES), sized(2, MAX_BYTES + 1), redeem(3))
        results = await client.results(3)
    assert results[1].HasField("redeem_code")
    assert results[3].HasField("redeem_code")
    (violation,) = results[2].error.field_violations
    assert violation.description == "expected a message of at most 2000 bytes, not 2001"


# --- deadlines ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "operation", [redeem(1), redeem(1, timeout=Duration(nanos=200_000_000))], ids=["server", "own"]
)
async def test_an_operation_ends_at_its_deadline_or_the_servers(
    operation: pb.CheckoutOperation,
) -> None:
    async with holding(deadline_ms=DEADLINE_MS) as (run, _):
        result = await Client(run).result(operation)
    assert result.error.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
    assert reason_of(result) == "DEADLINE_EXCEEDED"


async def test_a_longer_deadline_of_the_operation_is_respected() -> None:
    async def slow(request: Any, context: Any) -> pb.RedeemCodeResponse:
        await asyncio.sleep(2 * DEADLINE_MS / 1000)
        return pb.RedeemCodeResponse()

    async with running(slow, deadline_ms=DEADLINE_MS) as run:
        assert (await Client(run).result(redeem(1, timeout=LONG))).HasField("redeem_code")


async def test_the_deadline_of_the_stream_ends_it_and_is_known_to_its_operations() -> None:
    deadlines: list[float | None] = []

    async def behavior(request: Any, context: Any) -> pb.RedeemCodeResponse:
        deadlines.append(current().deadline)
        return pb.RedeemCodeResponse()

    async with running(behavior) as run:
        await run.channel.channel_ready()
        client = Client(run, timeout=2)
        for tag in (1, 2):
            await client.result(redeem(tag, timeout=LONG))
        code, _, _ = await failed(client.call.read())
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert deadlines[0] == deadlines[1] is not None


# --- who asks -----------------------------------------------------------------------------------


async def test_a_token_has_to_be_valid_when_an_operation_begins() -> None:
    valid = True

    def authenticate(method: str, rpc: RequestContext) -> None:
        if not valid:
            raise Unauthenticated
        rpc.caller = dict(rpc.metadata)["authorization"]  # type: ignore[assignment]

    async with running(answer, authenticate) as run:
        client = Client(run, metadata=(("authorization", "ann"),))
        assert (await client.result(redeem(1))).HasField("redeem_code")
        valid = False
        assert reason_of(await client.result(redeem(2))) == "UNAUTHENTICATED"
        valid = True
        assert (await client.result(redeem(3))).HasField("redeem_code")
        await until(lambda: len(run.lines) >= 3)
        assert [(it["caller"], it["status"]) for it in run.lines] == [
            ("ann", "OK"),
            ("anonymous", "UNAUTHENTICATED"),
            ("ann", "OK"),
        ]


async def test_an_operation_waits_for_the_key_of_its_token() -> None:
    fetched = asyncio.Event()
    opened = False

    async def keys_fetched() -> None:
        await asyncio.sleep(0.05)
        fetched.set()

    def authenticate(method: str, rpc: RequestContext) -> None:
        nonlocal opened
        if opened and not fetched.is_set():
            raise KeyAwaitedError("later", keys_fetched)
        opened = True
        rpc.caller = "ann"

    async with running(answer, authenticate) as run:
        client = Client(run)
        assert (await client.result(redeem(1))).HasField("redeem_code")
        assert fetched.is_set()


async def test_the_work_knows_peer_and_user_agent_of_the_stream() -> None:
    async def behavior(request: Any, context: Any) -> pb.RedeemCodeResponse:
        call = current().call("r")
        return pb.RedeemCodeResponse(
            redemption=pb.Redemption(code=call.peer, user_id=call.user_agent)
        )

    async with running(behavior) as run:
        redemption = (await Client(run).result(redeem(1))).redeem_code.redemption
    assert redemption.code.startswith("ipv4:127.0.0.1:")
    assert redemption.user_id.startswith("grpc-python-asyncio/")


async def test_each_operation_needs_the_roles_of_its_method() -> None:
    asked: list[str] = []

    def authenticate(method: str, rpc: RequestContext) -> None:
        asked.append(method)

    async with running(answer, authenticate) as run:
        client = Client(run)
        await client.result(redeem(1))
        await client.result(pb.CheckoutOperation(tag=2, unlock_code=pb.UnlockCodeRequest()))
    assert asked == [
        "RedemptionService/Checkout",
        "RedemptionService/RedeemCode",
        "RedemptionService/UnlockCode",
    ]


async def test_a_stream_without_a_valid_token_is_refused() -> None:
    def authenticate(method: str, rpc: RequestContext) -> None:
        raise Unauthenticated

    async with running(answer, authenticate) as run:
        code, _, status = await failed(Client(run).call.read())
    assert code is grpc.StatusCode.UNAUTHENTICATED
    assert info_of(status).reason == "UNAUTHENTICATED"


# --- bounds -------------------------------------------------------------------------------------


async def test_a_stream_is_read_no_more_while_enough_operations_are_in_flight() -> None:
    async with holding() as (run, held):
        client = Client(run)
        for tag in range(1, OPERATIONS + 6):
            await client.send(redeem(tag, timeout=LONG))
        await until(lambda: len(held.began) == OPERATIONS)
        await asyncio.sleep(0.1)
        assert len(held.began) == OPERATIONS
        held.release("C1", "C2")
        await until(lambda: len(held.began) == OPERATIONS + 2)
        held.release()
        assert len(await client.results(OPERATIONS + 5)) == OPERATIONS + 5


async def test_a_message_of_many_operations_is_begun_as_there_is_room() -> None:
    async with holding() as (run, held):
        client = Client(run)
        await client.send(*(redeem(tag, timeout=LONG) for tag in range(1, 3 * OPERATIONS)))
        await until(lambda: len(held.began) == OPERATIONS)
        await asyncio.sleep(0.1)
        assert len(held.began) == OPERATIONS
        held.release()
        assert len(await client.results(3 * OPERATIONS - 1)) == 3 * OPERATIONS - 1


async def test_a_client_that_does_not_read_gets_no_more_done_and_is_left() -> None:
    began = 0

    async def behavior(request: Any, context: Any) -> pb.RedeemCodeResponse:
        nonlocal began
        began += 1
        return pb.RedeemCodeResponse(redemption=pb.Redemption(code="x" * 100_000))

    async with running(behavior, streams=replace(STREAMS, idle_ms=UNREAD_MS)) as run:
        client, other = Client(run), Client(run)

        async def flood() -> None:
            for tag in range(1, 10_000):
                await client.send(redeem(tag))

        flooding = asyncio.ensure_future(flood())
        await until(lambda: began > OPERATIONS)
        async with asyncio.timeout(30):
            before = 0
            while began != before:
                before = began
                await asyncio.sleep(0.3)
        assert (await other.result(redeem(1))).HasField("redeem_code")
        await until(lambda: any(it["reason"] == "DEADLINE_EXCEEDED" for it in run.lines))
        flooding.cancel()
        client.call.cancel()


async def test_bad_operations_are_bounded_as_others_are() -> None:
    def authenticate(method: str, rpc: RequestContext) -> None:
        if method != "RedemptionService/Checkout":
            raise Unauthenticated("x" * 500)

    async with running(answer, authenticate, streams=replace(STREAMS, idle_ms=UNREAD_MS)) as run:
        client = Client(run)

        async def flood() -> None:
            while True:
                await client.send(*[redeem(7)] * 20)

        flooding = asyncio.ensure_future(flood())
        await until(lambda: any(it["reason"] == "DEADLINE_EXCEEDED" for it in run.lines))
        flooding.cancel()
        client.call.cancel()


async def test_operations_count_as_calls_and_idle_streams_do_not() -> None:
    async with holding(operations_max=1_000) as (run, _):
        idle = [Client(run) for _ in range(3)]
        client = Client(run)
        for it in (*idle, client):
            await it.call.wait_for_connection()
        await until(lambda: run.streams.open == 4)
        assert run.handler.open_calls == 0
        await client.send(*(redeem(tag, timeout=LONG) for tag in range(1, CALLS_MAX + 1)))
        await until(lambda: run.handler.open_calls == CALLS_MAX)
        result = await client.result(redeem(CALLS_MAX + 1))
        assert reason_of(result) == "OVERLOADED"
        assert result.error.HasField("retry_delay")
        assert run.counted == [
            ("stream RedemptionService/RedeemCode", "RESOURCE_EXHAUSTED", "OVERLOADED")
        ]
        for it in idle:
            assert await it.end() is grpc.StatusCode.OK


async def test_more_streams_than_a_connection_may_have_are_refused() -> None:
    async with running(answer) as run:
        clients = [Client(run) for _ in range(STREAMS.streams_of_connection_max)]
        for client in clients:
            await client.result(redeem(1))
        code, text, status = await failed(Client(run).call.read())
        assert (code, text) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "The connection has too many streams.",
        )
        assert info_of(status).reason == "OVERLOADED"
        await clients[0].end()
        await Client(run).result(redeem(1))


async def test_more_streams_than_the_service_may_have_are_refused() -> None:
    async with running(answer, streams=replace(STREAMS, streams_max=2)) as run:
        clients = [Client(run) for _ in range(2)]
        for client in clients:
            await client.result(redeem(1))
        code, text, _ = await failed(Client(run).call.read())
        assert (code, text) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "The service has too many streams.",
        )


async def test_an_idle_stream_stays() -> None:
    streams = replace(STREAMS, idle_ms=DEADLINE_MS)
    async with running(answer, streams=streams, deadline_ms=DEADLINE_MS) as run:
        client = Client(run)
        await client.result(redeem(1))
        await asyncio.sleep(2 * DEADLINE_MS / 1000)
        assert (await client.result(redeem(2))).HasField("redeem_code")


# --- ends ---------------------------------------------------------------------------------------


async def test_a_client_that_half_closes_gets_what_is_still_open() -> None:
    async with holding() as (run, held):
        client = Client(run)
        await client.send(redeem(1, timeout=LONG))
        await client.call.done_writing()
        await until(lambda: held.began == ["C1"])
        held.release()
        assert list(await client.results(1)) == [1]
        assert await client.call.read() is grpc.aio.EOF
        assert await client.call.code() is grpc.StatusCode.OK


async def test_a_cut_stream_loses_answers_and_no_effects() -> None:
    async with holding() as (run, held):
        client = Client(run)
        await client.send(redeem(1, timeout=LONG), redeem(2, timeout=LONG))
        await until(lambda: len(held.began) == 2)
        client.call.cancel()
        await until(lambda: any(it["status"] == "CANCELLED" for it in run.lines))
        assert held.finished == []
        draining = asyncio.ensure_future(run.handler.operations.drain())
        await asyncio.sleep(0.1)
        assert not draining.done()
        held.release()
        await asyncio.wait_for(draining, 60)
    assert sorted(held.finished) == ["C1", "C2"]


async def test_an_idle_stream_that_its_client_leaves_is_cancelled() -> None:
    async with running(answer) as run:
        client = Client(run)
        await client.result(redeem(1))
        client.call.cancel()
        await until(lambda: len(run.lines) == 2)
        assert run.lines[1]["status"] == "CANCELLED"
        await until(lambda: run.streams.open == 0)


async def test_a_stream_that_the_service_ends_is_read_no_more_and_answered() -> None:
    async with holding() as (run, held):
        client, idle = Client(run), Client(run)
        await idle.call.wait_for_connection()
        await client.send(redeem(1, timeout=LONG))
        await until(lambda: held.began == ["C1"])
        run.streams.end(spread_s=0)
        code, _, status = await failed(idle.call.read())
        assert code is grpc.StatusCode.UNAVAILABLE
        assert info_of(status).reason == "STREAM_ENDED"
        await client.send(redeem(2, timeout=LONG))
        await asyncio.sleep(0.1)
        held.release()
        assert list(await client.results(1)) == [1]
        code, _, status = await failed(client.call.read())
        assert code is grpc.StatusCode.UNAVAILABLE
        assert info_of(status).reason == "STREAM_ENDED"
        assert held.began == ["C1"]
        _, _, status = await failed(Client(run).call.read())
        assert info_of(status).reason == "STREAM_ENDED"


async def test_a_full_stream_that_the_service_ends_is_answered_as_far_as_it_was_begun() -> None:
    async with holding() as (run, held):
        client = Client(run)
        await client.send(*(redeem(tag, timeout=LONG) for tag in range(1, 2 * OPERATIONS)))
        await until(lambda: len(held.began) == OPERATIONS)
        run.streams.end(spread_s=0)
        await asyncio.sleep(0.1)
        held.release()
        assert set(await client.results(OPERATIONS)) == set(range(1, OPERATIONS + 1))
        _, _, status = await failed(client.call.read())
        assert info_of(status).reason == "STREAM_ENDED"
        assert len(held.began) == OPERATIONS


async def test_a_stream_ends_before_its_greatest_age() -> None:
    async with running(answer, streams=replace(STREAMS, age_max_ms=500)) as run:
        loop = asyncio.get_running_loop()
        ended_s: list[float] = []

        async def serve() -> None:
            started_s = loop.time()
            client = Client(run)
            await client.result(redeem(1))
            _, _, status = await failed(client.call.read())
            assert info_of(status).reason == "STREAM_ENDED"
            ended_s.append(loop.time() - started_s)

        await asyncio.gather(*(serve() for _ in range(4)))
    assert 0.2 < min(ended_s) < max(ended_s)


async def test_each_stream_ends_at_a_time_of_its_own_within_the_spread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running(answer) as run:
        clients = [Client(run) for _ in range(5)]
        for client in clients:
            await client.result(redeem(1))
        parts = itertools.cycle([0.0, 1.0, 0.0, 1.0, 1.0])
        monkeypatch.setattr(random, "uniform", lambda _least, _most: next(parts))  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
        run.streams.end(spread_s=LONG_MS / 1_000)
        await until(lambda: run.streams.open == 3)


async def test_operations_arrive_together_when_there_are_many() -> None:
    batching = BatchingSettings(
        arrival_busy_calls=2,
        arrival_linger_ms=500,
        linger_ms=1_000,
        pipeline_max_wait_ms=1_500,
        batch_max_wait_ms=0,
    )
    began: list[float] = []

    async def behavior(request: Any, context: Any) -> pb.RedeemCodeResponse:
        began.append(asyncio.get_running_loop().time())
        await asyncio.sleep(0.05)
        return await answer(request, context)

    async with running(behavior, batching=batching) as run:
        client = Client(run)
        await client.send(*(redeem(tag) for tag in range(1, 8)))
        await client.results(7)
    assert began[-1] - began[0] > 0.8 * batching.arrival_linger_ms / 1_000
    assert began[-1] - began[-5] < 0.8 * batching.arrival_linger_ms / 1_000
