"""The client for programs with an event loop."""

from __future__ import annotations

import asyncio
import copy
import itertools
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, Self, TypeVar

import grpc.aio
from google.protobuf.message import Message

from coupon_service.client.attempts import Attempts, RetryBudget
from coupon_service.client.error_details import error_of_call
from coupon_service.client.errors import CouponError
from coupon_service.client.holds import (
    LAST_CALL_S,
    RETRY_S,
    USED,
    HeldLock,
    expired,
    is_to_be_released,
)
from coupon_service.client.messages import advance, bearer, request_id_of, serialize
from coupon_service.client.methods import Methods
from coupon_service.client.rpc import Item, Response, Rpc
from coupon_service.client.settings import ClientSettings
from coupon_service.client.streams import CheckoutStreams, field_of
from coupon_service.client.values import Metadata

T = TypeVar("T")

AsyncToken = str | Callable[[], str | Awaitable[str]]


class AsyncCouponClient(Methods):
    """Calls the service at `target`, such as "coupons:50051", from the event loop that makes it.

    As CouponClient, but methods are awaited, lists and streams are asynchronous iterators, and the
    function that returns a token may be asynchronous.
    """

    def __init__(
        self,
        target: str,
        *,
        token: AsyncToken = "",
        credentials: grpc.ChannelCredentials | None = None,
        settings: ClientSettings | None = None,
    ) -> None:
        self._settings = settings or ClientSettings()
        self._token = token
        self._budget = RetryBudget(self._settings.retry_budget)
        options = self._settings.options()
        self._channels = [
            grpc.aio.insecure_channel(target, options)
            if credentials is None
            else grpc.aio.secure_channel(target, credentials, options)
            for _ in range(self._settings.connections)
        ]
        self._turns = itertools.cycle(self._channels)
        self._streams = CheckoutStreams(
            self._channels,
            self._settings.streams,
            wait_for_ready=self._settings.wait_for_ready,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections. Calls in flight are cancelled."""
        await self._streams.close()
        for channel in self._channels:
            await channel.close()

    def within(self, timeout_s: float) -> Self:
        """The same client, whose calls have this deadline: `client.within(2).redeem_code(...)`."""
        client = copy.copy(self)
        client._settings = replace(self._settings, timeout_s=timeout_s)  # noqa: SLF001 - its own
        return client

    @asynccontextmanager
    async def hold(
        self,
        code: str,
        user_id: str,
        *,
        book_id: str = "",
        business_id: str = "",
        ttl_s: float | None = None,
        metadata: Metadata | None = None,
        request_id: str = "",
    ) -> AsyncGenerator[HeldLock]:
        """Holds the lock of a code while a block runs: `async with client.hold(...) as lock:`.

        The lock is renewed as often as the service allows. When it ends before the block, the block
        is cancelled and left with LockExpired. When the block fails, the lock is released, unless
        it is open whether the code was redeemed. Otherwise a lock that was not redeemed stays until
        its expiry.
        """
        began_s = time.monotonic()
        granted = await self.lock_code(
            code,
            user_id,
            book_id=book_id,
            business_id=business_id,
            ttl_s=ttl_s,
            metadata=metadata,
            request_id=request_id,
        )
        lock, limit = HeldLock(granted, began_s), asyncio.timeout(None)
        try:
            async with limit:
                renewing = asyncio.create_task(self._renew(lock, ttl_s, limit))
                try:
                    yield lock
                finally:
                    renewing.cancel()
        except BaseException as error:
            if isinstance(error, TimeoutError) and limit.expired():
                raise expired() from None
            if is_to_be_released(error):
                with suppress(CouponError):
                    await self.within(LAST_CALL_S).unlock_code(lock.latest_token)
            raise

    async def _renew(self, lock: HeldLock, ttl_s: float | None, limit: asyncio.Timeout) -> None:
        """Renews a lock as often as the service allows; then its end is the `limit`."""
        while lock.left_s > 0:
            if (renew_in_s := lock.renew_in_s) is None:
                await asyncio.sleep(lock.left_s)
                continue
            await asyncio.sleep(renew_in_s)
            try:
                extended = await self.within(max(lock.left_s, RETRY_S)).extend_lock(
                    lock.latest_token, ttl_s=ttl_s, request_id=lock.extension_id
                )
            except Exception as error:  # noqa: BLE001 - also those of the function for tokens
                lock.not_renewed(error)
                await asyncio.sleep(min(RETRY_S, max(lock.left_s, 0)))
            else:
                lock.renewed(extended)
        with suppress(Exception):
            found = await self.within(LAST_CALL_S).get_lock(lock.lock.lock_id)
            if found.lock.state in USED:
                return
        limit.reschedule(asyncio.get_running_loop().time())

    # --- for the methods ------------------------------------------------------------------------

    async def unary(self, rpc: Rpc[Response], request: Message) -> Response:
        """The response to a request. Raises CouponError."""
        field = field_of(request)

        async def attempt(channel: grpc.aio.Channel, timeout_s: float) -> Response:
            options = await self._options()
            if field is not None and (stream := self._streams.next(options["metadata"])):
                return await stream.carry(field, request, timeout_s)
            call: Any = channel.unary_unary(rpc.path, serialize, rpc.response.FromString)
            return await call(request, timeout=timeout_s, **options)

        return await self._tried(attempt, request_id_of(request))

    async def items(
        self, rpc: Rpc[Response], request: Message, of: Callable[[Response], Iterable[Item]]
    ) -> AsyncIterator[Item]:
        """The items `of` all pages, or of all messages of a stream. Raises CouponError."""
        responses = self._stream(rpc, request) if rpc.is_streamed else self._pages(rpc, request)
        async for response in responses:
            for item in of(response):
                yield item

    async def upload(
        self, rpc: Rpc[Response], uploads: Iterable[Sequence[Message]]
    ) -> AsyncIterator[Response]:
        """The response to each upload, of some messages. Raises CouponError."""
        for messages in uploads:

            async def attempt(
                channel: grpc.aio.Channel, timeout_s: float, messages: Sequence[Message] = messages
            ) -> Response:
                call: Any = channel.stream_stream(rpc.path, serialize, rpc.response.FromString)
                stream = call(iter(messages), timeout=timeout_s, **await self._options())
                (response,) = [it async for it in stream]
                return response

            yield await self._tried(attempt)

    async def _pages(self, rpc: Rpc[Response], request: Message) -> AsyncGenerator[Response]:
        while True:
            page = await self.unary(rpc, request)
            yield page
            if not advance(request, page):
                return

    async def _stream(self, rpc: Rpc[Response], request: Message) -> AsyncGenerator[Response]:
        """The messages of a stream that, when it breaks, goes on where it was."""
        attempts = self._attempts(request_id_of(request))
        while True:
            open_stream: Any = next(self._turns).unary_stream(
                rpc.path, serialize, rpc.response.FromString
            )
            # Without a deadline, so it does not wait for a connection either.
            stream = open_stream(request, metadata=await self._metadata())
            try:
                async for message in stream:
                    attempts.progressed()
                    self._budget.earn()
                    yield message
                    if not advance(request, message):
                        return
            except grpc.aio.AioRpcError as error:
                await asyncio.sleep(attempts.pause_s(error_of_call(error)))
            else:
                return
            finally:
                stream.cancel()

    async def _tried(
        self,
        attempt: Callable[[grpc.aio.Channel, float], Awaitable[T]],
        request_id: str = "",
    ) -> T:
        """The result of an attempt with a channel and a timeout, of as many as it takes."""
        attempts = self._attempts(request_id)
        while True:
            try:
                result = await attempt(next(self._turns), attempts.timeout_s())
            except grpc.aio.AioRpcError as error:
                await asyncio.sleep(attempts.pause_s(error_of_call(error)))
            except CouponError as error:  # of an operation
                await asyncio.sleep(attempts.pause_s(error))
            else:
                self._budget.earn()
                return result

    def _attempts(self, request_id: str) -> Attempts:
        return Attempts(self._settings, self._budget, time.monotonic, request_id)

    async def _metadata(self) -> tuple[tuple[str, str], ...]:
        token = self._token if isinstance(self._token, str) else self._token()
        return bearer(token if isinstance(token, str) else await token)

    async def _options(self) -> dict[str, Any]:
        return {
            "metadata": await self._metadata(),
            "wait_for_ready": self._settings.wait_for_ready,
        }
