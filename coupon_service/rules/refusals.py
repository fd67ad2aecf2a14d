"""Why a command is refused: every reason there is, the most telling first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from uuid import UUID

from coupon_service.errors import (
    Background,
    BookExpired,
    BookLimitExceeded,
    BookNotActive,
    BookNotStarted,
    CodeAlreadyAssigned,
    CodeAlreadyRedeemed,
    CodeDisabled,
    CodeExpired,
    CodeLimitExceeded,
    CodeLocked,
    CodeNotAssignedToUser,
    CouponServiceError,
    CurrencyMismatch,
    LockExpired,
    LockRequired,
    LockTokenMismatch,
    OrderAlreadyRedeemed,
    OrderBelowMinimum,
    UserLimitExceeded,
)
from coupon_service.model import (
    Assignment,
    AssignmentPolicy,
    AssignmentState,
    AssignRandom,
    Book,
    BookState,
    Code,
    CodeState,
    Event,
    EventType,
    HiddenKey,
    Lease,
    Lock,
    LockPolicy,
    OrderPolicy,
    Redeem,
    State,
    TieredDiscount,
    order_keys,
)
from coupon_service.rules.budgets import budget_refusals
from coupon_service.rules.code_lookup import code_not_found
from coupon_service.rules.derived_states import LOCK_ENDS, lock_view
from coupon_service.rules.draft import Draft
from coupon_service.rules.erasures import counts_of, order_names, redeemed_before
from coupon_service.rules.opening_hours import is_open, outside_schedule
from coupon_service.rules.orders import coupon_refusals
from coupon_service.rules.periods import period_refusals
from coupon_service.rules.terms import code_ended, code_not_started

ASSIGNED = (AssignmentState.ACTIVE, AssignmentState.REDEEMED)
"""States of an assignment in which the code is the user's."""

Reasons = tuple[CouponServiceError, ...]

REDEMPTIONS_MAX = 2**31 - 1
"""Of a code without a limit: as many as the contract, and the table, can count."""


def is_hidden(command: Redeem | Lock, code: Code, book: Book, state: State, now: datetime) -> bool:
    """Whether an end user, who cannot use this code, is told that there is no such code.

    Otherwise people could find out by trying which codes exist: of others, used up, or not yet for
    use. Who has an assignment of the code, or has used it for the same order, is told when it is
    used up.
    """
    if not command.call.end_user:
        return False
    return hidden_key(command, code) in state.hidden or bool(
        _why_hidden(command, code, book, state, now)
    )


def hidden_refusal(
    command: Redeem | Lock, code: Code, book: Book, state: State, now: datetime
) -> CouponServiceError:
    """What an end user is told of a code that `is_hidden`."""
    refusal = code_not_found(command.code, command.book_id, command.call.business_id, state)
    why = _why_hidden(command, code, book, state, now)
    refusal.background = Background(book.book_id, book.business_id, why)
    return refusal


def _why_hidden(
    command: Redeem | Lock, code: Code, book: Book, state: State, now: datetime
) -> Reasons:
    assignment = state.assignments.get((*code.key, command.user_id))
    mine = assignment is not None and (assignment.state in ASSIGNED or assignment.redemptions > 0)
    if not mine:  # an order that is in the way of an end user is one of its own
        mine = _redemption_for_order(command, code, state) is not None
    ends_at = _ends_judged_at(command, assignment, code, book, state, now)
    return (
        *_unusable(code, book, now, ends_at),
        *_assignment_refusals(assignment, book, ends_at),
        *(() if mine else _code_used_up(code, book)),
    )


def hidden_key(command: Redeem | Lock, code: Code) -> HiddenKey:
    """What `is_hidden` depends on besides the state: the user, the order, and the lock's token."""
    if not isinstance(command, Redeem):
        return code.key, command.user_id, "", None, False
    gone = command.lease is not None and command.lease.gone
    return code.key, command.user_id, command.order_id, command.lock, gone


