"""QualifyCoupons: which coupons fit, the best first, and nothing is changed."""

from __future__ import annotations

import pytest
from support.calls import reasons_of
from support.service import (
    SCOPED,
    Api,
    books,
    euros,
    from_now,
    new_codes,
    redemptions,
    refused,
    unique,
)

REQUIRED = books.ASSIGNMENT_POLICY_REQUIRED
BEARER = books.ASSIGNMENT_POLICY_BEARER
OPTIONAL = books.LOCK_POLICY_OPTIONAL


def percent(share: int) -> books.Discount:
    return books.Discount(percent_off=books.PercentOff(basis_points=share * 100))


def names(answer: redemptions.QualifyCouponsResponse) -> list[str]:
    return [it.code for it in answer.coupons]


def given(api: Api, user: str, **fields: object) -> str:
    """A code of a book of its own that is assigned to the user."""
    (code,) = new_codes(1)
    book = api.book(codes=[code], assignment_policy=REQUIRED, **fields)
    api.assign(code, user, book_id=book.book_id)
    return code


def test_the_best_come_first_and_those_that_cannot_be_redeemed_last(api: Api) -> None:
    user = unique("user")
    small = given(api, user, discount=percent(5))
    large = given(api, user, discount=percent(20))
    too_small = given(api, user, discount=percent(50), min_order_amount_minor=20_000)
    (named,) = new_codes(1)
    api.book(codes=[named], assignment_policy=BEARER, discount=percent(10))
    answer = api.qualify(user, named, order_amount=euros(10_000))
    assert names(answer) == [large, named, small, too_small]
    assert [it.discount for it in answer.coupons] == [
        euros(2_000),
        euros(1_000),
        euros(500),
        euros(5_000),
    ]
    assert [it.redeemable for it in answer.coupons] == [True, True, True, False]
    assert [it.assigned for it in answer.coupons] == [True, False, True, True]
    assert reasons_of(answer.coupons[3]) == ["ORDER_BELOW_MINIMUM"]
    assert not answer.truncated


def test_it_says_of_each_what_validate_says(api: Api) -> None:
    user = unique("user")
    held, paused, fine = (given(api, user, lock_policy=OPTIONAL) for _ in range(3))
    (bearers, unknown) = new_codes(2)
    api.book(codes=[bearers], assignment_policy=BEARER, lock_policy=OPTIONAL)
    api.lock(bearers, "another")
    api.lock(held, user)
    api.books.PauseCouponBook(books.PauseCouponBookRequest(book_id=api.get_code(paused).book_id))
    order = {"order_id": unique("order"), "order_amount": euros(1_000)}
    answer = api.qualify(user, bearers, unknown, "?!", **order)
    assert set(names(answer)) == {held, paused, fine, bearers, unknown, "?!"}
    for coupon in answer.coupons:
        alone = api.validate(coupon.code, user, **order)
        assert coupon.redeemable == alone.valid
        assert reasons_of(coupon) == reasons_of(alone), coupon.code
        assert (coupon.book_id, coupon.discount) == (alone.book_id, alone.discount)
        assert coupon.counts == alone.counts
    assert [reasons_of(it) for it in answer.coupons if it.code in {unknown, "?!"}] == [
        ["CODE_NOT_FOUND"]
    ] * 2


def test_those_that_end_soonest_come_first_among_equals(api: Api) -> None:
    user = unique("user")
    never = given(api, user)
    late = given(api, user, end_time=from_now(hours=2))
    soon = given(api, user, end_time=from_now(hours=1))
    answer = api.qualify(user)
    assert names(answer) == [soon, late, never]
    assert answer.coupons[0].end_time == api.get_book(answer.coupons[0].book_id).end_time
    assert not answer.coupons[2].HasField("end_time")


def test_what_is_over_is_not_live(api: Api) -> None:
    user = unique("user")
    used, revoked, closed, live = (given(api, user) for _ in range(4))
    api.redeem(used, user)
    api.revoke(revoked, user)
    api.books.CloseCouponBook(books.CloseCouponBookRequest(book_id=api.get_code(closed).book_id))
    assert names(api.qualify(user)) == [live]


def test_a_named_code_that_the_user_has_is_there_once(api: Api) -> None:
    user = unique("user")
    code = given(api, user)
    answer = api.qualify(user, code.lower(), code)
    assert names(answer) == [code]
    assert answer.coupons[0].assigned


def test_it_changes_nothing(api: Api) -> None:
    user = unique("user")
    code = given(api, user, lock_policy=OPTIONAL)
    before = api.get_code(code), api.events(code=code)
    assert api.qualify(user, order_id="1").coupons[0].redeemable
    assert (api.get_code(code), api.events(code=code)) == before
    api.redeem(code, user, order_id="1")


@pytest.mark.one_shard
def test_only_those_of_the_named_business(api: Api) -> None:
    user, business = unique("user"), unique("business")
    own = given(api, user, business_id=business)
    other = given(api, user)
    assert set(names(api.qualify(user))) == ({other} if SCOPED else {own, other})
    answer = api.qualify(user, other, business_id=business)
    assert {it.code: reasons_of(it) for it in answer.coupons} == {
        own: [],
        other: ["CODE_NOT_FOUND"],
    }


def test_of_very_many_the_200_that_end_soonest(api: Api) -> None:
    user = unique("user")
    book = api.book(codes=201, assignment_policy=REQUIRED)
    for _ in range(201):
        api.assign_random(book.book_id, user)
    soon = given(api, user, end_time=from_now(hours=1))
    answer = api.qualify(user)
    assert (len(answer.coupons), answer.truncated) == (200, True)
    assert soon in names(answer)


def test_bad_fields_are_all_named(api: Api) -> None:
    with refused("INVALID_ARGUMENT") as it:
        api.qualify("", "A", "", order_amount={"amount_minor": 1})
    assert it.fields == ["user_id", "codes[1]", "order_amount.currency_code"]
    with refused("INVALID_ARGUMENT") as it:
        api.qualify("ann", *(f"CODE{n}" for n in range(21)))
    assert it.fields == ["codes"]
