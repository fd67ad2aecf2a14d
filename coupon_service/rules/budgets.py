"""What a book may take off in all."""

from __future__ import annotations

from coupon_service.errors import BudgetExceeded, CouponServiceError, OrderAmountRequired
from coupon_service.model import Book, Lock, Redeem, State
from coupon_service.rules.derived_states import order_discount


def budget_refusals(
    command: Redeem | Lock, book: Book, state: State
) -> tuple[CouponServiceError, ...]:
    """Why the budget of the book, which has one, does not allow the command.

    A lock holds none of it, and is refused when nothing is left. An end user is not told how much
    is: that is what others have redeemed.
    """
    needed_minor = 1
    if isinstance(command, Redeem):
        discount = order_discount(book, command.order_amount)
        if discount is None:  # of an order in another currency, which is refused for that
            return () if command.order_amount is not None else (OrderAmountRequired(),)
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
