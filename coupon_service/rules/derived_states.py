"""States and amounts that follow from what is stored, and are never stored themselves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from typing import Final

from coupon_service.model import (
    Adjustment,
    AmountOff,
    AssignmentState,
    Benefit,
    Book,
    BookLimits,
    BookState,
    Code,
    CodeState,
    Event,
    EventType,
    LockPolicy,
    LockState,
    LockView,
    Money,
    Terms,
    TieredDiscount,
)

LOCK_ENDS: Final = {
    EventType.REDEEMED: LockState.REDEEMED,
    EventType.UNLOCKED: LockState.RELEASED,
    EventType.LOCK_EXPIRED: LockState.EXPIRED,
}
"""Events after which a lock is over, whatever Redis has kept of it, and its state then."""


def effective_book_state(book: Book, redemptions: int | None, now: datetime) -> BookState:
    """The book's state, or SCHEDULED, EXPIRED or EXHAUSTED where that says more.

    `redemptions`: of all codes, None where they are not at hand.
    """
    if book.state in (BookState.DRAFT, BookState.CLOSED):
        return book.state
    if book.end_time is not None and now >= book.end_time:
        return BookState.EXPIRED
    if book.state is BookState.PAUSED:
        return book.state
    if book.start_time is not None and now < book.start_time:
        return BookState.SCHEDULED
    limit = book.limits.max_redemptions
    if limit and redemptions is not None and redemptions >= limit:
        return BookState.EXHAUSTED
    return book.state


def may_be_locked(book: Book, now: datetime) -> bool:
    """Whether somebody may hold a lock on a code of the book, which redemptions have to mind.

    After locking was switched off nobody gets a new one, but those who hold one keep it.
    """
    return book.lock_policy is not LockPolicy.OFF or (
        book.locks_until is not None and now < book.locks_until
    )


def code_state(redemptions: int, assignments: int, limit: int) -> CodeState:
    """The stored state of a code that is not disabled, by its counts. `limit` 0 = none."""
    if limit and redemptions >= limit:
        return CodeState.REDEEMED
    return CodeState.ASSIGNED if assignments else CodeState.AVAILABLE


def assignment_state(
    state: AssignmentState, redemptions: int, limits: BookLimits
) -> AssignmentState:
    """The stored state of an assignment whose user has redeemed the code so often.

    REDEEMED when this user alone has reached a limit of the user or of the code, else ACTIVE; one
    that was never made, or was revoked, stays so.
    """
    if state not in (AssignmentState.ACTIVE, AssignmentState.REDEEMED):
        return state
    bounds = (limits.max_redemptions_per_user_per_code, limits.max_redemptions_per_code)
    used_up = any(limit and redemptions >= limit for limit in bounds)
    return AssignmentState.REDEEMED if used_up else AssignmentState.ACTIVE


def own_end(code: Code) -> datetime | None:
    """The end of the code's own window."""
    return code.terms.end_time if code.terms is not None else None


def effective_code_state(
    code: Code,
    book: Book,
    now: datetime,
    *,
    locked_out: bool = False,
    expire_time: datetime | None = None,
) -> CodeState:
    """The code's state, or EXPIRED or LOCKED where that says more.

    `locked_out`: every use that is left is locked. `expire_time`: end of the user's assignment.
    """
    if code.state in (CodeState.REDEEMED, CodeState.DISABLED):
        return code.state
    ends = [end for end in (book.end_time, own_end(code), expire_time) if end is not None]
    if ends and now >= min(ends):
        return CodeState.EXPIRED
    return CodeState.LOCKED if locked_out else code.state


def adjusted(redemption: Event, adjustment: Adjustment | None) -> Event:
    """The redemption with what its order comes to now."""
    if adjustment is None:
        return redemption
    return replace(
        redemption,
        order_amount_minor=adjustment.order_amount_minor,
        discount_minor=adjustment.discount_minor,
        currency_code=redemption.currency_code or adjustment.currency_code,
        adjustments=adjustment.adjustments,
    )


def discount_of(book: Book | Terms, order_amount_minor: int | None) -> int | None:
    """What the book takes off an order, in minor units, rounded down, at most the order itself.

    None for benefits, for a percentage or tiers of an unknown amount, and below the first tier.
    """
    discount = book.discount
    if isinstance(discount, TieredDiscount):
        known = order_amount_minor is not None
        discount = discount.for_order(order_amount_minor) if known else None
    if discount is None or isinstance(discount, Benefit):
        return None
    if isinstance(discount, AmountOff):
        amount = discount.amount_minor
        return amount if order_amount_minor is None else min(amount, order_amount_minor)
    if order_amount_minor is None:
        return None
    share = order_amount_minor * discount.basis_points // 10_000
    return min(share, discount.max_discount_minor) if discount.max_discount_minor else share


def order_discount(book: Book, order: Money | None) -> Money | None:
    """`discount_of` as money of the book's currency; an order in another one tells no amount."""
    known = order is not None and order.currency_code == book.currency_code
    discount = discount_of(book, order.amount_minor if order and known else None)
    return None if discount is None else Money(discount, book.currency_code)


def lock_view(events: Iterable[Event], now: datetime) -> LockView | None:
    """A lock, from its ledger events (in any order); None when it was never taken.

    The row that took it has its id; the others of this type tell who else was answered with it.
    """
    events = tuple(events)
    taken = (it for it in events if it.type is EventType.LOCKED and it.event_id == it.lock_id)
    locked = next(taken, None)
    expire_times = [event.expire_time for event in events if event.expire_time is not None]
    if locked is None or not expire_times:
        return None
    expire_time = max(expire_times)
    # Should it have ended in two ways, the first of LOCK_ENDS counts most.
    state = min(
        (LOCK_ENDS[event.type] for event in events if event.type in LOCK_ENDS),
        default=LockState.EXPIRED if now >= expire_time else LockState.HELD,
    )
    return LockView(
        lock_id=locked.event_id,
        code=locked.code or "",
        book_id=locked.book_id,
        user_id=locked.user_id or "",
        state=state,
        fence=locked.fence or 0,
        create_time=locked.event_time,
        expire_time=expire_time,
    )