def redemption_refusal(
    command: Redeem | Lock, code: Code, book: Book, draft: Draft
) -> CouponServiceError | None:
    """The first reason why a command of a batch cannot redeem, or lock, this code now."""
    lease = command.lease
    if lease is not None and lease.permits_taken > 1:
        # Redemptions that the batch has decided still have their permits, and are not to count
        # twice: everybody's permit has to fit beside what was redeemed before the batch.
        used = sum(_permits_of(event, command, code) for event in draft.events)
        command = replace(command, lease=replace(lease, permits_taken=lease.permits_taken - used))
    reasons = redemption_refusals(command, code, book, draft.state, draft.now)
    first = next(reasons, None)
    if first is not None:
        first.background = Background(book.book_id, book.business_id, tuple(reasons))
    return first


def _permits_of(event: Event, command: Redeem | Lock, code: Code) -> int:
    """Permits of a redemption that were counted for the command: its own, without a token, and that
    of its lock, unless it is the lock of the command's user, which never counts."""
    if event.type is not EventType.REDEEMED or (event.book_id, event.code) != code.key:
        return 0
    without_token = event.fence is None
    lock_of_another = event.lock_id is not None and event.user_id != command.user_id
    return without_token + lock_of_another


def lock_ended(lock_id: UUID | None, state: State) -> bool:
    """Whether the ledger, or the batch so far, says that the lock is over."""
    events = state.lock_events.get(lock_id, ()) if lock_id is not None else ()
    return any(event.type in LOCK_ENDS for event in events)


def redemption_refusals(
    command: Redeem | Lock, code: Code, book: Book, state: State, now: datetime
) -> Iterator[CouponServiceError]:
    """Why this user cannot redeem, or lock, this code now."""
    assignment = state.assignments.get((*code.key, command.user_id))
    ends_at = _ends_judged_at(command, assignment, code, book, state, now)
    yield from _unusable(code, book, now, ends_at)
    yield from _used(command, code, book, state)
    yield from _assignment_refusals(assignment, book, ends_at)
    if book.schedule is not None and _is_closed(book, now) and _is_closed(book, ends_at):
        yield outside_schedule(book.schedule, now)
    yield from _user_limits(command.user_id, assignment, code, book, state)
    limit = book.limits.max_redemptions
    if limit and state.totals[book.book_id].redemptions >= limit:
        yield BookLimitExceeded(limit=limit)
    if book.period_limits is not None:
        yield from period_refusals(book.period_limits, command.user_id, book, state, now)
    if book.limits.budget_minor:
        yield from budget_refusals(command, book, state)
    if isinstance(command, Redeem):
        if book.order_policy is not OrderPolicy.INDEPENDENT:
            yield from coupon_refusals(command, book, state)
        yield from _order_refusals(command, book)
        yield from _lock_refusals(command, assignment, book, state, now)
    if command.lease is not None and not command.lease.gone:
        yield from _no_permit(command.lease, code, book, state)


def extension_refusals(
    user_id: str, code: Code, book: Book, state: State, now: datetime
) -> Iterator[CouponServiceError]:
    """Why this user gets no more time for a lock on this code now."""
    yield from _book_ended(book, now)
    yield from _not_started(book, now)
    yield from code_ended(code, now)
    yield from code_not_started(code, now)
    yield from _validity_ended(state.assignments.get((*code.key, user_id)), now)
    if book.schedule is not None and _is_closed(book, now):
        yield outside_schedule(book.schedule, now)


def assignment_refusals(
    user_id: str, code: Code, book: Book, state: State, now: datetime
) -> Iterator[CouponServiceError]:
    """Why this code cannot be assigned to this user now. The window need not have begun."""
    yield from _over(book, now)
    yield from code_ended(code, now)
    if code.state is CodeState.DISABLED:
        yield CodeDisabled()
    assignment = state.assignments.get((*code.key, user_id))
    if assignment is not None and assignment.state in ASSIGNED:
        yield CodeAlreadyAssigned("The code is assigned to this user already.")
    yield from _code_used_up(code, book)
    limit = book.limits.max_redemptions_per_code
    if limit and code.assignments >= limit:
        yield CodeAlreadyAssigned(
            "The code is assigned to as many users as it has redemptions.", limit=limit
        )
    yield from _user_code_limit(user_id, assignment, code, book, state)
    yield from _assignment_limit(user_id, book, state)


