"""Bad input: books and masks."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from grpc import StatusCode
from support.bad_requests import TIMES, TTLS, bad_fields, nested
from support.service import Api, books, from_now, refused, struct

BAD_IDENTIFIERS = [" ", "   ", " b", "b ", "b\0", "\nb", "b\x7f", "b\u2028c", "b" * 129]


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
    *[(form(group_size=value, separator="-"), "code_format.group_size") for value in (-1, 33)],
    (form(length=32, prefix="P" * 16, suffix="S" * 16, check_character=True), "code_format.length"),
    ({"metadata": struct(a="x" * 5_120)}, "metadata"),
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
