"""Orders: which coupons of a business go together, and what they take off together."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from grpc import StatusCode
from support.calls import ALL_OR_NOTHING, batch, item, outcomes_of, reasons_of, redemption
from support.invariants import assert_adds_up
from support.service import Api, ServerThread, books, euros, new_codes, refused, unique
from support.work_done import work_done

COMBINABLE, EXCLUSIVE = books.ORDER_POLICY_COMBINABLE, books.ORDER_POLICY_EXCLUSIVE
SIXTY = books.Discount(percent_off=books.PercentOff(basis_points=6_000))
GIFT = books.Discount(benefit=books.Benefit(description="a gift"))
ORDER: dict[str, Any] = {"order_id": "order 1", "order_amount": euros(10_000)}


class Shop:
    """A business, its books, and their codes."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.business = unique("business")
        self.book_ids: list[str] = []

    def codes(self, count: int = 3, **rules: Any) -> list[str]:
        """Codes of a new book, which is COMBINABLE and takes 60 % off unless `rules` say so."""
        names = new_codes(count)
        values = {"business_id": self.business, "order_policy": COMBINABLE, "discount": SIXTY}
        self.book_ids.append(self.api.book(codes=names, **(values | rules)).book_id)
        return names

    def off_minor(self, code: str, **of_order: Any) -> int:
        """What a redemption takes off."""
        redeemed = self.api.redeem(code, "ann", **(ORDER | of_order)).redemption
        return redeemed.discount.amount_minor


@pytest.fixture
def shop(api: Api, server: ServerThread) -> Any:
    made = Shop(api)
    yield made
    with psycopg.connect(server.database_url) as connection:
        assert_adds_up(connection, made.book_ids)


def test_two_of_sixty_percent_take_off_the_whole_amount_and_no_more(shop: Shop) -> None:
    names = shop.codes()
    assert [shop.off_minor(code) for code in names[:2]] == [6_000, 4_000]
    with refused("ORDER_FULLY_DISCOUNTED", StatusCode.FAILED_PRECONDITION) as it:
        shop.off_minor(names[2])
    assert it.metadata == {"discount_minor": "10000", "currency_code": "EUR"}
    assert shop.off_minor(names[2], order_id="order 2") == 6_000


def test_books_that_are_independent_take_off_more_as_before(shop: Shop) -> None:
    names = shop.codes(order_policy=books.ORDER_POLICY_INDEPENDENT)
    assert [shop.off_minor(code) for code in names] == [6_000] * 3


def test_a_rollback_takes_the_coupon_off_the_order(shop: Shop) -> None:
    names = shop.codes()
    first = shop.api.redeem(names[0], "ann", **ORDER).redemption
    assert shop.off_minor(names[1]) == 4_000
    shop.api.rollback(first.redemption_id)
    assert shop.off_minor(names[2]) == 6_000
    assert redemption(shop.api, first.redemption_id).discount.amount_minor == 6_000


def test_an_adjusted_coupon_takes_off_what_the_others_leave(shop: Shop) -> None:
    names = shop.codes()
    first, second = [shop.api.redeem(it, "ann", **ORDER).redemption for it in names[:2]]

    def adjusted_minor(redemption_id: str, amount_minor: int) -> int:
        adjusted = shop.api.adjust(redemption_id, euros(amount_minor)).redemption
        return adjusted.discount.amount_minor

    assert adjusted_minor(first.redemption_id, 5_000) == 1_000  # beside 40.00
    assert adjusted_minor(second.redemption_id, 5_000) == 3_000
    assert adjusted_minor(first.redemption_id, 5_000) == 2_000
    with refused("ORDER_FULLY_DISCOUNTED"):
        shop.off_minor(names[2], order_amount=euros(5_000))
    shop.api.rollback(second.redemption_id)
    assert adjusted_minor(first.redemption_id, 5_000) == 3_000
    assert shop.off_minor(names[2], order_amount=euros(5_000)) == 2_000


def test_a_dry_run_tells_what_goes_with_what_is_on_the_order(shop: Shop) -> None:
    first, second = shop.codes(2)
    (alone,) = shop.codes(1, order_policy=EXCLUSIVE)
    assert shop.api.validate(alone, "ann", **ORDER).valid
    shop.off_minor(first)
    tried = shop.api.validate(second, "ann", **ORDER)
    assert tried.valid
    assert tried.discount.amount_minor == 4_000
    assert reasons_of(shop.api.validate(alone, "ann", **ORDER)) == ["COUPONS_NOT_COMBINABLE"]
    assert reasons_of(shop.api.validate(second, "ann")) == [
        "ORDER_ID_REQUIRED",
        "ORDER_AMOUNT_REQUIRED",
    ]
    poorer = {**ORDER, "order_amount": euros(6_000)}
    tried = shop.api.validate(second, "ann", **poorer)
    assert reasons_of(tried) == ["ORDER_FULLY_DISCOUNTED"]
    assert tried.discount.amount_minor == 0


def test_coupons_that_fit_are_tried_beside_what_is_on_the_order(shop: Shop) -> None:
    first, second = shop.codes(2)
    (alone,) = shop.codes(1, order_policy=EXCLUSIVE)
    shop.off_minor(first)
    fitting = shop.api.qualify("ann", second, alone, business_id=shop.business, **ORDER).coupons
    assert [it.redeemable for it in fitting] == [True, False]
    assert fitting[0].discount.amount_minor == 4_000


