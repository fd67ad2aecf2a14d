"""Checkout streams of an AsyncCouponClient, which carry calls in place of gRPC's own.

Calls that begin in the same turn of the event loop, or while a message is written, share the next
message. A stream that ends, for whatever reason, is replaced when it is needed; until then other
streams carry the calls, or they are made as calls.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import grpc.aio
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import ErrorInfo
from grpc import StatusCode

from coupon_service.client.error_details import (
    detail_of,
    error_of_call,
    error_of_operation,
    status_of,
)
from coupon_service.client.errors import (
    UNKNOWN_OUTCOMES,
    CouponError,
    DeadlineExceeded,
    Problem,
)
from coupon_service.v1 import redemption_service_pb2 as pb

PATH: Final = "/coupon_service.v1.RedemptionService/Checkout"

FIELDS: Final = {
    field.message_type.full_name: field.name
    for field in pb.CheckoutOperation.DESCRIPTOR.oneofs_by_name["request"].fields
    if field.message_type is not None
}
"""The field of an operation for each type of request that a stream carries."""

MESSAGE_MAX_OPERATIONS: Final = 128
MESSAGE_MAX_BYTES: Final = 262_144
"""Of all but the last operation of a message, and of each operation."""

SHORT_LIFE_S: Final = 1.0
PAUSE_S: Final = 0.5
"""When a stream had a short life, its successor is not opened at once."""

CLOSE_S: Final = 5.0
"""How long the results of a stream that is closed are waited for."""

FAREWELL_S: Final = 0.5
"""How long it may take to end a stream that has all results."""

Metadata = tuple[tuple[str, str], ...]


def field_of(request: Message) -> str | None:
    """The field of an operation that carries the request. None: it has to be a call.

    That is also for one so large that it would end the stream, with the operations of others in it.
    """
    field = FIELDS.get(request.DESCRIPTOR.full_name)
    return field if field is not None and request.ByteSize() <= MESSAGE_MAX_BYTES else None


class CheckoutStreams:
    """So many streams, in turn on these channels. `wait_for_ready`: for a connection."""

    def __init__(
        self, channels: Sequence[grpc.aio.Channel], count: int, *, wait_for_ready: bool
    ) -> None:
        turns = itertools.islice(itertools.cycle(channels), count)
        self._slots = [_Slot(channel, wait_for_ready) for channel in turns]
        self._turns = itertools.cycle(self._slots)

    def next(self, metadata: Metadata) -> CheckoutStream | None:
        """The stream with this metadata whose turn it is. None while there is none."""
        for slot in itertools.islice(self._turns, len(self._slots)):
            if (stream := slot.stream(metadata)) is not None:
                return stream
        return None

    async def close(self) -> None:
        """Ends all streams, after the results of what is in flight or soon."""
        await asyncio.gather(*(slot.close() for slot in self._slots))


class _Slot:
    """A place for one stream at a time."""

    def __init__(self, channel: grpc.aio.Channel, wait_for_ready: bool) -> None:
        self._channel = channel
        self._wait_for_ready = wait_for_ready
        self._metadata: Metadata = ()
        self._stream: CheckoutStream | None = None
        self._closing: set[asyncio.Task[None]] = set()

    def stream(self, metadata: Metadata) -> CheckoutStream | None:
        """The open stream, or a new one."""
        stream = self._stream
        if stream is not None and not stream.has_ended:
            if metadata == self._metadata:
                return stream
            self._close(stream)  # a stream is not authorized anew
        elif stream is not None and time.monotonic() < stream.successor_s:
            return None
        self._metadata = metadata
        self._stream = CheckoutStream(self._channel, metadata, self._wait_for_ready)
        return self._stream

    def _close(self, stream: CheckoutStream) -> None:
        task = asyncio.ensure_future(stream.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        if self._stream is not None:
            self._close(self._stream)
        await asyncio.gather(*self._closing)


class CheckoutStream:
    """One stream."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Metadata, wait_for_ready: bool) -> None:
        of_it: Any = channel
        open_stream = of_it.stream_stream(PATH, None, pb.CheckoutResponse.FromString)
        self._call = open_stream(metadata=metadata, wait_for_ready=wait_for_ready)
        self._loop = asyncio.get_running_loop()
        self._tags = itertools.count(1)
        self._results: dict[int, asyncio.Future[pb.CheckoutResult]] = {}
        self._unsent: deque[tuple[int, bytes]] = deque()
        self._began_s = time.monotonic()
        self._ended_s: float | None = None
        self._writer: asyncio.Task[None] | None = None
        self._reader = asyncio.ensure_future(self._read())

    @property
    def has_ended(self) -> bool:
        """Whether it carries nothing any more."""
        return self._ended_s is not None

    @property
    def successor_s(self) -> float:
        """From when on another may be opened in its place, in time.monotonic()."""
        if self._ended_s is None:
            return math.inf
        was_short = self._ended_s - self._began_s < SHORT_LIFE_S
        return self._ended_s + (PAUSE_S if was_short else 0)

    async def carry(self, field: str, request: Message, timeout_s: float) -> Any:
        """The response to a request. Raises CouponError."""
        tag = next(self._tags)
        operation: Any = pb.CheckoutOperation(tag=tag)
        operation.timeout.FromMilliseconds(max(int(timeout_s * 1000), 1))
        getattr(operation, field).CopyFrom(request)
        result = self._results[tag] = self._loop.create_future()
        late = self._loop.call_later(timeout_s, self._is_late, result)
        message = pb.CheckoutRequest(operations=(operation,))
        self._unsent.append((tag, message.SerializeToString()))
        if self._writer is None:
            self._writer = asyncio.ensure_future(self._write())
        try:
            answer = await result
        finally:
            late.cancel()
            self._results.pop(tag, None)
        if answer.HasField("error"):
            raise error_of_operation(answer.error)
        return getattr(answer, field)

    async def close(self) -> None:
        """Sends what is unsent, and waits for the results, but not for long."""
        with suppress(TimeoutError, grpc.aio.BaseError, asyncio.InvalidStateError):
            async with asyncio.timeout(CLOSE_S if self._results else FAREWELL_S):
                if self._writer is not None:
                    await self._writer
                await self._call.done_writing()
                await asyncio.wait((self._reader,))
        self._call.cancel()
        await asyncio.wait((self._reader,))

    def _is_late(self, result: asyncio.Future[pb.CheckoutResult]) -> None:
        if not result.done():
            message = "There was no answer in time."
            problem = Problem(StatusCode.DEADLINE_EXCEEDED, message, "DEADLINE_EXCEEDED")
            result.set_exception(DeadlineExceeded(problem))

    async def _write(self) -> None:
        # Other callers go on in this turn of the loop, too.
        await asyncio.sleep(0)
        try:
            while message := self._take():
                await self._call.write(message)
        except (grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError):
            pass  # it has ended, and its reader knows why
        finally:
            self._writer = None

    def _take(self) -> bytes:
        """The next message, without operations that nobody waits for any more. Empty: none.

        Messages of one operation each, one after the other, are one.
        """
        size, taken = 0, list[bytes]()
        while self._unsent and size < MESSAGE_MAX_BYTES and len(taken) < MESSAGE_MAX_OPERATIONS:
            tag, message = self._unsent.popleft()
            if tag in self._results:
                taken.append(message)
                size += len(message)
        return b"".join(taken)

    async def _read(self) -> None:
        why: grpc.RpcError = _lost()
        try:
            async for response in self._call:
                for answer in response.results:
                    result = self._results.get(answer.tag)
                    if result is not None and not result.done():
                        result.set_result(answer)
        except grpc.aio.AioRpcError as error:
            why = error
        except asyncio.CancelledError:
            if not self._call.cancelled():
                raise
        finally:
            self._ended_s = time.monotonic()
            for result in self._results.values():
                if not result.done():
                    result.set_exception(_end_error(why))


def _end_error(why: grpc.RpcError) -> CouponError:
    """The error of an operation that a stream has ended without, whatever was sent of it.

    Only the service knows that it was not carried out. What ends a stream in its place, as gRPC
    does with RESOURCE_EXHAUSTED for a message that is too large, knows nothing of those before.
    """
    if detail_of(status_of(why), ErrorInfo) is None and why.code() not in UNKNOWN_OUTCOMES:
        why = _lost(f"{why.code().name}: {why.details()}")
    return error_of_call(why)


def _lost(because: str = "") -> grpc.RpcError:
    """The end of a stream that says nothing of its operations."""
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(
        StatusCode.UNAVAILABLE,
        nothing,
        nothing,
        f"the stream ended without an answer{because and f' ({because})'}",
    )