def user_assignment_refusals(
    command: AssignRandom, book: Book, state: State, now: datetime
) -> Iterator[CouponServiceError]:
    """Why this user cannot be given any code of this book now."""
    yield from _over(book, now)
    yield from _assignment_limit(command.user_id, book, state)


def _ends_judged_at(
    command: Redeem | Lock,
    assignment: Assignment | None,
    code: Code,
    book: Book,
    state: State,
    now: datetime,
) -> datetime:
    """By which time the ends of the book, of the code and of the assignment, and the schedule, are
    judged.

    A lock that was taken in time is honoured: with the token of one that is held, this is when it
    was taken; otherwise now. Everything else is judged now.
    """
    if not isinstance(command, Redeem) or command.lock is None:
        return now
    over = _book_ended(book, now), code_ended(code, now), _validity_ended(assignment, now)
    if not any(over) and not _is_closed(book, now):
        return now
    if any(_lock_refusals(command, assignment, book, state, now)):
        return now
    held = lock_view(state.lock_events.get(command.lock.lock_id, ()), now)
    return held.create_time if held is not None else now


# Each of these is asked for every redemption, and nearly always has nothing to say: a tuple, which
# costs less than a generator.


def _unusable(code: Code, book: Book, now: datetime, ends_at: datetime) -> Reasons:
    disabled = (CodeDisabled(),) if code.state is CodeState.DISABLED else ()
    of_book = _over(book, ends_at) + _not_started(book, now)
    if code.terms is None:
        return of_book + disabled
    return of_book + code_ended(code, ends_at) + code_not_started(code, now) + disabled


def _used(command: Redeem | Lock, code: Code, book: Book, state: State) -> Reasons:
    redemption_id = _redemption_for_order(command, code, state)
    if redemption_id is not None:
        return OrderAlreadyRedeemed(redemption_id=redemption_id), *_code_used_up(code, book)
    return _code_used_up(code, book)


def _redemption_for_order(command: Redeem | Lock, code: Code, state: State) -> UUID | None:
    """The live redemption of the code for the command's order, if there is one."""
    if not isinstance(command, Redeem) or not command.order_id:
        return None
    for order_id, user_id in order_names(command.order_id, command.user_id, state):
        for key in order_keys(code.key, order_id, user_id, command.order_user_id):
            if (redemption_id := state.orders.get(key)) is not None:
                return redemption_id
    return None


def _over(book: Book, time: datetime) -> Reasons:
    if book.state is not BookState.ACTIVE:
        return BookNotActive(state=book.state.name), *_book_ended(book, time)
    return _book_ended(book, time)


def _book_ended(book: Book, time: datetime) -> Reasons:
    if book.end_time is None or time < book.end_time:
        return ()
    return (BookExpired(end_time=book.end_time.isoformat()),)


def _is_closed(book: Book, time: datetime) -> bool:
    return book.schedule is not None and not is_open(book.schedule, time)


def _not_started(book: Book, now: datetime) -> Reasons:
    if book.start_time is None or now >= book.start_time:
        return ()
    return (BookNotStarted(start_time=book.start_time.isoformat()),)


def _code_used_up(code: Code, book: Book) -> Reasons:
    limit = book.limits.max_redemptions_per_code or REDEMPTIONS_MAX
    if code.redemptions < limit:
        return ()
    return (CodeAlreadyRedeemed() if limit == 1 else CodeLimitExceeded(limit=limit),)


