"""What clients are told of errors."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import TypeVar

import pytest
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode

from coupon_service import errors
from coupon_service.errors import CouponServiceError, FieldViolation, InvalidArgument
from coupon_service.rpc.status import (
    TABLE,
    Internal,
    item_error,
    kind_of,
    known,
    operation_error,
    to_status,
)
from coupon_service.v1 import error_reason_pb2 as pb

BASES = {CouponServiceError, errors.Refusal}
CLASSES = [
    cls
    for _, cls in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cls, CouponServiceError) and cls not in BASES
]
GRPC_METADATA_MAX_BYTES = 8_192


M = TypeVar("M", bound=Message)

CONTRACT = Path(__file__).parents[3] / "proto/coupon_service/v1/error_reason.proto"


@pytest.fixture(scope="module")
def contract_statuses() -> dict[str, str]:
    """The status in brackets at the comment of each reason."""
    text = re.sub(r"\n *// ", " ", CONTRACT.read_text("utf-8"))
    return {
        reason: status
        for status, reason in re.findall(r"\[([A-Z_]+)\][^=]*?\n *ERROR_REASON_([A-Z_]+) =", text)
    }


def detail(status: Status, kind: type[M]) -> M | None:
    for packed in status.details:
        message = kind()
        if packed.Unpack(message):
            return message
    return None


def made(cls: type[CouponServiceError]) -> CouponServiceError:
    return cls((FieldViolation("a", "b"),)) if issubclass(cls, InvalidArgument) else cls()


@pytest.mark.parametrize("cls", CLASSES)
def test_every_class_of_errors_has_a_status_and_a_reason(cls: type[CouponServiceError]) -> None:
    assert cls in TABLE


@pytest.mark.parametrize("cls", CLASSES)
def test_messages_are_for_people(cls: type[CouponServiceError]) -> None:
    assert "`" not in made(cls).message


def test_every_reason_of_the_contract_is_reached_by_one_class() -> None:
    reasons = sorted(kind.reason for kind in TABLE.values())
    assert reasons == sorted(set(pb.ErrorReason.values()) - {pb.ERROR_REASON_UNSPECIFIED})


@pytest.mark.parametrize(
    ("cls", "code", "reason"),
    [
        (errors.CodeNotFound, StatusCode.NOT_FOUND, "CODE_NOT_FOUND"),
        (errors.CodeAlreadyRedeemed, StatusCode.FAILED_PRECONDITION, "CODE_ALREADY_REDEEMED"),
        (errors.CodeLocked, StatusCode.FAILED_PRECONDITION, "CODE_LOCKED"),
        (errors.CodeAlreadyAssigned, StatusCode.ALREADY_EXISTS, "CODE_ALREADY_ASSIGNED"),
        (errors.RequestIdReused, StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED"),
        (errors.ConcurrentModification, StatusCode.ABORTED, "CONCURRENT_MODIFICATION"),
        (errors.Contention, StatusCode.ABORTED, "CONTENTION"),
        (errors.Overloaded, StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED"),
        (errors.Unauthenticated, StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"),
        (errors.PermissionDenied, StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED"),
        (errors.DatabaseUnavailable, StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE"),
        (errors.DeadlineExceeded, StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"),
        (Internal, StatusCode.INTERNAL, "INTERNAL"),
    ],
)
def test_statuses_are_those_of_the_contract(
    cls: type[CouponServiceError], code: StatusCode, reason: str
) -> None:
    status = to_status(cls())
    info = detail(status, ErrorInfo)
    assert status.code == code.value[0]
    assert info is not None
    assert (info.reason, info.domain) == (reason, "coupon_service.v1")


@pytest.mark.parametrize("cls", TABLE)
def test_the_status_of_a_reason_is_the_one_its_comment_in_the_contract_names(
    cls: type[CouponServiceError], contract_statuses: dict[str, str]
) -> None:
    kind = TABLE[cls]
    assert contract_statuses[kind.name] == kind.code.name


def test_a_refusal_carries_its_metadata() -> None:
    status = to_status(errors.UserLimitExceeded(limit_name="max_redemptions_per_user", limit=2))
    info = detail(status, ErrorInfo)
    assert info is not None
    assert info.metadata == {"limit_name": "max_redemptions_per_user", "limit": "2"}


@pytest.mark.parametrize(
    "cls",
    [
        errors.Contention,
        errors.Overloaded,
        errors.RateLimited,
        errors.CodeLocked,
        errors.DatabaseUnavailable,
        errors.LocksUnavailable,
    ],
)
def test_where_a_retry_can_help_the_status_says_when(cls: type[CouponServiceError]) -> None:
    retry = detail(to_status(cls()), RetryInfo)
    assert retry is not None
    assert retry.retry_delay.ToMilliseconds() > 0


@pytest.mark.parametrize("cls", [errors.CodeAlreadyRedeemed, errors.CodeNotFound, Internal])
def test_where_a_retry_cannot_help_the_status_does_not_ask_for_one(
    cls: type[CouponServiceError],
) -> None:
    assert detail(to_status(cls()), RetryInfo) is None


def test_a_locked_code_says_how_long_the_lock_lasts() -> None:
    retry = detail(to_status(errors.CodeLocked(retry_after_ms=12_345)), RetryInfo)
    assert retry is not None
    assert retry.retry_delay.ToMilliseconds() == 12_345


def test_the_message_of_a_bad_request_names_fields_where_there_are_some() -> None:
    violations = (FieldViolation("", "expected less"), FieldViolation("code", "expected a"))
    assert InvalidArgument(violations).message == "expected less; code: expected a"


def test_a_bad_request_names_every_bad_field() -> None:
    violations = (FieldViolation("code", "expected a"), FieldViolation("user_id", "expected b"))
    bad = detail(to_status(InvalidArgument(violations)), BadRequest)
    assert bad is not None
    assert [(it.field, it.description) for it in bad.field_violations] == [
        ("code", "expected a"),
        ("user_id", "expected b"),
    ]


def test_a_thousand_violations_fit_into_what_clients_accept() -> None:
    violations = tuple(FieldViolation(f"items[{i}].user_id", "expected") for i in range(1_000))
    status = to_status(InvalidArgument(violations))
    bad = detail(status, BadRequest)
    assert bad is not None
    listed = len(bad.field_violations) - 1
    assert bad.field_violations[-1].description == f"and {1_000 - listed} more violations"
    sent = len(status.message) + len(status.SerializeToString()) * 4 / 3
    assert sent < GRPC_METADATA_MAX_BYTES


def test_a_class_that_derives_from_one_of_the_table_has_its_status() -> None:
    class Special(errors.CodeLocked):
        pass

    assert kind_of(known(Special())) is TABLE[errors.CodeLocked]


@pytest.mark.parametrize(
    "error", [KeyError("secret"), CouponServiceError("secret"), errors.Refusal("secret")]
)
def test_what_the_table_does_not_know_shows_nothing_but_an_id(error: Exception) -> None:
    status = to_status(known(error))
    info = detail(status, ErrorInfo)
    assert info is not None
    assert status.code == StatusCode.INTERNAL.value[0]
    assert set(info.metadata) == {"error_id"}
    assert b"secret" not in status.SerializeToString()


def test_error_ids_differ() -> None:
    assert known(KeyError()).metadata != known(KeyError()).metadata


@pytest.mark.parametrize("cls", CLASSES)
def test_an_operation_of_a_stream_is_told_all_that_a_call_is(
    cls: type[CouponServiceError],
) -> None:
    violations = tuple(FieldViolation(f"items[{i}].user_id", "expected") for i in range(1_000))
    error = cls(violations) if issubclass(cls, InvalidArgument) else cls()
    answer, status = operation_error(error), to_status(error)
    retry, bad = detail(status, RetryInfo), detail(status, BadRequest)
    assert answer.error == item_error(error)
    assert answer.code == status.code
    assert answer.HasField("retry_delay") is (retry is not None)
    assert answer.retry_delay == (RetryInfo() if retry is None else retry).retry_delay
    assert [(it.field, it.description) for it in answer.field_violations] == [
        (it.field, it.description) for it in (bad.field_violations if bad else ())
    ]


@pytest.mark.parametrize("cls", CLASSES)
def test_an_item_of_a_batch_has_the_same_reason_and_metadata(
    cls: type[CouponServiceError],
) -> None:
    error = made(cls)
    item, info = item_error(error), detail(to_status(error), ErrorInfo)
    assert info is not None
    assert pb.ErrorReason.Name(item.reason) == f"ERROR_REASON_{info.reason}"
    assert dict(item.metadata) == dict(info.metadata)
    assert item.message == error.message
