"""Calls whose message has not come yet, and who opens calls without one.

A call counts as open as soon as its headers are there. gRPC reads its message before the handler is
called, which costs less than when the handler reads it, but waits for it without end. When a client
half-closes without a message, gRPC answers nothing and keeps the call until the client leaves, out
of sight of the handler and its bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Final

from coupon_service.rpc.context import RequestContext

SUSPECTED_S: Final = 60.0
SUSPECTS_MAX: Final = 1_000

Name = tuple[str, str]


class UnreadCalls:
    """Calls whose message gRPC waits for. There are at most `most` of them, and none of a caller of
    whom a call has just ended without a message: those are for the handler to read.
    """

    def __init__(self, most: int, now_s: Callable[[], float] = monotonic) -> None:
        self._most = most
        self._now_s = now_s
        self._calls: set[RequestContext] = set()
        self._suspects: dict[Name, float] = {}
        """Until when, in the order in which they were found."""

    def admits(self, rpc: RequestContext) -> bool:
        """Whether gRPC may wait for the message of this call, which is one of these then."""
        if len(self._calls) >= self._most or (self._suspects and self._is_suspect(rpc)):
            return False
        self._calls.add(rpc)
        return True

    def read(self, rpc: RequestContext) -> None:
        """The message of the call has come."""
        self._calls.discard(rpc)

    def ended(self, rpc: RequestContext) -> None:
        """The call has ended, with or without a message."""
        if rpc not in self._calls:
            return
        self._calls.remove(rpc)
        name = _name(rpc)
        self._suspects.pop(name, None)
        if len(self._suspects) >= SUSPECTS_MAX:
            del self._suspects[next(iter(self._suspects))]
        self._suspects[name] = self._now_s() + SUSPECTED_S

    def _is_suspect(self, rpc: RequestContext) -> bool:
        until_s = self._suspects.get(_name(rpc))
        if until_s is not None and until_s <= self._now_s():
            del self._suspects[_name(rpc)]
            return False
        return until_s is not None


def _name(rpc: RequestContext) -> Name:
    return rpc.business_id, rpc.caller
