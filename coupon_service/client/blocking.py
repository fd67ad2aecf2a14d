"""The client for programs with threads."""

from __future__ import annotations

import copy
import itertools
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Self, TypeVar

import grpc
from google.protobuf.message import Message

from coupon_service.client.attempts import Attempts, RetryBudget
from coupon_service.client.error_details import error_of_call
from coupon_service.client.errors import CouponError
from coupon_service.client.holds import LAST_CALL_S, RETRY_S, HeldLock, is_to_be_released
from coupon_service.client.messages import advance, bearer, request_id_of, serialize
from coupon_service.client.methods import Methods
from coupon_service.client.rpc import Item, Response, Rpc
from coupon_service.client.settings import ClientSettings
from coupon_service.client.values import Metadata

T = TypeVar("T")

Token = str | Callable[[], str]


class CouponClient(Methods):
    """Calls the service at `target`, such as "coupons:50051", from any number of threads.

    Every method of the contract is a method with plain arguments, and returns the response of the
    contract; lists and streams are iterators over all their items. What is open or can be tried
    again is, until the deadline, with the same `request_id`: see ClientSettings. Errors are
    CouponErrors, a class for each reason.

    `token`: the bearer token, or a function that returns a valid one, which is called for each try.
    `credentials`: of TLS, grpc.ssl_channel_credentials(...); None: without TLS. Use it in a `with`
    block, or `close` it.
    """

    def __init__(
        self,
        target: str,
        *,
        token: Token = "",
        credentials: grpc.ChannelCredentials | None = None,
        settings: ClientSettings | None = None,
    ) -> None:
        self._settings = settings or ClientSettings()
        self._token = token
        self._budget = RetryBudget(self._settings.retry_budget)
        options = self._settings.options()
        self._channels = [
            grpc.insecure_channel(target, options)
            if credentials is None
            else grpc.secure_channel(target, credentials, options)
            for _ in range(self._settings.connections)
        ]
        self._turns = itertools.cycle(self._channels)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections. Calls in flight are cancelled."""
        for channel in self._channels:
            channel.close()

    def within(self, timeout_s: float) -> Self:
        """The same client, whose calls have this deadline: `client.within(2).redeem_code(...)`."""
        client = copy.copy(self)
        client._settings = replace(self._settings, timeout_s=timeout_s)  # noqa: SLF001 - its own
        return client

    @contextmanager
    def hold(
        self,
        code: str,
        user_id: str,
        *,
        book_id: str = "",
        business_id: str = "",
        ttl_s: float | None = None,
        metadata: Metadata | None = None,
        request_id: str = "",
    ) -> Generator[HeldLock]:
        """Holds the lock of a code while a block runs: `with client.hold(...) as lock:`.

        The lock is renewed as often as the service allows. When it ends before the block, the next
        use of `lock.token` is LockExpired. When the block fails, the lock is released, unless it is
        open whether the code was redeemed. Otherwise a lock that was not redeemed stays until its
        expiry.
        """
        began_s = time.monotonic()
        granted = self.lock_code(
            code,
            user_id,
            book_id=book_id,
            business_id=business_id,
            ttl_s=ttl_s,
            metadata=metadata,
            request_id=request_id,
        )
        lock, left = HeldLock(granted, began_s), threading.Event()
        renewing = threading.Thread(target=self._renew, args=(lock, ttl_s, left), daemon=True)
        renewing.start()
        try:
            yield lock
        except BaseException as error:
            if is_to_be_released(error):
                with suppress(CouponError):
                    self.within(LAST_CALL_S).unlock_code(lock.latest_token)
            raise
        finally:
            left.set()

    def _renew(self, lock: HeldLock, ttl_s: float | None, left: threading.Event) -> None:
        """Renews a lock as often as the service allows, until its block is left."""
        while (renew_in_s := lock.renew_in_s) is not None and not left.wait(renew_in_s):
            try:
                extended = self.within(max(lock.left_s, RETRY_S)).extend_lock(
                    lock.latest_token, ttl_s=ttl_s, request_id=lock.extension_id
                )
            except Exception as error:  # noqa: BLE001 - also those of the function for tokens
                lock.not_renewed(error)
                if lock.left_s <= 0 or left.wait(min(RETRY_S, lock.left_s)):
                    return
            else:
                lock.renewed(extended)

    # --- for the methods ------------------------------------------------------------------------

    def unary(self, rpc: Rpc[Response], request: Message) -> Response:
        """The response to a request. Raises CouponError."""

        def attempt(channel: grpc.Channel, timeout_s: float) -> Response:
            call: Any = channel.unary_unary(rpc.path, serialize, rpc.response.FromString)
            return call(request, timeout=timeout_s, **self._options())

        return self._tried(attempt, request_id_of(request))

    def items(
        self, rpc: Rpc[Response], request: Message, of: Callable[[Response], Iterable[Item]]
    ) -> Iterator[Item]:
        """The items `of` all pages, or of all messages of a stream. Raises CouponError."""
        responses = self._stream(rpc, request) if rpc.is_streamed else self._pages(rpc, request)
        for response in responses:
            yield from of(response)

    def upload(
        self, rpc: Rpc[Response], uploads: Iterable[Sequence[Message]]
    ) -> Iterator[Response]:
        """The response to each upload, of some messages. Raises CouponError."""
        for messages in uploads:

            def attempt(
                channel: grpc.Channel, timeout_s: float, messages: Sequence[Message] = messages
            ) -> Response:
                call: Any = channel.stream_stream(rpc.path, serialize, rpc.response.FromString)
                (response,) = call(iter(messages), timeout=timeout_s, **self._options())
                return response

            yield self._tried(attempt)

    def _pages(self, rpc: Rpc[Response], request: Message) -> Generator[Response]:
        while True:
            page = self.unary(rpc, request)
            yield page
            if not advance(request, page):
                return

    def _stream(self, rpc: Rpc[Response], request: Message) -> Generator[Response]:
        """The messages of a stream that, when it breaks, goes on where it was."""
        attempts = self._attempts(request_id_of(request))
        while True:
            open_stream: Any = next(self._turns).unary_stream(
                rpc.path, serialize, rpc.response.FromString
            )
            # Without a deadline, so it does not wait for a connection either.
            stream = open_stream(request, metadata=self._metadata())
            try:
                for message in stream:
                    attempts.progressed()
                    self._budget.earn()
                    yield message
                    if not advance(request, message):
                        return
            except grpc.RpcError as error:
                time.sleep(attempts.pause_s(error_of_call(error)))
            else:
                return
            finally:
                stream.cancel()

    def _tried(self, attempt: Callable[[grpc.Channel, float], T], request_id: str = "") -> T:
        """The result of an attempt with a channel and a timeout, of as many as it takes."""
        attempts = self._attempts(request_id)
        while True:
            try:
                result = attempt(next(self._turns), attempts.timeout_s())
            except grpc.RpcError as error:
                time.sleep(attempts.pause_s(error_of_call(error)))
            else:
                self._budget.earn()
                return result

    def _attempts(self, request_id: str) -> Attempts:
        return Attempts(self._settings, self._budget, time.monotonic, request_id)

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return bearer(self._token if isinstance(self._token, str) else self._token())

    def _options(self) -> dict[str, Any]:
        return {"metadata": self._metadata(), "wait_for_ready": self._settings.wait_for_ready}
