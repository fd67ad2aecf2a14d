"""Exceptions of the client, against the contract and against what the service sends."""

from __future__ import annotations

import pickle
import re
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest
from support.doc_tables import PROTO

from coupon_service import errors as of_service
from coupon_service.client import errors
from coupon_service.client.error_details import error_of_call, error_of_item, error_of_operation
from coupon_service.client.errors import BY_REASON, CouponError, Problem, error_of
from coupon_service.rpc.status import TABLE, item_error, operation_error, to_status
from coupon_service.v1.error_reason_pb2 import ErrorReason, ItemError

CONTRACT = (PROTO / "error_reason.proto").read_text(encoding="utf-8")


class CallError(grpc.RpcError):
    """A call that the service refused with this error, or with this status."""

    def __init__(self, error: of_service.CouponServiceError | grpc.StatusCode) -> None:
        self._error = error

    def code(self) -> grpc.StatusCode:
        if isinstance(self._error, grpc.StatusCode):
            return self._error
        return TABLE[type(self._error)].code

    def details(self) -> str:
        return "from gRPC"

    def trailing_metadata(self) -> Any:
        if isinstance(self._error, grpc.StatusCode):
            return None
        return [("grpc-status-details-bin", to_status(self._error).SerializeToString())]


def test_every_reason_of_the_contract_has_a_class_with_its_status() -> None:
    reasons = re.findall(r"// \[(\w+)\][^=]*?ERROR_REASON_(\w+) = ", CONTRACT)
    assert {name.removeprefix("ERROR_REASON_") for name in ErrorReason.keys()[1:]} == set(BY_REASON)
    assert {(kind.status.name, name) for name, kind in BY_REASON.items()} == set(reasons)


def test_the_metadata_of_every_reason_are_attributes_of_its_class() -> None:
    for comment, name in re.findall(r"((?:  //[^\n]*\n)+)  ERROR_REASON_(\w+) = [1-9]", CONTRACT):
        text = " ".join(line.strip(" /") for line in comment.splitlines())
        _, _, metadata = text.partition("Metadata")
        declared = BY_REASON[name].__annotations__
        assert set(re.findall(r"`([a-z_]+)`", metadata)) == set(declared), name


def test_metadata_are_attributes_of_the_type_that_they_are() -> None:
    error = error_of_call(CallError(of_service.CodeLocked(retry_after_ms=1_500)))
    assert isinstance(error, errors.CodeLocked)
    assert (error.retry_after_ms, error.retry_after_s) == (1_500, 1.5)
    assert (error.status, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "CODE_LOCKED")
    end = datetime(2030, 1, 1, tzinfo=UTC)
    ended = error_of_call(CallError(of_service.BookExpired(end_time=end.isoformat())))
    assert isinstance(ended, errors.BookExpired)
    assert ended.end_time == end


def test_metadata_that_is_missing_or_malformed_keeps_its_default() -> None:
    status = grpc.StatusCode.FAILED_PRECONDITION
    for metadata in ({}, {"limit": "many"}):
        error = error_of(Problem(status, "", "CODE_LIMIT_EXCEEDED", metadata))
        assert isinstance(error, errors.CodeLimitExceeded)
        assert error.limit == 0
        assert error.metadata == metadata


def test_every_bad_field_is_named() -> None:
    violations = (of_service.FieldViolation("code", "expected a code"),)
    for error in (
        error_of_call(CallError(of_service.InvalidArgument(violations))),
        error_of_operation(operation_error(of_service.InvalidArgument(violations))),
    ):
        assert isinstance(error, errors.InvalidArgument)
        assert [(it.field, it.description) for it in error.violations] == [
            ("code", "expected a code")
        ]
        assert "code: expected a code" in str(error)


def test_an_unknown_reason_is_the_error_of_its_status() -> None:
    status = grpc.StatusCode.FAILED_PRECONDITION
    error = error_of(Problem(status, "Not on a Sunday.", "DAY_NOT_ALLOWED", {"status": "x"}))
    assert type(error) is errors.Refused
    assert (error.reason, error.status, error.message) == (
        "DAY_NOT_ALLOWED",
        status,
        "Not on a Sunday.",
    )
    assert not error.outcome_unknown


@pytest.mark.parametrize(
    ("status", "kind", "unknown"),
    [
        (grpc.StatusCode.UNAVAILABLE, errors.Unavailable, True),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceeded, True),
        (grpc.StatusCode.CANCELLED, CouponError, True),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.ResourceExhausted, False),
        (grpc.StatusCode.UNIMPLEMENTED, CouponError, False),
    ],
)
def test_a_status_without_a_reason_is_that_of_grpc(
    status: grpc.StatusCode, kind: type[CouponError], *, unknown: bool
) -> None:
    error = error_of_call(CallError(status))
    assert type(error) is kind
    assert (error.status, error.reason, error.message) == (status, status.name, "from gRPC")
    assert error.outcome_unknown is unknown


def test_calls_operations_and_items_have_the_same_error() -> None:
    refusal = of_service.UserLimitExceeded(limit_name="max_redemptions_per_user", limit=3)
    for error in (
        error_of_call(CallError(refusal)),
        error_of_operation(operation_error(refusal)),
        error_of_item(item_error(refusal)),
    ):
        assert isinstance(error, errors.UserLimitExceeded)
        assert (error.limit, error.limit_name) == (3, "max_redemptions_per_user")
        assert error.status is grpc.StatusCode.FAILED_PRECONDITION


def test_an_item_with_an_unknown_reason_has_its_number() -> None:
    newer: Any = 12_345
    error = error_of_item(ItemError(reason=newer, message="new"))
    assert type(error) is CouponError
    assert error.reason == "12345"


def test_errors_can_be_sent_to_other_processes() -> None:
    error = error_of_call(CallError(of_service.CodeLocked(retry_after_ms=1_500)))
    error.request_id = "the order"
    copied = pickle.loads(pickle.dumps(error))  # noqa: S301 - its own
    assert type(copied) is errors.CodeLocked
    assert vars(copied) == vars(error)
    assert str(copied) == str(error) == f"CODE_LOCKED: {error.message}"


def test_operations_of_a_stream_that_ended_were_not_carried_out() -> None:
    assert not error_of_call(CallError(of_service.StreamEnded())).outcome_unknown
