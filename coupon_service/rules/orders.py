"""What orders have of the coupons of books that are not INDEPENDENT, and what goes with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from coupon_service.errors import (
    CouponServiceError,
    CouponsNotCombinable,
    CurrencyMismatch,
    ExclusiveGroupUsed,
    OrderAmountRequired,
    OrderFullyDiscounted,
    OrderIdRequired,
    OrderLimitExceeded,
)
from coupon_service.model import (
    Adjustment,
    Benefit,
    Book,
    BookOnOrder,
    Event,
    Money,
    OrderCoupons,
    OrderPolicy,
    OrderRef,
    Redeem,
    State,
)
from coupon_service.rules.derived_states import order_discount
from coupon_service.rules.erasures import orders_of_erased

OTHER_COUPONS: Final = "The coupons on the order are in another currency."

NO_COUPONS: Final = OrderCoupons()


def order_of(book: Book, order_id: str, order_user_id: str | None) -> OrderRef:
    """The order for which a code of the book is redeemed. An order that an end user names belongs
    to that user, apart from those of others and of the business with the same id."""
    return book.business_id, order_id, order_user_id or ""


def coupon_refusals(command: Redeem, book: Book, state: State) -> Iterator[CouponServiceError]:
    """Why the book, which is not INDEPENDENT, does not allow a redemption for this order."""
    if not command.order_id:
        yield OrderIdRequired()
    amount = command.order_amount
    if amount is None and book.order_policy is OrderPolicy.COMBINABLE:
        yield OrderAmountRequired()
    if not command.order_id:
        return
    coupons = _on_order_of(command, book, state)
    if amount is not None and not _goes_with(amount, coupons):
        yield CurrencyMismatch(OTHER_COUPONS, currency_code=coupons.currency_code)
    yield from _not_combinable(book, [it for it in coupons.books if it.redemptions])
    limit = book.limits.max_redemptions_per_order
    own = _of_book(coupons, book)
    if limit and own is not None and own.redemptions >= limit:
        yield OrderLimitExceeded(limit=limit)
    if isinstance(book.discount, Benefit) or amount is None or not _goes_with(amount, coupons):
        return
    if amount.amount_minor <= coupons.discount_minor:
        yield OrderFullyDiscounted(
            discount_minor=coupons.discount_minor, currency_code=amount.currency_code
        )


def _not_combinable(book: Book, others: list[BookOnOrder]) -> Iterator[CouponServiceError]:
    policies = {book.order_policy, *(it.order_policy for it in others)}
    if others and OrderPolicy.EXCLUSIVE in policies:
        yield CouponsNotCombinable()
    group = book.exclusive_group
    if group and any(it.exclusive_group == group for it in others):
        yield ExclusiveGroupUsed(exclusive_group=group)


def discount_on_order(command: Redeem, book: Book, state: State) -> Money | None:
    """What a redemption takes off: as `order_discount`, but no more than the other coupons on the
    order have left of its amount."""
    own, order = order_discount(book, command.order_amount), command.order_amount
    if own is None or order is None or book.order_policy is OrderPolicy.INDEPENDENT:
        return own
    coupons = _on_order_of(command, book, state)
    if order.currency_code != book.currency_code or not _goes_with(order, coupons):
        return own
    left_minor = order.amount_minor - coupons.discount_minor
    return replace(own, amount_minor=max(min(own.amount_minor, left_minor), 0))


def with_coupon(coupons: OrderCoupons, book: Book, redeemed: Event) -> OrderCoupons:
    """What is on the order after a redemption."""
    discount_minor = redeemed.discount_minor or 0
    return replace(
        _with_redemptions(coupons, book, 1),
        currency_code=redeemed.currency_code or coupons.currency_code,
        discount_minor=coupons.discount_minor + discount_minor,
        amount_minor=redeemed.order_amount_minor if discount_minor else coupons.amount_minor,
    )


def discount_beside(coupons: OrderCoupons, redeemed: Event, order: Money, own_minor: int) -> int:
    """What a redemption takes off an order that comes to another amount: no more than the other
    coupons have left of it."""
    others_minor = coupons.discount_minor - (redeemed.discount_minor or 0)
    return max(min(own_minor, order.amount_minor - others_minor), 0)


def with_adjustment(coupons: OrderCoupons, before: Event, after: Adjustment) -> OrderCoupons:
    """What is on the order after a redemption for it was adjusted."""
    more_minor = (after.discount_minor or 0) - (before.discount_minor or 0)
    return replace(
        coupons,
        discount_minor=coupons.discount_minor + more_minor,
        amount_minor=after.order_amount_minor if more_minor > 0 else coupons.amount_minor,
    )


def without_coupon(coupons: OrderCoupons, book: Book, redeemed: Event) -> OrderCoupons:
    """What is on the order after a redemption for it was rolled back."""
    left = _with_redemptions(coupons, book, -1)
    empty = not any(it.redemptions for it in left.books)
    return replace(
        left,
        currency_code="" if empty else left.currency_code,
        discount_minor=left.discount_minor - (redeemed.discount_minor or 0),
    )


def _with_redemptions(coupons: OrderCoupons, book: Book, change: int) -> OrderCoupons:
    own = _of_book(coupons, book)
    others = tuple(it for it in coupons.books if it is not own)
    redemptions = change + (own.redemptions if own is not None else 0)
    after = BookOnOrder(book.book_id, redemptions, book.order_policy, book.exclusive_group)
    return replace(coupons, books=(*others, after))


def _goes_with(amount: Money, coupons: OrderCoupons) -> bool:
    return coupons.currency_code in ("", amount.currency_code)


def _on_order_of(command: Redeem, book: Book, state: State) -> OrderCoupons:
    return coupons_on(order_of(book, command.order_id, command.order_user_id), state)


def coupons_on(order: OrderRef, state: State) -> OrderCoupons:
    """What is on the order, also of users who were erased."""
    coupons = state.order_coupons.get(order, NO_COUPONS)
    if not state.order_pseudonyms:
        return coupons
    for name in orders_of_erased(order, state):
        others = state.order_coupons.get(name, NO_COUPONS)
        coupons = replace(
            coupons,
            currency_code=coupons.currency_code or others.currency_code,
            discount_minor=coupons.discount_minor + others.discount_minor,
            books=_together(coupons.books, others.books),
        )
    return coupons


def _together(
    books: tuple[BookOnOrder, ...], others: tuple[BookOnOrder, ...]
) -> tuple[BookOnOrder, ...]:
    """The redemptions of both, once for each book."""
    sums = {it.book_id: it for it in books}
    for it in others:
        own = sums.get(it.book_id)
        redemptions = it.redemptions + (own.redemptions if own is not None else 0)
        sums[it.book_id] = replace(it, redemptions=redemptions)
    return tuple(sums.values())


def _of_book(coupons: OrderCoupons, book: Book) -> BookOnOrder | None:
    return next((it for it in coupons.books if it.book_id == book.book_id), None)
