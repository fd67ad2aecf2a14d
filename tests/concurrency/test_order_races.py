"""Races of many callers for a budget or an order: what they allow together holds exactly."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import psycopg
import pytest
from support.invariants import assert_adds_up
from support.service import (
    Api,
    ServerThread,
    all_at_once,
    books,
    euros,
    new_codes,
    reason_of,
    unique,
)

CALLERS = 100
COMBINABLE = books.ORDER_POLICY_COMBINABLE


def raced(calls: Sequence[Callable[[], object]]) -> Counter[str]:
    """How many of the calls, made at the same time, had which reason, or OK."""
    results: list[Any] = all_at_once(calls)
    return Counter(reason_of(it) if isinstance(it, grpc.RpcError) else "OK" for it in results)


def assert_conserved(server: ServerThread, *made: books.CouponBook) -> None:
    """Rows, counters and ledger of the books agree."""
    with psycopg.connect(server.database_url) as connection:
        assert_adds_up(connection, [book.book_id for book in made])


def test_budget_is_exact(api: Api, server: ServerThread) -> None:
    names = new_codes(CALLERS)
    book = api.book(codes=names, limits=books.BookLimits(max_discount_minor=799))
    calls = [functools.partial(api.redeem, it, it, order_amount=euros(1_000)) for it in names]
    assert raced(calls) == {"OK": 7, "BUDGET_EXCEEDED": CALLERS - 7}
    assert api.stats(book.book_id).discount_given.amount_minor == 700
    assert_conserved(server, book)


def test_rollbacks_and_redemptions_never_exceed_the_budget(api: Api, server: ServerThread) -> None:
    names = new_codes(CALLERS)
    book = api.book(codes=names, limits=books.BookLimits(max_discount_minor=500))

    def redeem_and_roll_back(n: int) -> str:
        try:
            redeemed = api.redeem(names[n], "user", order_amount=euros(1_000)).redemption
        except grpc.RpcError as error:
            return reason_of(error)
        if n % 2:
            api.rollback(redeemed.redemption_id)
            return "ROLLED_BACK"
        return "OK"

    found = Counter(
        all_at_once([functools.partial(redeem_and_roll_back, n) for n in range(CALLERS)])
    )
    assert found["OK"] <= 5
    assert found.keys() <= {"OK", "ROLLED_BACK", "BUDGET_EXCEEDED"}
    assert api.stats(book.book_id).discount_given.amount_minor == 100 * found["OK"]
    assert_conserved(server, book)


def for_one_order(
    api: Api, names: Sequence[str], order_id: str | None = None, **more: Any
) -> Counter[str]:
    """What becomes of redemptions of these codes for one order, at the same time."""
    of_order = {"order_id": order_id or unique("order"), "order_amount": euros(10_000), **more}
    return raced([functools.partial(api.redeem, code, code, **of_order) for code in names])


@pytest.mark.parametrize("known", [False, True], ids=["new", "known"])
def test_an_exclusive_coupon_is_alone_on_its_order(
    api: Api, server: ServerThread, known: bool
) -> None:
    names, (before,) = new_codes(CALLERS), new_codes(1)
    book = api.book(codes=[*names, before], order_policy=books.ORDER_POLICY_EXCLUSIVE)
    order_id = unique("order")
    if known:  # those who meet at a new order wait for whoever makes its row
        redeemed = api.redeem(before, "user", order_id=order_id).redemption
        api.rollback(redeemed.redemption_id)
    assert for_one_order(api, names, order_id) == {"OK": 1, "COUPONS_NOT_COMBINABLE": CALLERS - 1}
    assert_conserved(server, book)


def test_an_exclusive_group_has_one_coupon_on_an_order(api: Api, server: ServerThread) -> None:
    names = new_codes(CALLERS)
    values: dict[str, Any] = {"order_policy": COMBINABLE, "exclusive_group": "shipping"}
    first = api.book(codes=names[::2], **values)
    second = api.book(codes=names[1::2], business_id=first.business_id, **values)
    assert for_one_order(api, names) == {"OK": 1, "EXCLUSIVE_GROUP_USED": CALLERS - 1}
    assert_conserved(server, first, second)


def test_limit_of_a_book_on_an_order_is_exact(api: Api, server: ServerThread) -> None:
    names = new_codes(CALLERS)
    limits = books.BookLimits(max_redemptions_per_order=3)
    book = api.book(codes=names, limits=limits, order_policy=COMBINABLE)
    assert for_one_order(api, names) == {"OK": 3, "ORDER_LIMIT_EXCEEDED": CALLERS - 3}
    assert_conserved(server, book)


def test_an_order_is_never_discounted_by_more_than_its_amount(
    api: Api, server: ServerThread
) -> None:
    names = new_codes(CALLERS)
    forty = books.Discount(percent_off=books.PercentOff(basis_points=4_000))
    first = api.book(codes=names[::2], discount=forty, order_policy=COMBINABLE)
    second = api.book(
        codes=names[1::2], business_id=first.business_id, order_policy=COMBINABLE, discount=forty
    )
    assert for_one_order(api, names) == {"OK": 3, "ORDER_FULLY_DISCOUNTED": CALLERS - 3}
    given = [api.stats(it.book_id).discount_given.amount_minor for it in (first, second)]
    assert sum(given) == 10_000
    assert_conserved(server, first, second)


def test_rollbacks_adjustments_and_redemptions_of_an_order_add_up(
    api: Api, server: ServerThread
) -> None:
    names = new_codes(CALLERS)
    forty = books.Discount(percent_off=books.PercentOff(basis_points=4_000))
    book = api.book(codes=names, discount=forty, order_policy=COMBINABLE)
    order_id = unique("order")

    def redeem_and_change(n: int) -> str:
        try:
            redeemed = api.redeem(
                names[n], "user", order_id=order_id, order_amount=euros(10_000)
            ).redemption
        except grpc.RpcError as error:
            return reason_of(error)
        match n % 3:
            case 0:
                api.rollback(redeemed.redemption_id)
            case 1:
                api.adjust(redeemed.redemption_id, euros(5_000))
                api.adjust(redeemed.redemption_id, euros(10_000))
            case _:
                pass
        return "OK"

    found = Counter(all_at_once([functools.partial(redeem_and_change, n) for n in range(CALLERS)]))
    assert found.keys() <= {"OK", "ORDER_FULLY_DISCOUNTED"}
    assert_conserved(server, book)
