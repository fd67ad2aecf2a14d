"""What happens to every RPC around its servicer: one layer, for it is the hottest code there is.

It authorizes the caller, reads and bounds the request, gives it a deadline, turns errors into
statuses by the table of `status.py`, writes one line to the log and counts. Interceptors could do
the same, but grpc.aio calls them anew for each RPC, and they see neither a request that cannot be
parsed nor (being asked for a handler, not for an answer) the end of a call. A generic handler also
costs less than methods that are registered with the server, whose loop waits for each of them
separately (grpcio 1.85).
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self, TypeVar

import grpc
import grpc.aio
from structlog.typing import FilteringBoundLogger

from coupon_service.batching import BatchingSettings
from coupon_service.errors import CouponServiceError, DeadlineExceeded, Overloaded
from coupon_service.ratelimit.code_guessing import GuessGuard
from coupon_service.ratelimit.limiter import RateLimiter
from coupon_service.rpc.abort import HANDLERS, Answer, abort
from coupon_service.rpc.arrival_batch import ArrivalBatcher
from coupon_service.rpc.call_recorder import CallRecorder, RpcObserver
from coupon_service.rpc.connections import Connections
from coupon_service.rpc.context import CURRENT, KeyAwaitedError, RequestContext
from coupon_service.rpc.guess_guard import guarded
from coupon_service.rpc.messages import Context, MessageReader, parser, unreadable
from coupon_service.rpc.methods import METHODS, Method
from coupon_service.rpc.operations import Behavior, OpenCalls, Operations, Surroundings
from coupon_service.rpc.public_methods import PublicMethods
from coupon_service.rpc.status import kind_of
from coupon_service.rpc.unread_calls import UnreadCalls

if TYPE_CHECKING:
    from coupon_service.telemetry.tracing import Tracer

Servicer = TypeVar("Servicer")

PACKAGE: Final = "coupon_service."

UNREAD_MAX_PART: Final = 4
"""Part of the calls that may be open, whose message may be to come without a bound of its own."""

HEADERS_MAX_BYTES: Final = 16_384
"""Of the metadata of a call. gRPC holds clients to it only once they confirmed its settings."""


@dataclass(frozen=True, slots=True)
class RpcHandlerSettings:
    """Bounds of an RPC. `import_request_max_bytes` holds for methods with large messages.

    `default_deadline_ms` is for calls without a deadline, unless their method is open-ended, and
    what a client has to send its message. A stream whose client owes a message for `stream_idle_ms`
    ends. `calls_max`: calls that are open at a time; `connections_max`: connections, and streams of
    health and reflection. `default_business`: see RequestContext.
    """

    default_deadline_ms: int
    request_max_bytes: int
    import_request_max_bytes: int
    stream_idle_ms: int
    calls_max: int
    connections_max: int
    default_business: str = ""
    batching: BatchingSettings = field(default_factory=BatchingSettings)


@dataclass(frozen=True, slots=True)
class _Handlers:
    """What gRPC calls for a method. `is_carrier`: its call stands for none, but carries operations.

    `read`: when it has read the message, which costs less. `reading`: at once, and it reads the
    message itself, which has to come within a time. The first is for UnreadCalls only: else a few
    connections that open calls without a message would keep everybody out.
    """

    method: str
    is_carrier: bool
    answer: Answer
    read: grpc.RpcMethodHandler[Any, Any]
    reading: grpc.RpcMethodHandler[Any, Any]

    @classmethod
    def of(cls, method: str, handler: grpc.RpcMethodHandler[Any, Any], answer: Answer) -> Self:
        """Those of a method that is answered by `answer`, which reads a message of None."""
        streaming = handler.request_streaming

        async def reading(messages: Any, context: Context) -> bytes | None:
            return await answer(messages if streaming else None, context)

        return cls(
            method,
            METHODS[method].carrier,
            answer,
            HANDLERS[streaming, handler.response_streaming](answer),
            HANDLERS[True, handler.response_streaming](reading),
        )


class RpcHandler(grpc.GenericRpcHandler):
    """Answers the RPCs of the servicers that were added to it.

    `authenticate` sets the caller of a method's call, or raises Unauthenticated or
    PermissionDenied; without it everybody is anonymous. Without `limiter` and `guesses` there are
    no limits of that kind.
    """

    def __init__(
        self,
        settings: RpcHandlerSettings,
        log: FilteringBoundLogger,
        observer: RpcObserver,
        authenticate: Callable[[str, RequestContext], None] | None = None,
        limiter: RateLimiter | None = None,
        guesses: GuessGuard | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._settings = settings
        self._observer = observer
        self._recorder = CallRecorder(log, observer, tracer, settings.batching)
        self._arrivals = ArrivalBatcher(settings.batching)
        self._messages = MessageReader(settings.default_deadline_ms / 1000)
        self._public = PublicMethods(settings.connections_max)
        self.connections = Connections(settings.connections_max)
        self.authenticate = authenticate or _as_anonymous
        self._tracer = tracer
        self._limiter = limiter
        self._guesses = guesses
        self._calls = OpenCalls(settings.calls_max)
        self._unread = UnreadCalls(settings.calls_max // UNREAD_MAX_PART)
        self._handlers: dict[str, _Handlers] = {}
        self._behaviors: dict[str, Behavior] = {}
        around = Surroundings(
            self.authenticate,
            limiter,
            self._recorder,
            observer,
            tracer,
            settings.default_deadline_ms / 1000,
            settings.default_business,
        )
        self.operations = Operations(around, self._behaviors, self._calls, settings.batching)
        self._public_handlers: dict[str, grpc.RpcMethodHandler[Any, Any] | None] = {}

    def add(self, register: Callable[[Servicer, Any], None], servicer: Servicer) -> None:
        """Takes over the methods of a servicer; `register` is the generated add_…_to_server.

        Other packages' methods (health, reflection) are public: they are answered as they are,
        without a log line.
        """
        register(servicer, self)

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Called by the generated code, which gives the same handlers to the next one."""

    def add_registered_method_handlers(
        self, service: str, handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        """Called by the generated code."""
        for name, handler in handlers.items():
            path = f"/{service}/{name}"
            if service.startswith(PACKAGE):
                method = f"{service.rpartition('.')[2]}/{name}"
                guarded_handler: Any = guarded(METHODS[method].look_up, handler, self._guesses)
                self._behaviors[method] = guarded_handler.unary_unary
                answer = self._around(method, guarded_handler)
                self._handlers[path] = _Handlers.of(method, handler, answer)
            else:
                self._public_handlers[path] = self._public.bounded(handler)

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Called by gRPC for every RPC, in the context that its handler runs in."""
        path = handler_call_details.method
        handlers = self._handlers.get(path)
        if handlers is None:
            return self._public_handlers.get(path)
        # The metadata has been read by now; ServicerContext.invocation_metadata() reads it again.
        rpc = RequestContext(
            handler_call_details.invocation_metadata,
            default_business=self._settings.default_business,
        )
        CURRENT.set(rpc)
        method = handlers.method
        if self._calls.count >= self._calls.most:
            return self._shedding(method, Overloaded())
        if sum(map(len, chain.from_iterable(rpc.metadata))) > HEADERS_MAX_BYTES:
            expected = f"expected at most {HEADERS_MAX_BYTES} bytes of metadata"
            return self._shedding(method, unreadable(expected))
        try:
            self.authenticate(method, rpc)
        except KeyAwaitedError as until:
            handlers = self._waiting(method, handlers, until)
        except Exception as error:  # noqa: BLE001 - each becomes a status
            return self._refusing(method, rpc, error)
        if handlers.is_carrier:
            return handlers.read
        if (task := asyncio.current_task()) is not None:
            self._calls.count += 1
            task.add_done_callback(partial(self._closed, rpc))
        return handlers.read if self._unread.admits(rpc) else handlers.reading

    @property
    def open_calls(self) -> int:
        """Calls that are being answered, and operations of streams; none of public methods."""
        return self._calls.count

    @property
    def open_streams(self) -> int:
        """Streams of public methods, which are open at a time."""
        return self._public.open_streams

    def close(self) -> None:
        """Flushes what was recorded of the last calls; there are no more."""
        self._recorder.flush()

    def _shedding(self, method: str, error: CouponServiceError) -> grpc.RpcMethodHandler[Any, Any]:
        """Answers with the error, at once and with as little work as can be: it is only counted."""
        kind = kind_of(error)
        self._observer.rpcs_finished(method, kind.code.name, kind.name, [0.0])

        async def shed(_: Any, context: Context) -> None:
            await abort(context, error)

        return HANDLERS[True, True](shed)

    def _waiting(self, method: str, handlers: _Handlers, until: KeyAwaitedError) -> _Handlers:
        """Those that authenticate the caller when the key of the token may have been fetched."""

        async def answer(given: Any, context: Context) -> bytes | None:
            rpc = CURRENT.get()
            self._unread.read(rpc)
            await until.keys_fetched()
            try:
                self.authenticate(method, rpc)
            except Exception as error:  # noqa: BLE001 - each becomes a status
                started = self._begin(method, rpc, context)
                await self._refuse(error, method, rpc, context, started)
            return await handlers.answer(given, context)

        return _Handlers.of(method, handlers.read, answer)

    def _refusing(
        self, method: str, rpc: RequestContext, error: Exception
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Answers with the error, at once: it does not wait for the request, which may not come."""

        async def refuse(_: Any, context: Context) -> None:
            started = self._begin(method, rpc, context)
            await self._refuse(error, method, rpc, context, started)

        return HANDLERS[True, True](refuse)

    def _closed(self, rpc: RequestContext, _: object) -> None:
        self._calls.count -= 1
        self._unread.ended(rpc)

    def _begin(self, method: str, rpc: RequestContext, context: Context) -> float:
        """The answer to a call begins, at the time (of time.perf_counter) that it returns."""
        started = perf_counter()
        rpc.peer = context.peer()
        if self._tracer is not None:
            rpc.span = self._tracer.call_started(method, rpc.metadata)
        return started

    def _around(self, method: str, handler: grpc.RpcMethodHandler[Any, Any]) -> Answer:
        """The method with everything around it that an RPC needs; it reads a message of None."""
        row = METHODS[method]
        default_s = None if row.open_ended else self._settings.default_deadline_ms / 1000
        work = self._work(row, handler)

        async def answer(given: Any, context: Context) -> bytes | None:
            rpc = CURRENT.get()
            self._unread.read(rpc)
            started = self._begin(method, rpc, context)
            self.connections.called(rpc.peer)
            try:
                if self._limiter is not None and self._limiter.limits(rpc):
                    await self._limiter.admit(row.rate_class, rpc)
                if given is None:
                    given = await self._messages.read(context)
                if not row.open_ended and self._calls.count > self._arrivals.busy_calls:
                    await self._arrivals.join()
                if (remaining_s := _remaining_s(context)) is not None:
                    # gRPC itself ends the call then.
                    rpc.deadline = perf_counter() + remaining_s
                    response = await work(given, context)
                elif default_s is not None:
                    rpc.deadline = started + default_s
                    remaining_s = rpc.deadline - perf_counter()
                    response = await _within(remaining_s, work(given, context))
                else:
                    response = await work(given, context)
            except asyncio.CancelledError as error:
                if not _is_cancelled():
                    # What it waited for was cancelled, and its client still expects an answer.
                    await self._refuse(error, method, rpc, context, started)
                late = "DEADLINE_EXCEEDED" if _is_late(context) else ""
                self._recorder.add(method, rpc, late or "CANCELLED", late, started)
                raise
            except grpc.aio.BaseError:  # the line was cut: there is nobody to answer
                self._recorder.add(method, rpc, "CANCELLED", "", started)
                raise
            except Exception as error:  # noqa: BLE001 - each becomes a status
                await self._refuse(error, method, rpc, context, started)
            else:
                self._recorder.add(method, rpc, "OK", "", started)
                return response

        return answer

    def _work(self, row: Method, handler: grpc.RpcMethodHandler[Any, Any]) -> Answer:
        """The servicer's method, from bytes to bytes."""
        settings = self._settings
        max_bytes = settings.import_request_max_bytes if row.large else settings.request_max_bytes
        parse = parser(handler.request_deserializer, max_bytes)
        work = _work(handler, parse, settings.stream_idle_ms / 1000)
        return self.connections.holding(work) if row.open_ended else work

    async def _refuse(
        self,
        error: BaseException,
        method: str,
        rpc: RequestContext,
        context: Context,
        started: float,
    ) -> NoReturn:
        """Logs the error and ends the RPC with its status."""
        await abort(context, self._recorder.add_error(method, rpc, error, started), error)


def _as_anonymous(method: str, rpc: RequestContext) -> None:
    """Where nobody has to say who it is."""


def _work(
    handler: grpc.RpcMethodHandler[Any, Any], parse: Callable[[bytes], Any], idle_s: float
) -> Answer:
    """The servicer's method, from bytes to bytes."""
    behavior: Any = (
        handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    )
    serialize: Any = handler.response_serializer
    if inspect.iscoroutinefunction(behavior) and handler.response_streaming:
        return behavior  # it reads and writes by itself

    async def parsed(messages: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        while True:
            try:
                async with asyncio.timeout(idle_s):
                    message = await anext(messages, None)
            except TimeoutError:
                raise DeadlineExceeded(f"No message came for {idle_s:g} seconds.") from None
            if message is None:
                return
            yield parse(message)

    request: Callable[[Any], Any] = parsed if handler.request_streaming else parse

    async def one(given: Any, context: Context) -> bytes:
        response = await behavior(request(given), context)
        return serialize(response)

    async def many(given: Any, context: Context) -> None:
        async with aclosing(behavior(request(given), context)) as responses:
            async for response in responses:
                await context.write(serialize(response))

    return many if handler.response_streaming else one


async def _within(seconds: float, work: Awaitable[bytes | None]) -> bytes | None:
    """What `work` returns. Raises DeadlineExceeded after `seconds`."""
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            return await work
    except TimeoutError:
        if limit.expired():
            raise DeadlineExceeded from None
        raise


def _is_cancelled() -> bool:
    """Whether gRPC cancels this RPC: its client does, its time is over, or the server stops."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _remaining_s(context: Context) -> float | None:
    return context.time_remaining()  # None without a deadline, whatever its type says


def _is_late(context: Context) -> bool:
    remaining_s = _remaining_s(context)
    return remaining_s is not None and remaining_s < 0.01
