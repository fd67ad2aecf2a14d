"""Requests that are converted together, when their batch is executed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeVar

from coupon_service.batching import LazyCommand
from coupon_service.model import Command
from coupon_service.rpc.context import RequestContext
from coupon_service.rpc.convert.fields import REQUEST_ID


class _Named(Protocol):
    @property
    def request_id(self) -> str: ...


C = TypeVar("C", bound=Command)
M = TypeVar("M", bound=_Named)


def lazy_command(
    read: Callable[[M, RequestContext], C], request: M, rpc: RequestContext
) -> LazyCommand[C]:
    """The command of the request. The log knows the request_id at once, since the call may end
    before its turn."""
    if REQUEST_ID.fullmatch(request.request_id):
        rpc.request_id = request.request_id
    return LazyCommand(partial(read, request, rpc), rpc.deadline)
