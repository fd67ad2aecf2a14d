"""Operations of Checkout streams and their results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from coupon_service.errors import CouponServiceError, FieldViolation, InvalidArgument
from coupon_service.rpc.status import operation_error
from coupon_service.v1 import redemption_service_pb2 as pb

CHECKOUT: Final = "RedemptionService/Checkout"
OPERATIONS_MAX: Final = 1_000
TIMEOUT_MAX_S: Final = 86_400

METHODS: Final[Mapping[str, str]] = {
    "validate_code": "RedemptionService/ValidateCode",
    "lock_code": "RedemptionService/LockCode",
    "extend_lock": "RedemptionService/ExtendLock",
    "unlock_code": "RedemptionService/UnlockCode",
    "redeem_code": "RedemptionService/RedeemCode",
    "rollback_redemption": "RedemptionService/RollbackRedemption",
}
"""The method of each field that is an operation's request; its response has the same field."""


def check_size(request: pb.CheckoutRequest) -> None:
    """Raises InvalidArgument when it has too many operations, or none."""
    if not 1 <= len(request.operations) <= OPERATIONS_MAX:
        violation = FieldViolation("operations", f"expected 1 to {OPERATIONS_MAX:,} operations")
        raise InvalidArgument((violation,))


def timeout_s(operation: pb.CheckoutOperation) -> float | None:
    """How long the operation may take; None where it does not say. It may be out of bounds."""
    if not operation.HasField("timeout"):
        return None
    return operation.timeout.seconds + operation.timeout.nanos / 1e9


def problem(
    operation: pb.CheckoutOperation, field: str | None, *, in_flight: bool
) -> InvalidArgument | None:
    """What is wrong with an operation, apart from its request, which `field` has.

    `in_flight`: another operation of the stream with its tag is.
    """
    violations: list[FieldViolation] = []
    if not operation.tag:
        violations.append(FieldViolation("tag", "expected 1 or more"))
    elif in_flight:
        violations.append(FieldViolation("tag", "expected one of no other operation in flight"))
    if (timeout := timeout_s(operation)) is not None and not 0 < timeout <= TIMEOUT_MAX_S:
        violations.append(
            FieldViolation("timeout", f"expected more than 0 and at most {TIMEOUT_MAX_S} seconds")
        )
    if field is None:
        violations.append(FieldViolation("request", f"expected one of {', '.join(METHODS)}"))
    return InvalidArgument(tuple(violations)) if violations else None


def result(tag: int, field: str, response: Any) -> bytes:
    """A response of the stream with one result. Several of them, joined, are one response."""
    answer = pb.CheckoutResponse()
    added = answer.results.add()
    added.tag = tag
    getattr(added, field).CopyFrom(response)
    return answer.SerializeToString()


def error_result(tag: int, error: CouponServiceError) -> bytes:
    """As `result`, with a `known` error."""
    return result(tag, "error", operation_error(error))
