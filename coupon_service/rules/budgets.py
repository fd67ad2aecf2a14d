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
        discount = discount_on_order(command, book, state)
        if discount is None:
            # That an order is in another currency, or that all are to have an amount, is refused
            # by itself.
            said = command.order_amount is not None or book.order_policy is OrderPolicy.COMBINABLE
            return () if said else (OrderAmountRequired(),)
        needed_minor = discount.amount_minor
    exceeded = over_budget(needed_minor, book, state)
    if exceeded is None:
        return ()
    return (BudgetExceeded() if command.call.end_user else exceeded,)


def over_budget(needed_minor: int, book: Book, state: State) -> BudgetExceeded | None:
    """BUDGET_EXCEEDED where the budget of the book, which has one, has less left than is needed."""
    limit_minor = book.limits.budget_minor
    left_minor = max(limit_minor - state.totals[book.book_id].discount_minor, 0)
    if needed_minor <= left_minor:
        return None
    return BudgetExceeded(
        limit_minor=limit_minor, left_minor=left_minor, currency_code=book.currency_code
    )
