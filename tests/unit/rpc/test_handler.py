"""What happens to every RPC, through real gRPC, with servicers that only do what a test needs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest
from google.rpc.status_pb2 import Status
from support.handler_server import (
    CALLS_MAX,
    DEADLINE_MS,
    HEALTH_GRPC,
    HEALTH_PB,
    MAX_BYTES,
    Running,
    failed,
    info_of,
    running,
    until,
)

from coupon_service.errors import CodeAlreadyRedeemed, DatabaseUnavailable, Unauthenticated
from coupon_service.rpc.context import RequestContext, current
from coupon_service.rpc.handler import HEADERS_MAX_BYTES
from coupon_service.v1 import coupon_code_service_pb2 as codes
from coupon_service.v1 import redemption_service_pb2 as pb

REDEEM = "/coupon_service.v1.RedemptionService/RedeemCode"


async def answer_ok(request: Any, context: Any) -> pb.RedeemCodeResponse:
    return pb.RedeemCodeResponse(replayed=True)


# --- answers and errors -------------------------------------------------------------------------


async def test_an_answer_passes_and_leaves_one_line_and_one_count() -> None:
    async def behavior(request: pb.RedeemCodeRequest, context: Any) -> pb.RedeemCodeResponse:
        current().call(request.request_id)
        return pb.RedeemCodeResponse(replayed=True)

    async with running(behavior) as run:
        answer = await run.redemptions.RedeemCode(pb.RedeemCodeRequest(request_id="r7"), timeout=60)
        assert answer.replayed
        line = await run.line()
    assert run.counted == [("RedemptionService/RedeemCode", "OK", "")]
    assert line.pop("duration_ms") >= 0
    assert line.pop("peer").startswith("ipv4:127.0.0.1:")
    assert line == {
        "event": "rpc",
        "log_level": "info",
        "method": "RedemptionService/RedeemCode",
        "status": "OK",
        "reason": "",
        "request_id": "r7",
        "caller": "anonymous",
    }


async def test_a_refusal_becomes_its_status_with_details() -> None:
    async def behavior(request: Any, context: Any) -> Any:
        raise CodeAlreadyRedeemed("Once is enough, Zoë.", limit=1)

    async with running(behavior) as run:
        call = run.redemptions.RedeemCode(pb.RedeemCodeRequest(), timeout=60)
        code, text, status = await failed(call)
        line = await run.line()
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert text == status.message == "Once is enough, Zoë."
    assert info_of(status).reason == "CODE_ALREADY_REDEEMED"
    assert info_of(status).metadata == {"limit": "1"}
    assert (line["status"], line["reason"]) == ("FAILED_PRECONDITION", "CODE_ALREADY_REDEEMED")
    assert run.counted[0][1:] == ("FAILED_PRECONDITION", "CODE_ALREADY_REDEEMED")


async def test_a_fault_shows_the_client_an_id_and_the_log_the_cause() -> None:
    async def behavior(request: Any, context: Any) -> Any:
        raise KeyError("secret")

    async with running(behavior) as run:
        call = run.redemptions.RedeemCode(pb.RedeemCodeRequest(), timeout=60)
        code, text, status = await failed(call)
        line = await run.line()
    assert code is grpc.StatusCode.INTERNAL
    assert "secret" not in text + str(status)
    assert line["error_id"] == info_of(status).metadata["error_id"] != ""
    assert line["log_level"] == "error"
    assert isinstance(line["exc_info"], KeyError)


async def test_the_cause_of_an_outage_is_in_the_log() -> None:
    async def behavior(request: Any, context: Any) -> Any:
        raise DatabaseUnavailable from OSError("no route")

    async with running(behavior) as run:
        call = run.redemptions.RedeemCode(pb.RedeemCodeRequest(), timeout=60)
        code, text, _ = await failed(call)
        line = await run.line()
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "no route" not in text
    assert (line["log_level"], line["cause"]) == ("warning", "OSError('no route')")


async def test_an_answer_that_cannot_be_sent_is_a_fault() -> None:
    async def behavior(request: Any, context: Any) -> Any:
        return "no message"

    async with running(behavior) as run:
        code, _, _ = await failed(run.redemptions.RedeemCode(pb.RedeemCodeRequest(), timeout=60))
    assert code is grpc.StatusCode.INTERNAL


async def test_something_cancelled_inside_is_a_fault_and_not_silence() -> None:
    async def behavior(request: Any, context: Any) -> Any:
        raise asyncio.CancelledError

    async with running(behavior) as run:
        code, _, status = await failed(
            run.redemptions.RedeemCode(pb.RedeemCodeRequest(), timeout=60)
        )
    assert code is grpc.StatusCode.INTERNAL
    assert info_of(status).reason == "INTERNAL"


# --- requests that cannot be read ---------------------------------------------------------------


async def send(run: Running, raw: bytes, method: str = REDEEM) -> tuple[grpc.StatusCode, Status]:
    channel: Any = run.channel
    code, _, status = await failed(channel.unary_unary(method)(raw, timeout=60))
    return code, status


@pytest.mark.parametrize(
    "raw",
    [b"\xff\xff\xff", b"\x0a\x05ab", b"\x0a\x01\xff", b"\x0a\x03\xed\xa0\x80"],
    ids=["no message", "cut off", "no UTF-8", "surrogate"],
)
async def test_what_cannot_be_parsed_is_an_invalid_argument(raw: bytes) -> None:
    async with running(answer_ok) as run:
        code, status = await send(run, raw)
        line = await run.line()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert info_of(status).reason == "INVALID_ARGUMENT"
    assert line["reason"] == "INVALID_ARGUMENT"


async def test_a_message_that_is_too_large_is_an_invalid_argument() -> None:
    def request(size: int) -> bytes:
        empty = pb.RedeemCodeRequest(user_id="x" * (size - 3)).SerializeToString()
        return pb.RedeemCodeRequest(user_id="x" * (2 * size - 3 - len(empty))).SerializeToString()

    async with running(answer_ok) as run:
        largest = request(MAX_BYTES)
        assert len(largest) == MAX_BYTES
        await run.channel.unary_unary(REDEEM)(largest, timeout=60)
        code, status = await send(run, request(MAX_BYTES + 1))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    bad = BadRequest()
    assert status.details[1].Unpack(bad)
    assert "at most 2000 bytes" in bad.field_violations[0].description


async def test_an_unknown_method_is_unimplemented() -> None:
    async with running(answer_ok) as run:
        code, _ = await send(run, b"", "/coupon_service.v1.RedemptionService/Steal")
    assert code is grpc.StatusCode.UNIMPLEMENTED


# --- deadlines and cancellations ----------------------------------------------------------------


async def forever(request: Any, context: Any) -> Any:
    await asyncio.Event().wait()


async def test_a_call_without_a_deadline_gets_the_servers() -> None:
    async with running(forever, deadline_ms=DEADLINE_MS) as run:
        code, _, status = await failed(run.redemptions.RedeemCode(pb.RedeemCodeRequest()))
        line = await run.line()
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert info_of(status).reason == "DEADLINE_EXCEEDED"
    assert (line["status"], line["reason"]) == ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED")


async def test_a_call_with_a_deadline_ends_on_the_server_too() -> None:
    async with running(forever) as run:
        await run.channel.channel_ready()
        call = run.redemptions.RedeemCode(pb.RedeemCodeRequest(), timeout=0.5)
        code, _, _ = await failed(call)
        line = await run.line()
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert (line["status"], line["reason"]) == ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED")


@pytest.mark.parametrize(("timeout_s", "longest_s"), [(None, 7.0), (9.0, 9.0)])
async def test_the_work_knows_its_deadline(timeout_s: float | None, longest_s: float) -> None:
    left_s: list[float] = []

    async def behavior(request: Any, context: Any) -> pb.RedeemCodeResponse:
        deadline = current().call("r").deadline
        assert deadline is not None
        left_s.append(deadline - perf_counter())
        return pb.RedeemCodeResponse()

    async with running(behavior, deadline_ms=7_000) as run:
        await run.redemptions.RedeemCode(pb.RedeemCodeRequest(), timeout=timeout_s)
    assert 0 < left_s[0] <= longest_s * 1.01  # gRPC sends a timeout with three digits, rounded up


async def test_a_longer_deadline_of_the_client_is_respected() -> None:
    async def slow(request: Any, context: Any) -> pb.RedeemCodeResponse:
        await asyncio.sleep(2 * DEADLINE_MS / 1000)
        return pb.RedeemCodeResponse()

    async with running(slow, deadline_ms=DEADLINE_MS) as run:
        await run.redemptions.RedeemCode(pb.RedeemCodeRequest(), timeout=60)


async def test_a_timeout_of_something_else_is_not_the_deadline() -> None:
    async def behavior(request: Any, context: Any) -> Any:
        raise TimeoutError

    async with running(behavior) as run:
        code, _, _ = await failed(run.redemptions.RedeemCode(pb.RedeemCodeRequest()))
    assert code is grpc.StatusCode.INTERNAL


async def test_a_client_that_cancels_stops_the_wait_and_not_the_work() -> None:
    began, finish, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        began.set()
        await finish.wait()
        done.set()

    async def behavior(request: Any, context: Any) -> Any:
        await asyncio.shield(asyncio.ensure_future(work()))

    async with running(behavior) as run:
        call = run.redemptions.RedeemCode(pb.RedeemCodeRequest(), timeout=60)
        waiting = asyncio.ensure_future(call.wait_for_connection())
        await began.wait()
        waiting.cancel()
        call.cancel()
        line = await run.line()
        assert not done.is_set()
        finish.set()
        await asyncio.wait_for(done.wait(), 60)
    assert (line["status"], line["reason"]) == ("CANCELLED", "")


# --- streams ------------------------------------------------------------------------------------


async def test_a_stream_of_answers_passes() -> None:
    async def behavior(request: codes.ExportCodesRequest, context: Any) -> Any:
        for number in range(3):
            yield codes.ExportCodesResponse(next_page_token=f"{request.book_id}{number}")

    async with running(behavior) as run:
        stream = run.codes.ExportCodes(codes.ExportCodesRequest(book_id="b"))
        assert [answer.next_page_token async for answer in stream] == ["b0", "b1", "b2"]
        line = await run.line()
    assert (line["method"], line["status"]) == ("CouponCodeService/ExportCodes", "OK")


async def test_a_stream_that_fails_delivers_what_came_before() -> None:
    closed = asyncio.Event()

    async def behavior(request: Any, context: Any) -> Any:
        try:
            yield codes.ExportCodesResponse(next_page_token="first")
            raise CodeAlreadyRedeemed
        finally:
            closed.set()

    received: list[str] = []

    async def read(run: Running) -> None:
        async for answer in run.codes.ExportCodes(codes.ExportCodesRequest(), timeout=60):
            received.append(answer.next_page_token)  # noqa: PERF401 - before the error

    async with running(behavior) as run:
        code, _, status = await failed(read(run))
    assert received == ["first"]
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert info_of(status).reason == "CODE_ALREADY_REDEEMED"
    assert closed.is_set()


async def test_a_stream_without_a_deadline_may_outlast_the_servers() -> None:
    async def behavior(request: Any, context: Any) -> Any:
        await asyncio.sleep(2 * DEADLINE_MS / 1000)
        yield codes.ExportCodesResponse()

    async with running(behavior, deadline_ms=DEADLINE_MS) as run:
        stream = run.codes.ExportCodes(codes.ExportCodesRequest())
        assert len([answer async for answer in stream]) == 1


async def test_a_stream_that_its_client_leaves_is_closed() -> None:
    closed = asyncio.Event()

    async def behavior(request: Any, context: Any) -> Any:
        try:
            while True:
                yield codes.ExportCodesResponse()
                await asyncio.sleep(0.01)
        finally:
            closed.set()

    async with running(behavior) as run:
        stream = run.codes.ExportCodes(codes.ExportCodesRequest(), timeout=60)
        await anext(aiter(stream))
        stream.cancel()
        await asyncio.wait_for(closed.wait(), 60)
        assert (await run.line())["status"] == "CANCELLED"


async def echo_chunks(requests: AsyncIterator[codes.ImportCodesRequest], context: Any) -> Any:
    async for request in requests:
        yield codes.ImportCodesResponse(chunk_number=request.chunk.chunk_number)


def chunk(number: int, size: int = 1) -> codes.ImportCodesRequest:
    return codes.ImportCodesRequest(
        chunk=codes.ImportChunk(chunk_number=number, codes=["x" * size])
    )


async def test_requests_and_answers_stream_both_ways() -> None:
    async with running(echo_chunks) as run:
        stream = run.codes.ImportCodes(iter([chunk(1), chunk(2, size=2 * MAX_BYTES)]))
        assert [answer.chunk_number async for answer in stream] == [1, 2]


async def test_a_bad_message_ends_a_stream_after_the_good_ones() -> None:
    async def read(run: Running, bad: bytes) -> None:
        channel: Any = run.channel
        call = channel.stream_stream("/coupon_service.v1.CouponCodeService/ImportCodes")
        async for _ in call(iter([chunk(1).SerializeToString(), bad]), timeout=60):
            received.append(1)  # noqa: PERF401 - what came before the error counts

    for bad in (b"\xff", chunk(2, size=11 * MAX_BYTES).SerializeToString()):
        received: list[int] = []
        async with running(echo_chunks) as run:
            code, _, _ = await failed(read(run, bad))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert received == [1]


# --- who asks -----------------------------------------------------------------------------------


async def test_servicers_know_peer_and_user_agent() -> None:
    async def behavior(request: Any, context: Any) -> pb.RedeemCodeResponse:
        call = current().call("r")
        return pb.RedeemCodeResponse(
            redemption=pb.Redemption(code=call.peer, user_id=call.user_agent)
        )

    async with running(behavior) as run:
        answer = await run.redemptions.RedeemCode(pb.RedeemCodeRequest(), timeout=60)
    assert answer.redemption.code.startswith("ipv4:127.0.0.1:")
    assert answer.redemption.user_id.startswith("grpc-python-asyncio/")


@pytest.mark.parametrize(
    ("metadata", "agent"),
    [
        ((), ""),
        ((("user-agent", "a" * 300),), "a" * 256),
        ((("user-agent", "a\0b\nc"),), r"a\x00b\nc"),
    ],
    ids=["none", "long", "controls"],
)
def test_a_user_agent_is_bounded_and_printable(metadata: Any, agent: str) -> None:
    assert RequestContext(metadata).user_agent == agent


async def test_who_is_authenticated_is_the_caller() -> None:
    def authenticate(method: str, rpc: RequestContext) -> None:
        if dict(rpc.metadata).get("authorization") != "Bearer good":
            raise Unauthenticated
        rpc.caller, rpc.business_id = f"{method}!", "acme"

    async def behavior(request: Any, context: Any) -> pb.RedeemCodeResponse:
        call = current().call("r")
        return pb.RedeemCodeResponse(
            redemption=pb.Redemption(code=call.caller, user_id=call.business_id)
        )

    async with running(behavior, authenticate) as run:
        answer = await run.redemptions.RedeemCode(
            pb.RedeemCodeRequest(), timeout=60, metadata=(("authorization", "Bearer good"),)
        )
        code, _, status = await failed(run.redemptions.RedeemCode(pb.RedeemCodeRequest()))
    assert answer.redemption.code == "RedemptionService/RedeemCode!"
    assert answer.redemption.user_id == "acme"
    assert code is grpc.StatusCode.UNAUTHENTICATED
    assert info_of(status).reason == "UNAUTHENTICATED"


async def test_many_calls_at_once_keep_their_callers_apart() -> None:
    async def behavior(request: pb.RedeemCodeRequest, context: Any) -> pb.RedeemCodeResponse:
        current().call(request.request_id)
        await asyncio.sleep(0.01)
        return pb.RedeemCodeResponse(redemption=pb.Redemption(code=current().request_id))

    async def ask(run: Running, name: str) -> bool:
        request = pb.RedeemCodeRequest(request_id=name)
        return (await run.redemptions.RedeemCode(request, timeout=60)).redemption.code == name

    async with running(behavior) as run:
        assert all(await asyncio.gather(*(ask(run, str(number)) for number in range(100))))


async def test_health_is_answered_without_a_line() -> None:
    async with running(answer_ok) as run:
        stub = HEALTH_GRPC.HealthStub(run.channel)
        answer = await stub.Check(HEALTH_PB.HealthCheckRequest(), timeout=60)
        assert answer.status == HEALTH_PB.HealthCheckResponse.SERVING
        assert run.log.entries == []
        assert run.counted == []


# --- bounds -------------------------------------------------------------------------------------


async def test_a_stream_whose_client_sends_nothing_ends() -> None:
    async def behavior(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for _ in requests:
            yield codes.ImportCodesResponse(chunk_number=7)

    async def requests() -> AsyncIterator[codes.ImportCodesRequest]:
        yield codes.ImportCodesRequest()
        await asyncio.sleep(60)

    async with running(behavior, deadline_ms=1_000) as run:
        await run.channel.channel_ready()
        call = run.codes.ImportCodes(requests())
        assert (await call.read()).chunk_number == 7  # type: ignore[union-attr]
        code, text, status = await failed(call.read())
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "No message came" in text
    assert info_of(status).reason == "DEADLINE_EXCEEDED"


async def test_more_calls_than_may_be_open_are_refused_at_once_and_counted() -> None:
    held = asyncio.Event()

    async def behavior(request: Any, context: Any) -> pb.RedeemCodeResponse:
        await held.wait()
        return pb.RedeemCodeResponse()

    async with running(behavior) as run:
        calls = [
            asyncio.ensure_future(run.redemptions.RedeemCode(pb.RedeemCodeRequest(), timeout=30))
            for _ in range(CALLS_MAX)
        ]
        await until(lambda: run.handler.open_calls == CALLS_MAX)
        for call in (
            run.redemptions.RedeemCode(pb.RedeemCodeRequest(), timeout=30),
            run.redemptions.LockCode(pb.LockCodeRequest(), timeout=30),
        ):
            code, _, status = await failed(call)
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert info_of(status).reason == "OVERLOADED"
        assert run.counted[0] == (
            "RedemptionService/RedeemCode",
            "RESOURCE_EXHAUSTED",
            "OVERLOADED",
        )
        held.set()
        await asyncio.gather(*calls)
        await until(lambda: run.handler.open_calls == 0)
        await run.redemptions.RedeemCode(pb.RedeemCodeRequest(), timeout=30)


async def test_more_metadata_than_gets_past_grpc_is_refused() -> None:
    # gRPC lets a little less than the same number pass, since it counts 32 bytes more an entry.
    async with running(answer_ok) as run:
        small = (("x-small", "a" * (HEADERS_MAX_BYTES // 3)),)
        await run.redemptions.RedeemCode(pb.RedeemCodeRequest(), timeout=60, metadata=small)
        details = CallDetails(REDEEM, (("x-big", "a" * HEADERS_MAX_BYTES),))
        assert run.handler.service(details) is not None
        assert run.counted[-1][1:] == ("INVALID_ARGUMENT", "INVALID_ARGUMENT")


@dataclass
class CallDetails(grpc.HandlerCallDetails):
    """What gRPC gives the handler of a call."""

    method: str
    invocation_metadata: Any
