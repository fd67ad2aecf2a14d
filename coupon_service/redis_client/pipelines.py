"""The way to Redis: commands that many callers give at the same moment share one pipeline.

What redis-py (8.1) does, and why the client is set up as it is:

* It retries by default (``Redis()``: 10 times). A script whose reply was lost would run twice;
  ours recognise that, but a dead server would take seconds to be noticed. So: no retries.
* ``socket_timeout`` starts anew with each reply, so it does not bound a pipeline. One timeout
  around the whole exchange, connecting included, does.
* A cancellation, which is how that timeout ends an exchange, closes the connection
  (``read_response`` and ``send_packed_command`` do so on every ``BaseException``), so that no reply
  is left unread for whoever takes it next. The next exchange connects again.
* With RESP3, its default, it takes part in "maintenance notifications": one more round trip to
  connect, timeouts relaxed to 10 s when the server says so, and no look for unread data or an end
  of file when a connection is taken from the pool. RESP2 has none of that.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import hiredis
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from coupon_service.batching import BatchingSettings
from coupon_service.batching.linger import linger
from coupon_service.errors import LocksUnavailable
from coupon_service.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from coupon_service.telemetry.tracing import Tracer

Client: TypeAlias = "Redis | RedisCluster"
Command: TypeAlias = tuple[str | int, ...]

SILENCE_STEPS = 5
"""Turns of the event loop, at least, that Redis has for its replies."""

# Takes Redis one or two milliseconds, far below the timeout; larger pipelines are no faster.
COMMANDS_MAX = 64


def connect(url: str, timeout_ms: int) -> Redis:
    """A client for ``url`` (``redis://``, ``rediss://`` or ``unix://``); it connects when used."""
    return Redis.from_url(  # pyright: ignore[reportUnknownMemberType]
        url,
        protocol=2,
        decode_responses=True,
        driver_info=None,
        retry=Retry(NoBackoff(), 0),
        socket_connect_timeout=timeout_ms / 1000,
        socket_timeout=None,
    )


@dataclass(frozen=True, slots=True)
class _Call:
    commands: tuple[Command, ...]
    # The replies, or why there are none. A value and not an exception of the future, since nobody
    # asks for it when the caller was cancelled.
    outcome: asyncio.Future[list[Any] | Exception]
    since_s: float


class Pipelines:
    """Sends commands to Redis, one pipeline at a time; what comes up meanwhile fills the next one.

    The pipeline runs in a task of its own, so a caller's cancellation never reaches the connection.
    Calls whose caller has gone before they were sent are left out.
    """

    def __init__(
        self,
        client: Client,
        sources: Mapping[str, str],
        timeout_ms: int,
        metrics: Metrics | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        """``sources``: the text of each script by its SHA-1."""
        self._metrics = metrics
        self._client = client
        self._sources = sources
        self._timeout_s = timeout_ms / 1000
        self._batching = BatchingSettings().pipelines
        self._tracer = tracer
        self._waiting: deque[_Call] = deque()
        self._served = 0
        """Calls of the pipeline before."""
        self._sender: asyncio.Task[None] | None = None

    async def run(self, *commands: Command) -> list[Any]:
        """As `replies`. Raises LocksUnavailable also when Redis refuses one of the commands."""
        replies = await self.replies(*commands)
        for reply in replies:
            if isinstance(reply, Exception):
                raise unavailable(reply)
        return replies

    async def replies(self, *commands: Command) -> list[Any]:
        """The replies to ``commands``, which go out together and in this order; the error of those
        that Redis refuses.

        Raises LocksUnavailable when Redis cannot be reached or is silent for ``timeout_ms`` (which
        takes twice as long at most, behind others who wait). What was sent may then have been
        carried out or not.
        """
        if self._tracer is not None:
            return await self._tracer.around("redis", "redis", self._replies(commands))
        return await self._replies(commands)

    async def _replies(self, commands: tuple[Command, ...]) -> list[Any]:
        loop = asyncio.get_running_loop()
        call = _Call(commands, loop.create_future(), loop.time())
        self._waiting.append(call)
        if self._sender is None:
            self._sender = loop.create_task(self._send(), name="redis pipelines")
        outcome = await call.outcome
        if isinstance(outcome, Exception):
            raise unavailable(outcome)
        return outcome

    async def close(self) -> None:
        """Waits for what is on its way, then closes the connections."""
        if self._sender is not None:
            await self._sender
        await self._client.aclose()

    async def _send(self) -> None:
        loop = asyncio.get_running_loop()
        batching = self._batching
        failed_s = -math.inf  # when the exchange before failed
        try:
            while self._waiting:
                await linger(
                    batching.linger,
                    self._served,
                    lambda: len(self._waiting),
                    enough=batching.calls_enough,
                    until_s=perf_counter() + batching.max_wait_ms / 1000,
                )
                calls = self._next_calls()
                self._served = len(calls)
                if not calls:
                    continue
                started_s = loop.time()
                try:
                    async with _Silence(self._timeout_s):
                        replies = iter(await self._exchange(calls))
                except Exception as error:  # noqa: BLE001 (each caller raises it)
                    # One may be bad luck. After a second, who waited all the time need not wait on.
                    for call in calls + self._calls_until(failed_s):
                        _settle(call, error)
                    failed_s = loop.time()
                    self._failed(error)
                else:
                    failed_s = -math.inf
                    if self._metrics is not None:
                        self._metrics.redis_exchanged(loop.time() - started_s)
                    for call in calls:
                        own = [next(replies) for _ in call.commands]
                        refused = next((r for r in own if isinstance(r, Exception)), None)
                        if refused is not None:
                            self._failed(refused)
                        _settle(call, own)
        finally:
            self._sender = None

    def _failed(self, error: Exception) -> None:
        if self._metrics is not None:
            self._metrics.redis_failed(_kind_of(error))

    def _calls_until(self, time_s: float) -> list[_Call]:
        """Takes out the waiting calls that were made by then."""
        calls: list[_Call] = []
        while self._waiting and self._waiting[0].since_s <= time_s:
            calls.append(self._waiting.popleft())
        return calls

    def _next_calls(self) -> list[_Call]:
        calls: list[_Call] = []
        size = 0
        while self._waiting and size < COMMANDS_MAX:
            call = self._waiting.popleft()
            if not call.outcome.done():
                calls.append(call)
                size += len(call.commands)
        return calls

    async def _exchange(self, calls: list[_Call]) -> list[Any]:
        commands = [command for call in calls for command in call.commands]
        replies = await self._pipeline(commands)
        unknown = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:  # the first time, or Redis was restarted: those have not been run at all
            again = await self._pipeline([self._with_source(commands[i]) for i in unknown])
            for i, reply in zip(unknown, again, strict=True):
                replies[i] = reply
        return replies

    def _with_source(self, command: Command) -> Command:
        _evalsha, sha, *keys_and_arguments = command
        return ("EVAL", self._sources[str(sha)], *keys_and_arguments)

    async def _pipeline(self, commands: list[Command]) -> list[Any]:
        if isinstance(self._client, Redis):
            return await _talk(self._client, commands)
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)  # pyright: ignore[reportUnknownMemberType]
        return await pipeline.execute(raise_on_error=False)


async def _talk(client: Redis, commands: list[Command]) -> list[Any]:
    """What redis-py's pipeline does, with the commands written by hiredis: a third of the time."""
    pack = cast("Callable[[Command], bytes]", hiredis.pack_command)  # typed for one argument
    pool: Any = client.connection_pool
    connection = await pool.get_connection()
    try:
        await connection.send_packed_command(b"".join(map(pack, commands)))
        replies: list[Any] = []
        for _ in commands:
            try:
                replies.append(await connection.read_response())
            except ResponseError as error:
                replies.append(error)
        return replies
    finally:
        await pool.release(connection)


def unavailable(error: Exception) -> LocksUnavailable:
    """What a caller is told of an error of Redis."""
    told = LocksUnavailable()
    told.__cause__ = error
    return told


class _Silence:
    """Raises TimeoutError after ``timeout_s`` of silence.

    The time passes in steps, and one that ends late counts no more than one in time. While this
    process is busy the replies may lie in the socket unread, and on a machine that has too much to
    do Redis is as late as we are.
    """

    # Not a function that names itself: a cycle, with the task and context of its caller, for each
    # exchange, which stays until the collector comes.

    def __init__(self, timeout_s: float) -> None:
        self._step_s = timeout_s / SILENCE_STEPS
        self._timeout = asyncio.timeout(None)

    def _step(self, left: int) -> None:
        loop = asyncio.get_running_loop()
        if left:
            self._next_step = loop.call_later(self._step_s, self._step, left - 1)
        else:
            self._timeout.reschedule(loop.time())

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()
        self._step(SILENCE_STEPS)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        self._next_step.cancel()
        return await self._timeout.__aexit__(kind, error, trace)


def _kind_of(error: Exception) -> str:
    """What the metrics call an error of Redis."""
    match error:
        case TimeoutError() | RedisTimeoutError():
            return "silent"
        case RedisConnectionError() | OSError():
            return "unreachable"
        case RedisError():
            return "refused"
        case _:
            return "other"


def _settle(call: _Call, outcome: list[Any] | Exception) -> None:
    if not call.outcome.done():
        call.outcome.set_result(outcome)
