"""Bad input: each bad field is named with its path, and nothing is half-done."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from google.protobuf.struct_pb2 import Struct
from support.bad_requests import TIMES, TTLS, bad_fields, call, nested, no_value, not_a_number
from support.service import (
    Api,
    assignments,
    audit,
    books,
    codes,
    euros,
    money,
    redemptions,
    struct,
    unique,
)

BOOK_ID = str(uuid4())
FAMILY = "👩\u200d👩\u200d👧"


# --- what many requests have in common ----------------------------------------------------------

BY_CODE: list[tuple[str, type[Any], str]] = [
    ("codes.GetCode", codes.GetCodeRequest, "code"),
    ("codes.DisableCode", codes.DisableCodeRequest, "code"),
    ("codes.EnableCode", codes.EnableCodeRequest, "code"),
    ("assignments.AssignCode", assignments.AssignCodeRequest, "code"),
    ("assignments.RevokeAssignment", assignments.RevokeAssignmentRequest, "code"),
    ("assignments.TransferAssignment", assignments.TransferAssignmentRequest, "code"),
    ("redemptions.ValidateCode", redemptions.ValidateCodeRequest, "code"),
    ("redemptions.LockCode", redemptions.LockCodeRequest, "code"),
    ("redemptions.RedeemCode", redemptions.RedeemCodeRequest, "code"),
    ("redemptions.ListRedemptions", redemptions.ListRedemptionsRequest, "code"),
    ("redemptions.ListRefusals", redemptions.ListRefusalsRequest, "code"),
    ("audit.ListAuditEvents", audit.ListAuditEventsRequest, "code"),
]
BY_USER: list[tuple[str, type[Any], str]] = [
    ("assignments.AssignCode", assignments.AssignCodeRequest, "user_id"),
    ("assignments.AssignRandomCode", assignments.AssignRandomCodeRequest, "user_id"),
    ("assignments.RevokeAssignment", assignments.RevokeAssignmentRequest, "user_id"),
    ("assignments.TransferAssignment", assignments.TransferAssignmentRequest, "from_user_id"),
    ("assignments.TransferAssignment", assignments.TransferAssignmentRequest, "to_user_id"),
    ("assignments.ListUserCoupons", assignments.ListUserCouponsRequest, "user_id"),
    ("redemptions.ValidateCode", redemptions.ValidateCodeRequest, "user_id"),
    ("redemptions.LockCode", redemptions.LockCodeRequest, "user_id"),
    ("redemptions.RedeemCode", redemptions.RedeemCodeRequest, "user_id"),
    ("redemptions.ListLocks", redemptions.ListLocksRequest, "user_id"),
    ("redemptions.ListRedemptions", redemptions.ListRedemptionsRequest, "user_id"),
    ("redemptions.ListRefusals", redemptions.ListRefusalsRequest, "user_id"),
    ("audit.ListAuditEvents", audit.ListAuditEventsRequest, "user_id"),
    ("audit.EraseUser", audit.EraseUserRequest, "user_id"),
    ("audit.GetErasure", audit.GetErasureRequest, "user_id"),
]
BY_ORDER: list[tuple[str, type[Any], str]] = [
    ("redemptions.ValidateCode", redemptions.ValidateCodeRequest, "order_id"),
    ("redemptions.RedeemCode", redemptions.RedeemCodeRequest, "order_id"),
    ("redemptions.ListRedemptions", redemptions.ListRedemptionsRequest, "order_id"),
    ("redemptions.ListRefusals", redemptions.ListRefusalsRequest, "order_id"),
    ("audit.ListAuditEvents", audit.ListAuditEventsRequest, "order_id"),
]
BY_BUSINESS: list[tuple[str, type[Any], str]] = [
    ("redemptions.ListRedemptions", redemptions.ListRedemptionsRequest, "business_id"),
    ("redemptions.ListRefusals", redemptions.ListRefusalsRequest, "business_id"),
    ("books.ListCouponBooks", books.ListCouponBooksRequest, "business_id"),
    ("audit.GetAuditCheckpoint", audit.GetAuditCheckpointRequest, "business_id"),
]
BY_ID: list[tuple[str, type[Any], str]] = [
    ("books.GetCouponBook", books.GetCouponBookRequest, "book_id"),
    ("books.ActivateCouponBook", books.ActivateCouponBookRequest, "book_id"),
    ("books.PauseCouponBook", books.PauseCouponBookRequest, "book_id"),
    ("books.CloseCouponBook", books.CloseCouponBookRequest, "book_id"),
    ("books.GetCouponBookStats", books.GetCouponBookStatsRequest, "book_id"),
    ("codes.PreviewCodes", codes.PreviewCodesRequest, "book_id"),
    ("codes.GenerateCodes", codes.GenerateCodesRequest, "book_id"),
    ("codes.ExportCodes", codes.ExportCodesRequest, "book_id"),
    ("codes.ChangeCodes", codes.ChangeCodesRequest, "book_id"),
    ("codes.GetCode", codes.GetCodeRequest, "book_id"),
    ("codes.ListCodes", codes.ListCodesRequest, "book_id"),
    ("assignments.AssignCode", assignments.AssignCodeRequest, "book_id"),
    ("assignments.AssignRandomCode", assignments.AssignRandomCodeRequest, "book_id"),
    ("assignments.BatchAssignRandomCodes", assignments.BatchAssignRandomCodesRequest, "book_id"),
    ("assignments.ListUserCoupons", assignments.ListUserCouponsRequest, "book_id"),
    ("assignments.ListAssignments", assignments.ListAssignmentsRequest, "book_id"),
    ("redemptions.ValidateCode", redemptions.ValidateCodeRequest, "book_id"),
    ("redemptions.LockCode", redemptions.LockCodeRequest, "book_id"),
    ("redemptions.RedeemCode", redemptions.RedeemCodeRequest, "book_id"),
    ("redemptions.ListLocks", redemptions.ListLocksRequest, "book_id"),
    ("redemptions.ListRedemptions", redemptions.ListRedemptionsRequest, "book_id"),
    ("redemptions.ListRefusals", redemptions.ListRefusalsRequest, "book_id"),
    ("redemptions.GetRedemption", redemptions.GetRedemptionRequest, "redemption_id"),
    ("redemptions.RollbackRedemption", redemptions.RollbackRedemptionRequest, "redemption_id"),
    ("redemptions.GetLock", redemptions.GetLockRequest, "lock_id"),
    ("redemptions.UnlockCode", redemptions.UnlockCodeRequest, "lock_id"),
    ("audit.ListAuditEvents", audit.ListAuditEventsRequest, "book_id"),
    ("audit.GetAuditProof", audit.GetAuditProofRequest, "event_id"),
]
WITH_REQUEST_ID: list[tuple[str, type[Any], str]] = [
    (method, request, "request_id")
    for method, request, _ in dict.fromkeys(BY_CODE + BY_USER + BY_ID)
    if "request_id" in request.DESCRIPTOR.fields_by_name
]
WITH_PAGES: list[tuple[str, type[Any], str]] = [
    (method, request, "page_size")
    for method, request, _ in dict.fromkeys(BY_CODE + BY_USER + BY_ID + BY_BUSINESS)
    if "page_size" in request.DESCRIPTOR.fields_by_name
]

BOOK: dict[str, Any] = {
    "business_id": "b",
    "name": "n",
    "discount": books.Discount(benefit=books.Benefit(description="A gift")),
}
GOOD: dict[str, Any] = {
    "code": "C",
    "user_id": "u",
    "user_ids": ["u"],
    "from_user_id": "u",
    "to_user_id": "v",
    "book_id": BOOK_ID,
    "redemption_id": BOOK_ID,
    "lock_token": "t",
    "count": 1,
    "request_id": "r",
    "change": codes.CODE_CHANGE_DISABLE,
    "filter": codes.CodeFilter(prefix="A"),
}

BAD_CODES = ["A" * 65, "Ä" * 65, "A" * 129, " " * 129, "🎁" * 129, "ß" * 33]
BAD_IDENTIFIERS = [" ", "   ", " u", "u ", "u\0", "\nu", "u\x7f", "u\u2028v", "u" * 129, "🎁" * 129]
BAD_UUIDS = ["x", "1" * 32, f"{{{BOOK_ID}}}", f"urn:uuid:{BOOK_ID}", BOOK_ID + "0", "🎁", "a\0"]
BAD_REQUEST_IDS = ["with space", "ü", "r" * 65, "\n", "\0", " ", "🎁"]

TABLE: list[tuple[list[tuple[str, type[Any], str]], list[Any]]] = [
    (BY_CODE, BAD_CODES),
    (BY_USER, BAD_IDENTIFIERS),
    (BY_ORDER, BAD_IDENTIFIERS),
    (BY_BUSINESS, BAD_IDENTIFIERS),
    (BY_ID, BAD_UUIDS),
    (sorted(set(WITH_REQUEST_ID), key=str), BAD_REQUEST_IDS),
    (sorted(set(WITH_PAGES), key=str), [-1, 1_001, 2**31 - 1]),
]


@pytest.mark.parametrize(
    ("method", "request_type", "field", "values"),
    [(*rpc, values) for rpcs, values in TABLE for rpc in rpcs],
    ids=[f"{method} {field}" for rpcs, _ in TABLE for method, _, field in rpcs],
)
def test_a_bad_value_is_refused_wherever_it_can_be_given(
    api: Api, method: str, request_type: type[Any], field: str, values: list[Any]
) -> None:
    names = request_type.DESCRIPTOR.fields_by_name
    one_of = names[field].containing_oneof
    others = {
        name: value
        for name, value in GOOD.items()
        if name in names and (one_of is None or names[name].containing_oneof is not one_of)
    }
    for value in values:
        request = request_type(**{**others, field: value})
        assert bad_fields(api, method, request) == [field], repr(value)


NOTHING_REQUIRED = {"WatchAuditEvents", "VerifyAudit", "GetAuditCheckpoint"}
"""Methods of which no field of the request is required, beside those of WORKS_EMPTY."""


def every_unary_method() -> list[tuple[str, Any]]:
    modules = {
        "books": books,
        "codes": codes,
        "assignments": assignments,
        "redemptions": redemptions,
        "audit": audit,
    }
    return [
        (f"{name}.{method.name}", getattr(module, method.input_type.name))
        for name, module in modules.items()
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
        if not method.client_streaming and method.name not in NOTHING_REQUIRED
    ]


WORKS_EMPTY = {"redemptions.ListRefusals", "books.ListCouponBooks", "audit.ListAuditEvents"}


@pytest.mark.parametrize(("method", "request_type"), every_unary_method(), ids=str)
def test_what_is_required_is_missed_in_an_empty_request(
    api: Api, method: str, request_type: Any
) -> None:
    if method in WORKS_EMPTY:
        call(api, method, request_type())
    else:
        assert bad_fields(api, method, request_type())


# --- codes, redemptions and locks ---------------------------------------------------------------


def test_a_bad_amount_is_refused_and_nothing_is_redeemed(api: Api) -> None:
    code = api.code()
    for amount_minor, currency_code, bad in (
        (-1, "EUR", ["amount_minor"]),
        (-(2**63), "EUR", ["amount_minor"]),
        (10**15 + 1, "EUR", ["amount_minor"]),
        (2**63 - 1, "EUR", ["amount_minor"]),
        (1, "", ["currency_code"]),
        (1, "eur", ["currency_code"]),
        (1, "EU", ["currency_code"]),
        (1, "ÄÖÜ", ["currency_code"]),
        (0, "", ["currency_code"]),
        (-1, "", ["amount_minor", "currency_code"]),
    ):
        order = money.Money(amount_minor=amount_minor, currency_code=currency_code)
        fields = [f"order_amount.{name}" for name in bad]
        request = api.redeem_request(code, "u", order_amount=order)
        assert bad_fields(api, "redemptions.RedeemCode", request) == fields
        validate = redemptions.ValidateCodeRequest(code=code, user_id="u", order_amount=order)
        assert bad_fields(api, "redemptions.ValidateCode", validate) == fields
    assert api.get_code(code).redemption_count == 0
    api.redeem(code, "u", order_amount=euros(10**15))


def test_a_bad_time_to_live_is_refused_and_nothing_is_locked(api: Api) -> None:
    code = api.code(lock_policy=books.LOCK_POLICY_OPTIONAL)
    lock_token = api.lock(code, "holder").lock_token
    for ttl in TTLS:
        lock = redemptions.LockCodeRequest(code=code, user_id="u", ttl=ttl)
        assert bad_fields(api, "redemptions.LockCode", lock) == ["ttl"], ttl
        extend = redemptions.ExtendLockRequest(lock_token=lock_token, ttl=ttl)
        assert bad_fields(api, "redemptions.ExtendLock", extend) == ["ttl"], ttl
    assert api.event_names(code=code) == ["LOCKED"]


BIG = [
    (struct(a="x" * 5_120), "5 KiB"),
    (struct(**{"x" * 5_120: 1}), "a long key"),
    (nested(6), "6 levels"),
    (struct(a=[[[[[1]]]]]), "6 levels of lists"),
    (nested(25), "25 levels"),
    (struct(a="\0"), "NUL"),
    (struct(**{"\0": 1}), "NUL in a key"),
    (not_a_number(), "not a number"),
    (no_value(), "no value"),
]


@pytest.mark.parametrize(("value", "name"), BIG, ids=[name for _, name in BIG])
def test_bad_metadata_are_refused_wherever_they_can_be_given(
    api: Api, value: Struct, name: str
) -> None:
    code = api.code()
    redemption_id = api.redeem(code, "u").redemption.redemption_id
    attempt: dict[str, Any] = {"code": code, "user_id": "u", "metadata": value}
    of_book: dict[str, Any] = {"book_id": BOOK_ID, "metadata": value}
    for method, request, field in (
        (
            "books.CreateCouponBook",
            books.CreateCouponBookRequest(coupon_book=books.CouponBook(**BOOK, metadata=value)),
            "coupon_book.metadata",
        ),
        ("assignments.AssignCode", assignments.AssignCodeRequest(**attempt), "metadata"),
        (
            "assignments.AssignRandomCode",
            assignments.AssignRandomCodeRequest(user_id="u", **of_book),
            "metadata",
        ),
        (
            "assignments.BatchAssignRandomCodes",
            assignments.BatchAssignRandomCodesRequest(user_ids=["u"], **of_book),
            "metadata",
        ),
        ("redemptions.LockCode", redemptions.LockCodeRequest(**attempt), "metadata"),
        ("redemptions.RedeemCode", redemptions.RedeemCodeRequest(**attempt), "metadata"),
        (
            "redemptions.BatchRedeemCodes",
            redemptions.BatchRedeemCodesRequest(items=[redemptions.RedeemItem(**attempt)]),
            "items[0].metadata",
        ),
        (
            "redemptions.RollbackRedemption",
            redemptions.RollbackRedemptionRequest(redemption_id=redemption_id, metadata=value),
            "metadata",
        ),
    ):
        assert bad_fields(api, method, request) == [field], name
    assert api.event_names(code=code) == ["REDEEMED"]


def test_metadata_and_texts_of_the_greatest_size_are_kept(api: Api) -> None:
    code = api.code()
    value = struct(a="é" * 2_000, b="x" * (4_096 - 4_000 - len('{"a":"","b":""}')))
    user_id, order_id = FAMILY * 25 + "äöü", "o" * 128
    assert len(user_id) == 128
    answer = api.redeem(
        f"{code} {'-' * (127 - len(code))}",
        user_id,
        order_id=order_id,
        metadata=value,
        request_id=unique("!~").ljust(64, "~"),
    )
    (row,) = api.events(user_id=user_id)
    assert row.metadata == answer.redemption.metadata == value
    assert (row.user_id, row.order_id) == (user_id, order_id)
    deep = nested(5)
    api.rollback(answer.redemption.redemption_id, metadata=deep)
    assert api.events(user_id=user_id)[-1].metadata == deep


NUMBERS: list[tuple[str, type[Any], dict[str, Any], str]] = [
    ("books.ListCouponBooks", books.ListCouponBooksRequest, {"state": 99}, "state"),
    ("books.ListCouponBooks", books.ListCouponBooksRequest, {"state": 5}, "state"),  # derived
    ("codes.ListCodes", codes.ListCodesRequest, {"book_id": BOOK_ID, "state": 5}, "state"),
    ("codes.ListCodes", codes.ListCodesRequest, {"book_id": BOOK_ID, "state": -1}, "state"),
    ("codes.ExportCodes", codes.ExportCodesRequest, {"book_id": BOOK_ID, "state": 6}, "state"),
    (
        "assignments.ListUserCoupons",
        assignments.ListUserCouponsRequest,
        {"user_id": "u", "state": 4},
        "state",
    ),
    (
        "assignments.ListAssignments",
        assignments.ListAssignmentsRequest,
        {"book_id": BOOK_ID, "state": 4},
        "state",
    ),
    (
        "redemptions.BatchRedeemCodes",
        redemptions.BatchRedeemCodesRequest,
        {"items": [redemptions.RedeemItem(code="C", user_id="u")], "mode": 3},
        "mode",
    ),
    ("audit.ListAuditEvents", audit.ListAuditEventsRequest, {"types": [1, 100]}, "types[1]"),
    ("audit.ListAuditEvents", audit.ListAuditEventsRequest, {"types": [0]}, "types[0]"),
    ("audit.GetAuditCheckpoint", audit.GetAuditCheckpointRequest, {"shard": "coupon_xx"}, "shard"),
    ("codes.PreviewCodes", codes.PreviewCodesRequest, {"count": 0}, "count"),
    ("codes.PreviewCodes", codes.PreviewCodesRequest, {"count": 10**9 + 1}, "count"),
    (
        "codes.PreviewCodes",
        codes.PreviewCodesRequest,
        {"count": 1, "sample_count": 101},
        "sample_count",
    ),
    (
        "codes.PreviewCodes",
        codes.PreviewCodesRequest,
        {"count": 1, "sample_count": -1},
        "sample_count",
    ),
]


def test_numbers_out_of_their_bounds_or_enums_are_refused(api: Api) -> None:
    for method, request_type, fields, bad in NUMBERS:
        assert bad_fields(api, method, request_type(**fields)) == [bad], (method, fields)


@pytest.mark.parametrize("field", ["start_time", "end_time"])
def test_a_time_that_is_none_is_refused_by_the_ledger(api: Api, field: str) -> None:
    for value in TIMES:
        fields: dict[str, Any] = {field: value}
        request = audit.ListAuditEventsRequest(**fields)
        assert bad_fields(api, "audit.ListAuditEvents", request) == [field]


# --- several bad fields -------------------------------------------------------------------------


def test_every_bad_field_of_a_request_is_named(api: Api) -> None:
    request = redemptions.RedeemCodeRequest(
        code="?" * 129,
        book_id="?",
        user_id=" ",
        order_id="\0",
        order_amount=money.Money(amount_minor=-1),
        metadata=nested(6),
        request_id="?" * 65,
    )
    assert sorted(bad_fields(api, "redemptions.RedeemCode", request)) == [
        "book_id",
        "code",
        "metadata",
        "order_amount.amount_minor",
        "order_amount.currency_code",
        "order_id",
        "request_id",
        "user_id",
    ]
    bad_book = books.CouponBook(
        min_order_amount_minor=-1,
        limits=books.BookLimits(max_redemptions=-1, max_redemptions_per_user=-1),
        code_format=books.CodeFormat(length=1, alphabet="A"),
    )
    request = books.CreateCouponBookRequest(coupon_book=bad_book, request_id="\0")
    assert sorted(bad_fields(api, "books.CreateCouponBook", request)) == [
        "coupon_book.business_id",
        "coupon_book.code_format.alphabet",
        "coupon_book.code_format.length",
        "coupon_book.discount",
        "coupon_book.limits.max_redemptions",
        "coupon_book.limits.max_redemptions_per_user",
        "coupon_book.min_order_amount_minor",
        "coupon_book.name",
        "request_id",
    ]


def test_of_more_bad_fields_than_an_answer_can_hold_the_first_are_named(api: Api) -> None:
    items = [redemptions.RedeemItem()] * 1_000
    request = redemptions.BatchRedeemCodesRequest(items=items)
    fields = bad_fields(api, "redemptions.BatchRedeemCodes", request)
    assert fields[:4] == ["items[0].code", "items[0].user_id", "items[1].code", "items[1].user_id"]
    assert fields[-1] == ""  # how many more there are
    assert len(fields) > 20