def _assignment_refusals(assignment: Assignment | None, book: Book, time: datetime) -> Reasons:
    assigned = assignment is not None and assignment.state in ASSIGNED
    if not assigned and book.assignment_policy is AssignmentPolicy.REQUIRED:
        return (CodeNotAssignedToUser(),)
    return _validity_ended(assignment, time)


def _validity_ended(assignment: Assignment | None, time: datetime) -> Reasons:
    if assignment is None or assignment.state not in ASSIGNED or assignment.expire_time is None:
        return ()
    if time < assignment.expire_time:
        return ()
    return (CodeExpired(expire_time=assignment.expire_time.isoformat()),)


def _user_limits(
    user_id: str, assignment: Assignment | None, code: Code, book: Book, state: State
) -> Reasons:
    for_code = _user_code_limit(user_id, assignment, code, book, state)
    limit = book.limits.max_redemptions_per_user
    if limit and counts_of(book.book_id, user_id, state).redemptions >= limit:
        return *for_code, _user_limit("max_redemptions_per_user", limit)
    return for_code


def _user_code_limit(
    user_id: str, assignment: Assignment | None, code: Code, book: Book, state: State
) -> Reasons:
    limit = book.limits.max_redemptions_per_user_per_code
    if not limit:
        return ()
    redeemed = assignment.redemptions if assignment is not None else 0
    if redeemed + redeemed_before(code, user_id, state) >= limit:
        return (_user_limit("max_redemptions_per_user_per_code", limit),)
    return ()


def _assignment_limit(user_id: str, book: Book, state: State) -> Reasons:
    limit = book.limits.max_assignments_per_user
    if limit and counts_of(book.book_id, user_id, state).assignments >= limit:
        return (_user_limit("max_assignments_per_user", limit),)
    return ()


def _user_limit(limit_name: str, limit: int) -> UserLimitExceeded:
    return UserLimitExceeded(limit_name=limit_name, limit=limit)


def _order_refusals(command: Redeem, book: Book) -> Reasons:
    order, currency_code = command.order_amount, book.currency_code
    other: Reasons = ()
    if order is not None and currency_code and order.currency_code != currency_code:
        other = (CurrencyMismatch(currency_code=currency_code),)
    minimum = book.min_order_amount_minor
    if isinstance(book.discount, TieredDiscount):
        # Below the first tier there is nothing to get that a code should be used up for.
        minimum = max(minimum, book.discount.least_amount_minor)
    if minimum and (order is None or order.amount_minor < minimum):
        return *other, OrderBelowMinimum(minimum_minor=minimum, currency_code=currency_code)
    return other


def _lock_refusals(
    command: Redeem, assignment: Assignment | None, book: Book, state: State, now: datetime
) -> Reasons:
    lock = command.lock
    if lock is None:
        return (LockRequired(),) if book.lock_policy is LockPolicy.REQUIRED else ()
    if not lock.is_on(command.code, book.book_id) or not lock.is_of(command.user_id):
        return (LockTokenMismatch(),)
    gone = command.lease is not None and command.lease.gone
    outdated = assignment is not None and assignment.fence >= lock.fence
    ended = lock_ended(lock.lock_id, state) or now.timestamp() * 1000 >= lock.expire_ms
    return (LockExpired(),) if gone or outdated or ended else ()


def _no_permit(lease: Lease, code: Code, book: Book, state: State) -> Reasons:
    """Live locks + redemptions ≤ limit: does the permit that was acquired fit beside the others?

    A user's own lock is not counted, since a redemption without a token uses it up. One that is
    still to be recorded is not used up, but comes to stand beside the redemption, unless that has
    the last use: so it counts.
    """
    limit = book.limits.max_redemptions_per_code
    left = limit - code.redemptions
    own = lease.held_lock_id
    beside = left > 1 and own is not None and own not in state.lock_events
    if limit and 0 < left < lease.permits_taken + beside:
        return (CodeLocked(retry_after_ms=lease.retry_after_ms),)
    return ()
