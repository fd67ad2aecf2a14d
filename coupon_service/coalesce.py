"""Joins commands that arrive at the same time, so that they share one transaction.

While one batch is carried out the next one fills. A command that finds the service idle is carried
out at once; under load a batch waits a little for more, since larger batches cost less a command.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from coupon_service.errors import CouponServiceError, DeadlineExceeded, Overloaded
from coupon_service.metrics import Metrics
from coupon_service.model import Unit

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from coupon_service.tracing import Tracer

R = TypeVar("R")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CoalescerSettings:
    """Bounds. Sizes in commands, times in milliseconds."""

    batch_max_size: int
    batches_in_flight: int
    batch_max_wait_ms: float
    queue_max_size: int


@dataclass(slots=True)
class _Waiting(Generic[R]):
    unit: Unit
    answer: asyncio.Future[R]
    since: float
    deadline: float | None
    span: Span | None


class Coalescer(Generic[R]):
    """Carries out units of commands in batches, first come first served.

    `execute` answers each unit of a batch. `kind` names the batches in the metrics.
    """

    def __init__(
        self,
        execute: Callable[[Sequence[Unit]], Awaitable[Sequence[R]]],
        settings: CoalescerSettings,
        metrics: Metrics,
        kind: str = "changes",
        tracer: Tracer | None = None,
    ) -> None:
        self._kind = kind
        self._execute = execute
        self._settings = settings
        self._metrics = metrics
        self._tracer = tracer
        self._queue: deque[_Waiting[R]] = deque()
        self._queued = 0
        self._in_flight = 0
        self._in_flight_commands = 0
        self._timer: asyncio.TimerHandle | None = None
        self._batches: set[asyncio.Task[None]] = set()

    async def submit(self, unit: Unit) -> R:
        """The answer to a unit: for changes, the outcome of each of its commands, in order.

        A caller that is cancelled only stops waiting. A unit whose deadline passes before its turn
        comes is not carried out. Raises Overloaded, at once, when too many wait; DeadlineExceeded;
        and what the transaction raises (Contention, DatabaseUnavailable).
        """
        size = len(unit.commands)
        if self._queued + size > self._settings.queue_max_size and self._queued:
            self._metrics.command_dropped(self._kind, "OVERLOADED")
            raise Overloaded
        loop = asyncio.get_running_loop()
        deadline = unit.commands[0].call.deadline
        span = self._tracer.caller() if self._tracer is not None else None
        waiting: _Waiting[R] = _Waiting(unit, loop.create_future(), perf_counter(), deadline, span)
        self._queue.append(waiting)
        self._queued += size
        self._metrics.queue_changed(self._kind, self._queued)
        self._start_batches()
        return await waiting.answer

    async def drain(self) -> None:
        """Returns when everything that was submitted has been carried out."""
        while self._queue or self._batches:
            self._start_batches(at_once=True)
            await asyncio.wait(self._batches)

    def _start_batches(self, *, at_once: bool = False) -> None:
        settings = self._settings
        while self._queue and self._in_flight < settings.batches_in_flight:
            if self._in_flight and not at_once and self._worth_waiting():
                return
            batch = self._take_batch()
            if batch:
                self._in_flight += 1
                self._in_flight_commands += sum(len(it.unit.commands) for it in batch)
                task = asyncio.ensure_future(self._run(batch))
                self._batches.add(task)
                task.add_done_callback(self._batches.discard)

    def _worth_waiting(self) -> bool:
        """Whether a batch beside those in flight should wait for more commands.

        It waits while it is smaller than what is in flight (then more are on their way), at most
        `batch_max_wait_ms`.
        """
        if self._queued >= min(self._in_flight_commands, self._settings.batch_max_size):
            return False
        waited_s = perf_counter() - self._queue[0].since
        left_s = self._settings.batch_max_wait_ms / 1000 - waited_s
        if left_s <= 0:
            return False
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(left_s, self._timed_out)
        return True

    def _timed_out(self) -> None:
        self._timer = None
        self._start_batches()

    def _take_batch(self) -> list[_Waiting[R]]:
        batch: list[_Waiting[R]] = []
        size = 0
        now = perf_counter()
        while self._queue:
            first = self._queue[0]
            count = len(first.unit.commands)
            if batch and size + count > self._settings.batch_max_size:
                break
            self._queue.popleft()
            self._queued -= count
            if first.answer.cancelled():
                continue
            if first.deadline is not None and now > first.deadline:
                self._metrics.command_dropped(self._kind, "DEADLINE_EXCEEDED")
                first.answer.set_exception(DeadlineExceeded())
                continue
            batch.append(first)
            size += count
        self._metrics.queue_changed(self._kind, self._queued)
        return batch

    async def _run(self, batch: list[_Waiting[R]]) -> None:
        started = perf_counter()
        self._metrics.batch_waited(self._kind, started - batch[0].since)
        size = sum(len(it.unit.commands) for it in batch)
        try:
            if self._tracer is None:
                await self._answer(batch)
            else:
                callers = [it.span for it in batch if it.span is not None]
                with self._tracer.batch(self._kind, size, callers):
                    await self._answer(batch)
        finally:
            self._in_flight -= 1
            self._in_flight_commands -= size
            self._metrics.batch_executed(self._kind, size, perf_counter() - started)
            self._start_batches()

    async def _answer(self, batch: list[_Waiting[R]]) -> None:
        try:
            outcomes = await self._execute([it.unit for it in batch])
        except CouponServiceError as error:
            for it in batch:
                _fail(it, error)
        except BaseException as error:  # noqa: BLE001 - no caller is left waiting
            if len(batch) == 1 or not isinstance(error, Exception):
                for it in batch:
                    _fail(it, error)
                return
            # One command that the others are not to suffer from: each for itself.
            for it in batch:
                await self._answer([it])
        else:
            for it, outcome in zip(batch, outcomes, strict=True):
                if not it.answer.done():
                    it.answer.set_result(outcome)


class ToTheEnd:
    """Work of several steps that goes on, and tidies up, also when its caller stops waiting."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What the work returns or raises."""
        task = asyncio.ensure_future(work)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # seen, also when nobody waits for it any more


def _fail(waiting: _Waiting[R], error: BaseException) -> None:
    if not waiting.answer.done():
        waiting.answer.set_exception(error)