def test_a_book_that_is_independent_does_not_pay_for_orders(
    shop: Shop, server: ServerThread
) -> None:
    (plain,) = shop.codes(1, order_policy=books.ORDER_POLICY_INDEPENDENT)
    (combinable,) = shop.codes(1)
    with work_done(server) as work:
        _, plain_steps = work.of(lambda: shop.off_minor(plain))
        _, steps = work.of(lambda: shop.off_minor(combinable))
    assert not [it for it in plain_steps if "coupon_order" in it]
    assert (plain_steps.count("round trip"), steps.count("round trip")) == (2, 3)


def test_an_exclusive_group_goes_over_books(shop: Shop) -> None:
    first, *_ = shop.codes(exclusive_group="caf\u00e9")
    second, *_ = shop.codes(exclusive_group="cafe\u0301", discount=GIFT)
    shop.off_minor(first)
    with refused("EXCLUSIVE_GROUP_USED") as it:
        shop.off_minor(second)
    assert it.metadata == {"exclusive_group": "caf\u00e9"}
    shop.api.update(shop.book_ids[1], exclusive_group="")
    assert shop.off_minor(second) == 0


def test_an_order_is_the_same_in_any_spelling(shop: Shop) -> None:
    names = shop.codes(order_policy=EXCLUSIVE)
    shop.off_minor(names[0], order_id="\u00c4-1")
    with refused("COUPONS_NOT_COMBINABLE"):
        shop.off_minor(names[1], order_id="A\u0308-1")


def test_codes_of_a_batch_are_decided_in_order(shop: Shop) -> None:
    first, second, third = shop.codes()
    gift, *_ = shop.codes(discount=GIFT, lock_policy=books.LOCK_POLICY_OPTIONAL)
    items = [item(code, "ann", **ORDER) for code in (gift, first, second, third)]
    done = batch(shop.api, items)
    assert outcomes_of(done) == ["OK", "OK", "OK", "ORDER_FULLY_DISCOUNTED"]
    taken_off = [it.redemption.discount.amount_minor for it in done.results]
    assert taken_off == [0, 6_000, 4_000, 0]


def test_an_order_of_which_nothing_was_redeemed_leaves_no_row(
    shop: Shop, server: ServerThread
) -> None:
    """`EraseUser` finds the rows of a user by events, and a refusal has none."""
    used, code, other = shop.codes()
    shop.off_minor(used, order_id="first")
    items = [item(it, "ann", **ORDER | {"order_id": f"of {it}"}) for it in (used, code)]
    assert outcomes_of(batch(shop.api, items)) == ["CODE_ALREADY_REDEEMED", "OK"]
    with psycopg.connect(server.database_url) as connection:
        rows = connection.execute(
            "SELECT order_id FROM coupon_orders WHERE business_id = %s", [shop.business]
        )
        assert {row[0] for row in rows} == {"first", f"of {code}"}
    assert shop.off_minor(other, order_id=f"of {used}") == 6_000


def test_a_coupon_that_may_be_locked_keeps_its_place_in_a_batch(shop: Shop) -> None:
    (lockable,) = shop.codes(1, lock_policy=books.LOCK_POLICY_OPTIONAL, order_policy=EXCLUSIVE)
    (plain,) = shop.codes(1)
    items = [item(code, "ann", **ORDER) for code in (lockable, plain)]
    assert outcomes_of(batch(shop.api, items)) == ["OK", "COUPONS_NOT_COMBINABLE"]


def test_a_batch_that_is_all_or_nothing_leaves_the_order_as_it_was(shop: Shop) -> None:
    names = shop.codes()
    items = [item(code, "ann", **ORDER) for code in names]
    found = outcomes_of(batch(shop.api, items, ALL_OR_NOTHING))
    assert found == ["ORDER_FULLY_DISCOUNTED"] * 3
    assert shop.off_minor(names[2]) == 6_000


def test_a_lock_does_not_know_the_order(shop: Shop) -> None:
    first, second, _ = shop.codes(order_policy=EXCLUSIVE, lock_policy=books.LOCK_POLICY_OPTIONAL)
    shop.off_minor(first)
    held = shop.api.lock(second, "ann")
    with refused("COUPONS_NOT_COMBINABLE"):
        shop.off_minor(second, lock_token=held.lock_token)
    assert shop.off_minor(second, lock_token=held.lock_token, order_id="order 2") == 6_000


def test_a_limit_of_orders_can_be_introduced_at_any_time(shop: Shop) -> None:
    names = shop.codes(discount=GIFT)
    shop.off_minor(names[0])
    limits = books.BookLimits(max_redemptions_per_order=1)
    assert shop.api.update(shop.book_ids[0], limits=limits).limits.max_redemptions_per_order == 1
    with refused("ORDER_LIMIT_EXCEEDED") as it:
        shop.off_minor(names[1])
    assert it.metadata == {"limit": "1"}


def test_what_is_said_of_orders_is_refused_where_it_says_nothing(shop: Shop) -> None:
    independent = books.ORDER_POLICY_INDEPENDENT
    limits = books.BookLimits(max_redemptions_per_order=1)
    with refused("INVALID_ARGUMENT") as it:
        shop.codes(order_policy=independent, limits=limits, exclusive_group="a")
    assert it.fields == [
        "coupon_book.exclusive_group",
        "coupon_book.limits.max_redemptions_per_order",
    ]
    shop.codes()
    with refused("INVALID_STATE_TRANSITION") as it:
        shop.api.update(shop.book_ids[0], order_policy=independent)
    assert it.metadata == {"state": "ACTIVE", "field": "order_policy"}
    made = shop.api.update(shop.book_ids[0], order_policy=EXCLUSIVE)
    assert made.order_policy == EXCLUSIVE
