"""Mutants of what orders have: bugs, in this process and for a test only."""

# pyright: reportPrivateUsage=false, reportUnknownMemberType=false

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest import mock

from mutants.mutants import Mutant, _all, _nothing, loaded_with_another

from coupon_service.model import OrderCoupons
from coupon_service.rules import budgets, orders, redemptions, refusals
from coupon_service.rules.derived_states import order_discount
from coupon_service.rules.draft import Draft
from coupon_service.store.commands import executor, limit_counters, order_coupons


def budget_not_credited() -> Mutant:
    """A roll-back leaves the budget as it is."""
    real = Draft.count_total

    def count_total(self: Draft, book: Any, redemptions: int, discount_minor: int) -> None:
        real(self, book, redemptions, max(discount_minor, 0))

    return mock.patch.object(Draft, "count_total", count_total)


def discount_clipped() -> Mutant:
    """A redemption takes off what is left of the budget, where its discount is more."""

    def clipped(command: Any, book: Any, state: Any) -> Any:
        own = orders.discount_on_order(command, book, state)
        budget = book.limits.budget_minor
        if own is None or not budget:
            return own
        left = max(budget - state.totals[book.book_id].discount_minor, 0)
        return replace(own, amount_minor=min(own.amount_minor, left))

    return _all(
        mock.patch.object(redemptions, "discount_on_order", clipped),
        mock.patch.object(refusals, "budget_refusals", _nothing),
    )


def totals_read_without_a_lock() -> Mutant:
    """What a book has left was read without a lock on it."""
    return _all(
        mock.patch.object(limit_counters, "LOCK_TOTALS", limit_counters.SELECT_TOTALS),
        loaded_with_another(),
    )


def order_read_without_a_lock() -> Mutant:
    """What is on an order was read without a lock on it."""
    return _all(
        mock.patch.object(order_coupons, "LOCK_ORDERS", order_coupons.SELECT_ORDERS),
        loaded_with_another(),
    )


def discount_on_the_full_amount() -> Mutant:
    """What other coupons have left of an order is not looked at."""

    def full(command: Any, book: Any, _: Any) -> Any:
        return order_discount(book, command.order_amount)

    return _all(
        *(mock.patch.object(it, "discount_on_order", full) for it in (redemptions, budgets))
    )


def coupon_left_on_its_order() -> Mutant:
    """A roll-back leaves the coupon on the order."""

    def left(coupons: OrderCoupons, *_: object) -> OrderCoupons:
        return coupons

    return mock.patch.object(redemptions, "without_coupon", left)


def unused_orders_kept() -> Mutant:
    """The row of an order stays of which nothing was redeemed, with whose order it is."""
    return mock.patch.object(executor, "delete_unused_orders", _nothing)


def users_share_orders_with_the_business() -> Mutant:
    """An order that an end user names is the one of the business with the same id."""

    def order_of(book: Any, order_id: str, _: object) -> tuple[str, str, str]:
        return book.business_id, order_id, ""

    modules = (orders, redemptions, order_coupons)
    return _all(*(mock.patch.object(it, "order_of", order_of) for it in modules))
