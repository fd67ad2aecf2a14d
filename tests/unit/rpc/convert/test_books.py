"""Requests and answers of CouponBookService."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from support.page_tokens import PAGES
from support.violations import bad_fields

from coupon_service.errors import PermissionDenied
from coupon_service.model import (
    AmountOff,
    AssignmentPolicy,
    Benefit,
    Book,
    BookLimits,
    BookState,
    BookStats,
    LockPolicy,
    OrderPolicy,
    PercentOff,
    Period,
    PeriodLimits,
    Schedule,
    Tier,
    TieredDiscount,
    Weekday,
    WeeklyWindow,
)
from coupon_service.model.codes import DEFAULT_ALPHABET, CodeFormat
from coupon_service.model.time_zones import time_zone
from coupon_service.rpc.context import RequestContext
from coupon_service.rpc.convert import books
from coupon_service.v1 import coupon_book_service_pb2 as pb
from coupon_service.v1.money_pb2 import Money

NOW = datetime(2026, 5, 1, tzinfo=UTC)
BOOK_ID = "0f8fad5b-d9cb-869f-a165-70867728950e"
CHANGEABLE = [
    "name",
    "description",
    "discount",
    "currency_code",
    "min_order_amount_minor",
    "limits",
    "assignment_policy",
    "lock_policy",
    "default_lock_ttl",
    "max_lock_ttl",
    "start_time",
    "end_time",
    "assigned_code_validity",
    "code_format",
    "metadata",
    "schedule",
    "period_limits",
]


def rpc(caller: str = "shop", business_id: str = "") -> RequestContext:
    return RequestContext(
        (("user-agent", "test"),), peer="ipv4:1.2.3.4:5", caller=caller, business_id=business_id
    )


def least() -> pb.CouponBook:
    """A book of nothing but what is required."""
    return pb.CouponBook(
        business_id="acme",
        name="Spring",
        discount=pb.Discount(benefit=pb.Benefit(description="a gift")),
    )


def full() -> pb.CouponBook:
    """A book with everything that a client can set."""
    book = pb.CouponBook(
        business_id="acme",
        name="Spring",
        description="15 % off\nin spring",
        discount=pb.Discount(
            percent_off=pb.PercentOff(basis_points=1_500, max_discount_minor=2_000)
        ),
        currency_code="EUR",
        min_order_amount_minor=1_000,
        limits=pb.BookLimits(
            max_redemptions=1_000,
            max_redemptions_per_code=5,
            max_redemptions_per_user_per_code=1,
            max_redemptions_per_user=2,
            max_assignments_per_user=3,
            max_redemptions_per_order=1,
        ),
        assignment_policy=pb.ASSIGNMENT_POLICY_BEARER,
        lock_policy=pb.LOCK_POLICY_REQUIRED,
        default_lock_ttl=Duration(seconds=30, nanos=500_000_000),
        max_lock_ttl=Duration(seconds=600),
        start_time=Timestamp(seconds=1_700_000_000),
        end_time=Timestamp(seconds=1_800_000_000, nanos=1_000),
        assigned_code_validity=Duration(seconds=86_400),
        code_format=pb.CodeFormat(
            length=8,
            alphabet="ABCDEF",
            prefix="SPRING",
            suffix="X",
            separator="-",
            group_size=4,
            check_character=True,
        ),
        low_threshold=50,
        min_code_length=3,
        order_policy=pb.ORDER_POLICY_COMBINABLE,
        exclusive_group="shipping",
        period_limits=pb.PeriodLimits(
            period=pb.PERIOD_WEEK,
            time_zone="America/New_York",
            max_redemptions=500,
            max_redemptions_per_user=2,
        ),
        schedule=pb.Schedule(
            time_zone="Europe/Berlin",
            windows=[
                pb.WeeklyWindow(days=[pb.WEEKDAY_FRIDAY], opens="22:00", closes="02:00"),
                pb.WeeklyWindow(opens="00:00", closes="24:00"),
            ],
        ),
    )
    book.metadata.update({"channel": "mail"})
    return book


def create(book: pb.CouponBook, request_id: str = "r1", **context: str) -> Book:
    request = pb.CreateCouponBookRequest(coupon_book=book, request_id=request_id)
    return books.read_create(request, rpc(**context), NOW)[0]


def changed(change: Callable[[pb.CouponBook], object]) -> pb.CouponBook:
    book = full()
    change(book)
    return book


def setting(**values: Any) -> pb.CouponBook:
    """The full book with other values of top-level scalars or messages."""
    book = full()
    for name, value in values.items():
        book.ClearField(name)  # pyright: ignore[reportArgumentType]
        book.MergeFrom(pb.CouponBook(**{name: value}))
    return book


# --- create -------------------------------------------------------------------------------------


def test_what_is_not_set_gets_its_default() -> None:
    book = create(least())
    assert book == Book(
        book_id=book.book_id,
        business_id="acme",
        name="Spring",
        discount=Benefit("a gift"),
        limits=BookLimits(max_redemptions_per_code=1),
        assignment_policy=AssignmentPolicy.REQUIRED,
        lock_policy=LockPolicy.OPTIONAL,
        code_format=CodeFormat(12, DEFAULT_ALPHABET),
        create_time=NOW,
        update_time=NOW,
    )


def test_everything_that_is_set_is_taken() -> None:
    book = create(full())
    assert book == Book(
        book_id=book.book_id,
        business_id="acme",
        name="Spring",
        description="15 % off\nin spring",
        discount=PercentOff(1_500, 2_000),
        currency_code="EUR",
        min_order_amount_minor=1_000,
        limits=BookLimits(1_000, 5, 1, 2, 3, max_redemptions_per_order=1),
        assignment_policy=AssignmentPolicy.BEARER,
        lock_policy=LockPolicy.REQUIRED,
        default_lock_ttl_ms=30_500,
        max_lock_ttl_ms=600_000,
        start_time=datetime.fromtimestamp(1_700_000_000, UTC),
        end_time=datetime.fromtimestamp(1_800_000_000, UTC) + timedelta(microseconds=1),
        assigned_code_validity_s=86_400,
        code_format=CodeFormat(8, "ABCDEF", "SPRING", "X", "-", 4, True),
        metadata='{"channel":"mail"}',
        low_threshold=50,
        min_code_length=3,
        order_policy=OrderPolicy.COMBINABLE,
        exclusive_group="shipping",
        period_limits=PeriodLimits(Period.WEEK, time_zone("America/New_York"), 500, 2),
        schedule=Schedule(
            time_zone("Europe/Berlin"),
            (
                WeeklyWindow((Weekday.FRIDAY,), 1_320, 120),
                WeeklyWindow(tuple(Weekday), 0, 1_440),
            ),
        ),
        create_time=NOW,
        update_time=NOW,
    )


def test_a_limit_of_none_a_code_is_not_the_default_of_one() -> None:
    assert create(setting(limits=pb.BookLimits())).limits.max_redemptions_per_code == 1
    unlimited = pb.BookLimits(max_redemptions_per_code=0)
    assert create(setting(limits=unlimited)).limits.max_redemptions_per_code == 0


def test_a_repeat_makes_the_same_book_and_anybody_else_another() -> None:
    book = create(full())
    assert create(full()).book_id == book.book_id
    assert create(full(), "r2").book_id != book.book_id
    assert create(full(), caller="other").book_id != book.book_id
    assert create(setting(business_id="other")).book_id != book.book_id


def test_output_only_fields_are_ignored() -> None:
    noisy = full()
    noisy.MergeFrom(
        pb.CouponBook(
            book_id="x",
            etag="x",
            state=pb.COUPON_BOOK_STATE_CLOSED,
            create_time=Timestamp(nanos=-1),
        )
    )

    def read(book: pb.CouponBook) -> object:
        request = pb.CreateCouponBookRequest(coupon_book=book, request_id="r")
        return books.read_create(request, rpc(), NOW)

    assert read(noisy) == read(full())


@pytest.mark.parametrize("field", CHANGEABLE)
def test_another_value_of_any_field_is_another_fingerprint(field: str) -> None:
    def fingerprint(book: pb.CouponBook) -> int:
        request = pb.CreateCouponBookRequest(coupon_book=book, request_id="r")
        return books.read_create(request, rpc(), NOW)[2]

    other = full()
    other.ClearField(field)  # pyright: ignore[reportArgumentType]
    if field in {"name", "discount", "currency_code"}:  # those that are required
        other.MergeFrom(
            pb.CouponBook(
                name="Summer",
                currency_code="USD",
                discount=pb.Discount(amount_off=pb.AmountOff(amount_minor=1)),
            )
            if field != "name"
            else pb.CouponBook(name="Summer")
        )
    assert fingerprint(other) != fingerprint(full())


def test_everything_that_is_missing_is_named() -> None:
    assert bad_fields(lambda: create(pb.CouponBook())) == [
        "coupon_book.business_id",
        "coupon_book.name",
        "coupon_book.discount",
    ]


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"business_id": " "}, "business_id"),
        ({"name": "x" * 201}, "name"),
        ({"name": "a\0"}, "name"),
        ({"description": "x" * 2_001}, "description"),
        ({"discount": pb.Discount()}, "discount"),
        (
            {"discount": pb.Discount(percent_off=pb.PercentOff(basis_points=0))},
            "discount.percent_off.basis_points",
        ),
        (
            {"discount": pb.Discount(percent_off=pb.PercentOff(basis_points=10_001))},
            "discount.percent_off.basis_points",
        ),
        (
            {
                "discount": pb.Discount(
                    percent_off=pb.PercentOff(basis_points=1, max_discount_minor=-1)
                )
            },
            "discount.percent_off.max_discount_minor",
        ),
        (
            {"discount": pb.Discount(amount_off=pb.AmountOff(amount_minor=0))},
            "discount.amount_off.amount_minor",
        ),
        (
            {"discount": pb.Discount(benefit=pb.Benefit(description="x" * 257))},
            "discount.benefit.description",
        ),
        ({"currency_code": "euro"}, "currency_code"),
        ({"currency_code": ""}, "currency_code"),
        ({"min_order_amount_minor": -1}, "min_order_amount_minor"),
        ({"min_order_amount_minor": 10**15 + 1}, "min_order_amount_minor"),
        ({"limits": pb.BookLimits(max_redemptions=-1)}, "limits.max_redemptions"),
        ({"limits": pb.BookLimits(max_redemptions=10**12 + 1)}, "limits.max_redemptions"),
        (
            {"limits": pb.BookLimits(max_redemptions_per_code=-1)},
            "limits.max_redemptions_per_code",
        ),
        (
            {"limits": pb.BookLimits(max_redemptions_per_user_per_code=10**9 + 1)},
            "limits.max_redemptions_per_user_per_code",
        ),
        (
            {"limits": pb.BookLimits(max_redemptions_per_user=-1)},
            "limits.max_redemptions_per_user",
        ),
        (
            {"limits": pb.BookLimits(max_assignments_per_user=-1)},
            "limits.max_assignments_per_user",
        ),
        ({"limits": pb.BookLimits(max_discount_minor=-1)}, "limits.max_discount_minor"),
        ({"limits": pb.BookLimits(max_discount_minor=10**18 + 1)}, "limits.max_discount_minor"),
        (
            {"limits": pb.BookLimits(max_redemptions_per_order=-1)},
            "limits.max_redemptions_per_order",
        ),
        (
            {"order_policy": 4, "exclusive_group": "", "limits": pb.BookLimits()},
            "order_policy",
        ),
        ({"exclusive_group": "x" * 129}, "exclusive_group"),
        ({"assignment_policy": 3}, "assignment_policy"),
        ({"lock_policy": 4}, "lock_policy"),
        ({"default_lock_ttl": Duration()}, "default_lock_ttl"),
        ({"max_lock_ttl": Duration(seconds=365 * 86_400)}, "max_lock_ttl"),
        ({"start_time": Timestamp(nanos=-1)}, "start_time"),
        ({"end_time": Timestamp(seconds=1_700_000_000)}, "end_time"),
        ({"end_time": Timestamp(seconds=1_600_000_000)}, "end_time"),
        ({"assigned_code_validity": Duration()}, "assigned_code_validity"),
        (
            {"assigned_code_validity": Duration(seconds=1, nanos=1_000_000)},
            "assigned_code_validity",
        ),
        ({"assigned_code_validity": Duration(seconds=11 * 31_536_000)}, "assigned_code_validity"),
        ({"code_format": pb.CodeFormat(length=3)}, "code_format.length"),
        ({"code_format": pb.CodeFormat(length=-1)}, "code_format.length"),
        ({"code_format": pb.CodeFormat(alphabet="AA")}, "code_format.alphabet"),
        ({"code_format": pb.CodeFormat(alphabet="ÄÖÜ")}, "code_format.alphabet"),
        ({"code_format": pb.CodeFormat(prefix="x" * 17)}, "code_format.prefix"),
        ({"code_format": pb.CodeFormat(suffix="A-B")}, "code_format.suffix"),
        ({"code_format": pb.CodeFormat(separator="/")}, "code_format.separator"),
        (
            {"code_format": pb.CodeFormat(separator="-", group_size=-1)},
            "code_format.group_size",
        ),
    ],
)
def test_a_bad_value_is_refused_by_its_path(values: dict[str, Any], field: str) -> None:
    assert bad_fields(lambda: create(setting(**values))) == [f"coupon_book.{field}"]


def tier(from_amount_minor: int, basis_points: int = 1) -> pb.Tier:
    return pb.Tier(
        from_amount_minor=from_amount_minor, percent_off=pb.PercentOff(basis_points=basis_points)
    )


@pytest.mark.parametrize(
    ("tiers", "bad"),
    [
        ([], ["tiers"]),
        ([tier(it) for it in range(1, 22)], ["tiers"]),
        ([tier(0)], ["tiers[0].from_amount_minor"]),
        ([tier(10**15 + 1)], ["tiers[0].from_amount_minor"]),
        ([tier(5), tier(5)], ["tiers[1].from_amount_minor"]),
        ([pb.Tier(from_amount_minor=5)], ["tiers[0].kind"]),
        (
            [tier(5), tier(4, basis_points=0), pb.Tier(amount_off=pb.AmountOff())],
            [
                "tiers[1].from_amount_minor",
                "tiers[1].percent_off.basis_points",
                "tiers[2].from_amount_minor",
                "tiers[2].from_amount_minor",
                "tiers[2].amount_off.amount_minor",
            ],
        ),
    ],
)
def test_every_bad_tier_is_named(tiers: list[pb.Tier], bad: list[str]) -> None:
    book = setting(discount=pb.Discount(tiers=pb.TieredDiscount(tiers=tiers)))
    found = bad_fields(lambda: create(book))
    assert found == [f"coupon_book.discount.tiers.{it}" for it in bad]


def hours(opens: str = "09:00", closes: str = "17:00", **values: Any) -> pb.Schedule:
    window = pb.WeeklyWindow(opens=opens, closes=closes, days=values.pop("days", []))
    fields: dict[str, Any] = {"time_zone": "UTC", "windows": [window], **values}
    return pb.Schedule(**fields)


@pytest.mark.parametrize(
    ("schedule", "bad"),
    [
        (pb.Schedule(), ["time_zone", "windows"]),
        (hours(time_zone="Europe/Bonn"), ["time_zone"]),
        (hours(windows=[]), ["windows"]),
        (hours(windows=[pb.WeeklyWindow(opens="09:00", closes="17:00")] * 51), ["windows"]),
        (hours(days=[1, 1]), ["windows[0].days"]),
        (hours(days=[0]), ["windows[0].days"]),
        (hours(days=[8]), ["windows[0].days"]),
        (hours("9:00"), ["windows[0].opens"]),
        (hours("24:00"), ["windows[0].opens"]),
        (hours("09:60"), ["windows[0].opens"]),
        (hours(closes="24:01"), ["windows[0].closes"]),
        (hours(closes="09:00"), ["windows[0].closes"]),
        (hours("", ""), ["windows[0].opens", "windows[0].closes"]),
    ],
)
def test_every_bad_field_of_a_schedule_is_named(schedule: pb.Schedule, bad: list[str]) -> None:
    found = bad_fields(lambda: create(setting(schedule=schedule)))
    assert found == [f"coupon_book.schedule.{it}" for it in bad]


@pytest.mark.parametrize(
    ("limits", "bad"),
    [
        ({}, ["period", "time_zone", "max_redemptions"]),
        ({"period": 4, "time_zone": "UTC", "max_redemptions": 1}, ["period"]),
        ({"period": 1, "time_zone": "CET/X", "max_redemptions": 1}, ["time_zone"]),
        ({"period": 1, "time_zone": "UTC"}, ["max_redemptions"]),
        ({"period": 1, "time_zone": "UTC", "max_redemptions": -1}, ["max_redemptions"]),
        ({"period": 1, "time_zone": "UTC", "max_redemptions": 10**12 + 1}, ["max_redemptions"]),
        (
            {"period": 1, "time_zone": "UTC", "max_redemptions_per_user": 10**9 + 1},
            ["max_redemptions_per_user"],
        ),
    ],
)
def test_every_bad_field_of_limits_of_periods_is_named(
    limits: dict[str, Any], bad: list[str]
) -> None:
    book = setting(period_limits=pb.PeriodLimits(**limits))
    assert bad_fields(lambda: create(book)) == [f"coupon_book.period_limits.{it}" for it in bad]


def test_deep_metadata_are_refused() -> None:
    book = changed(lambda it: it.metadata.update({"a": {"b": {"c": {"d": {"e": {}}}}}}))
    assert bad_fields(lambda: create(book)) == ["coupon_book.metadata"]


def test_a_budget_is_taken_and_shown() -> None:
    book = create(changed(lambda it: it.limits.MergeFrom(pb.BookLimits(max_discount_minor=10**18))))
    assert book.limits.budget_minor == 10**18
    assert books.book_message(book, book.state).limits.max_discount_minor == 10**18


def test_a_least_order_amount_needs_a_currency_and_a_benefit_alone_does_not() -> None:
    book = least()
    create(book)
    book.min_order_amount_minor = 1
    assert bad_fields(lambda: create(book)) == ["coupon_book.currency_code"]


# --- update -------------------------------------------------------------------------------------


def update(book: pb.CouponBook, *paths: str, request_id: str = "r1") -> books.BookChange:
    book.book_id = book.book_id or BOOK_ID
    request = pb.UpdateCouponBookRequest(
        coupon_book=book, update_mask=FieldMask(paths=paths), request_id=request_id
    )
    return books.read_update(request, rpc())


def test_only_what_the_mask_names_is_read() -> None:
    change = update(pb.CouponBook(name="New", currency_code="bad"), "name")
    assert change.book_id == UUID(BOOK_ID)
    assert change.changes == {"name": "New"}


@pytest.mark.parametrize("path", CHANGEABLE)
def test_every_field_that_a_client_sets_can_be_changed(path: str) -> None:
    ((name, value),) = update(full(), path).changes.items()
    assert value == getattr(create(full()), name)


def test_a_named_field_that_is_unset_gets_its_default() -> None:
    change = update(pb.CouponBook(), "limits", "end_time", "max_lock_ttl", "metadata")
    assert change.changes == {
        "limits": BookLimits(),
        "end_time": None,
        "max_lock_ttl_ms": 0,
        "metadata": None,
    }


@pytest.mark.parametrize(
    "path",
    ["", "*", "nothing", "book_id", "business_id", "state", "etag", "limits.max_redemptions"],
)
def test_other_paths_are_refused(path: str) -> None:
    assert bad_fields(lambda: update(full(), "name", path)) == ["update_mask.paths[1]"]


def test_a_mask_is_required() -> None:
    assert bad_fields(lambda: update(full())) == ["update_mask"]


def test_a_bad_id_a_bad_value_and_a_bad_path_are_all_named() -> None:
    book = pb.CouponBook(book_id="x")
    assert bad_fields(lambda: update(book, "name", "etag")) == [
        "coupon_book.book_id",
        "coupon_book.name",
        "update_mask.paths[1]",
    ]


def test_the_order_of_the_mask_does_not_matter_to_a_repeat() -> None:
    first, second = update(full(), "name", "limits"), update(full(), "limits", "name")
    assert first.fingerprint == second.fingerprint
    assert first.fingerprint != update(full(), "name").fingerprint


@pytest.mark.parametrize(
    ("etag", "version"),
    [("", None), ("v1", 1), ("v12", 12), ("1", -1), ("x", -1), ("v", -1), ("v²", -1)],
)
def test_an_etag_that_is_not_ours_matches_no_version(etag: str, version: int | None) -> None:
    assert update(pb.CouponBook(name="x", etag=etag), "name").etag_version == version


def test_the_etag_of_an_answer_stands_for_the_version_it_was_made_of() -> None:
    book = replace(create(full()), version=7)
    message = books.book_message(book, BookState.DRAFT)
    assert update(message, "name").etag_version == 7


# --- the rest -----------------------------------------------------------------------------------


def test_a_transition_names_a_book() -> None:
    request = pb.CloseCouponBookRequest(book_id=BOOK_ID, etag="v3", request_id="r")
    change = books.read_transition(request, rpc())
    assert (change.book_id, change.etag_version, change.call.request_id) == (UUID(BOOK_ID), 3, "r")
    bad = pb.PauseCouponBookRequest(request_id=" ")
    assert bad_fields(lambda: books.read_transition(bad, rpc())) == ["request_id", "book_id"]


def test_books_are_listed_by_business_and_stored_state() -> None:
    request = pb.ListCouponBooksRequest(business_id="acme", state=pb.COUPON_BOOK_STATE_PAUSED)
    business_id, state, page = books.read_list(request, rpc(), PAGES)
    assert (business_id, state, page.size, page.after) == ("acme", BookState.PAUSED, 50, None)


def test_a_derived_state_cannot_be_asked_for() -> None:
    request = pb.ListCouponBooksRequest(state=pb.COUPON_BOOK_STATE_EXPIRED)
    assert bad_fields(lambda: books.read_list(request, rpc(), PAGES)) == ["state"]


def test_a_caller_of_a_business_lists_that_one_only() -> None:
    of_acme = rpc(business_id="acme")
    assert books.read_list(pb.ListCouponBooksRequest(), of_acme, PAGES)[0] == "acme"
    assert (
        books.read_list(pb.ListCouponBooksRequest(business_id="acme"), of_acme, PAGES)[0] == "acme"
    )
    with pytest.raises(PermissionDenied):
        books.read_list(pb.ListCouponBooksRequest(business_id="other"), of_acme, PAGES)


def test_a_book_is_named_by_a_uuid() -> None:
    assert books.read_book_id(pb.GetCouponBookRequest(book_id=BOOK_ID)) == UUID(BOOK_ID)
    assert bad_fields(lambda: books.read_book_id(pb.GetCouponBookRequest())) == ["book_id"]


def test_an_answer_makes_the_same_book_when_it_is_sent_back() -> None:
    book = create(full())
    message = books.book_message(book, BookState.SCHEDULED)
    assert message.state == pb.COUPON_BOOK_STATE_DRAFT
    assert message.effective_state == pb.COUPON_BOOK_STATE_SCHEDULED
    assert create(message) == book


@pytest.mark.parametrize(
    "discount",
    [
        PercentOff(1, 0),
        AmountOff(5),
        Benefit("a gift"),
        TieredDiscount((Tier(5_000, PercentOff(1_000, 700)), Tier(10_000, AmountOff(5)))),
    ],
    ids=["%", "amount", "benefit", "tiers"],
)
def test_every_kind_of_discount_is_shown(discount: Any) -> None:
    message = books.book_message(replace(create(full()), discount=discount), BookState.DRAFT)
    assert create(message).discount == discount


def test_what_a_book_does_not_have_is_not_set_in_the_answer() -> None:
    message = books.book_message(create(least()), BookState.DRAFT)
    unset = ["default_lock_ttl", "max_lock_ttl", "start_time", "end_time", "metadata"]
    assert [name for name in unset if message.HasField(name)] == []  # pyright: ignore[reportArgumentType]
    assert message.limits.HasField("max_redemptions_per_code")


def test_the_counts_of_a_book_add_up() -> None:
    stats = BookStats(1, 2, 3, 4, 5, 6, 7, 800)
    message = books.stats_message(create(full()), stats)
    assert message.code_count == 10
    assert message.discount_given == Money(amount_minor=800, currency_code="EUR")
    assert not books.stats_message(create(least()), stats).HasField("discount_given")


def test_a_sum_of_discounts_that_does_not_fit_is_answered_as_the_greatest_that_does() -> None:
    for given, answered in (2**63 - 1, 2**63 - 1), (2**63, 2**63 - 1), (10**30, 2**63 - 1):
        message = books.stats_message(create(full()), BookStats(discount_minor=given))
        assert message.discount_given == Money(amount_minor=answered, currency_code="EUR")
