"""CouponBookService: books are made, found, changed and brought through their life."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import StatusCode
from support.service import Api, books, euros, from_now, new_codes, refused, unique

PERCENT = books.Discount(percent_off=books.PercentOff(basis_points=1_500, max_discount_minor=999))
FRIDAY_NIGHT = books.WeeklyWindow(days=[books.WEEKDAY_FRIDAY], opens="22:00", closes="02:00")
FREE_SHIPPING = books.Discount(benefit=books.Benefit(description="Free shipping"))

LIMITS = {
    "max_redemptions": 10**12,
    "max_redemptions_per_code": 10**9,
    "max_redemptions_per_user_per_code": 10**9,
    "max_redemptions_per_user": 10**9,
    "max_assignments_per_user": 10**9,
}

OUTPUT_ONLY = ("book_id", "etag", "create_time", "update_time", "state", "effective_state")

# --- create and get -----------------------------------------------------------------------------


def listed(api: Api, **filters: Any) -> list[str]:
    """The ids of the books of a list's first page."""
    answer = api.books.ListCouponBooks(books.ListCouponBooksRequest(**filters))
    return [book.book_id for book in answer.coupon_books]


def test_a_book_of_which_little_is_said_has_the_defaults(api: Api) -> None:
    request = books.CreateCouponBookRequest(
        coupon_book=books.CouponBook(business_id="b", name="n", discount=FREE_SHIPPING)
    )
    answer = api.books.CreateCouponBook(request)
    book = answer.coupon_book
    assert not answer.replayed
    assert str(UUID(book.book_id)) == book.book_id
    assert book.etag
    assert book.create_time == book.update_time
    for field in ("book_id", "etag", "create_time", "update_time"):
        book.ClearField(field)
    assert book == books.CouponBook(
        business_id="b",
        name="n",
        state=books.COUPON_BOOK_STATE_DRAFT,
        effective_state=books.COUPON_BOOK_STATE_DRAFT,
        discount=FREE_SHIPPING,
        limits=books.BookLimits(max_redemptions_per_code=1),
        assignment_policy=books.ASSIGNMENT_POLICY_REQUIRED,
        lock_policy=books.LOCK_POLICY_OPTIONAL,
        code_format=books.CodeFormat(length=12, alphabet="23456789BCDFGHJKMNPQRSTVWXZ"),
        order_policy=books.ORDER_POLICY_INDEPENDENT,
    )


