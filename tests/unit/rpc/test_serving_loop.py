"""Calls beside requests that end gRPC's serving loop, and requests that may look as if they did."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from hpack import Decoder
from support import http2_frames as frames
from support.handler_server import until

from coupon_service.rpc import serving_loop
from coupon_service.rpc.serving_loop import ServingLoop

SLOW_S = 0.2


class Handler(grpc.GenericRpcHandler):
    """Answers calls of `/Slow` after a while, and any other at once, with their paths."""

    def __init__(self) -> None:
        self.slow_begun = asyncio.Event()

    def service(  # pyright: ignore[reportUnknownParameterType]
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any]:
        path: str = handler_call_details.method

        async def answer(request: bytes, context: Any) -> bytes:
            if path == "/Slow":
                self.slow_begun.set()
                await asyncio.sleep(SLOW_S)
            return path.encode()

        return grpc.unary_unary_rpc_method_handler(answer)


@dataclass
class Running:
    port: int
    loop: ServingLoop
    channel: grpc.aio.Channel
    handler: Handler

    async def call(self, path: str = "/Service/Method") -> bytes:
        """The answer to a call."""
        channel: Any = self.channel
        return await channel.unary_unary(path)(b"", timeout=60)

    async def statuses(self, *calls: bytes) -> dict[int, str]:
        """The grpc-status of each of the calls, which are sent on a connection of their own."""
        return await asyncio.to_thread(statuses, self.port, calls)


@asynccontextmanager
async def running() -> AsyncGenerator[Running]:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    handler = Handler()
    loop = ServingLoop(server, handler)
    await loop.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            yield Running(port, loop, channel, handler)
        finally:
            await loop.stop(0)


def statuses(port: int, calls: Sequence[bytes], silence_s: float = 30) -> dict[int, str]:
    found: dict[int, str] = {}
    decoder = Decoder()
    with frames.connect(port) as connection:
        frames.confirm_settings(connection)
        connection.sendall(b"".join(calls))
        for kind, stream, payload in frames.answers(connection, silence_s):
            if kind == frames.HEADERS:
                fields: dict[Any, Any] = dict(decoder.decode(payload, raw=True))
                if status := fields.get(b"grpc-status"):
                    found[stream] = status.decode()
                    if len(found) == len(calls):
                        break
    return found


def call(stream: int, path: str | bytes = "/Service/Method") -> bytes:
    return frames.opening(stream, path) + frames.message(stream)


CANCELLED = "1"

BAD_PATHS = (b"/\xff", b"/\xc0\xaf", b"/\xed\xa0\x80", b"/\xe2\x82", b"\xff" * 4_000)


@pytest.mark.parametrize("path", BAD_PATHS, ids=lambda it: repr(it[:5]))
async def test_a_path_that_is_not_utf8_is_cancelled_and_disturbs_no_other_call(path: bytes) -> None:
    async with running() as run:
        assert await run.call() == b"/Service/Method"
        for _ in range(3):
            found = await run.statuses(call(1, "/Slow"), call(3, path), call(5), call(7, "/Slow"))
            assert found == {1: "0", 3: CANCELLED, 5: "0", 7: "0"}
            assert await run.call() == b"/Service/Method"
        assert not run.loop.failed.is_set()


@pytest.mark.parametrize("bad_paths", [0, 1, 3])
async def test_calls_under_way_have_time_to_finish_when_it_stops(bad_paths: int) -> None:
    async with running() as run:
        for _ in range(bad_paths):
            await run.statuses(call(1, b"/\xff"))
        slow = asyncio.ensure_future(run.call("/Slow"))
        await run.handler.slow_begun.wait()
        started = time.perf_counter()
        await run.loop.stop(60)
        assert time.perf_counter() - started < 30
        assert await slow == b"/Slow"
        with pytest.raises(grpc.aio.AioRpcError):
            await run.call()
        assert not run.loop.failed.is_set()


async def test_thousands_of_them_leave_nothing() -> None:
    async with running() as run:
        await run.statuses(call(1, b"/\xff"))
        await run.call()
        await asyncio.sleep(SLOW_S)
        tasks, open_files = len(asyncio.all_tasks()), descriptors()

        def attack() -> None:
            with frames.connect(run.port) as connection:
                frames.confirm_settings(connection)
                for number in range(1_000):
                    connection.sendall(call(2 * number + 1, b"/\xff"))
                for _ in frames.answers(connection, 0.2):
                    pass

        await asyncio.to_thread(attack)
        assert await run.call() == b"/Service/Method"
        await until(lambda: len(asyncio.all_tasks()) <= tasks and descriptors() <= open_files)
        gc.collect()
        successors = [it for it in gc.get_objects() if type(it).__name__ == "_Successor"]
        assert len(successors) == 1


def descriptors() -> int:
    """How many this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_it_says_so_when_nobody_serves_the_calls_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Broken(serving_loop._Successor):  # pyright: ignore[reportPrivateUsage]
        async def _request_call(self) -> object:
            raise RuntimeError

    monkeypatch.setattr(serving_loop, "_Successor", Broken)
    async with running() as run:
        await run.statuses(call(1, b"/\xff"))
        await asyncio.wait_for(run.loop.failed.wait(), 60)


