"""One exchange with Redis: commands go out together, and their replies come back in time.

What redis-py (8.1) does, and why its pipelines are not used:

* ``socket_timeout`` starts anew with each reply, so it does not bound a pipeline. One timeout
  around the whole exchange, connecting included, does.
* A cancellation, which is how that timeout ends an exchange, closes the connection
  (``read_response`` and ``send_packed_command`` do so on every ``BaseException``), so that no reply
  is left unread for whoever takes it next. The next exchange connects again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from types import TracebackType
from typing import Any, Final, TypeAlias, cast

import hiredis
from redis.asyncio import Redis
from redis.exceptions import AskError, NoScriptError, RedisError, ResponseError, TryAgainError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from coupon_service.errors import LocksUnavailable
from coupon_service.telemetry.metrics import Metrics

REDIRECTIONS: Final = (AskError, TryAgainError)
"""Replies of a cluster that say where else, or that later, a command is carried out."""

RedisCommand: TypeAlias = tuple[str | int, ...]

SILENCE_STEPS: Final = 5
"""Turns of the event loop, at least, that Redis has for its replies."""


class RedisExchange:
    """Sends commands and reads their replies, within a time limit."""

    def __init__(
        self,
        client: Redis,
        sources: Mapping[str, str],
        timeout_ms: int,
        metrics: Metrics | None = None,
    ) -> None:
        """``sources``: the text of each script by its SHA-1."""
        self._client = client
        self._sources = sources
        self._timeout_s = timeout_ms / 1000
        self._metrics = metrics

    async def replies(self, *commands: RedisCommand) -> list[Any]:
        """The reply to each command, or the error with which Redis refused it.

        Raises LocksUnavailable when Redis cannot be reached or is silent for ``timeout_ms``. What
        was sent may then have been carried out or not.
        """
        started_s = perf_counter()
        try:
            async with _Silence(self._timeout_s):
                replies = await self._send(commands)
        except Exception as error:
            self._count_error(error)
            raise unavailable(error) from error
        if self._metrics is not None:
            self._metrics.redis_exchanged(perf_counter() - started_s)
            refused = next((it for it in replies if isinstance(it, Exception)), None)
            if refused is not None and not isinstance(refused, REDIRECTIONS):
                self._count_error(refused)
        return replies

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    async def _send(self, commands: Sequence[RedisCommand]) -> list[Any]:
        replies = await _pipeline(self._client, commands)
        unknown = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:  # the first time, or Redis was restarted: those have not been run at all
            again = await _pipeline(
                self._client, [with_source(commands[i], self._sources) for i in unknown]
            )
            for i, reply in zip(unknown, again, strict=True):
                replies[i] = reply
        return replies

    def _count_error(self, error: Exception) -> None:
        if self._metrics is not None:
            self._metrics.redis_failed(_kind_of(error))


def with_source(command: RedisCommand, sources: Mapping[str, str]) -> RedisCommand:
    """A script with its text instead of its SHA-1; other commands as they are."""
    if command[0] != "EVALSHA":
        return command
    _evalsha, sha, *keys_and_arguments = command
    return ("EVAL", sources[str(sha)], *keys_and_arguments)


def accepted(replies: Sequence[Any]) -> Sequence[Any]:
    """The replies, when Redis refused none of the commands. Raises LocksUnavailable."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise unavailable(reply)
    return replies


def unavailable(error: Exception) -> LocksUnavailable:
    """What a caller is answered when Redis fails."""
    if isinstance(error, LocksUnavailable):
        return error
    answer = LocksUnavailable()
    answer.__cause__ = error
    return answer


async def _pipeline(client: Redis, commands: Sequence[RedisCommand]) -> list[Any]:
    """What redis-py's pipeline does, with the commands written by hiredis."""
    pack = cast("Callable[[RedisCommand], bytes]", hiredis.pack_command)  # typed for one argument
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
    """What the metric coupon_redis_errors_total calls an error of Redis."""
    match error:
        case TimeoutError() | RedisTimeoutError():
            return "silent"
        case RedisConnectionError() | OSError():
            return "unreachable"
        case RedisError():
            return "refused"
        case _:
            return "other"
