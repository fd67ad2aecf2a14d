"""What a book may take off in all."""

from __future__ import annotations

from coupon_service.errors import BudgetExceeded, CouponServiceError, OrderAmountRequired
from coupon_service.model import Benefit, Book, Lock, OrderPolicy, Redeem, State
from coupon_service.rules.orders import discount_on_order


def budget_refusals(
    command: Redeem | Lock, book: Book, state: State
) -> tuple[CouponServiceError, ...]:
    """Why the budget of the book, which has one, does not allow the command.

    A lock holds none of it, and is refused when nothing is left. The benefit of a code takes
    nothing off. An end user is not told how much is left: that is what others have redeemed.
    """
    if isinstance(book.discount, Benefit):
        return ()
    needed_minor = 1
    if isinstance(command, Redeem):
        if isinstance(book.discount, Benefit):  # of this code
            return ()
        discount = discount_on_order(command, book, state)
        if discount is None:
            # That an order is in another currency, or that all are to have an amount, is refused
            # by itself.
            said = command.order_amount is not None or book.order_policy is OrderPolicy.COMBINABLE
            return () if said else (OrderAmountRequired(),)
        needed_minor = discount.amount_minor
    limit_minor = book.limits.budget_minor
    left_minor = max(limit_minor - state.totals[book.book_id].discount_minor, 0)
    if needed_minor <= left_minor:
        return ()
    if command.call.end_user:
        return (BudgetExceeded(),)
    return (
        BudgetExceeded(
            limit_minor=limit_minor, left_minor=left_minor, currency_code=book.currency_code
        ),
    )