ODD: dict[str, dict[str, str | bytes | None]] = {
    "no slash": {":path": "Service/Method"},
    "empty path": {":path": ""},
    "asterisk": {":path": "*"},
    "NUL in path": {":path": b"/a\0b"},
    "control characters in path": {":path": b"/\x01\n"},
    "long path": {":path": "/" + "a" * 15_000},
    "too long path": {":path": "/" + "a" * 70_000},
    "no path": {":path": None},
    "no method": {":method": None},
    "no scheme": {":scheme": None},
    "no authority": {":authority": None},
    "other method": {":method": "GET"},
    "bytes as method": {":method": b"\xff"},
    "bytes as scheme": {":scheme": b"\xff"},
    "bytes as authority": {":authority": b"\xff"},
    "empty authority": {":authority": ""},
    "long authority": {":authority": "a" * 15_000},
    "unknown pseudo-header": {":odd": "x"},
    "no content type": {"content-type": None},
    "bytes as content type": {"content-type": b"\xff"},
    "no te": {"te": None},
    "bytes in metadata": {"x-odd": b"\xff\xfe"},
    "NUL in metadata": {"x-odd": b"a\0b"},
    "bytes as key": {"x-\udcff": "x"},
    "empty key": {"": "x"},
    "capitals in key": {"X-Odd": "x"},
    "no base64": {"x-bin": "!!!!"},
    "no timeout": {"grpc-timeout": "soon"},
    "negative timeout": {"grpc-timeout": "-1S"},
    "endless timeout": {"grpc-timeout": "99999999999H"},
    "no encoding": {"grpc-encoding": b"\xff"},
    "no attempts": {"grpc-previous-rpc-attempts": "x"},
    "bytes as user agent": {"user-agent": b"\xff"},
    "bytes as token": {"authorization": b"Bearer \xff"},
    "bytes as host": {"host": b"\xff"},
    "bytes as trace": {"grpc-trace-bin": "AAAA", "grpc-tags-bin": "AAAA"},
}


@pytest.mark.parametrize("name", ODD)
async def test_no_other_request_ends_the_serving_loop(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(ServingLoop, "_take_over")
    fields = [
        (key.encode("utf-8", "surrogateescape"), value)
        for key, value in {**frames.CALL, **ODD[name]}.items()
        if value is not None
    ]
    async with running() as run:
        request = frames.headers(1, fields) + frames.message(1)
        await asyncio.to_thread(statuses, run.port, [request], 0.1)
        assert await run.call() == b"/Service/Method"
