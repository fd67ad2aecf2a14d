"""AdjustRedemption: the order comes to another amount, and everything follows."""

from __future__ import annotations

import grpc
import pytest
from support.service import (
    Api,
    all_at_once,
    audit,
    books,
    euros,
    money,
    new_codes,
    redemptions,
    refused,
    unique,
)

TEN_PERCENT = books.Discount(percent_off=books.PercentOff(basis_points=1_000))


def redeemed(api: Api, **fields: object) -> redemptions.Redemption:
    """A redemption for an order of 100.00, 10 % off unless the book says otherwise."""
    (code,) = new_codes(1)
    api.book(codes=[code], **{"discount": TEN_PERCENT, **fields})
    order = {"order_id": unique("order"), "order_amount": euros(10_000)}
    return api.redeem(code, "ann", **order).redemption


def present(api: Api, redemption_id: str) -> redemptions.Redemption:
    request = redemptions.GetRedemptionRequest(redemption_id=redemption_id)
    return api.redemptions.GetRedemption(request).redemption


def discounts(api: Api, book_id: str) -> int:
    return api.stats(book_id).discount_given.amount_minor


@pytest.mark.parametrize("amount", [0, 1, 4_000, 10_000, 25_000])
def test_discount_and_statistics_follow(api: Api, amount: int) -> None:
    before = redeemed(api)
    answer = api.adjust(before.redemption_id, euros(amount))
    assert not answer.replayed
    after = answer.redemption
    assert (after.order_amount, after.discount) == (euros(amount), euros(amount // 10))
    assert after.etag != before.etag
    assert present(api, before.redemption_id) == after
    listed = redemptions.ListRedemptionsRequest(code=before.code)
    assert list(api.redemptions.ListRedemptions(listed).redemptions) == [after]
    assert discounts(api, before.book_id) == amount // 10
    (event,) = api.events(code=before.code, types=[audit.AUDIT_EVENT_TYPE_ADJUSTED])
    assert event.redemption_id == before.redemption_id
    assert (event.order_amount, event.discount) == (euros(amount), euros(amount // 10))
    assert (event.user_id, event.order_id) == ("ann", before.order_id)


def test_as_often_as_needed(api: Api) -> None:
    redemption = redeemed(api)
    for amount in (5_000, 7_000, 0, 10_000):
        api.adjust(redemption.redemption_id, euros(amount))
        assert discounts(api, redemption.book_id) == amount // 10
    assert api.get_code(redemption.code).redemption_count == 1


def test_a_rollback_takes_back_the_discount_of_then(api: Api) -> None:
    redemption = redeemed(api)
    api.adjust(redemption.redemption_id, euros(4_000))
    answer = api.rollback(redemption.redemption_id)
    assert answer.redemption.discount == euros(400)
    assert discounts(api, redemption.book_id) == 0
    with refused("ALREADY_ROLLED_BACK", grpc.StatusCode.FAILED_PRECONDITION):
        api.adjust(redemption.redemption_id, euros(1_000))
    assert present(api, redemption.redemption_id).discount == euros(400)
    assert discounts(api, redemption.book_id) == 0


def test_the_terms_are_those_of_the_redemption(api: Api) -> None:
    redemption = redeemed(api)
    half = books.Discount(percent_off=books.PercentOff(basis_points=5_000))
    api.update(redemption.book_id, discount=half, min_order_amount_minor=20_000)
    assert api.adjust(redemption.redemption_id, euros(5_000)).redemption.discount == euros(500)


def test_an_order_below_the_least_amount_gets_no_discount(api: Api) -> None:
    redemption = redeemed(api, min_order_amount_minor=5_000)
    assert api.adjust(redemption.redemption_id, euros(4_999)).redemption.discount == euros(0)
    assert api.adjust(redemption.redemption_id, euros(5_000)).redemption.discount == euros(500)


def test_below_the_first_tier_as_well(api: Api) -> None:
    tiers = books.TieredDiscount(
        tiers=[
            books.Tier(from_amount_minor=5_000, percent_off=books.PercentOff(basis_points=1_000)),
            books.Tier(from_amount_minor=20_000, percent_off=books.PercentOff(basis_points=2_000)),
        ]
    )
    redemption = redeemed(api, discount=books.Discount(tiers=tiers))
    found = [
        api.adjust(redemption.redemption_id, euros(amount)).redemption.discount
        for amount in (4_999, 19_999, 20_000)
    ]
    assert found == [euros(0), euros(1_999), euros(4_000)]


def test_a_benefit_stays_one(api: Api) -> None:
    gift = books.Discount(benefit=books.Benefit(description="a gift"))
    redemption = redeemed(api, discount=gift, currency_code="")
    answer = api.adjust(redemption.redemption_id, euros(1)).redemption
    assert (answer.benefit, answer.HasField("discount")) == ("a gift", False)
    assert answer.order_amount == euros(1)


def test_the_first_amount_of_an_order_says_its_currency(api: Api) -> None:
    (code,) = new_codes(1)
    gift = books.Discount(benefit=books.Benefit(description="gift"))
    api.book(codes=[code], discount=gift, currency_code="")
    redemption = api.redeem(code, "ann").redemption
    after = api.adjust(redemption.redemption_id, euros(500)).redemption
    assert after.order_amount == euros(500)
    assert present(api, redemption.redemption_id) == after
    with refused("CURRENCY_MISMATCH"):
        api.adjust(redemption.redemption_id, money.Money(amount_minor=5, currency_code="USD"))
    assert api.rollback(redemption.redemption_id).redemption.order_amount == euros(500)


@pytest.mark.parametrize("state", ["paused", "closed"])
def test_less_is_taken_in_any_state_and_more_only_while_the_book_is_active(
    api: Api, state: str
) -> None:
    redemption = redeemed(api)
    if state == "paused":
        api.books.PauseCouponBook(books.PauseCouponBookRequest(book_id=redemption.book_id))
    else:
        api.books.CloseCouponBook(books.CloseCouponBookRequest(book_id=redemption.book_id))
    with refused("BOOK_NOT_ACTIVE") as it:
        api.adjust(redemption.redemption_id, euros(10_001))
    assert it.metadata == {"state": state.upper()}
    assert api.adjust(redemption.redemption_id, euros(9_000)).redemption.discount == euros(900)


def test_more_is_taken_off_as_long_as_the_budget_lasts(api: Api) -> None:
    redemption = redeemed(api, limits=books.BookLimits(max_discount_minor=1_500))
    with refused("BUDGET_EXCEEDED") as it:
        api.adjust(redemption.redemption_id, euros(15_010))
    assert (it.metadata["left_minor"], it.metadata["limit_minor"]) == ("500", "1500")
    assert discounts(api, redemption.book_id) == 1_000
    api.adjust(redemption.redemption_id, euros(15_000))
    api.adjust(redemption.redemption_id, euros(2_000))
    assert api.adjust(redemption.redemption_id, euros(14_000)).redemption.discount == euros(1_400)


def test_other_money_is_refused(api: Api) -> None:
    redemption = redeemed(api)
    with refused("CURRENCY_MISMATCH"):
        api.adjust(redemption.redemption_id, money.Money(amount_minor=1, currency_code="USD"))


def test_an_outdated_etag_is_refused(api: Api) -> None:
    redemption = redeemed(api)
    first = api.adjust(redemption.redemption_id, euros(5_000), etag=redemption.etag).redemption
    for outdated in (redemption.etag, "anything"):
        with refused("CONCURRENT_MODIFICATION", grpc.StatusCode.ABORTED):
            api.adjust(redemption.redemption_id, euros(6_000), etag=outdated)
    api.adjust(redemption.redemption_id, euros(6_000), etag=first.etag)


def test_repeats_have_the_present_amount(api: Api) -> None:
    (code,) = new_codes(1)
    api.book(codes=[code], discount=TEN_PERCENT)
    again = {"order_amount": euros(10_000), "request_id": unique("request")}
    redemption = api.redeem(code, "ann", **again).redemption
    first = unique("request")
    api.adjust(redemption.redemption_id, euros(5_000), request_id=first)
    now = api.adjust(redemption.redemption_id, euros(3_000)).redemption
    repeated = api.adjust(redemption.redemption_id, euros(5_000), request_id=first)
    assert (repeated.replayed, repeated.redemption) == (True, now)
    answer = api.redeem(code, "ann", **again)
    assert (answer.replayed, answer.redemption) == (True, now)
    with refused("REQUEST_ID_REUSED"):
        api.adjust(redemption.redemption_id, euros(5_001), request_id=first)
    api.rollback(redemption.redemption_id)
    with refused("ALREADY_ROLLED_BACK"):
        api.adjust(redemption.redemption_id, euros(5_000), request_id=first)


def test_many_at_once_leave_one_amount(api: Api) -> None:
    redemption = redeemed(api)
    amounts = range(1_000, 11_000, 500)
    all_at_once([lambda it=it: api.adjust(redemption.redemption_id, euros(it)) for it in amounts])
    last = present(api, redemption.redemption_id)
    assert last.discount.amount_minor == last.order_amount.amount_minor // 10
    assert discounts(api, redemption.book_id) == last.discount.amount_minor


def test_with_one_etag_only_one_of_many_succeeds(api: Api) -> None:
    redemption = redeemed(api)
    calls = [
        lambda it=it: api.adjust(redemption.redemption_id, euros(it), etag=redemption.etag)
        for it in range(100)
    ]
    done = [it for it in all_at_once(calls) if isinstance(it, redemptions.AdjustRedemptionResponse)]
    assert len(done) == 1
    assert present(api, redemption.redemption_id) == done[0].redemption


def test_an_order_is_required_and_all_bad_fields_are_named(api: Api) -> None:
    with refused("INVALID_ARGUMENT") as it:
        api.redemptions.AdjustRedemption(
            redemptions.AdjustRedemptionRequest(redemption_id="x", request_id="\n")
        )
    assert it.fields == ["request_id", "redemption_id", "order_amount"]


def test_what_is_no_redemption_is_not_found(api: Api) -> None:
    redemption = redeemed(api)
    rollback = api.rollback(redemption.redemption_id)
    (event,) = api.events(code=redemption.code, types=[audit.AUDIT_EVENT_TYPE_ROLLED_BACK])
    assert rollback.redemption.redemption_id != event.event_id
    with refused("REDEMPTION_NOT_FOUND", grpc.StatusCode.NOT_FOUND):
        api.adjust(event.event_id, euros(1))
