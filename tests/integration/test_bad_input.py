"""Bad input: each bad field is named with its path, and nothing is half-done."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import StatusCode
from service import (
    Api,
    assignments,
    audit,
    books,
    codes,
    euros,
    from_now,
    money,
    new_codes,
    redemptions,
    refused,
    unique,
)

BOOK_ID = str(uuid4())
FAMILY = "👩\u200d👩\u200d👧"


def call(api: Api, method: str, request: Message) -> Any:
    """Calls an RPC by its name, as in "books.GetCouponBook"."""
    service, _, name = method.partition(".")
    answer = getattr(getattr(api, service), name)(request)
    return list(answer) if name in ("GenerateCodes", "ExportCodes") else answer


def bad_fields(api: Api, method: str, request: Message) -> list[str]:
    """The fields that the refusal of a request names."""
    with refused("INVALID_ARGUMENT", StatusCode.INVALID_ARGUMENT) as it:
        call(api, method, request)
    assert it.metadata == {}
    return it.fields


def metadata(value: dict[str, Any]) -> Struct:
    struct = Struct()
    struct.update(value)
    return struct


def nested(levels: int) -> Struct:
    """An object of so many levels."""
    value: dict[str, Any] = {"a": 1}
    for _ in range(levels - 1):
        value = {"a": value}
    return metadata(value)


def not_a_number() -> Struct:
    struct = Struct()
    struct.fields["x"].number_value = float("nan")
    return struct


def no_value() -> Struct:
    struct = Struct()
    struct.fields["x"].SetInParent()
    return struct


# --- what many requests have in common ----------------------------------------------------------

ATTEMPT = {"code": "C", "user_id": "u"}

BY_CODE: list[tuple[str, type[Any], str]] = [
    ("codes.GetCode", codes.GetCodeRequest, "code"),
    ("codes.DisableCode", codes.DisableCodeRequest, "code"),
    ("codes.EnableCode", codes.EnableCodeRequest, "code"),
    ("assignments.AssignCode", assignments.AssignCodeRequest, "code"),
    ("assignments.RevokeAssignment", assignments.RevokeAssignmentRequest, "code"),
    ("redemptions.ValidateCode", redemptions.ValidateCodeRequest, "code"),
    ("redemptions.LockCode", redemptions.LockCodeRequest, "code"),
    ("redemptions.RedeemCode", redemptions.RedeemCodeRequest, "code"),
    ("redemptions.ListRedemptions", redemptions.ListRedemptionsRequest, "code"),
    ("audit.ListAuditEvents", audit.ListAuditEventsRequest, "code"),
]
BY_USER: list[tuple[str, type[Any], str]] = [
    ("assignments.AssignCode", assignments.AssignCodeRequest, "user_id"),
    ("assignments.AssignRandomCode", assignments.AssignRandomCodeRequest, "user_id"),
    ("assignments.RevokeAssignment", assignments.RevokeAssignmentRequest, "user_id"),
    ("assignments.ListUserCoupons", assignments.ListUserCouponsRequest, "user_id"),
    ("redemptions.ValidateCode", redemptions.ValidateCodeRequest, "user_id"),
    ("redemptions.LockCode", redemptions.LockCodeRequest, "user_id"),
    ("redemptions.RedeemCode", redemptions.RedeemCodeRequest, "user_id"),
    ("redemptions.ListLocks", redemptions.ListLocksRequest, "user_id"),
    ("redemptions.ListRedemptions", redemptions.ListRedemptionsRequest, "user_id"),
    ("audit.ListAuditEvents", audit.ListAuditEventsRequest, "user_id"),
]
BY_ORDER: list[tuple[str, type[Any], str]] = [
    ("redemptions.ValidateCode", redemptions.ValidateCodeRequest, "order_id"),
    ("redemptions.RedeemCode", redemptions.RedeemCodeRequest, "order_id"),
    ("redemptions.ListRedemptions", redemptions.ListRedemptionsRequest, "order_id"),
    ("audit.ListAuditEvents", audit.ListAuditEventsRequest, "order_id"),
]
BY_BUSINESS: list[tuple[str, type[Any], str]] = [
    ("books.ListCouponBooks", books.ListCouponBooksRequest, "business_id"),
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
    ("codes.GetCode", codes.GetCodeRequest, "book_id"),
    ("codes.ListCodes", codes.ListCodesRequest, "book_id"),
    ("assignments.AssignCode", assignments.AssignCodeRequest, "book_id"),
    ("assignments.AssignRandomCode", assignments.AssignRandomCodeRequest, "book_id"),
    ("assignments.BatchAssignRandomCodes", assignments.BatchAssignRandomCodesRequest, "book_id"),
    ("assignments.ListUserCoupons", assignments.ListUserCouponsRequest, "book_id"),
    ("redemptions.ValidateCode", redemptions.ValidateCodeRequest, "book_id"),
    ("redemptions.LockCode", redemptions.LockCodeRequest, "book_id"),
    ("redemptions.RedeemCode", redemptions.RedeemCodeRequest, "book_id"),
    ("redemptions.ListLocks", redemptions.ListLocksRequest, "book_id"),
    ("redemptions.ListRedemptions", redemptions.ListRedemptionsRequest, "book_id"),
    ("redemptions.GetRedemption", redemptions.GetRedemptionRequest, "redemption_id"),
    ("redemptions.RollbackRedemption", redemptions.RollbackRedemptionRequest, "redemption_id"),
    ("redemptions.GetLock", redemptions.GetLockRequest, "lock_id"),
    ("redemptions.UnlockCode", redemptions.UnlockCodeRequest, "lock_id"),
    ("audit.ListAuditEvents", audit.ListAuditEventsRequest, "book_id"),
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

GOOD: dict[str, Any] = {
    "code": "C",
    "user_id": "u",
    "user_ids": ["u"],
    "book_id": BOOK_ID,
    "redemption_id": BOOK_ID,
    "lock_token": "t",
    "count": 1,
    "request_id": "r",
}

BAD_CODES = [" - ", "A" * 65, "A" * 129, " " * 129, "ÄPFEL", "A\0B", "🎁", "A/B", "A\nB", "ß", "１"]
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
        if not method.client_streaming
    ]


WORKS_EMPTY = {"books.ListCouponBooks", "audit.ListAuditEvents"}


@pytest.mark.parametrize(("method", "request_type"), every_unary_method(), ids=lambda it: str(it))
def test_what_is_required_is_missed_in_an_empty_request(
    api: Api, method: str, request_type: Any
) -> None:
    if method in WORKS_EMPTY:
        call(api, method, request_type())
    else:
        assert bad_fields(api, method, request_type())


# --- books --------------------------------------------------------------------------------------


def book(**fields: Any) -> books.CouponBook:
    """A book with which nothing is wrong, but for these fields."""
    values: dict[str, Any] = {
        "business_id": "b",
        "name": "n",
        "currency_code": "EUR",
        "discount": books.Discount(percent_off=books.PercentOff(basis_points=1)),
    }
    return books.CouponBook(**(values | fields))


def limits(**fields: int) -> dict[str, Any]:
    return {"limits": books.BookLimits(**fields)}


def form(**fields: Any) -> dict[str, Any]:
    return {"code_format": books.CodeFormat(**fields)}


def percent(**fields: int) -> dict[str, Any]:
    return {"discount": books.Discount(percent_off=books.PercentOff(**fields))}


def benefit(description: str) -> dict[str, Any]:
    return {"discount": books.Discount(benefit=books.Benefit(description=description))}


def amount(amount_minor: int) -> dict[str, Any]:
    return {"discount": books.Discount(amount_off=books.AmountOff(amount_minor=amount_minor))}


TTLS = [
    Duration(),
    Duration(seconds=-1),
    Duration(nanos=999_000_000),
    Duration(seconds=1, nanos=500_000),
    Duration(seconds=1, nanos=-1),
    Duration(seconds=1, nanos=2**31 - 1),
    Duration(seconds=86_400, nanos=1_000_000),
    Duration(seconds=365 * 86_400),
    Duration(seconds=2**63 - 1),
]
TIMES = [
    Timestamp(nanos=-1),
    Timestamp(nanos=1_000_000_000),
    Timestamp(seconds=-62_135_596_801),
    Timestamp(seconds=253_402_300_800),
    Timestamp(seconds=2**63 - 1),
]

BAD_BOOKS: list[tuple[dict[str, Any], str]] = [
    *[({"business_id": value}, "business_id") for value in ("", *BAD_IDENTIFIERS)],
    *[({"name": value}, "name") for value in ("", " ", "n ", "n\0", "n\n", "n" * 201)],
    *[({"description": value}, "description") for value in ("d" * 2_001, "d\0", "d\x1b")],
    *[({"discount": value}, "discount") for value in (None, books.Discount())],
    *[(percent(basis_points=value), "discount.percent_off.basis_points") for value in (0, -1)],
    (percent(basis_points=10_001), "discount.percent_off.basis_points"),
    (
        percent(basis_points=1, max_discount_minor=-1),
        "discount.percent_off.max_discount_minor",
    ),
    (
        percent(basis_points=1, max_discount_minor=10**15 + 1),
        "discount.percent_off.max_discount_minor",
    ),
    *[(amount(value), "discount.amount_off.amount_minor") for value in (0, -1, 10**15 + 1)],
    *[(benefit(value), "discount.benefit.description") for value in ("", " g", "g\0", "g" * 257)],
    *[({"currency_code": value}, "currency_code") for value in ("", "eur", "EURO", "€", "E\0R")],
    *[
        ({"min_order_amount_minor": value}, "min_order_amount_minor")
        for value in (-1, 10**15 + 1, -(2**63))
    ],
    (limits(max_redemptions=-1), "limits.max_redemptions"),
    (limits(max_redemptions=10**12 + 1), "limits.max_redemptions"),
    *[
        (limits(**{f"max_{name}": value}), f"limits.max_{name}")
        for name in (
            "redemptions_per_code",
            "redemptions_per_user_per_code",
            "redemptions_per_user",
            "assignments_per_user",
        )
        for value in (-1, 10**9 + 1)
    ],
    *[({"assignment_policy": value}, "assignment_policy") for value in (3, -1)],
    *[({"lock_policy": value}, "lock_policy") for value in (4, -1)],
    *[({"default_lock_ttl": value}, "default_lock_ttl") for value in TTLS],
    *[({"max_lock_ttl": value}, "max_lock_ttl") for value in TTLS],
    *[({"start_time": value}, "start_time") for value in TIMES],
    *[({"end_time": value}, "end_time") for value in TIMES],
    ({"start_time": from_now(days=2), "end_time": from_now(days=1)}, "end_time"),
    *[
        ({"start_time": moment, "end_time": moment}, "end_time")
        for moment in (datetime(2030, 1, 1, tzinfo=UTC),)
    ],
    *[
        ({"assigned_code_validity": value}, "assigned_code_validity")
        for value in (
            Duration(),
            Duration(seconds=-1),
            Duration(seconds=1, nanos=500_000_000),
            Duration(nanos=1_000_000),
            Duration(seconds=3_660 * 86_400),
        )
    ],
    *[(form(length=value), "code_format.length") for value in (3, 33, -1)],
    *[(form(alphabet=value), "code_format.alphabet") for value in ("A", "AA", "Aa", "AÄ", "A-B")],
    *[(form(prefix=value), "code_format.prefix") for value in ("P" * 17, "P-", "Ü", "P\0")],
    *[(form(suffix=value), "code_format.suffix") for value in ("S" * 17, " S", "ß", "🎁")],
    *[(form(separator=value), "code_format.separator") for value in ("--", "/", "x", "\0")],
    (form(group_size=4), "code_format.group_size"),
    *[
        (form(group_size=value, separator="-"), "code_format.group_size")
        for value in (-1, 33)
    ],
    (form(length=32, prefix="P" * 16, suffix="S" * 16, check_character=True), "code_format.length"),
    ({"metadata": metadata({"a": "x" * 5_120})}, "metadata"),
    ({"metadata": nested(6)}, "metadata"),
]


def test_a_book_with_a_bad_field_is_not_made_and_the_field_is_named(api: Api) -> None:
    before = api.books.ListCouponBooks(books.ListCouponBooksRequest(page_size=1))
    for fields, bad in BAD_BOOKS:
        request = books.CreateCouponBookRequest(coupon_book=book(**fields))
        found = bad_fields(api, "books.CreateCouponBook", request)
        assert set(found) == {f"coupon_book.{bad}"}, fields
    assert api.books.ListCouponBooks(books.ListCouponBooksRequest(page_size=1)) == before


def test_a_book_is_not_given_a_bad_field(api: Api) -> None:
    made = api.draft()
    for fields, bad in BAD_BOOKS:
        if "business_id" not in fields:
            with refused("INVALID_ARGUMENT", StatusCode.INVALID_ARGUMENT) as it:
                api.update(made.book_id, **fields)
            assert set(it.fields) == {f"coupon_book.{bad}"}, fields
    assert api.get_book(made.book_id) == made


def test_bad_fields_that_are_not_named_by_the_mask_do_not_matter(api: Api) -> None:
    made = api.draft()
    assert api.update(made.book_id, "description", name="", description="d").description == "d"


@pytest.mark.parametrize(
    ("paths", "fields"),
    [
        ([], ["update_mask"]),
        (["nonsense"], ["update_mask.paths[0]"]),
        (["name", "*", ""], ["update_mask.paths[1]", "update_mask.paths[2]"]),
        (["limits.max_redemptions", "name"], ["update_mask.paths[0]"]),
        (["coupon_book.name", "Name", "names"], [f"update_mask.paths[{n}]" for n in range(3)]),
        (["business_id", "state", "etag"], [f"update_mask.paths[{n}]" for n in range(3)]),
        (["book_id", "create_time"], ["update_mask.paths[0]", "update_mask.paths[1]"]),
    ],
)
def test_a_mask_names_fields_that_a_client_can_change(
    api: Api, paths: list[str], fields: list[str]
) -> None:
    made = api.draft()
    request = books.UpdateCouponBookRequest(coupon_book=made)
    request.coupon_book.name = "other"
    request.coupon_book.etag = ""
    request.update_mask.paths.extend(paths)
    assert bad_fields(api, "books.UpdateCouponBook", request) == fields
    assert api.get_book(made.book_id) == made


# --- codes, redemptions and locks ---------------------------------------------------------------


def test_a_bad_amount_is_refused_and_nothing_is_redeemed(api: Api) -> None:
    code = api.code()
    for amount_minor, currency_code, bad in (
        (-1, "EUR", ["amount_minor"]),
        (0, "EUR", ["amount_minor"]),
        (10**15 + 1, "EUR", ["amount_minor"]),
        (2**63 - 1, "EUR", ["amount_minor"]),
        (1, "", ["currency_code"]),
        (1, "eur", ["currency_code"]),
        (1, "EU", ["currency_code"]),
        (1, "ÄÖÜ", ["currency_code"]),
        (0, "", ["amount_minor", "currency_code"]),
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
    lock_token = api.lock(code, "holder", ttl_s=2).lock_token
    for ttl in TTLS:
        lock = redemptions.LockCodeRequest(code=code, user_id="u", ttl=ttl)
        assert bad_fields(api, "redemptions.LockCode", lock) == ["ttl"], ttl
        extend = redemptions.ExtendLockRequest(lock_token=lock_token, ttl=ttl)
        assert bad_fields(api, "redemptions.ExtendLock", extend) == ["ttl"], ttl
    assert api.event_names(code=code) == ["LOCKED"]


BIG = [
    (metadata({"a": "x" * 5_120}), "5 KiB"),
    (metadata({"x" * 5_120: 1}), "a long key"),
    (nested(6), "6 levels"),
    (metadata({"a": [[[[[1]]]]]}), "6 levels of lists"),
    (nested(25), "25 levels"),
    (metadata({"a": "\0"}), "NUL"),
    (metadata({"\0": 1}), "NUL in a key"),
    (not_a_number(), "not a number"),
    (no_value(), "no value"),
]


@pytest.mark.parametrize(("value", "name"), BIG, ids=[name for _, name in BIG])
def test_bad_metadata_are_refused_wherever_they_can_be_given(
    api: Api, value: Struct, name: str
) -> None:
    code = api.code()
    redemption_id = api.redeem(code, "u").redemption.redemption_id
    attempt = {"code": code, "user_id": "u", "metadata": value}
    of_book = {"book_id": BOOK_ID, "metadata": value}
    for method, request, field in (
        (
            "books.CreateCouponBook",
            books.CreateCouponBookRequest(coupon_book=book(metadata=value)),
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
    value = metadata({"a": "é" * 2_000, "b": "x" * (4_096 - 4_000 - len('{"a":"","b":""}'))})
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


# --- batches ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [redemptions.BATCH_MODE_BEST_EFFORT, redemptions.BATCH_MODE_ALL_OR_NOTHING])
def test_a_batch_with_a_bad_item_redeems_nothing_and_names_it(api: Api, mode: Any) -> None:
    names = new_codes(3)
    made = api.book(codes=names)
    items = [redemptions.RedeemItem(code=code, user_id="u") for code in names]
    items[1].code, items[1].user_id = "?", " "
    items[2].order_amount.amount_minor = -1
    items[2].request_id = "ü"
    request = redemptions.BatchRedeemCodesRequest(items=items, mode=mode)
    assert bad_fields(api, "redemptions.BatchRedeemCodes", request) == [
        "items[1].code",
        "items[1].user_id",
        "items[2].request_id",
        "items[2].order_amount.amount_minor",
        "items[2].order_amount.currency_code",
    ]
    assert api.stats(made.book_id).redemption_count == 0


def test_a_code_comes_twice_in_a_batch_only_under_different_request_ids(api: Api) -> None:
    (code,) = new_codes(1)
    made = api.book(codes=[code], limits=books.BookLimits(max_redemptions_per_code=0))

    def batch(*request_ids: str) -> redemptions.BatchRedeemCodesRequest:
        spellings = itertools.cycle([code, code.lower(), f"{code[:3]}-{code[3:]}"])
        return redemptions.BatchRedeemCodesRequest(
            request_id="shared",
            items=[
                redemptions.RedeemItem(code=spelling, user_id="u", request_id=request_id)
                for spelling, request_id in zip(spellings, request_ids, strict=False)
            ],
        )

    for request_ids, bad in (
        (("", "", ""), ["items[1].code", "items[2].code"]),
        (("", "shared"), ["items[1].code"]),
        (("a", "b", "a"), ["items[2].code"]),
    ):
        found = bad_fields(api, "redemptions.BatchRedeemCodes", batch(*request_ids))
        assert found == bad
    assert api.stats(made.book_id).redemption_count == 0
    answer = api.redemptions.BatchRedeemCodes(batch("", "a", "b"))
    assert [it.counts.code_redemption_count for it in answer.results] == [1, 2, 3]


@pytest.mark.parametrize("count", [0, 1_001])
def test_a_batch_has_one_to_a_thousand_items(api: Api, count: int) -> None:
    names = new_codes(count)
    items = [redemptions.RedeemItem(code=code, user_id="u") for code in names]
    request = redemptions.BatchRedeemCodesRequest(items=items)
    assert bad_fields(api, "redemptions.BatchRedeemCodes", request) == ["items"]
    made = api.book(codes=1)
    users = [f"user-{number}" for number in range(count)]
    random = assignments.BatchAssignRandomCodesRequest(book_id=made.book_id, user_ids=users)
    assert bad_fields(api, "assignments.BatchAssignRandomCodes", random) == ["user_ids"]
    assert api.stats(made.book_id).assignment_count == 0


def test_users_of_a_batch_are_different_ones(api: Api) -> None:
    made = api.book(codes=5)
    request = assignments.BatchAssignRandomCodesRequest(
        book_id=made.book_id, user_ids=["a", "b", "a", " ", ""]
    )
    assert bad_fields(api, "assignments.BatchAssignRandomCodes", request) == [
        "user_ids[2]",
        "user_ids[3]",
        "user_ids[4]",
    ]
    assert api.stats(made.book_id).assignment_count == 0


def test_numbers_that_are_not_of_the_enum_are_refused(api: Api) -> None:
    for method, request, field in (
        ("books.ListCouponBooks", books.ListCouponBooksRequest(state=99), "state"),
        ("books.ListCouponBooks", books.ListCouponBooksRequest(state=5), "state"),  # derived
        ("codes.ListCodes", codes.ListCodesRequest(book_id=BOOK_ID, state=5), "state"),
        ("codes.ExportCodes", codes.ExportCodesRequest(book_id=BOOK_ID, state=6), "state"),
        ("codes.ListCodes", codes.ListCodesRequest(book_id=BOOK_ID, state=-1), "state"),
        (
            "assignments.ListUserCoupons",
            assignments.ListUserCouponsRequest(user_id="u", state=4),
            "state",
        ),
        (
            "redemptions.BatchRedeemCodes",
            redemptions.BatchRedeemCodesRequest(
                items=[redemptions.RedeemItem(code="C", user_id="u")], mode=3
            ),
            "mode",
        ),
        ("audit.ListAuditEvents", audit.ListAuditEventsRequest(types=[1, 18]), "types[1]"),
        ("audit.ListAuditEvents", audit.ListAuditEventsRequest(types=[0]), "types[0]"),
        ("codes.PreviewCodes", codes.PreviewCodesRequest(count=0), "count"),
        ("codes.PreviewCodes", codes.PreviewCodesRequest(count=10**9 + 1), "count"),
        ("codes.PreviewCodes", codes.PreviewCodesRequest(count=1, sample_count=101), "sample_count"),
        ("codes.PreviewCodes", codes.PreviewCodesRequest(count=1, sample_count=-1), "sample_count"),
    ):
        assert bad_fields(api, method, request) == [field], request


@pytest.mark.parametrize("field", ["start_time", "end_time"])
def test_a_time_that_is_none_is_refused_by_the_ledger(api: Api, field: str) -> None:
    for value in TIMES:
        request = audit.ListAuditEventsRequest(**{field: value})
        assert bad_fields(api, "audit.ListAuditEvents", request) == [field]


# --- several bad fields -------------------------------------------------------------------------


def test_every_bad_field_of_a_request_is_named(api: Api) -> None:
    request = redemptions.RedeemCodeRequest(
        code="?",
        book_id="?",
        user_id=" ",
        order_id="\0",
        order_amount=money.Money(),
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


# --- messages -----------------------------------------------------------------------------------


def raw(api: Api, method: str, message: bytes) -> Any:
    call = api.channel.unary_unary(f"/coupon_service.v1.{method}")
    return call(message)


def test_a_message_that_is_too_large_is_refused(api: Api) -> None:
    code = api.code()
    request = api.redeem_request(code, "u", lock_token="x" * 65_536)
    assert bad_fields(api, "redemptions.RedeemCode", request) == [""]
    huge = api.redeem_request(code, "u", lock_token="x" * 2_000_000)
    with pytest.raises(grpc.RpcError) as error:  # it does not get as far as the service
        api.redemptions.RedeemCode(huge)
    assert error.value.code() == StatusCode.RESOURCE_EXHAUSTED
    assert api.get_code(code).redemption_count == 0
    api.redeem(code, "u")


@pytest.mark.parametrize(
    "message",
    [b"\xff", b"\x0a\x05abc", b"\x0a\x02\xff\xfe", b"\x0a\x03\xed\xa0\x80", b"\x00" * 9, b"\x0b"],
    ids=["junk", "cut off", "not UTF-8", "a surrogate", "zeros", "an open group"],
)
def test_bytes_that_are_no_message_are_refused(api: Api, message: bytes) -> None:
    for method in ("RedemptionService/RedeemCode", "CouponBookService/GetCouponBook"):
        with refused("INVALID_ARGUMENT", StatusCode.INVALID_ARGUMENT) as it:
            raw(api, method, message)
        assert it.fields == [""]


def test_bytes_that_are_no_message_end_an_upload_and_what_was_committed_stays(api: Api) -> None:
    (code,) = new_codes(1)
    made = api.draft()
    header = codes.ImportHeader(book_id=made.book_id, request_id="r")
    chunk = codes.ImportChunk(chunk_number=1, codes=[code])
    messages = [
        codes.ImportCodesRequest(header=header).SerializeToString(),
        codes.ImportCodesRequest(chunk=chunk).SerializeToString(),
        b"\xff",
    ]
    upload = api.channel.stream_stream("/coupon_service.v1.CouponCodeService/ImportCodes")
    answers = upload(iter(messages))
    assert codes.ImportCodesResponse.FromString(next(answers)).created_count == 1
    with refused("INVALID_ARGUMENT") as it:
        next(answers)
    assert it.fields == [""]
    assert api.stats(made.book_id).code_count == 1


def test_fields_that_the_service_does_not_know_are_ignored(api: Api) -> None:
    made = api.draft()
    request = books.GetCouponBookRequest(book_id=made.book_id).SerializeToString()
    answer = raw(api, "CouponBookService/GetCouponBook", request + b"\xfa\x3f\x03new")
    assert books.GetCouponBookResponse.FromString(answer).coupon_book == made


def test_a_method_that_there_is_not_is_not_implemented(api: Api) -> None:
    with pytest.raises(grpc.RpcError) as error:
        raw(api, "CouponBookService/DeleteCouponBook", b"")
    assert error.value.code() == StatusCode.UNIMPLEMENTED
