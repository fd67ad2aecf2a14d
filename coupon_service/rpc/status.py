"""The one table from errors to gRPC statuses, and what a client gets of an error."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode

from coupon_service import errors
from coupon_service.errors import (
    CouponServiceError,
    FieldViolation,
    InvalidArgument,
    reason_name,
)
from coupon_service.v1.error_reason_pb2 import ErrorReason, ItemError
from coupon_service.v1.redemption_service_pb2 import CheckoutError

DOMAIN: Final = "coupon_service.v1"

# The status travels twice in the trailing metadata: as text, and as a message in base64. Clients
# take 8 KiB of metadata, and answer anything above it with an error of their own.
MESSAGE_MAX_CHARACTERS: Final = 512
VIOLATIONS_MAX_BYTES: Final = 3_584


class Internal(CouponServiceError):
    """A fault of the service. The log has more under the error_id."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a class of errors is to a client. `reason` is a number of ErrorReason, `name` its name.

    `retry_after_ms`: when a repeat may help, unless the error itself says (metadata of that name).
    """

    code: StatusCode
    reason: ErrorReason.ValueType
    name: str
    retry_after_ms: int | None


def _kinds(
    code: StatusCode, *classes: type[CouponServiceError]
) -> Iterator[tuple[type[CouponServiceError], Kind]]:
    for cls in classes:
        name = reason_name(cls)
        reason = ErrorReason.Value(f"ERROR_REASON_{name}")
        yield cls, Kind(code, reason, name, RETRY_AFTER_MS.get(cls))


RETRY_AFTER_MS: Final[Mapping[type[CouponServiceError], int]] = {
    errors.CodeLocked: 1_000,
    errors.Contention: 50,
    errors.ErasureInProgress: 1_000,
    errors.RateLimited: 1_000,
    errors.Overloaded: 500,
    errors.DatabaseUnavailable: 1_000,
    errors.EventNotSealed: 10_000,
    errors.LocksUnavailable: 200,
}

TABLE: Final[Mapping[type[CouponServiceError], Kind]] = dict(
    [
        *_kinds(
            StatusCode.NOT_FOUND,
            errors.BookNotFound,
            errors.CodeNotFound,
            errors.AssignmentNotFound,
            errors.LockNotFound,
            errors.RedemptionNotFound,
            errors.UploadNotFound,
            errors.ErasureNotFound,
            errors.EventNotFound,
            errors.SealNotFound,
        ),
        *_kinds(
            StatusCode.FAILED_PRECONDITION,
            errors.BookNotActive,
            errors.BookNotStarted,
            errors.BookExpired,
            errors.CodeDisabled,
            errors.CodeExpired,
            errors.CodeNotStarted,
            errors.CodeAlreadyRedeemed,
            errors.CodeLimitExceeded,
            errors.UserLimitExceeded,
            errors.BookLimitExceeded,
            errors.BudgetExceeded,
            errors.OrderAmountRequired,
            errors.OrderIdRequired,
            errors.OrderFullyDiscounted,
            errors.OrderLimitExceeded,
            errors.CouponsNotCombinable,
            errors.ExclusiveGroupUsed,
            errors.NoCodesAvailable,
            errors.CodeNotAssignedToUser,
            errors.CodeLocked,
            errors.LockRequired,
            errors.LockExpired,
            errors.LockTokenMismatch,
            errors.LockLimitExceeded,
            errors.OrderBelowMinimum,
            errors.CurrencyMismatch,
            errors.OutsideSchedule,
            errors.UserPeriodLimitExceeded,
            errors.BookPeriodLimitExceeded,
            errors.AlreadyRolledBack,
            errors.AssignmentNotActive,
            errors.OrderAlreadyRedeemed,
            errors.CodeSpaceExhausted,
            errors.InvalidStateTransition,
            errors.CodeHasHistory,
            errors.UploadAmbiguous,
            errors.UserErased,
            errors.ErasureNotConfigured,
            errors.ResumeTokenAhead,
            errors.RefusalsNotKept,
            errors.Archived,
            errors.EventNotSealed,
            errors.LedgerChanged,
        ),
        *_kinds(StatusCode.ALREADY_EXISTS, errors.CodeAlreadyAssigned, errors.DuplicateCode),
        *_kinds(
            StatusCode.INVALID_ARGUMENT,
            errors.InvalidArgument,
            errors.CodeChecksumInvalid,
            errors.RequestIdReused,
            errors.BusinessRequired,
            errors.SeveralBusinesses,
        ),
        *_kinds(
            StatusCode.ABORTED,
            errors.ConcurrentModification,
            errors.Contention,
            errors.ErasureInProgress,
        ),
        *_kinds(StatusCode.RESOURCE_EXHAUSTED, errors.RateLimited, errors.Overloaded),
        *_kinds(StatusCode.UNAUTHENTICATED, errors.Unauthenticated),
        *_kinds(StatusCode.PERMISSION_DENIED, errors.PermissionDenied),
        *_kinds(StatusCode.UNAVAILABLE, errors.DatabaseUnavailable, errors.LocksUnavailable),
        *_kinds(StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceeded),
        *_kinds(StatusCode.INTERNAL, Internal),
        *_kinds(StatusCode.UNAVAILABLE, errors.StreamEnded),
    ]
)
"""Status and reason of every class. The reason is the name of the class, as a proto writes it."""


def known(error: BaseException) -> CouponServiceError:
    """The error when the table has it or a class it derives from, else an Internal in its place.

    An Internal says nothing of the error but an `error_id`, under which it is to be logged.
    """
    if isinstance(error, CouponServiceError) and any(cls in TABLE for cls in type(error).__mro__):
        return error
    return Internal(error_id=secrets.token_hex(8))


def kind_of(error: CouponServiceError) -> Kind:
    """What the error, a `known` one, is to a client."""
    return next(TABLE[cls] for cls in type(error).__mro__ if cls in TABLE)


def to_status(error: CouponServiceError) -> Status:
    """The status of a `known` error with its details: ErrorInfo always, RetryInfo, BadRequest."""
    kind = kind_of(error)
    status = Status(code=kind.code.value[0], message=_shortened(error.message))
    info = ErrorInfo(reason=kind.name, domain=DOMAIN, metadata=error.metadata)
    status.details.add().Pack(info)
    if (retry_after_ms := _retry_after_ms(error, kind)) is not None:
        retry = RetryInfo()
        retry.retry_delay.FromMilliseconds(retry_after_ms)
        status.details.add().Pack(retry)
    if isinstance(error, InvalidArgument):
        request = BadRequest()
        for violation in _violations(error):
            request.field_violations.add(field=violation.field, description=violation.description)
        status.details.add().Pack(request)
    return status


def item_error(error: CouponServiceError) -> ItemError:
    """A `known` error as the result of one item of a call that went well as a whole."""
    return ItemError(
        reason=kind_of(error).reason, message=_shortened(error.message), metadata=error.metadata
    )


def operation_error(error: CouponServiceError) -> CheckoutError:
    """A `known` error as the result of one operation of a stream: all that a status says."""
    kind = kind_of(error)
    answer = CheckoutError(code=kind.code.value[0], error=item_error(error))
    if (retry_after_ms := _retry_after_ms(error, kind)) is not None:
        answer.retry_delay.FromMilliseconds(retry_after_ms)
    if isinstance(error, InvalidArgument):
        for violation in _violations(error):
            answer.field_violations.add(field=violation.field, description=violation.description)
    return answer


def _retry_after_ms(error: CouponServiceError, kind: Kind) -> int | None:
    """When a repeat may help, if it does."""
    if kind.retry_after_ms is None:
        return None
    return int(error.metadata.get("retry_after_ms", kind.retry_after_ms))


def _violations(error: InvalidArgument) -> Iterator[FieldViolation]:
    """All violations, or as many as fit and how many more there are."""
    size = 0
    for index, violation in enumerate(error.violations):
        size += len(violation.field) + len(violation.description) + 8
        if size > VIOLATIONS_MAX_BYTES:
            left = len(error.violations) - index
            yield FieldViolation("", f"and {left} more violations")
            return
        yield violation


def _shortened(message: str) -> str:
    if len(message) <= MESSAGE_MAX_CHARACTERS:
        return message
    return f"{message[: MESSAGE_MAX_CHARACTERS - 3]}..."
