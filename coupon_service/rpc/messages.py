"""Request messages: waited for, bounded and parsed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import grpc.aio
from google.protobuf.message import DecodeError

from coupon_service.errors import DeadlineExceeded, FieldViolation, InvalidArgument

Context = grpc.aio.ServicerContext[Any, Any]

LATE: Final = "the message of the call has not come"


class MessageReader:
    """Reads the one message of a call, which has to come within `wait_s`, whatever deadline the
    client has set."""

    def __init__(self, wait_s: float) -> None:
        self._wait_s = wait_s
        # One timer for all: those who began first are late first.
        self._reading: dict[asyncio.Task[Any], float] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def read(self, context: Context) -> bytes:
        """The message. Raises DeadlineExceeded; InvalidArgument when the client sends none."""
        task = asyncio.current_task()
        if task is None:
            raise AssertionError("a call is answered outside of a task")
        loop = asyncio.get_running_loop()
        self._reading[task] = loop.time()
        if self._timer is None:
            self._timer = loop.call_later(self._wait_s, self._cancel_late)
        try:
            message: Any = await context.read()
        except asyncio.CancelledError as error:
            if error.args != (LATE,) or task.uncancel() > 0:
                raise
            raise DeadlineExceeded(f"No message came for {self._wait_s:g} seconds.") from None
        finally:
            del self._reading[task]
        if message is grpc.aio.EOF:
            raise unreadable("expected a message")
        return message

    def _cancel_late(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        for task, since_s in self._reading.items():
            left_s = since_s + self._wait_s - loop.time()
            if left_s > 0:
                self._timer = loop.call_later(left_s, self._cancel_late)
                return
            task.cancel(LATE)


def parser(deserialize: Any, max_bytes: int) -> Callable[[bytes], Any]:
    """Parses messages of up to so many bytes. It raises InvalidArgument."""

    def parse(raw: bytes) -> Any:
        if len(raw) > max_bytes:
            raise too_large(max_bytes, len(raw))
        try:
            return deserialize(raw)
        except DecodeError:
            raise unreadable("expected a message of the method's type, text in UTF-8") from None

    return parse


def too_large(max_bytes: int, size: int) -> InvalidArgument:
    """The error of a request that is larger than it may be."""
    return unreadable(f"expected a message of at most {max_bytes} bytes, not {size}")


def unreadable(expected: str) -> InvalidArgument:
    """The error of a request that is bad as a whole."""
    return InvalidArgument((FieldViolation("", expected),))
