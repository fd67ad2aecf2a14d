"""Redeem, roll back, look up: what RedemptionService promises of the use of a code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct
from grpc import StatusCode
from support.calls import close, coupons, pause, redemption
from support.service import (
    Api,
    assignments,
    audit,
    books,
    codes,
    euros,
    money,
    new_codes,
    redemptions,
    refused,
)

SUCCEEDED = redemptions.REDEMPTION_STATE_SUCCEEDED
ROLLED_BACK = redemptions.REDEMPTION_STATE_ROLLED_BACK

ANY_NUMBER = books.BookLimits(max_redemptions_per_code=0)
ASSIGNED_ONLY = books.ASSIGNMENT_POLICY_REQUIRED


def shape(**values: Any) -> Struct:
    """Metadata."""
    struct = Struct()
    struct.update(values)
    return struct


# --- redeem -------------------------------------------------------------------------------------


FREE_OF_CHARGE: dict[str, books.Discount] = {
    "percent": books.Discount(percent_off=books.PercentOff(basis_points=10_000)),
    "percent with a cap": books.Discount(
        percent_off=books.PercentOff(basis_points=1, max_discount_minor=5)
    ),
    "amount": books.Discount(amount_off=books.AmountOff(amount_minor=500)),
}


@pytest.mark.parametrize("kind", FREE_OF_CHARGE)
def test_an_order_of_nothing_has_a_discount_of_nothing(api: Api, kind: str) -> None:
    code = api.code(discount=FREE_OF_CHARGE[kind])
    checked = api.validate(code, "ann", order_amount=euros(0))
    assert checked.valid
    assert checked.HasField("discount")
    assert checked.discount == euros(0)
    request = api.redeem_request(code, "ann", order_amount=euros(0))
    answer = api.redemptions.RedeemCode(request)
    redeemed = answer.redemption
    assert (redeemed.HasField("order_amount"), redeemed.HasField("discount")) == (True, True)
    assert (redeemed.order_amount, redeemed.discount) == (euros(0), euros(0))
    assert api.redemptions.RedeemCode(request).replayed
    assert redemption(api, redeemed.redemption_id) == redeemed
    (event,) = [it for it in api.events(code=code) if it.type == audit.AUDIT_EVENT_TYPE_REDEEMED]
    assert (event.HasField("order_amount"), event.HasField("discount")) == (True, True)
    assert (event.order_amount, event.discount) == (euros(0), euros(0))
    undone = api.rollback(redeemed.redemption_id).redemption
    assert (undone.order_amount, undone.discount) == (euros(0), euros(0))
    assert api.stats(redeemed.book_id).discount_given == euros(0)


def test_an_order_of_nothing_is_another_than_an_unknown_one(api: Api) -> None:
    code, request_id = api.code(), "the-request"
    first = api.redeem(code, "ann", order_amount=euros(0), request_id=request_id).redemption
    with refused("REQUEST_ID_REUSED"):
        api.redeem(code, "ann", request_id=request_id)
    api.rollback(first.redemption_id)
    unknown = api.redeem(code, "ann").redemption
    assert (unknown.HasField("order_amount"), unknown.HasField("discount")) == (False, False)


def test_an_order_of_nothing_is_below_any_minimum(api: Api) -> None:
    code = api.code(min_order_amount_minor=1)
    with refused("ORDER_BELOW_MINIMUM", StatusCode.FAILED_PRECONDITION) as it:
        api.redeem(code, "ann", order_amount=euros(0))
    assert it.metadata == {"minimum_minor": "1", "currency_code": "EUR"}
    with refused("CURRENCY_MISMATCH"):
        api.redeem(code, "ann", order_amount=money.Money(currency_code="USD"))


def test_an_order_of_nothing_goes_with_a_benefit(api: Api) -> None:
    gift = books.Discount(benefit=books.Benefit(description="a gift"))
    redeemed = api.redeem(api.code(discount=gift), "ann", order_amount=euros(0)).redemption
    assert redeemed.order_amount == euros(0)
    assert not redeemed.HasField("discount")


def test_a_redemption_is_answered_stored_and_in_the_ledger(api: Api) -> None:
    (code,) = new_codes(1)
    book = api.book(codes=[code])
    answer = api.redeem(
        code,
        "ann",
        order_id="order 1",
        order_amount=euros(2_999),
        metadata=shape(till=7, lines=["a", "b"]),
        request_id="the-request",
    )
    redeemed = answer.redemption
    assert (redeemed.code, redeemed.book_id) == (code, book.book_id)
    assert (redeemed.user_id, redeemed.order_id) == ("ann", "order 1")
    assert redeemed.state == SUCCEEDED
    assert (redeemed.order_amount, redeemed.discount) == (euros(2_999), euros(299))
    assert (redeemed.benefit, redeemed.lock_id) == ("", "")
    assert redeemed.metadata == shape(till=7, lines=["a", "b"])
    assert not redeemed.HasField("rollback_time")
    assert not answer.replayed
    assert redemption(api, redeemed.redemption_id) == redeemed

    (event,) = api.events(code=code)
    assert event.type == audit.AUDIT_EVENT_TYPE_REDEEMED
    assert event.event_id == redeemed.redemption_id
    assert event.event_time == redeemed.redeem_time
    assert (event.user_id, event.order_id, event.request_id) == ("ann", "order 1", "the-request")
    assert (event.state_before, event.state_after) == ("AVAILABLE", "REDEEMED")
    assert (event.order_amount, event.discount) == (euros(2_999), euros(299))
    assert event.code_redemption_count == 1
    assert event.metadata == redeemed.metadata


def test_a_code_is_redeemed_as_it_is_typed(api: Api) -> None:
    (code,) = new_codes(1)
    api.book(codes=[code])
    typed = f" {code[:4]}-{code[4:9].lower()}_{code[9:]}."
    assert api.redeem(typed, "ann").redemption.code == code


def test_the_answer_counts_what_was_redeemed_and_what_is_left(api: Api) -> None:
    code = api.code(limits=books.BookLimits(max_redemptions_per_code=3))
    answers = [api.redeem(code, f"user {n}").counts for n in range(3)]
    assert [it.code_redemption_count for it in answers] == [1, 2, 3]
    assert [it.code_max_redemptions for it in answers] == [3, 3, 3]
    assert [it.used_up for it in answers] == [False, False, True]
    assert [it.user_code_redemption_count for it in answers] == [0, 0, 0]
    with refused("CODE_LIMIT_EXCEEDED", StatusCode.FAILED_PRECONDITION) as it:
        api.redeem(code, "another")
    assert it.metadata == {"limit": "3"}


def test_a_code_without_a_limit_is_never_used_up(api: Api) -> None:
    code = api.code(limits=ANY_NUMBER)
    counts = [api.redeem(code, "ann").counts for _ in range(3)][-1]
    assert (counts.code_redemption_count, counts.code_max_redemptions) == (3, 0)
    assert not counts.used_up
    assert api.get_code(code).state == codes.COUPON_CODE_STATE_AVAILABLE


def test_a_single_use_code_is_used_once(api: Api) -> None:
    code = api.code()
    assert api.redeem(code, "ann").counts.used_up
    assert api.get_code(code).state == codes.COUPON_CODE_STATE_REDEEMED
    with refused("CODE_ALREADY_REDEEMED", StatusCode.FAILED_PRECONDITION):
        api.redeem(code, "ann")


def test_a_limit_of_a_user_and_a_code_counts_that_user_on_that_code(api: Api) -> None:
    first, second = new_codes(2)
    limits = books.BookLimits(max_redemptions_per_code=0, max_redemptions_per_user_per_code=2)
    api.book(codes=[first, second], limits=limits)
    counts = [api.redeem(first, "ann").counts for _ in range(2)]
    assert [it.user_code_redemption_count for it in counts] == [1, 2]
    with refused("USER_LIMIT_EXCEEDED", StatusCode.FAILED_PRECONDITION) as it:
        api.redeem(first, "ann")
    assert it.metadata == {"limit_name": "max_redemptions_per_user_per_code", "limit": "2"}
    assert api.redeem(second, "ann").counts.user_code_redemption_count == 1
    assert api.redeem(first, "bob").counts.code_redemption_count == 3


def test_a_limit_of_a_user_counts_over_the_whole_book(api: Api) -> None:
    names = new_codes(3)
    api.book(codes=names, limits=books.BookLimits(max_redemptions_per_user=2))
    for code in names[:2]:
        api.redeem(code, "ann")
    with refused("USER_LIMIT_EXCEEDED") as it:
        api.redeem(names[2], "ann")
    assert it.metadata == {"limit_name": "max_redemptions_per_user", "limit": "2"}
    api.redeem(names[2], "bob")


def test_a_limit_of_a_book_counts_all_its_codes(api: Api) -> None:
    names = new_codes(3)
    book = api.book(codes=names, limits=books.BookLimits(max_redemptions=2))
    for code in names[:2]:
        api.redeem(code, code)
    with refused("BOOK_LIMIT_EXCEEDED", StatusCode.FAILED_PRECONDITION) as it:
        api.redeem(names[2], "ann")
    assert it.metadata == {"limit": "2"}
    api.update(book.book_id, limits=books.BookLimits(max_redemptions=3))
    api.redeem(names[2], "ann")


def test_only_who_was_given_a_code_redeems_it_where_the_book_says_so(api: Api) -> None:
    code = api.code(assignment_policy=ASSIGNED_ONLY)
    api.assign(code, "ann")
    with refused("CODE_NOT_ASSIGNED_TO_USER", StatusCode.FAILED_PRECONDITION):
        api.redeem(code, "bob")
    assert api.redeem(code, "ann").counts.user_code_redemption_count == 1
    (coupon,) = [it for it in coupons(api, "ann") if it.assignment.code == code]
    assert coupon.assignment.state == assignments.ASSIGNMENT_STATE_REDEEMED
    assert coupon.assignment.redemption_count == 1


def test_who_lost_a_code_cannot_redeem_it_any_more(api: Api) -> None:
    code = api.code(assignment_policy=ASSIGNED_ONLY)
    api.assign(code, "ann")
    api.revoke(code, "ann")
    with refused("CODE_NOT_ASSIGNED_TO_USER"):
        api.redeem(code, "ann")


def test_a_bearer_redeems_what_another_was_given(api: Api) -> None:
    code = api.code()
    api.assign(code, "ann")
    api.redeem(code, "bob")
    with refused("CODE_ALREADY_REDEEMED"):
        api.redeem(code, "ann")


def test_an_assignment_ends_for_its_user_alone(api: Api, tomorrow: Api) -> None:
    (code,) = new_codes(1)
    limits = books.BookLimits(max_redemptions_per_code=2)
    api.book(codes=[code], limits=limits, assigned_code_validity=Duration(seconds=3_600))
    given = api.assign(code, "ann").assignment
    with refused("CODE_EXPIRED", StatusCode.FAILED_PRECONDITION) as it:
        tomorrow.redeem(code, "ann")
    ends = given.expire_time.ToDatetime()
    assert it.metadata["expire_time"].startswith(f"{ends:%Y-%m-%dT%H:%M:%S}")
    tomorrow.redeem(code, "bob")
    api.redeem(code, "ann")  # today it is still good


def test_an_order_redeems_a_code_once_at_a_time(api: Api) -> None:
    first, second = new_codes(2)
    api.book(codes=[first, second], limits=ANY_NUMBER)
    redeemed = api.redeem(first, "ann", order_id="order 1").redemption
    with refused("ORDER_ALREADY_REDEEMED", StatusCode.FAILED_PRECONDITION) as it:
        api.redeem(first, "bob", order_id="order 1")
    assert it.metadata == {"redemption_id": redeemed.redemption_id}
    api.redeem(second, "ann", order_id="order 1")
    api.redeem(first, "ann", order_id="order 2")
    api.rollback(redeemed.redemption_id)
    assert api.redeem(first, "bob", order_id="order 1").redemption.state == SUCCEEDED


def test_a_second_try_for_the_order_is_told_so_and_not_that_the_code_is_gone(api: Api) -> None:
    code = api.code()
    api.redeem(code, "ann", order_id="order 1")
    with refused("ORDER_ALREADY_REDEEMED"):
        api.redeem(code, "ann", order_id="order 1")


def test_a_code_of_another_book_than_the_one_named_is_not_found(api: Api) -> None:
    code, other = api.code(), api.book()
    with refused("CODE_NOT_FOUND", StatusCode.NOT_FOUND):
        api.redeem(code, "ann", book_id=other.book_id)
    api.redeem(code, "ann", book_id=api.get_code(code).book_id)


# --- discounts ----------------------------------------------------------------------------------


def percent(basis_points: int, cap: int = 0) -> books.Discount:
    """A share of the order."""
    off = books.PercentOff(basis_points=basis_points, max_discount_minor=cap)
    return books.Discount(percent_off=off)


def amount(minor: int) -> books.Discount:
    """A fixed amount."""
    return books.Discount(amount_off=books.AmountOff(amount_minor=minor))


def tiers() -> books.Discount:
    """10 % from 50.00 on, 15 % from 100.00 on."""
    steps = [
        books.Tier(from_amount_minor=from_minor, percent_off=percent(share).percent_off)
        for from_minor, share in ((5_000, 1_000), (10_000, 1_500))
    ]
    return books.Discount(tiers=books.TieredDiscount(tiers=steps))


@pytest.mark.parametrize(
    ("discount", "order_minor", "expected_minor"),
    [
        pytest.param(percent(1_500), 9_999, 1_499, id="rounded down"),
        pytest.param(percent(1_500, 500), 9_999, 500, id="capped"),
        pytest.param(percent(1_500, 500), 2_000, 300, id="below the cap"),
        pytest.param(percent(10_000), 10**15, 10**15, id="everything of the greatest order"),
        pytest.param(percent(1), 99, 0, id="nothing of a small order"),
        pytest.param(percent(1_500), None, None, id="unknown without an order"),
        pytest.param(amount(700), 9_999, 700, id="a fixed amount"),
        pytest.param(amount(700), 500, 500, id="never more than the order"),
        pytest.param(amount(700), None, 700, id="a fixed amount without an order"),
        pytest.param(tiers(), 9_999, 999, id="the first tier"),
        pytest.param(tiers(), 10_000, 1_500, id="the second tier"),
    ],
)
def test_the_discount_is_computed_by_validate_as_by_redeem(
    api: Api, discount: books.Discount, order_minor: int | None, expected_minor: int | None
) -> None:
    code = api.code(discount=discount)
    fields = {} if order_minor is None else {"order_amount": euros(order_minor)}
    before = api.validate(code, "ann", **fields)
    redeemed = api.redeem(code, "ann", **fields).redemption
    for answer in (before, redeemed):
        assert answer.HasField("discount") is (expected_minor is not None)
        assert answer.discount.amount_minor == (expected_minor or 0)
        assert answer.benefit == ""
    stats = api.stats(redeemed.book_id)
    assert stats.discount_given == euros(expected_minor or 0)


def test_a_benefit_is_named_and_nothing_is_computed(api: Api) -> None:
    gift = books.Discount(benefit=books.Benefit(description="A mug"))
    code = api.code(discount=gift, currency_code="")
    order = money.Money(amount_minor=100, currency_code="JPY")  # any currency will do
    before = api.validate(code, "ann", order_amount=order)
    redeemed = api.redeem(code, "ann", order_amount=order).redemption
    for answer in (before, redeemed):
        assert answer.benefit == "A mug"
        assert not answer.HasField("discount")
    assert redeemed.order_amount == order
    assert not api.stats(redeemed.book_id).HasField("discount_given")


def test_an_order_below_the_minimum_is_refused_and_so_is_none(api: Api) -> None:
    code = api.code(min_order_amount_minor=5_000)
    expected = {"minimum_minor": "5000", "currency_code": "EUR"}
    for fields in ({}, {"order_amount": euros(4_999)}):
        with refused("ORDER_BELOW_MINIMUM", StatusCode.FAILED_PRECONDITION) as it:
            api.redeem(code, "ann", **fields)
        assert it.metadata == expected
    api.redeem(code, "ann", order_amount=euros(5_000))


def test_an_order_in_another_currency_is_refused(api: Api) -> None:
    code = api.code()
    dollars = money.Money(amount_minor=10_000, currency_code="USD")
    with refused("CURRENCY_MISMATCH", StatusCode.FAILED_PRECONDITION) as it:
        api.redeem(code, "ann", order_amount=dollars)
    assert it.metadata == {"currency_code": "EUR"}


# --- roll back ----------------------------------------------------------------------------------


def test_a_roll_back_gives_the_use_back_once(api: Api) -> None:
    (code,) = new_codes(1)
    book = api.book(codes=[code])
    redeemed = api.redeem(code, "ann", order_id="order 1", order_amount=euros(1_000)).redemption
    answer = api.rollback(redeemed.redemption_id, metadata=shape(why="returned"))
    undone = answer.redemption
    assert undone.state == ROLLED_BACK
    assert undone.rollback_time.ToNanoseconds() > undone.redeem_time.ToNanoseconds()
    assert undone.metadata == redeemed.metadata
    assert (answer.counts.code_redemption_count, answer.counts.used_up) == (0, False)
    assert redemption(api, redeemed.redemption_id) == undone
    assert api.get_code(code).state == codes.COUPON_CODE_STATE_AVAILABLE

    event = api.events(code=code)[-1]
    assert event.type == audit.AUDIT_EVENT_TYPE_ROLLED_BACK
    assert event.redemption_id == redeemed.redemption_id
    assert (event.user_id, event.order_id) == ("ann", "order 1")
    assert (event.state_before, event.state_after) == ("REDEEMED", "AVAILABLE")
    assert (event.order_amount, event.discount) == (euros(1_000), euros(100))
    assert event.metadata == shape(why="returned")

    with refused("ALREADY_ROLLED_BACK", StatusCode.FAILED_PRECONDITION):
        api.rollback(redeemed.redemption_id)
    stats = api.stats(book.book_id)
    assert (stats.redemption_count, stats.rollback_count) == (0, 1)
    assert (stats.available_count, stats.redeemed_count) == (1, 0)
    assert stats.discount_given == euros(0)
    assert api.redeem(code, "bob").counts.used_up


def test_a_roll_back_gives_back_what_every_limit_counted(api: Api) -> None:
    first, second = new_codes(2)
    limits = books.BookLimits(
        max_redemptions=1,
        max_redemptions_per_code=1,
        max_redemptions_per_user_per_code=1,
        max_redemptions_per_user=1,
    )
    api.book(codes=[first, second], limits=limits, assignment_policy=ASSIGNED_ONLY)
    for code in (first, second):
        api.assign(code, "ann")
    redeemed = api.redeem(first, "ann")
    with refused("USER_LIMIT_EXCEEDED"):
        api.redeem(second, "ann")
    counts = api.rollback(redeemed.redemption.redemption_id).counts
    assert counts.user_code_redemption_count == 0
    assert {it.assignment.state for it in coupons(api, "ann") if it.assignment.code == first} == {
        assignments.ASSIGNMENT_STATE_ACTIVE
    }
    api.redeem(second, "ann")
    with refused("USER_LIMIT_EXCEEDED"):
        api.redeem(first, "ann")


def test_the_state_of_code_and_book_does_not_keep_anyone_from_rolling_back(api: Api) -> None:
    after: dict[str, Callable[[str, str], object]] = {
        "disabled": lambda _, code: api.disable(code),
        "paused": lambda book_id, _: pause(api, book_id),
        "closed": lambda book_id, _: close(api, book_id),
        "revoked": lambda _, code: api.revoke(code, "ann"),
    }
    for what, change in after.items():
        (code,) = new_codes(1)
        limits = books.BookLimits(max_redemptions_per_code=2)
        book = api.book(codes=[code], limits=limits, assignment_policy=ASSIGNED_ONLY)
        api.assign(code, "ann")
        redeemed = api.redeem(code, "ann").redemption
        change(book.book_id, code)
        counts = api.rollback(redeemed.redemption_id).counts
        assert (counts.code_redemption_count, counts.user_code_redemption_count) == (0, 0), what
        assert api.stats(book.book_id).redemption_count == 0, what


def test_a_disabled_code_that_is_rolled_back_is_available_when_it_is_enabled(api: Api) -> None:
    code = api.code()
    redeemed = api.redeem(code, "ann").redemption
    api.disable(code)
    api.rollback(redeemed.redemption_id)
    assert api.get_code(code).state == codes.COUPON_CODE_STATE_DISABLED
    assert api.enable(code).coupon_code.state == codes.COUPON_CODE_STATE_AVAILABLE
    api.redeem(code, "ann")


def test_what_is_no_redemption_cannot_be_looked_at_or_undone(api: Api) -> None:
    code = api.code(lock_policy=books.LOCK_POLICY_OPTIONAL)
    lock_id = api.lock(code, "ann").lock.lock_id
    for redemption_id in ("00000000-0000-4000-8000-000000000000", lock_id):
        with refused("REDEMPTION_NOT_FOUND", StatusCode.NOT_FOUND):
            api.rollback(redemption_id)
        with refused("REDEMPTION_NOT_FOUND", StatusCode.NOT_FOUND):
            redemption(api, redemption_id)
