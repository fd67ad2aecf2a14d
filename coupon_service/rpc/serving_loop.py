"""gRPC's serving loop, and what takes over when a request has ended it.

grpc.aio hands calls to the handler in a loop that decodes their paths as UTF-8. At the first path
that is not, the loop ends and takes the server along (grpcio 1.85): one request of anybody ends a
worker. So when it has ended, the calls go on in the loop of another server object, one without a
port, and when that one meets such a request in the loop of the next. The port, the connections, the
calls under way and those that wait never notice; the request itself is CANCELLED.

Until then only the public interface of grpc.aio is in use.
"""

# ruff: noqa: SLF001 - nothing public goes on with the calls of a server
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Final, cast

import grpc
import grpc.aio
import structlog
from grpc._cython import cygrpc

AioServer: Final[Any] = cast("Any", cygrpc).AioServer

PATH_MAX_CHARACTERS: Final = 100
"""Of a path that is logged."""


class ServingLoop:
    """Serves the calls of `server`, which has a port and has not been started."""

    def __init__(self, server: grpc.aio.Server, handler: grpc.GenericRpcHandler) -> None:
        # A registered method would be asked for by the server's own loop alone.
        server.add_generic_rpc_handlers((handler,))
        self._server = server
        self._handler = handler
        self._log = structlog.get_logger(__name__)
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False
        self.failed = asyncio.Event()
        """Set when calls are not served any more, although nobody has stopped it."""

    async def start(self) -> None:
        """Returns when calls are served."""
        before = asyncio.all_tasks()
        await self._server.start()
        loops = [it for it in asyncio.all_tasks() - before if _runs(it, "_server_main_loop")]
        if len(loops) != 1:
            raise AssertionError(f"grpcio {grpc.__version__} has another serving loop")
        loops[0].add_done_callback(self._first_ended)

    async def stop(self, grace_s: float) -> None:
        """Takes no more calls, and gives those under way the time to finish."""
        self._stopping = True
        with suppress(UnicodeDecodeError):  # once its own loop has ended, it only begins to stop
            await self._server.stop(grace_s)
        await self._server.stop(grace_s)
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _first_ended(self, loop: asyncio.Task[None]) -> None:
        if not loop.cancelled() and isinstance(loop.exception(), UnicodeDecodeError):
            # gRPC is about to stop the server. That has not begun: callbacks come before new tasks.
            for task in asyncio.all_tasks():
                if _runs(task, "shutdown"):
                    task.cancel()
        self._ended(loop)

    def _ended(self, loop: asyncio.Task[None]) -> None:
        if self._stopping:
            return
        error = None if loop.cancelled() else loop.exception()
        if isinstance(error, UnicodeDecodeError):
            path = ascii(error.object[:PATH_MAX_CHARACTERS])
            self._log.warning("a path is not UTF-8", path=path)
            self._spawn(self._take_over())
        else:
            self._log.error("gRPC serves no more calls", exc_info=error)
            self.failed.set()

    async def _take_over(self) -> None:
        successor = _Successor(self._server, self._handler, self._ended)
        await successor.start()
        await successor.ended.wait()
        with suppress(UnicodeDecodeError, _StoppedError):  # what ended it; it only begins to stop
            await successor.shutdown(None)
        await successor.shutdown(None)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error("gRPC serves no more calls", exc_info=error)
            self.failed.set()


class _StoppedError(Exception):
    """The server whose calls a loop serves has been stopped."""


class _Successor(AioServer):
    """A server object without a port, whose loop serves the calls of another."""

    def __init__(
        self,
        server: grpc.aio.Server,
        handler: grpc.GenericRpcHandler,
        crashed: Callable[[asyncio.Task[None]], None],
    ) -> None:
        super().__init__(asyncio.get_running_loop(), None, (handler,), None, (), None)
        self._source: Any = cast("Any", server)._server
        self._crashed = crashed
        self.ended = asyncio.Event()

    async def _request_call(self) -> object:
        """Called by the loop for the next call."""
        if not self._source.is_running():
            raise _StoppedError
        return await AioServer._request_call(self._source)

    def _serving_task_crash_handler(self, loop: asyncio.Task[None]) -> None:
        """Called when the loop has ended."""
        self._crashed(loop)
        self.ended.set()


def _runs(task: asyncio.Task[Any], name: str) -> bool:
    """Whether the task runs this method of gRPC's server."""
    return getattr(task.get_coro(), "__qualname__", "") == f"AioServer.{name}"
