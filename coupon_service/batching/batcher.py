"""Joins work that arrives at the same time, so that it is carried out together.

While one batch is carried out the next one fills. Under load a batch waits a little for more, since
larger batches cost less a command; in an idle worker it does not (`batching/linger.py`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

from coupon_service.batching.lazy import LazyCommand
from coupon_service.batching.linger import LastBatch, Rush, linger
from coupon_service.batching.settings import MicroBatcherSettings
from coupon_service.errors import CouponServiceError, DeadlineExceeded, Overloaded
from coupon_service.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from coupon_service.telemetry.tracing import Tracer


class Batchable(Protocol):
    """What can be batched: of so many commands, to be begun before its deadline, in seconds of
    time.perf_counter."""

    @property
    def size(self) -> int: ...
    @property
    def deadline(self) -> float | None: ...


Q = TypeVar("Q", bound=Batchable)
R = TypeVar("R")


@dataclass(slots=True)
class _Waiting(Generic[Q, R]):
    item: Q | LazyCommand[Any]
    answer: asyncio.Future[R]
    since: float
    span: Span | None


class MicroBatcher(Generic[Q, R]):
    """Carries out items in batches, first come first served.

    `execute` answers each item of a batch; an answer may be a future, when it takes longer than
    those of the others. `kind` names the batches in the metrics, where there are any. `rush` is
    shared by batchers of the same kind.
    """

    def __init__(
        self,
        execute: Callable[[Sequence[Q]], Awaitable[Sequence[R | asyncio.Future[R]]]],
        settings: MicroBatcherSettings,
        metrics: Metrics | None = None,
        kind: str = "changes",
        tracer: Tracer | None = None,
        rush: Rush | None = None,
    ) -> None:
        self._kind = kind
        self._rush = rush or Rush()
        self._execute = execute
        self._settings = settings
        self._metrics = metrics
        self._tracer = tracer
        self._queue: deque[_Waiting[Q, R]] = deque()
        self._queued = self._shown = 0
        self._in_flight = 0
        self._filling = False
        self._batches: set[asyncio.Task[None]] = set()

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits or is carried out."""
        return not self._batches

    def submit(self, item: Q | LazyCommand[Any]) -> Awaitable[R]:
        """The answer to an item: for commands, the outcome of each, in order.

        A caller that is cancelled only stops waiting. An item whose deadline passes before its turn
        comes is not carried out. Raises Overloaded, at once, when too many wait; DeadlineExceeded;
        and what `execute` raises (Contention, DatabaseUnavailable).
        """
        self._admit(item.size)
        return self._enqueue(item)

    async def submit_all(self, items: Sequence[Q]) -> list[R | BaseException]:
        """As `submit`, for items that are accepted together or not at all (Overloaded); the answer
        to each, or what its execution raised.
        """
        self._admit(sum(item.size for item in items))
        return await asyncio.gather(*map(self._enqueue, items), return_exceptions=True)

    def _admit(self, size: int) -> None:
        if self._queued + size > self._settings.queue_max_size and self._queued:
            self._count_dropped("OVERLOADED")
            raise Overloaded

    def _enqueue(self, item: Q | LazyCommand[Any]) -> asyncio.Future[R]:
        answer: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        span = self._tracer.caller() if self._tracer is not None else None
        self._queue.append(_Waiting(item, answer, perf_counter(), span))
        self._queued += item.size
        self._rush.arrived += item.size
        self._begin()
        return answer

    def fail_queued(self, error: CouponServiceError, until_s: float) -> None:
        """Fails what was submitted until then (time.perf_counter) and has not had its turn yet."""
        while self._queue and self._queue[0].since <= until_s:
            first = self._queue.popleft()
            self._queued -= first.item.size
            _fail(first, error)

    async def drain(self) -> None:
        """Returns when everything that was submitted has been carried out."""
        while self._batches:
            await asyncio.wait(self._batches)

    def _begin(self) -> None:
        """Begins a batch, unless one is filling or as many as may are under way."""
        if self._queue and not self._filling and self._in_flight < self._settings.batches_in_flight:
            self._filling = True
            task = asyncio.ensure_future(self._carry_out_next())
            self._batches.add(task)
            task.add_done_callback(self._batches.discard)

    async def _carry_out_next(self) -> None:
        max_wait_s = self._settings.batch_max_wait_ms / 1000
        await linger(
            self._settings.linger,
            self._rush,
            self._rush.last(self, max_wait_s),
            lambda: self._queued,
            enough=self._settings.batch_max_size,
            since_s=self._queue[0].since,
            max_wait_s=max_wait_s,
        )
        self._filling = False
        batch = self._take_batch()
        if batch:
            self._in_flight += 1
            self._begin()
            await self._run(batch)
        self._begin()

    def _take_batch(self) -> list[_Waiting[Q, R]]:
        batch: list[_Waiting[Q, R]] = []
        size = 0
        now = perf_counter()
        while self._queue:
            first = self._queue[0]
            count = first.item.size
            if batch and size + count > self._settings.batch_max_size:
                break
            self._queue.popleft()
            self._queued -= count
            if first.answer.cancelled():
                continue
            deadline = first.item.deadline
            if deadline is not None and now > deadline:
                self._count_dropped("DEADLINE_EXCEEDED")
                first.answer.set_exception(DeadlineExceeded())
                continue
            if isinstance(first.item, LazyCommand):
                try:
                    first.item = cast("Q", first.item.group())
                except Exception as error:  # noqa: BLE001 - its caller's alone
                    first.answer.set_exception(error)
                    continue
            batch.append(first)
            size += count
        if self._metrics is not None:
            self._metrics.queue_changed(self._kind, self._queued - self._shown)
            self._shown = self._queued
        return batch

    def _count_dropped(self, reason: str) -> None:
        if self._metrics is not None:
            self._metrics.command_dropped(self._kind, reason)

    async def _run(self, batch: list[_Waiting[Q, R]]) -> None:
        started = perf_counter()
        if self._metrics is not None:
            self._metrics.batch_waited(self._kind, started - batch[0].since)
        size = sum(it.item.size for it in batch)
        try:
            if self._tracer is None:
                await self._answer(batch)
            else:
                callers = [it.span for it in batch if it.span is not None]
                with self._tracer.batch(self._kind, size, callers):
                    await self._answer(batch)
        finally:
            self._in_flight -= 1
            done = LastBatch(size, perf_counter() - started)
            self._rush.executed(self, done)
            if self._metrics is not None:
                self._metrics.batch_executed(self._kind, *done)

    async def _answer(self, batch: list[_Waiting[Q, R]]) -> None:
        try:
            answers = await self._execute(cast("list[Q]", [it.item for it in batch]))
        except CouponServiceError as error:
            for it in batch:
                _fail(it, error)
        except BaseException as error:  # noqa: BLE001 - no caller is left waiting
            if len(batch) == 1 or not isinstance(error, Exception):
                for it in batch:
                    _fail(it, error)
                return
            # One that the others are not to suffer from: each for itself.
            for it in batch:
                await self._answer([it])
        else:
            for it, answer in zip(batch, answers, strict=True):
                if isinstance(answer, asyncio.Future):
                    still_open = cast("asyncio.Future[R]", answer)
                    still_open.add_done_callback(partial(_pass_on, it.answer))
                elif not it.answer.done():
                    it.answer.set_result(answer)


def _fail(waiting: _Waiting[Q, R], error: BaseException) -> None:
    if not waiting.answer.done():
        waiting.answer.set_exception(error)


def _pass_on(answer: asyncio.Future[R], found: asyncio.Future[R]) -> None:
    error = found.exception()
    if answer.done():
        return
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(found.result())
