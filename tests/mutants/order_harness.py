"""What has to catch the mutants of what orders have."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from mutants.harness import CALLERS, PAIR, REDEEMED, ROUNDS, Stack
from support.calls import batch, item, outcomes_of, tried
from support.service import Api, books, euros, new_codes

COMBINABLE = books.ORDER_POLICY_COMBINABLE


def race_for_a_budget(it: Stack) -> None:
    """A book takes off what its budget allows, however many try, and again after a roll-back."""
    left = ["BUDGET_EXCEEDED"] * (CALLERS - 5)
    for _ in range(ROUNDS):
        api, names = it.apis[0], new_codes(2 * CALLERS)
        book = api.book(codes=names, limits=books.BookLimits(max_discount_minor=599))

        def redeem(api: Api, n: int, names: Sequence[str] = names) -> object:
            return api.redeem(names[n], "user", order_amount=euros(1_000))

        found = it.all_at_once(redeem)
        it.conserved()
        assert found == [*left, *["OK"] * 5], found
        event = next(event for event in api.events(book_id=book.book_id) if event.type == REDEEMED)
        api.rollback(event.event_id)
        late = [tried(functools.partial(redeem, api, CALLERS + n)) for n in range(2)]
        assert late == ["OK", "BUDGET_EXCEEDED"], late
        it.conserved()


def race_for_the_last_of_a_budget(it: Stack) -> None:
    """Of two who come at the same time one gets what is left."""
    names = new_codes(PAIR)
    it.apis[0].book(codes=names, limits=books.BookLimits(max_discount_minor=199))
    found = it.all_at_once(
        lambda api, n: api.redeem(names[n], "user", order_amount=euros(1_000)), PAIR
    )
    it.conserved()
    assert found == ["BUDGET_EXCEEDED", "OK"], found


def race_of_an_exclusive_group(it: Stack) -> None:
    """An order has one coupon of a group, whichever book it is of."""
    for callers in (PAIR, *[CALLERS] * ROUNDS):
        api, names = it.apis[0], new_codes(callers + 1)
        group: dict[str, Any] = {"order_policy": COMBINABLE, "exclusive_group": "shipping"}
        first = api.book(codes=names[::2], **group)
        api.book(codes=names[1::2], business_id=first.business_id, **group)
        # The order is known: those who meet at a new one wait for whoever makes its row.
        api.rollback(_redeem(api, callers, names).redemption.redemption_id)
        found = it.all_at_once(functools.partial(_redeem, names=names), callers)
        it.conserved()
        assert found == ["EXCLUSIVE_GROUP_USED"] * (callers - 1) + ["OK"], found


def coupons_on_an_order(it: Stack) -> None:
    """Two of sixty percent take off a hundred, and after a roll-back the next takes its place."""
    sixty = books.Discount(percent_off=books.PercentOff(basis_points=6_000))
    api, names = it.apis[0], new_codes(4)
    api.book(codes=names, discount=sixty, order_policy=COMBINABLE)
    first, second = [_redeem(api, n, names).redemption for n in range(2)]
    taken_off = first.discount.amount_minor, second.discount.amount_minor
    assert taken_off == (6_000, 4_000), taken_off
    assert tried(lambda: _redeem(api, 2, names)) == "ORDER_FULLY_DISCOUNTED"
    it.conserved()
    api.rollback(first.redemption_id)
    third = _redeem(api, 3, names).redemption.discount.amount_minor
    assert third == 6_000, third
    it.conserved()


def order_that_is_refused(it: Stack) -> None:
    """A batch leaves nothing of the orders for which it redeemed nothing."""
    api, (used, code) = it.apis[0], new_codes(2)
    api.book(codes=[used, code], order_policy=COMBINABLE)
    amount = euros(10_000)
    api.redeem(used, "user", order_id="the order", order_amount=amount)
    items = [item(it, "user", order_id=f"of {it}", order_amount=amount) for it in (used, code)]
    assert outcomes_of(batch(api, items)) == ["CODE_ALREADY_REDEEMED", "OK"]
    it.conserved()


def _redeem(api: Api, n: int, names: Sequence[str]) -> Any:
    return api.redeem(names[n], "user", order_id="the order", order_amount=euros(10_000))