def moment(time: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(time)
    return timestamp


def whole_book() -> books.CouponBook:
    """A book with a value in every field that a client can set, the greatest where there is one.

    But `return_to_pool`, which only goes with the default of `assignment_policy`.
    """
    book = books.CouponBook(
        business_id="ß" * 128,
        name="Ünïcode 🎁 " + "n" * 189,
        description="Two\nlines\tand a tab",
        discount=PERCENT,
        currency_code="EUR",
        min_order_amount_minor=10**15,
        limits=books.BookLimits(
            **LIMITS, max_redemptions_per_order=10**9, max_discount_minor=10**18
        ),
        assignment_policy=books.ASSIGNMENT_POLICY_BEARER,
        lock_policy=books.LOCK_POLICY_REQUIRED,
        default_lock_ttl=Duration(seconds=1, nanos=500_000_000),
        max_lock_ttl=Duration(seconds=86_400),
        start_time=moment(from_now(days=-1)),
        end_time=moment(from_now(days=10_000)),
        assigned_code_validity=Duration(seconds=3_650 * 86_400),
        code_format=books.CodeFormat(
            length=8,
            alphabet="ABCDEFGH",
            prefix="P" * 16,
            suffix="S" * 16,
            separator="-",
            group_size=4,
            check_character=True,
        ),
        low_threshold=10**12,
        min_code_length=64,
        order_policy=books.ORDER_POLICY_COMBINABLE,
        exclusive_group="g" * 128,
        period_limits=books.PeriodLimits(
            period=books.PERIOD_MONTH,
            time_zone="Europe/Berlin",
            max_redemptions=10**12,
            max_redemptions_per_user=10**9,
        ),
        schedule=books.Schedule(time_zone="Europe/Berlin", windows=[FRIDAY_NIGHT] * 50),
    )
    book.metadata.update({"a": [1, 2.5, None, True, {"b": "ü\n"}]})
    return book


def test_a_book_is_kept_with_all_that_is_said_of_it(api: Api) -> None:
    asked = whole_book()
    made = api.books.CreateCouponBook(books.CreateCouponBookRequest(coupon_book=asked)).coupon_book
    assert api.get_book(made.book_id) == made
    for field in OUTPUT_ONLY:
        made.ClearField(field)
    assert made == asked
    said = {*OUTPUT_ONLY, "return_to_pool", *(field.name for field, _ in asked.ListFields())}
    assert said == set(books.CouponBook.DESCRIPTOR.fields_by_name)


@pytest.mark.parametrize(
    "discount",
    [
        PERCENT,
        books.Discount(amount_off=books.AmountOff(amount_minor=10**15)),
        books.Discount(benefit=books.Benefit(description="g" * 256)),
        books.Discount(
            tiers=books.TieredDiscount(
                tiers=[
                    books.Tier(from_amount_minor=it + 1, amount_off=books.AmountOff(amount_minor=5))
                    for it in range(20)
                ]
            )
        ),
    ],
    ids=lambda it: it.WhichOneof("kind"),
)
def test_a_book_has_one_kind_of_discount(api: Api, discount: books.Discount) -> None:
    assert api.get_book(api.draft(discount=discount).book_id).discount == discount


def test_zero_redemptions_a_code_mean_no_limit_and_are_not_the_default(api: Api) -> None:
    book = api.draft(limits=books.BookLimits(max_redemptions_per_code=0))
    assert api.get_book(book.book_id).limits.max_redemptions_per_code == 0


def test_what_only_the_service_says_is_ignored_when_a_book_is_made(api: Api) -> None:
    book_id = str(uuid4())
    book = api.draft(
        book_id=book_id,
        state=books.COUPON_BOOK_STATE_ACTIVE,
        effective_state=books.COUPON_BOOK_STATE_ACTIVE,
        etag="e",
        create_time=from_now(days=-9),
        update_time=from_now(days=-9),
    )
    assert book.book_id != book_id
    assert book.state == books.COUPON_BOOK_STATE_DRAFT
    assert book.etag != "e"
    assert book.create_time.ToDatetime() > from_now(hours=-1).replace(tzinfo=None)


def test_an_unknown_book_is_not_found_by_any_rpc(api: Api) -> None:
    unknown = str(uuid4())
    stats = books.GetCouponBookStatsRequest(book_id=unknown)
    for call in (
        lambda: api.get_book(unknown),
        lambda: api.update(unknown, name="n"),
        lambda: api.activate(unknown),
        lambda: api.pause(unknown),
        lambda: api.close_book(unknown),
        lambda: api.books.GetCouponBookStats(stats),
    ):
        with refused("BOOK_NOT_FOUND", StatusCode.NOT_FOUND):
            call()


# --- list ---------------------------------------------------------------------------------------


def test_books_are_listed_newest_first_by_business_and_state(api: Api) -> None:
    business_id = unique("business")
    drafts = [api.draft(business_id=business_id).book_id for _ in range(2)]
    active = api.book(business_id=business_id).book_id
    other = api.draft().book_id
    assert listed(api, business_id=business_id) == [active, *reversed(drafts)]
    draft, closed = books.COUPON_BOOK_STATE_DRAFT, books.COUPON_BOOK_STATE_CLOSED
    assert listed(api, business_id=business_id, state=draft) == drafts[::-1]
    assert listed(api, business_id=business_id, state=closed) == []
    assert listed(api, business_id=unique("nobody")) == []
    assert listed(api, page_size=4) == [other, active, *reversed(drafts)]
    assert listed(api, state=draft, page_size=3) == [other, *reversed(drafts)]


def test_a_listed_book_is_the_whole_book(api: Api) -> None:
    business_id = unique("business")
    made = api.book(limits=books.BookLimits(max_redemptions=5), business_id=business_id)
    request = books.ListCouponBooksRequest(business_id=business_id)
    assert list(api.books.ListCouponBooks(request).coupon_books) == [api.get_book(made.book_id)]


# --- update -------------------------------------------------------------------------------------


def test_an_update_changes_what_the_mask_names_and_nothing_else(api: Api) -> None:
    before = api.draft(name="before", description="stays")
    after = api.update(before.book_id, "name", name="after", description="is not looked at")
    assert (after.name, after.description) == ("after", "stays")
    assert after.etag != before.etag
    assert after.update_time.ToDatetime() > before.update_time.ToDatetime()
    assert api.get_book(before.book_id) == after
    for field in ("name", "etag", "update_time"):
        before.ClearField(field)
        after.ClearField(field)
    assert after == before


def test_every_field_of_a_draft_can_be_changed_and_be_set_back_to_its_default(api: Api) -> None:
    made = api.draft(discount=FREE_SHIPPING, currency_code="")
    asked = whole_book()
    asked.ClearField("business_id")
    fields = [field.name for field, _ in asked.ListFields()]
    asked.book_id = made.book_id
    request = books.UpdateCouponBookRequest(
        coupon_book=asked, update_mask=FieldMask(paths=fields), request_id=unique("request")
    )
    changed = api.books.UpdateCouponBook(request).coupon_book
    for field in fields:
        assert getattr(changed, field) == getattr(asked, field), field
    required: dict[str, Any] = {"name": made.name, "discount": made.discount}
    reset = api.update(made.book_id, *fields, **required)
    fresh = api.books.CreateCouponBook(
        books.CreateCouponBookRequest(
            coupon_book=books.CouponBook(business_id=made.business_id, **required)
        )
    ).coupon_book
    for field in fields:
        assert getattr(reset, field) == getattr(fresh, field), field


def test_fields_have_to_go_together_after_an_update(api: Api) -> None:
    made = api.draft(end_time=from_now(days=2))
    with refused("INVALID_ARGUMENT", StatusCode.INVALID_ARGUMENT) as late:
        api.update(made.book_id, start_time=from_now(days=3))
    assert late.fields == ["coupon_book.end_time"]
    with refused("INVALID_ARGUMENT") as without:
        api.update(made.book_id, "currency_code")
    assert without.fields == ["coupon_book.currency_code"]
    assert api.get_book(made.book_id) == made


@pytest.mark.parametrize("etag", ["v2", "v01", "1", "anything"])
def test_nothing_is_changed_for_another_etag_than_that_of_the_book(api: Api, etag: str) -> None:
    made = api.draft()
    assert etag != made.etag
    for call in (
        lambda: api.update(made.book_id, name="n", etag=etag),
        lambda: api.activate(made.book_id, etag=etag),
        lambda: api.close_book(made.book_id, etag=etag),
    ):
        with refused("CONCURRENT_MODIFICATION", StatusCode.ABORTED):
            call()
    assert api.get_book(made.book_id) == made
    assert api.event_names(book_id=made.book_id) == ["BOOK_CREATED"]


def test_each_change_needs_the_etag_of_the_one_before(api: Api) -> None:
    made = api.draft()
    etags = [made.etag]
    etags.append(api.update(made.book_id, name="n", etag=etags[-1]).etag)
    for verb in (Api.activate, Api.pause, Api.activate, Api.close_book):
        with refused("CONCURRENT_MODIFICATION"):
            verb(api, made.book_id, etag=etags[-2])
        etags.append(verb(api, made.book_id, etag=etags[-1]).etag)
    assert len(set(etags)) == len(etags)


# --- what use fixes -----------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["ACTIVE", "PAUSED"])
@pytest.mark.parametrize(
    "change",
    [
        {"currency_code": "USD"},
        {"code_format": books.CodeFormat(length=20)},
        {"limits": books.BookLimits(max_redemptions_per_code=3, max_redemptions=5)},
        {"limits": books.BookLimits(max_redemptions_per_code=0, max_redemptions=5)},
        {"limits": books.BookLimits(max_redemptions_per_code=2, max_redemptions_per_user=1)},
        {"limits": books.BookLimits(max_redemptions_per_code=2, max_assignments_per_user=1)},
        {
            "limits": books.BookLimits(
                max_redemptions_per_code=2, max_redemptions_per_user_per_code=1
            )
        },
    ],
)
def test_what_codes_were_made_and_counted_by_is_fixed_after_the_first_activation(
    api: Api, change: dict[str, Any], state: str
) -> None:
    limits = books.BookLimits(max_redemptions_per_code=2, max_redemptions=5)
    made = api.book(limits=limits)
    if state == "PAUSED":
        api.pause(made.book_id)
    before = api.get_book(made.book_id)
    with refused("INVALID_STATE_TRANSITION", StatusCode.FAILED_PRECONDITION) as it:
        api.update(made.book_id, name="not this either", **change)
    assert it.metadata["state"] == state
    assert api.get_book(made.book_id) == before


def test_limits_can_be_raised_lowered_and_lifted_after_activation(api: Api) -> None:
    set_limits = {**LIMITS, "max_redemptions_per_code": 1}
    made = api.book(limits=books.BookLimits(**set_limits))
    for other in (7, 9, 0):
        limits = books.BookLimits(**dict.fromkeys(LIMITS, other) | {"max_redemptions_per_code": 1})
        assert api.update(made.book_id, limits=limits).limits == limits


def test_all_else_can_be_changed_after_activation(api: Api) -> None:
    codes = ["CHANGED" + unique("")[1:13]]
    made = api.book(codes=codes, order_policy=books.ORDER_POLICY_EXCLUSIVE)
    asked = whole_book()
    for field in ("business_id", "currency_code", "limits", "code_format", "period_limits"):
        asked.ClearField(field)
    fields = {field.name: value for field, value in asked.ListFields()}
    changed = api.update(made.book_id, **fields)
    assert changed.state == books.COUPON_BOOK_STATE_ACTIVE
    for field, value in fields.items():
        assert getattr(changed, field) == value, field


def test_a_change_holds_for_the_next_redemption(api: Api) -> None:
    one, other = new_codes(2)
    made = api.book(codes=[one, other])
    assert api.redeem(one, "user", order_amount=euros(1_000)).redemption.discount == euros(100)
    api.update(made.book_id, discount=PERCENT, min_order_amount_minor=1_001)
    with refused("ORDER_BELOW_MINIMUM"):
        api.redeem(other, "user", order_amount=euros(1_000))
    assert api.redeem(other, "user", order_amount=euros(1_001)).redemption.discount == euros(150)
