"""How a call ends with an error, and what gRPC calls when it answers one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final, NoReturn

import grpc
import grpc.aio

from coupon_service.errors import CouponServiceError
from coupon_service.rpc.messages import Context
from coupon_service.rpc.status import kind_of, to_status

DETAILS_KEY: Final = "grpc-status-details-bin"
"""Where clients look for a google.rpc.Status."""

Answer = Callable[[Any, Context], Awaitable[bytes | None]]

HANDLERS: Final[Mapping[tuple[bool, bool], Callable[[Answer], grpc.RpcMethodHandler[Any, Any]]]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}
"""By whether the request and the response are streams. Without serializers: bytes in, bytes out.
gRPC waits for the message of a request that is none before it calls the Answer."""


async def abort(
    context: Context, error: CouponServiceError, cause: BaseException | None = None
) -> NoReturn:
    """Ends a call with the status of a `known` error, and has its memory freed at once.

    gRPC keeps the AbortError with the call, and the frames that this and its `cause` came through
    have the call: cycles, which would stay until the collector comes.
    """
    details = to_status(error)
    trailer = ((DETAILS_KEY, details.SerializeToString()),)
    try:
        await context.abort(kind_of(error).code, details.message, trailer)
    except grpc.aio.AbortError as aborted:
        if (task := asyncio.current_task()) is not None:
            task.add_done_callback(partial(_forget_frames, (aborted, cause or error)))
        raise


def _forget_frames(errors: Iterable[BaseException], _: object) -> None:
    for error in errors:
        error.__traceback__ = error.__context__ = None
