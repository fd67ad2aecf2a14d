"""Adjust: the order of a redemption comes to another amount, and the discount follows."""

from __future__ import annotations

from dataclasses import replace

from coupon_service.errors import (
    BookExpired,
    BookNotActive,
    ConcurrentModification,
    CouponServiceError,
    CurrencyMismatch,
)
from coupon_service.model import (
    Adjust,
    Adjustment,
    Benefit,
    Book,
    BookState,
    Code,
    Done,
    Event,
    EventType,
    Money,
    OrderPolicy,
    Outcome,
    Terms,
    rollback_id,
)
from coupon_service.rules.budgets import over_budget
from coupon_service.rules.derived_states import adjusted, discount_of
from coupon_service.rules.draft import Draft
from coupon_service.rules.orders import (
    NO_COUPONS,
    coupons_on,
    discount_beside,
    order_of,
    with_adjustment,
)
from coupon_service.rules.repeats import already_rolled_back


def adjust(command: Adjust, code: Code, book: Book, draft: Draft) -> Outcome:
    """Computes the discount again, on the terms of the redemption. Done has that as it is then."""
    state = draft.state
    redemption_id = command.redemption.event_id
    present = adjusted(command.redemption, state.adjustments.get(redemption_id))
    terms = state.terms[redemption_id]
    if code.terms is not None and code.terms.discount is not None:  # which never changes
        terms = replace(terms, discount=code.terms.discount)
    discount = _discount(terms, command.order_amount)
    order, coupons = None, NO_COUPONS
    if book.order_policy is not OrderPolicy.INDEPENDENT and discount is not None:
        order = order_of(book, present.order_id or "", present.order_user_id)
        coupons = state.order_coupons.get(order, NO_COUPONS)
        together = coupons_on(order, state)
        discount = discount_beside(together, present, command.order_amount, discount)
    more = (discount or 0) - (present.discount_minor or 0)
    refusal = _refusal(command, present, book, terms, draft)
    if refusal is None and book.limits.budget_minor:
        refusal = over_budget(more, book, state)
    if refusal is not None:
        return refusal
    draft.count_total(book, 0, more)
    draft.count(book.book_id, "discount_minor", more)
    adjustment = Adjustment(
        redemption_id=redemption_id,
        book_id=book.book_id,
        order_amount_minor=command.order_amount.amount_minor,
        discount_minor=discount,
        adjustments=present.adjustments + 1,
        currency_code=command.order_amount.currency_code,
    )
    draft.put_adjustment(adjustment)
    if order is not None:
        draft.put_order(order, with_adjustment(coupons, present, adjustment))
    event = Event(
        **draft.about(command, EventType.ADJUSTED, before=code, after=code),
        user_id=present.user_id,
        order_id=present.order_id,
        order_user_id=present.order_user_id,
        order_amount_minor=command.order_amount.amount_minor,
        discount_minor=discount,
        currency_code=command.order_amount.currency_code,
        benefit=present.benefit,
        redemption_id=redemption_id,
        metadata=command.metadata,
    )
    draft.record(event)
    return Done(adjusted(present, adjustment), book, code)


def _refusal(
    command: Adjust, present: Event, book: Book, terms: Terms, draft: Draft
) -> CouponServiceError | None:
    rollback = draft.state.events.get(rollback_id(present.event_id))
    if rollback is not None:
        return already_rolled_back(rollback)
    if command.adjustments not in (None, present.adjustments):
        return ConcurrentModification()
    currency = terms.currency_code or present.currency_code
    if currency and command.order_amount.currency_code != currency:
        return CurrencyMismatch(currency_code=currency)
    amount = present.order_amount_minor
    if amount is not None and command.order_amount.amount_minor <= amount:
        return None
    if book.state is not BookState.ACTIVE:
        return BookNotActive(state=book.state.name)
    if book.end_time is not None and draft.now >= book.end_time:
        return BookExpired(end_time=book.end_time.isoformat())
    return None


def _discount(terms: Terms, order: Money) -> int | None:
    """What comes off now: nothing of an order that has become too small."""
    if isinstance(terms.discount, Benefit):
        return None
    amount = order.amount_minor
    return discount_of(terms, amount) or 0 if amount >= terms.min_order_amount_minor else 0
