"""Methods that need no token: health and reflection, of other packages.

They are bounded apart from the calls, so that nobody without a token keeps callers out: they are
never among the open calls, and are answered however many of those there are.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import Counter
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import aclosing, contextmanager
from typing import Any, Final

import grpc

from coupon_service.errors import CouponServiceError, DeadlineExceeded, Overloaded
from coupon_service.rpc.abort import abort
from coupon_service.rpc.messages import Context, MessageReader, parser

MESSAGE_MAX_BYTES: Final = 4_096
MESSAGE_WAIT_S: Final = 1.0
STREAM_IDLE_S: Final = 60.0

STREAMS_OF_CONNECTION_MAX: Final = 10
"""A client watches the health of the services that it uses, once each."""


class PublicMethods:
    """Answers public methods. At most `streams_max` of their streams are open at a time."""

    def __init__(self, streams_max: int) -> None:
        self._streams_max = streams_max
        self._messages = MessageReader(MESSAGE_WAIT_S)
        self._streams_of: Counter[str] = Counter()
        self.open_streams = 0

    def bounded(
        self, handler: grpc.RpcMethodHandler[Any, Any]
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The handler of a method with bounds around it; None for one that is not implemented."""
        behavior: Any = handler.unary_unary or handler.unary_stream or handler.stream_stream
        if not (inspect.iscoroutinefunction(behavior) or inspect.isasyncgenfunction(behavior)):
            return None  # what was generated, and only raises
        parse = parser(handler.request_deserializer, MESSAGE_MAX_BYTES)

        async def one(_: Any, context: Context) -> Any:
            try:
                return await behavior(parse(await self._messages.read(context)), context)
            except CouponServiceError as error:
                await abort(context, error)

        async def stream(messages: AsyncIterator[bytes], context: Context) -> None:
            if self.open_streams >= self._streams_max:
                # Of a client that would watch the health of a service before it uses it (gRPC's
                # proposal A17), this one and no other goes ahead without.
                await context.abort(grpc.StatusCode.UNIMPLEMENTED, "There are too many streams.")
            try:
                with self._counted(context.peer()):
                    if handler.request_streaming:
                        await _converse(behavior, _parsed(messages, parse), context)
                    else:
                        await behavior(parse(await self._messages.read(context)), context)
            except CouponServiceError as error:
                await abort(context, error)

        # The request is a stream to gRPC, which would wait for the message of any other.
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(stream, None, handler.response_serializer)
        return grpc.stream_unary_rpc_method_handler(one, None, handler.response_serializer)

    @contextmanager
    def _counted(self, peer: str) -> Generator[None]:
        """A stream of the peer. Raises Overloaded."""
        if self._streams_of[peer] >= STREAMS_OF_CONNECTION_MAX:
            raise Overloaded("This connection has too many streams of health and reflection.")
        self._streams_of[peer] += 1
        self.open_streams += 1
        try:
            yield
        finally:
            self.open_streams -= 1
            self._streams_of[peer] -= 1
            if not self._streams_of[peer]:
                del self._streams_of[peer]


async def _parsed(
    messages: AsyncIterator[bytes], parse: Callable[[bytes], Any]
) -> AsyncIterator[Any]:
    while True:
        try:
            async with asyncio.timeout(STREAM_IDLE_S):
                message = await anext(messages, None)
        except TimeoutError:
            raise DeadlineExceeded(f"No message came for {STREAM_IDLE_S:g} seconds.") from None
        if message is None:
            return
        yield parse(message)


async def _converse(behavior: Any, requests: AsyncIterator[Any], context: Context) -> None:
    async with aclosing(behavior(requests, context)) as responses:
        async for response in responses:
            await context.write(response)
