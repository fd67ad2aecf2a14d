"""Checkout streams: operations in, results out, each carried out as the call that it stands for.

A message of a stream costs a third of a call. A stream is read while fewer operations are in flight
than may be, and its results are written by one task, with all that are ready in one message.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Final, Protocol

import grpc.aio

from coupon_service.errors import (
    CouponServiceError,
    DeadlineExceeded,
    InvalidArgument,
    StreamEnded,
)
from coupon_service.rpc.context import Metadata, RequestContext, current
from coupon_service.rpc.convert import checkout as convert
from coupon_service.rpc.messages import Context, parser, too_large
from coupon_service.rpc.open_streams import OpenStreams
from coupon_service.rpc.operations import Operations
from coupon_service.v1 import redemption_service_pb2 as pb

ENDED: Final = "the stream is read no more"

RESULTS_MAX_BYTES: Final = 1_048_576
"""Of a message; clients take four times as much."""

LOST_S: Final = 0.01
"""How long after the end of its messages gRPC may take to cancel a stream whose line was lost."""

TRACE_KEYS: Final = frozenset({"traceparent", "tracestate"})

KEPT_KEYS: Final = TRACE_KEYS | {"authorization", "user-agent"}
"""Of the metadata of a stream, what its operations need: each of them looks for it."""


class StreamObserver(Protocol):
    """Who is notified of streams."""

    def streams_changed(self, count: int) -> None:
        """So many are open."""
        ...


@dataclass(frozen=True, slots=True)
class CheckoutStreamSettings:
    """Bounds of the streams of a worker. Sizes in bytes, times in milliseconds.

    `streams_max` are open at a time, `streams_of_connection_max` of them on one connection, with
    `operations_max` in flight in each. A stream ends before it is `age_max_ms` old, or when its
    client reads no result for `idle_ms`.
    """

    streams_max: int
    streams_of_connection_max: int
    operations_max: int
    age_max_ms: int
    idle_ms: int
    message_max_bytes: int
    request_max_bytes: int


class CheckoutStreams:
    """Answers the Checkout streams of a worker."""

    def __init__(
        self, operations: Operations, settings: CheckoutStreamSettings, observer: StreamObserver
    ) -> None:
        self._operations = operations
        self._settings = settings
        self._observer = observer
        self._parse = parser(pb.CheckoutRequest.FromString, settings.message_max_bytes)
        self._streams = OpenStreams(
            settings.streams_max,
            settings.streams_of_connection_max,
            settings.age_max_ms,
            "connection",
            observer.streams_changed,
        )

    async def serve(self, context: Context) -> None:
        """Answers the stream of the current call.

        Raises StreamEnded, also when it has been served to its end; Overloaded when there are too
        many; DeadlineExceeded when its client does not read.
        """
        rpc = current()
        stream = _Stream(self._operations, self._settings, self._parse, context, rpc)
        with self._streams.opened(rpc.peer, stream.end):
            rpc.request_id = secrets.token_hex(8)
            await stream.serve()

    @property
    def open(self) -> int:
        """How many there are."""
        return len(self._streams)

    def end(self, spread_s: float) -> None:
        """Takes no more streams, and ends each of these within so many seconds."""
        self._streams.end(spread_s)


class _Stream:
    """One stream, of the call with this context."""

    __slots__ = (  # there are thousands, most of them idle
        "_changed",
        "_closed",
        "_context",
        "_ended",
        "_failure",
        "_metadata",
        "_open",
        "_operations",
        "_parse",
        "_reader",
        "_results",
        "_rpc",
        "_settings",
        "_tags",
        "_writer",
    )

    def __init__(
        self,
        operations: Operations,
        settings: CheckoutStreamSettings,
        parse: Callable[[bytes], pb.CheckoutRequest],
        context: Context,
        rpc: RequestContext,
    ) -> None:
        self._operations = operations
        self._settings = settings
        self._context = context
        self._rpc = rpc
        self._metadata = tuple((it[0], it[1]) for it in rpc.metadata if it[0] in KEPT_KEYS)
        self._parse = parse
        self._tags: set[int] = set()
        self._open = 0
        """Operations whose results have not been written: they are bounded, whatever they are."""
        self._results: list[tuple[int, bytes]] = []
        self._writer: asyncio.Task[None] | None = None
        self._reader: asyncio.Task[Any] | None = None
        self._changed: asyncio.Future[None] | None = None
        self._ended = False
        self._failure: BaseException | None = None
        self._closed = False

    async def serve(self) -> None:
        """Returns when the client has half-closed and has all results. Raises StreamEnded once it
        was ended; DeadlineExceeded; grpc.aio.BaseError when the line was cut.
        """
        reader = self._reader = asyncio.current_task()
        try:
            try:
                await self._read()
            except asyncio.CancelledError as error:
                if error.args != (ENDED,) or reader is None or reader.uncancel() > 0:
                    raise
            finally:
                self._reader = None
            while self._open and self._failure is None:
                await self._change()
        finally:
            self._closed = True
            self._results.clear()
        if self._failure is not None:
            raise self._failure
        if self._ended:
            raise StreamEnded

    def end(self) -> None:
        """Reads no more; `serve` raises StreamEnded when what has been read is answered."""
        if self._reader is not None:
            self._ended = True
            self._read_no_more()

    def _read_no_more(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.cancel(ENDED)

    # --- reading --------------------------------------------------------------------------------

    async def _read(self) -> None:
        """Reads and begins operations, up to the end of the stream."""
        operations_max = self._settings.operations_max
        while True:
            while self._open >= operations_max:
                await self._change()
            raw: Any = await self._context.read()
            if raw is grpc.aio.EOF:
                await asyncio.sleep(LOST_S)
                return
            try:
                request = self._parse(raw)
                convert.check_size(request)
            except InvalidArgument as error:
                self._begin(pb.CheckoutOperation(), error)
                continue
            is_large = len(raw) > self._settings.request_max_bytes
            for operation in request.operations:
                while self._open >= operations_max:
                    await self._change()
                self._begin(operation, self._too_large(operation) if is_large else None)

    def _too_large(self, operation: pb.CheckoutOperation) -> InvalidArgument | None:
        """The error of an operation whose request is larger than that of a call may be."""
        field = operation.WhichOneof("request")
        size = getattr(operation, field).ByteSize() if field is not None else 0
        max_bytes = self._settings.request_max_bytes
        return too_large(max_bytes, size) if size > max_bytes else None

    def _begin(self, operation: pb.CheckoutOperation, problem: InvalidArgument | None) -> None:
        tag, field = operation.tag, operation.WhichOneof("request")
        in_flight = tag in self._tags
        problem = problem or convert.problem(operation, field, in_flight=in_flight)
        if tag and not in_flight:
            self._tags.add(tag)
        self._open += 1
        stream = self._rpc
        metadata = self._metadata
        if operation.traceparent:
            metadata = _traced(metadata, operation.traceparent)
        deadline = stream.deadline
        if (timeout_s := convert.timeout_s(operation)) is not None:
            own = perf_counter() + timeout_s
            deadline = own if deadline is None else min(own, deadline)
        self._operations.begin(
            _Operation(
                self,
                tag,
                field or "",
                0 if in_flight else tag,
                convert.METHODS[field] if field is not None else convert.CHECKOUT,
                getattr(operation, field) if field is not None else None,
                RequestContext(metadata, stream.peer, stream=stream.request_id),
                deadline,
                problem,
            )
        )

    # --- writing --------------------------------------------------------------------------------

    def answer(self, own_tag: int, result: bytes) -> None:
        """Sends the result of an operation, which frees its tag."""
        if self._closed:
            return
        self._results.append((own_tag, result))
        if self._writer is None:
            self._writer = asyncio.ensure_future(self._write())

    async def _write(self) -> None:
        """Writes results while there are any: all that are ready in one message."""
        idle_s = self._settings.idle_ms / 1000
        try:
            while self._results:
                response, count = self._take_results()
                async with asyncio.timeout(idle_s):
                    await self._context.write(response)
                self._open -= count
                self._wake()
        except TimeoutError:
            self._fail(DeadlineExceeded(f"No result was read for {idle_s:g} seconds."))
        except grpc.aio.BaseError as error:
            self._fail(error)
        finally:
            self._writer = None

    def _take_results(self) -> tuple[bytes, int]:
        """A message of what is ready, and of how many operations."""
        results: list[bytes] = []
        size = 0
        for tag, result in self._results:
            self._tags.discard(tag)  # before the client has it, who may use it anew at once
            results.append(result)
            size += len(result)
            if size >= RESULTS_MAX_BYTES:
                break
        del self._results[: len(results)]
        return b"".join(results), len(results)

    def _fail(self, error: BaseException) -> None:
        self._failure = error
        self._read_no_more()
        self._wake()

    async def _change(self) -> None:
        """Returns when results have been written, or cannot be."""
        self._changed = asyncio.get_running_loop().create_future()
        await self._changed

    def _wake(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)


@dataclass(slots=True)
class _Operation:
    """What was read of a stream. `own_tag`: 0 when its tag is that of another in flight."""

    stream: _Stream
    tag: int
    field: str
    own_tag: int
    method: str
    request: Any
    rpc: RequestContext
    deadline: float | None
    problem: InvalidArgument | None

    def result(self, response: Any) -> bytes:
        return convert.result(self.tag, self.field, response)

    def succeed(self, result: bytes) -> None:
        self.stream.answer(self.own_tag, result)

    def fail(self, error: CouponServiceError) -> None:
        self.stream.answer(self.own_tag, convert.error_result(self.tag, error))


def _traced(metadata: Metadata, traceparent: str) -> Metadata:
    """The metadata with this trace in place of its own."""
    return (*(it for it in metadata if it[0] not in TRACE_KEYS), ("traceparent", traceparent))
