"""Errors of what the service, or gRPC, answers: of calls, operations of streams, and items."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode

from coupon_service.client.errors import (
    BY_REASON,
    PREFIX,
    CouponError,
    Problem,
    Violation,
    error_of,
)
from coupon_service.v1.error_reason_pb2 import ErrorReason, ItemError
from coupon_service.v1.redemption_service_pb2 import CheckoutError

Detail = TypeVar("Detail", bound=Message)

STATUS_DETAILS: Final = "grpc-status-details-bin"

_STATUSES: Final[Mapping[int, StatusCode]] = {int(status.value[0]): status for status in StatusCode}


def error_of_call(error: grpc.RpcError) -> CouponError:
    """The exception of a call that failed."""
    status = status_of(error)
    info = detail_of(status, ErrorInfo)
    retry = detail_of(status, RetryInfo)
    bad = detail_of(status, BadRequest) or BadRequest()
    return error_of(
        Problem(
            error.code(),
            status.message or error.details() or "",
            info.reason if info is not None else error.code().name,
            dict(info.metadata) if info is not None else {},
            retry.retry_delay.ToMilliseconds() / 1000 if retry is not None else None,
            [Violation(it.field, it.description) for it in bad.field_violations],
        )
    )


def error_of_operation(error: CheckoutError) -> CouponError:
    """The exception of an operation of a Checkout stream that failed."""
    return error_of(
        Problem(
            _STATUSES.get(error.code, StatusCode.UNKNOWN),
            error.error.message,
            _reason_of(error.error),
            dict(error.error.metadata),
            error.retry_delay.ToMilliseconds() / 1000 if error.HasField("retry_delay") else None,
            [Violation(it.field, it.description) for it in error.field_violations],
        )
    )


def error_of_item(item: ItemError) -> CouponError:
    """The exception of one item of a batch, or of one problem of validate_code: raise it, or look
    at its attributes.
    """
    reason = _reason_of(item)
    status = BY_REASON[reason].status if reason in BY_REASON else StatusCode.UNKNOWN
    return error_of(Problem(status, item.message, reason, dict(item.metadata)))


def _reason_of(item: ItemError) -> str:
    known = item.reason in ErrorReason.values()
    return ErrorReason.Name(item.reason).removeprefix(PREFIX) if known else str(item.reason)


def status_of(error: grpc.RpcError) -> Status:
    """What the trailing metadata of a call that failed say of its error; an empty one otherwise."""
    metadata: Any = error.trailing_metadata()
    for key, value in metadata or ():
        if key == STATUS_DETAILS and isinstance(value, bytes):
            return Status.FromString(value)
    return Status()


def detail_of(status: Status, kind: type[Detail]) -> Detail | None:
    """The detail of this type, where the status has one."""
    for packed in status.details:
        detail = kind()
        if packed.Unpack(detail):
            return detail
    return None
