"""Redeem and roll back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from uuid import UUID

from coupon_service.model import (
    Assignment,
    AssignmentState,
    Benefit,
    Book,
    Code,
    Done,
    Event,
    EventType,
    LeaseNeeded,
    LockState,
    OrderCoupons,
    OrderPolicy,
    Outcome,
    Redeem,
    Rollback,
)
from coupon_service.rules.derived_states import (
    adjusted,
    assignment_state,
    lock_view,
    may_be_locked,
)
from coupon_service.rules.draft import Draft
from coupon_service.rules.orders import (
    NO_COUPONS,
    discount_on_order,
    order_of,
    with_coupon,
    without_coupon,
)
from coupon_service.rules.refusals import redemption_refusal


def redeem(command: Redeem, code: Code, book: Book, draft: Draft) -> Outcome:
    """Uses the code once."""
    refusal = redemption_refusal(command, code, book, draft)
    if refusal is not None:
        return refusal
    if command.lease is None and may_be_locked(book, draft.now):
        return LeaseNeeded(book)

    after = draft.count_code(code, book, redemptions=1)
    assignment = _assignment_after(command, book, draft)
    if assignment is not None:
        draft.put_assignment(assignment)
    draft.count_user(book, command.user_id, redemptions=1)
    draft.count_period(book, command.user_id, draft.now, 1)
    order = command.order_amount
    taken_off = discount_on_order(command, book, draft.state)
    discount = taken_off.amount_minor if taken_off is not None else None
    draft.count_total(book, 1, discount or 0)
    draft.count(book.book_id, "redemptions", 1)
    draft.count(book.book_id, "discount_minor", discount or 0)
    event = Event(
        **draft.about(command, EventType.REDEEMED, before=code, after=after),
        user_id=command.user_id,
        order_id=command.order_id or None,
        order_user_id=command.order_user_id,
        order_amount_minor=order.amount_minor if order else None,
        discount_minor=discount,
        currency_code=order.currency_code if order else book.currency_code or None,
        benefit=book.discount.description if isinstance(book.discount, Benefit) else None,
        lock_id=_used_lock(command, draft),
        fence=command.lock.fence if command.lock else None,
        code_redemptions=after.redemptions,
        code_redemption_limit=book.limits.max_redemptions_per_code,
        user_code_redemptions=assignment.redemptions if assignment else None,
        metadata=command.metadata,
        book_version=book.version,
    )
    draft.record(event)
    if book.order_policy is not OrderPolicy.INDEPENDENT:
        _put_order(event, book, draft, with_coupon)
    return Done(event, book, after, assignment)


def _put_order(
    redemption: Event,
    book: Book,
    draft: Draft,
    change: Callable[[OrderCoupons, Book, Event], OrderCoupons],
) -> None:
    order = order_of(book, redemption.order_id or "", redemption.order_user_id)
    before = draft.state.order_coupons.get(order, NO_COUPONS)
    draft.put_order(order, change(before, book, redemption))


def _used_lock(command: Redeem, draft: Draft) -> UUID | None:
    """The lock of the token, or else the one that the user holds, by the ledger as well.

    What has a permit in Redis may never come to be recorded, and when its request_id was used for
    another user, too, the ledger's lock of that id is the other's.
    """
    if command.lock is not None:
        return command.lock.lock_id
    held = command.lease.held_lock_id if command.lease is not None else None
    view = lock_view(draft.state.lock_events.get(held, ()), draft.now) if held else None
    if view is None or view.user_id != command.user_id or view.state is not LockState.HELD:
        return None
    return held


def _assignment_after(command: Redeem, book: Book, draft: Draft) -> Assignment | None:
    """The user's assignment to the code, counting this redemption.

    A bearer gets one only where something has to be remembered: a limit, or the lock's fence.
    """
    assignment = draft.state.assignments.get((book.book_id, command.code, command.user_id))
    if assignment is None:
        if not book.limits.max_redemptions_per_user_per_code and command.lock is None:
            return None
        assignment = Assignment(
            command.code, command.user_id, book.book_id, AssignmentState.UNASSIGNED
        )
    return replace(
        _counted(assignment, book, 1),
        fence=command.lock.fence if command.lock else assignment.fence,
    )


def rollback(command: Rollback, code: Code, book: Book, draft: Draft) -> Outcome:
    """Undoes a redemption: every count goes back."""
    redemption = command.redemption
    redemption = adjusted(redemption, draft.state.adjustments.get(redemption.event_id))
    after = draft.count_code(code, book, redemptions=-1)
    assignment = draft.state.assignments.get((*code.key, command.user_id))
    # A bearer's redemption was not counted, and the user may have got an assignment since then.
    if assignment is not None and redemption.user_code_redemptions is not None:
        assignment = _counted(assignment, book, -1)
        draft.put_assignment(assignment)
    draft.count_user(book, command.user_id, redemptions=-1)
    draft.count_total(book, -1, -(redemption.discount_minor or 0))
    draft.count_period(book, command.user_id, redemption.event_time, -1)
    draft.count(book.book_id, "redemptions", -1)
    draft.count(book.book_id, "rollbacks", 1)
    draft.count(book.book_id, "discount_minor", -(redemption.discount_minor or 0))
    event = Event(
        **draft.about(command, EventType.ROLLED_BACK, before=code, after=after),
        user_id=command.user_id,
        order_id=redemption.order_id,
        order_user_id=redemption.order_user_id,
        order_amount_minor=redemption.order_amount_minor,
        discount_minor=redemption.discount_minor,
        currency_code=redemption.currency_code,
        benefit=redemption.benefit,
        redemption_id=redemption.event_id,
        code_redemptions=after.redemptions,
        code_redemption_limit=book.limits.max_redemptions_per_code,
        user_code_redemptions=assignment.redemptions if assignment else None,
        metadata=command.metadata,
    )
    draft.record(event)
    if book.order_policy is not OrderPolicy.INDEPENDENT:
        _put_order(redemption, book, draft, without_coupon)
    return Done(event, book, after, assignment)


def _counted(assignment: Assignment, book: Book, change: int) -> Assignment:
    redemptions = assignment.redemptions + change
    state = assignment_state(assignment.state, redemptions, book.limits)
    return replace(assignment, redemptions=redemptions, state=state)
