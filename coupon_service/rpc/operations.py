"""Operations of streams: what happens to each around its servicer, which is what happens to a call.

The parts are those of calls (`handler.py`), in the same order. What differs is who reads and who
answers: the stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

from coupon_service.batching import BatchingSettings, FlushBuffer
from coupon_service.errors import CouponServiceError, InvalidArgument, Overloaded
from coupon_service.ratelimit.limiter import RateLimiter
from coupon_service.rpc.call_recorder import CallRecorder, RpcObserver
from coupon_service.rpc.context import CURRENT, KeyAwaitedError, RequestContext
from coupon_service.rpc.deadlines import Deadlines
from coupon_service.rpc.methods import METHODS
from coupon_service.rpc.status import kind_of

if TYPE_CHECKING:
    from coupon_service.telemetry.tracing import Tracer

Behavior = Callable[[Any, Any], Awaitable[Any]]


@dataclass(slots=True)
class OpenCalls:
    """Calls, and operations of streams, that are being answered: not more than `most`."""

    most: int
    count: int = 0


class Operation(Protocol):
    """What a stream has read, and how it is answered.

    `method`: whose call it stands for. `deadline`: in seconds of time.perf_counter; None for that
    of a call without one. `problem`: why it is bad in itself.
    """

    @property
    def method(self) -> str: ...
    @property
    def request(self) -> Any: ...
    @property
    def rpc(self) -> RequestContext: ...
    @property
    def deadline(self) -> float | None: ...
    @property
    def problem(self) -> InvalidArgument | None: ...

    def result(self, response: Any) -> bytes:
        """What the stream sends for this response."""
        ...

    def succeed(self, result: bytes) -> None:
        """Sends the result."""
        ...

    def fail(self, error: CouponServiceError) -> None:
        """Sends a `known` error."""
        ...


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is around each call."""

    authenticate: Callable[[str, RequestContext], None]
    limiter: RateLimiter | None
    recorder: CallRecorder
    observer: RpcObserver
    tracer: Tracer | None
    default_deadline_s: float
    default_business: str = ""


class Operations:
    """Carries out the operations of all streams of a worker.

    `behaviors`: the servicers' methods, with their guess guards. `calls`: those that are open.
    """

    def __init__(
        self,
        around: Surroundings,
        behaviors: Mapping[str, Behavior],
        calls: OpenCalls,
        batching: BatchingSettings,
    ) -> None:
        self._around = around
        self._behaviors = behaviors
        self._calls = calls
        self._busy_calls = batching.arrival_busy_calls
        self._arrived = FlushBuffer(self._begin_all, batching.arrival_linger_ms)
        self._deadlines = Deadlines()
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, operation: Operation) -> None:
        """Begins an operation, which will be answered: together with others that arrive, when there
        are many.
        """
        calls = self._calls
        if calls.count >= calls.most:
            self._shed(operation)
            return
        calls.count += 1
        if calls.count > self._busy_calls:
            self._arrived.add((operation, perf_counter()))
        else:
            self._begin_all(((operation, perf_counter()),))

    async def drain(self) -> None:
        """Returns when all operations have been carried out, also those of lost streams."""
        self._arrived.flush()
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _shed(self, operation: Operation) -> None:
        """Answers with as little work as can be: it is only counted."""
        error = Overloaded()
        kind = kind_of(error)
        observer = self._around.observer
        observer.operations_finished(operation.method, kind.code.name, kind.name, [0.0])
        operation.fail(error)

    def _begin_all(self, operations: Sequence[tuple[Operation, float]]) -> None:
        loop = asyncio.get_running_loop()
        for operation, started in operations:
            self._tasks.add(loop.create_task(self._carry_out(operation, started)))

    async def _carry_out(self, operation: Operation, started: float) -> None:
        around, method, rpc = self._around, operation.method, operation.rpc
        rpc.default_business = around.default_business
        CURRENT.set(rpc)
        if around.tracer is not None:
            rpc.span = around.tracer.call_started(method, rpc.metadata)
        try:
            try:
                around.authenticate(method, rpc)
            except KeyAwaitedError as until:
                await until.keys_fetched()
                around.authenticate(method, rpc)
            if around.limiter is not None and around.limiter.limits(rpc):
                await around.limiter.admit(METHODS[method].rate_class, rpc)
            if operation.problem is not None:
                raise operation.problem
            rpc.deadline = operation.deadline or started + around.default_deadline_s
            work = self._behaviors[method](operation.request, None)
            response = await self._deadlines.within(rpc.deadline, work)
            result = operation.result(response)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # the process ends
                raise
            operation.fail(around.recorder.add_error(method, rpc, error, started))
        except Exception as error:  # noqa: BLE001 - each becomes a status
            operation.fail(around.recorder.add_error(method, rpc, error, started))
        else:
            around.recorder.add(method, rpc, "OK", "", started)
            operation.succeed(result)
        finally:
            self._calls.count -= 1
            self._tasks.discard(asyncio.current_task())
