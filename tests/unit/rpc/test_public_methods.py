"""Callers without a token, or without a message, keep nobody out."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import closing
from typing import Any

import grpc
import pytest
from support import http2_frames as frames
from support.handler_server import (
    CALLS_MAX,
    CONNECTIONS_MAX,
    HEALTH_PB,
    LONG_MS,
    Running,
    failed,
    info_of,
    running,
    until,
)

from coupon_service.errors import Unauthenticated
from coupon_service.rpc import public_methods
from coupon_service.rpc.context import RequestContext
from coupon_service.rpc.handler import UNREAD_MAX_PART
from coupon_service.rpc.messages import MessageReader
from coupon_service.rpc.public_methods import STREAMS_OF_CONNECTION_MAX
from coupon_service.v1 import redemption_service_pb2 as pb

CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"
LIST = "/grpc.health.v1.Health/List"
REDEEM = "/coupon_service.v1.RedemptionService/RedeemCode"
TALK = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
A_DAY = (("grpc-timeout", "24H"),)

OVERLOADED = grpc.StatusCode.RESOURCE_EXHAUSTED
UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED


async def redeemed(request: Any, context: Any) -> pb.RedeemCodeResponse:
    return pb.RedeemCodeResponse(replayed=True)


def with_a_token(method: str, rpc: RequestContext) -> None:
    """Authenticates by the mere presence of a token."""
    if not rpc.values("authorization"):
        raise Unauthenticated


async def health(run: Running) -> Any:
    channel: Any = run.channel
    check = channel.unary_unary(
        CHECK, response_deserializer=HEALTH_PB.HealthCheckResponse.FromString
    )
    return (await check(b"", timeout=60)).status


async def all_is_well(run: Running) -> bool:
    """Whether health and a call of somebody with a token are answered."""
    answer = await run.redemptions.RedeemCode(
        pb.RedeemCodeRequest(), timeout=60, metadata=(("authorization", "Bearer x"),)
    )
    return answer.replayed and await health(run) == HEALTH_PB.HealthCheckResponse.SERVING


class Connection:
    """A connection that opens streams and leaves them open."""

    def __init__(self, target: str) -> None:
        self._socket = frames.connect(int(target.rpartition(":")[2]))
        frames.confirm_settings(self._socket)
        self._next = 1

    def open(self, path: str, count: int = 1, *, message: bytes | None = None) -> None:
        """Streams, with this message or none yet."""
        opened: list[bytes] = []
        for _ in range(count):
            opened.append(frames.opening(self._next, path, A_DAY))
            if message is not None:
                opened.append(frames.message(self._next, message))
            self._next += 2
        self._socket.sendall(b"".join(opened))

    async def statuses(self, count: int) -> list[str]:
        """The grpc-status of so many streams, as they end."""
        return await asyncio.to_thread(frames.statuses, self._socket, count)

    def close(self) -> None:
        """Ends all of them."""
        self._socket.close()


async def test_streams_of_health_take_no_places_of_calls() -> None:
    async with running(redeemed, with_a_token) as run:
        connections = [Connection(run.target) for _ in range(2)]
        for connection in connections:
            connection.open(WATCH, 2 * CALLS_MAX, message=b"")
        await until(lambda: run.handler.open_streams == 2 * STREAMS_OF_CONNECTION_MAX)
        assert run.handler.open_calls == 0
        assert await all_is_well(run)
        for connection in connections:
            connection.close()
        await until(lambda: run.handler.open_streams == 0)


async def watches(run: Running, count: int) -> list[Any]:
    channel: Any = run.channel
    watch = channel.unary_stream(
        WATCH, response_deserializer=HEALTH_PB.HealthCheckResponse.FromString
    )
    return [watch(b"") for _ in range(count)]


async def test_a_connection_has_a_few_of_them() -> None:
    async with running(redeemed) as run:
        open_ones = await watches(run, STREAMS_OF_CONNECTION_MAX)
        for call in open_ones:
            assert (await call.read()).status == HEALTH_PB.HealthCheckResponse.SERVING
        (one_more,) = await watches(run, 1)
        code, _, status = await failed(one_more.read())
        assert (code, info_of(status).reason) == (OVERLOADED, "OVERLOADED")
        open_ones[0].cancel()
        await until(lambda: run.handler.open_streams == STREAMS_OF_CONNECTION_MAX - 1)
        (again,) = await watches(run, 1)
        assert (await again.read()).status == HEALTH_PB.HealthCheckResponse.SERVING


async def test_beyond_those_of_a_worker_a_client_goes_ahead_without() -> None:
    async with running(redeemed) as run:
        connections = [Connection(run.target) for _ in range(3)]
        for connection in connections:
            connection.open(WATCH, STREAMS_OF_CONNECTION_MAX, message=b"")
        await until(lambda: run.handler.open_streams == CONNECTIONS_MAX)
        (one_more,) = await watches(run, 1)
        code, _, _ = await failed(one_more.read())
        assert code is UNIMPLEMENTED  # which makes a client's own health check an optimist
        assert await all_is_well(run)
        for connection in connections:
            connection.close()


@pytest.mark.parametrize("path", [CHECK, WATCH, TALK])
async def test_public_calls_without_a_message_end(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(public_methods, "STREAM_IDLE_S", 0.2)
    monkeypatch.setattr(public_methods, "MESSAGE_WAIT_S", 0.2)
    async with running(redeemed, with_a_token) as run:
        with closing(Connection(run.target)) as connection:
            connection.open(path, 3)
            assert await all_is_well(run)
            found = await connection.statuses(3)
            assert found == [str(grpc.StatusCode.DEADLINE_EXCEEDED.value[0])] * 3
        assert run.handler.open_streams == 0


@pytest.mark.parametrize("path", [CHECK, WATCH])
async def test_public_messages_are_small(path: str) -> None:
    async with running(redeemed) as run:
        channel: Any = run.channel
        request = HEALTH_PB.HealthCheckRequest(service="x" * 5_000).SerializeToString()
        code, _, _ = await failed(channel.unary_unary(path)(request, timeout=60))
        assert code is grpc.StatusCode.INVALID_ARGUMENT


async def test_what_is_not_implemented_is_quietly_so(caplog: pytest.LogCaptureFixture) -> None:
    async with running(redeemed) as run:
        channel: Any = run.channel
        code, _, _ = await failed(channel.unary_unary(LIST)(b"", timeout=60))
        assert code is UNIMPLEMENTED
    assert caplog.records == []


async def test_who_has_no_token_is_refused_before_there_is_a_message() -> None:
    async with running(redeemed, with_a_token) as run:
        with closing(Connection(run.target)) as connection:
            connection.open(REDEEM, 2 * CALLS_MAX)
            found = await connection.statuses(2 * CALLS_MAX)
            assert found == [str(grpc.StatusCode.UNAUTHENTICATED.value[0])] * 2 * CALLS_MAX
            assert run.handler.open_calls == 0
            assert await all_is_well(run)
        await until(lambda: len(run.lines) == 2 * CALLS_MAX + 1)
        assert {(it["reason"], it["peer"][:5]) for it in run.lines} == {
            ("UNAUTHENTICATED", "ipv4:"),
            ("", "ipv4:"),
        }


async def test_calls_without_a_message_keep_few_places_whatever_their_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running(redeemed, deadline_ms=1_000) as run:
        with closing(Connection(run.target)) as connection:
            connection.open(REDEEM, CALLS_MAX)
            await until(lambda: run.handler.open_calls > CALLS_MAX / 2)
            found = await connection.statuses(CALLS_MAX - CALLS_MAX // UNREAD_MAX_PART)
            assert set(found) == {str(grpc.StatusCode.DEADLINE_EXCEEDED.value[0])}
            await until(lambda: run.handler.open_calls == CALLS_MAX // UNREAD_MAX_PART)
            # From here on messages may come as late as they do on a busy machine.
            monkeypatch.setattr(run.handler, "_messages", MessageReader(LONG_MS / 1_000))
            assert await all_is_well(run)
        await until(lambda: run.handler.open_calls == 0)
        async with asyncio.TaskGroup() as calls:  # as many at a time as before
            for _ in range(CALLS_MAX):
                calls.create_task(all_is_well(run))


async def test_a_call_that_ends_without_a_message_keeps_no_place() -> None:
    async def none() -> AsyncIterator[bytes]:
        return
        yield

    async with running(redeemed) as run:
        channel: Any = run.channel
        for _ in range(CALLS_MAX):
            channel.stream_unary(REDEEM)(none())
        assert await all_is_well(run)
        await until(lambda: run.handler.open_calls == 0)


async def test_who_ends_calls_without_a_message_is_answered_from_the_second_on() -> None:
    async def none() -> AsyncIterator[bytes]:
        return
        yield

    async with running(redeemed) as run:
        channel: Any = run.channel
        unanswered = channel.stream_unary(REDEEM)(none())
        assert await all_is_well(run)
        await until(lambda: run.handler.open_calls == 0)
        for _ in range(CALLS_MAX):
            call = channel.stream_unary(REDEEM)(none())
            assert await asyncio.wait_for(call.code(), 60) is grpc.StatusCode.INVALID_ARGUMENT
        unanswered.cancel()
        assert await all_is_well(run)


def test_frames_are_read_as_they_come() -> None:
    near, far = socket.socketpair()
    with near, far:
        far.sendall(frames.headers(1, [("grpc-status", "7")]))
        assert frames.statuses(near, 1) == ["7"]
