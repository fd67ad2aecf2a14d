"""Joins commands that arrive at the same time, so that they share one transaction.

While one batch is carried out the next one fills. Under load a batch waits a little for more, since
larger batches cost less a command; in an idle worker it does not (`batching/linger.py`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar, cast

from coupon_service.batching.linger import linger
from coupon_service.errors import CouponServiceError, DeadlineExceeded, Overloaded
from coupon_service.model import Command, CommandGroup, Outcome
from coupon_service.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from coupon_service.telemetry.tracing import Tracer

PART_SIZE: Final = 125
"""Commands of a large unit that are carried out together."""


class Joinable(Protocol):
    """What can be joined: of so many commands, to be begun before its deadline, in seconds of
    time.perf_counter."""

    @property
    def size(self) -> int: ...
    @property
    def deadline(self) -> float | None: ...


C = TypeVar("C", bound=Command)
Q = TypeVar("Q", bound=Joinable)
R = TypeVar("R")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class MicroBatcherSettings:
    """Bounds. Sizes in commands, times in milliseconds."""

    batch_max_size: int
    batches_in_flight: int
    batch_max_wait_ms: float
    queue_max_size: int


class LazyCommand(Generic[C]):
    """A unit of one command, which is read from its request when its batch begins.

    One right after the other requests are read faster than each when it comes: RedeemCode took 193
    µs of processor time in a worker instead of 201 (one run, alternating, medians of five rounds).
    `read` may raise, which is its caller's answer.
    """

    __slots__ = ("_read", "command", "deadline")
    size: Final = 1

    def __init__(self, read: Callable[[], C], deadline: float | None) -> None:
        self._read = read
        self.deadline = deadline
        self.command: C
        """Known when there is an answer."""

    def unit(self) -> CommandGroup:
        """The unit, of the command that is read now."""
        self.command = self._read()
        return CommandGroup((self.command,))


@dataclass(slots=True)
class _Waiting(Generic[Q, R]):
    unit: Q | LazyCommand[Any]
    answer: asyncio.Future[R]
    since: float
    span: Span | None


class MicroBatcher(Generic[Q, R]):
    """Carries out units of commands in batches, first come first served.

    `execute` answers each unit of a batch; an answer may be a future, when it takes longer than
    those of the others. `kind` names the batches in the metrics.
    """

    def __init__(
        self,
        execute: Callable[[Sequence[Q]], Awaitable[Sequence[R | asyncio.Future[R]]]],
        settings: MicroBatcherSettings,
        metrics: Metrics,
        kind: str = "changes",
        tracer: Tracer | None = None,
    ) -> None:
        self._kind = kind
        self._execute = execute
        self._settings = settings
        self._metrics = metrics
        self._tracer = tracer
        self._queue: deque[_Waiting[Q, R]] = deque()
        self._queued = 0
        self._in_flight = 0
        self._filling = False
        self._last_size = 0
        self._batches: set[asyncio.Task[None]] = set()

    def submit(self, unit: Q | LazyCommand[Any]) -> Awaitable[R]:
        """The answer to a unit: for changes, the outcome of each of its commands, in order.

        A caller that is cancelled only stops waiting. A unit whose deadline passes before its turn
        comes is not carried out. Raises Overloaded, at once, when too many wait; DeadlineExceeded;
        and what the transaction raises (Contention, DatabaseUnavailable).
        """
        self._admit(unit.size)
        return self._enqueue(unit)

    async def submit_all(self, units: Sequence[Q]) -> list[R | BaseException]:
        """As `submit`, for units that are accepted together or not at all (Overloaded); the answer
        to each, or what its transaction raised.
        """
        self._admit(sum(unit.size for unit in units))
        return await asyncio.gather(*map(self._enqueue, units), return_exceptions=True)

    def _admit(self, size: int) -> None:
        if self._queued + size > self._settings.queue_max_size and self._queued:
            self._metrics.command_dropped(self._kind, "OVERLOADED")
            raise Overloaded

    def _enqueue(self, unit: Q | LazyCommand[Any]) -> asyncio.Future[R]:
        answer: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        span = self._tracer.caller() if self._tracer is not None else None
        self._queue.append(_Waiting(unit, answer, perf_counter(), span))
        self._queued += unit.size
        self._begin()
        return answer

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
        await linger(
            self._last_size,
            lambda: self._queued,
            enough=self._settings.batch_max_size,
            until_s=self._queue[0].since + self._settings.batch_max_wait_ms / 1000,
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
            count = first.unit.size
            if batch and size + count > self._settings.batch_max_size:
                break
            self._queue.popleft()
            self._queued -= count
            if first.answer.cancelled():
                continue
            deadline = first.unit.deadline
            if deadline is not None and now > deadline:
                self._metrics.command_dropped(self._kind, "DEADLINE_EXCEEDED")
                first.answer.set_exception(DeadlineExceeded())
                continue
            if isinstance(first.unit, LazyCommand):
                try:
                    first.unit = cast("Q", first.unit.unit())
                except Exception as error:  # noqa: BLE001 - its caller's alone
                    first.answer.set_exception(error)
                    continue
            batch.append(first)
            size += count
        self._metrics.queue_changed(self._kind, self._queued)
        return batch

    async def _run(self, batch: list[_Waiting[Q, R]]) -> None:
        started = perf_counter()
        self._metrics.batch_waited(self._kind, started - batch[0].since)
        size = self._last_size = sum(it.unit.size for it in batch)
        try:
            if self._tracer is None:
                await self._answer(batch)
            else:
                callers = [it.span for it in batch if it.span is not None]
                with self._tracer.batch(self._kind, size, callers):
                    await self._answer(batch)
        finally:
            self._in_flight -= 1
            self._metrics.batch_executed(self._kind, size, perf_counter() - started)

    async def _answer(self, batch: list[_Waiting[Q, R]]) -> None:
        try:
            outcomes = await self._execute(cast("list[Q]", [it.unit for it in batch]))
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
                if isinstance(outcome, asyncio.Future):
                    still_open = cast("asyncio.Future[R]", outcome)
                    still_open.add_done_callback(partial(_pass_on, it.answer))
                elif not it.answer.done():
                    it.answer.set_result(outcome)


class CommandLanes:
    """Small and large units side by side, so that a call of a thousand does not hold up the others.

    `bulk` carries out the units of several commands.
    """

    def __init__(
        self,
        single: MicroBatcher[CommandGroup, list[Outcome]],
        bulk: MicroBatcher[CommandGroup, list[Outcome]],
    ) -> None:
        self._single = single
        self._bulk = bulk

    def submit(self, unit: CommandGroup | LazyCommand[Any]) -> Awaitable[list[Outcome]]:
        """As MicroBatcher.submit. A group that is not atomic may be carried out in parts; the
        commands of a part that failed then have its error for an outcome, unless all parts did.
        """
        if isinstance(unit, LazyCommand) or unit.size == 1:
            return self._single.submit(unit)
        if unit.atomic:
            return self._bulk.submit(unit)
        return self._submit_parts(unit)

    def submit_joined(self, unit: CommandGroup) -> Awaitable[list[Outcome]]:
        """As MicroBatcher.submit, for commands of several small calls."""
        return self._single.submit(unit)

    async def _submit_parts(self, unit: CommandGroup) -> list[Outcome]:
        parts = [
            CommandGroup(unit.commands[start : start + PART_SIZE])
            for start in range(0, unit.size, PART_SIZE)
        ]
        answers = await self._bulk.submit_all(parts)
        failed = 0
        outcomes: list[Outcome] = []
        for part, answer in zip(parts, answers, strict=True):
            if not isinstance(answer, BaseException):
                outcomes += answer
                continue
            failed += 1
            if failed == len(parts) or not isinstance(answer, CouponServiceError):
                raise answer
            outcomes += [answer] * part.size
        return outcomes

    async def drain(self) -> None:
        """Returns when everything that was submitted has been carried out."""
        await self._bulk.drain()
        await self._single.drain()


class DetachedTasks:
    """Work of several steps that goes on, and tidies up, also when its caller stops waiting."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    def run(self, work: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
        """What the work returns or raises."""
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        task = asyncio.ensure_future(_carry_out(work, answer))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return answer


async def _carry_out(work: Coroutine[Any, Any, T], answer: asyncio.Future[T]) -> None:
    try:
        value = await work
    except BaseException as error:
        if not answer.done():
            answer.set_exception(error)
        if not isinstance(error, Exception):
            raise
    else:
        if not answer.done():
            answer.set_result(value)


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
