"""What is left of erased users: limits that they have used, and requests that are not repeated.

A user who comes again has other rows than before; those of before are under pseudonyms, and count
beside them. While somebody is being erased, nothing may come in between.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from typing import Final
from uuid import UUID

from coupon_service.errors import Contention, CouponServiceError, ErasureInProgress
from coupon_service.model import (
    Adjust,
    Assign,
    AssignRandom,
    ChangeLock,
    Code,
    Command,
    ErasureState,
    Event,
    EventType,
    Lock,
    OrderRef,
    Redeem,
    Rollback,
    SetCodeEnabled,
    State,
    Transfer,
    UserCounts,
)
from coupon_service.model.pseudonyms import NO_FINGERPRINT, is_pseudonym

GIVING: Final = (Redeem, Lock, Assign, AssignRandom, Transfer)
"""Commands by which users get something, or use it."""


def users_of(command: Command) -> tuple[str, ...]:
    """The users that the command is about."""
    if isinstance(command, SetCodeEnabled):
        return ()
    if isinstance(command, Transfer):
        return command.from_user_id, command.to_user_id
    return (command.user_id,)


def order_named(command: Command) -> str:
    """The order that the command is for; empty where there is none."""
    if isinstance(command, (Rollback, Adjust)):
        return command.redemption.order_id or ""
    return command.order_id if isinstance(command, Redeem) else ""


def is_erased(event: Event) -> bool:
    """Whether the ledger row is of an attempt of before a user that it names was erased.

    What comes later for the same redemption has the pseudonym from the beginning, and is complete.
    """
    named = is_pseudonym(event.user_id) or is_pseudonym(event.other_user_id)
    return named and event.fingerprint == NO_FINGERPRINT


def erasure_refusal(command: Command, state: State) -> CouponServiceError | None:
    """Why the command cannot be carried out, while or since a user of it is or was erased."""
    for user_id in users_of(command) if state.erasures else ():
        for name in (user_id, *state.pseudonyms.get(user_id, ())):
            under_way = state.erasures.get(name)
            if under_way is ErasureState.ERASING or (under_way and _gives(command)):
                return ErasureInProgress()
    if isinstance(command, (Rollback, Adjust)):
        redemption = state.events.get(command.redemption.event_id)
        if redemption is not None and redemption.user_id != command.user_id:
            return Contention()  # the user was erased since the redemption was read
    return None


def _gives(command: Command) -> bool:
    if isinstance(command, ChangeLock):
        return command.type is EventType.LOCK_EXTENDED
    return isinstance(command, GIVING)


def redeemed_before(code: Code, user_id: str, state: State) -> int:
    """How often the user had redeemed the code, and was erased."""
    if not state.pseudonyms:
        return 0
    names = state.pseudonyms.get(user_id, ())
    before = (state.assignments.get((*code.key, it)) for it in names)
    return sum(it.redemptions for it in before if it is not None)


def counts_of(book_id: UUID, user_id: str, state: State) -> UserCounts:
    """What the user has done in the book, before it was erased as well."""
    own = state.users.get((book_id, user_id), UserCounts())
    if not state.pseudonyms:
        return own
    for name in state.pseudonyms.get(user_id, ()):
        before = state.users.get((book_id, name), UserCounts())
        own = UserCounts(own.redemptions + before.redemptions, own.assignments + before.assignments)
    return own


def in_period_before(book_id: UUID, user_id: str, start: date, state: State) -> int:
    """How often the user had redeemed in the period, and was erased."""
    if not state.pseudonyms:
        return 0
    names = state.pseudonyms.get(user_id, ())
    return sum(state.periods.get((book_id, it, start), 0) for it in names)


def order_names(order_id: str, user_id: str, state: State) -> Iterator[tuple[str, str]]:
    """Under which names redemptions for the order are: first its own, with its user, then those of
    erased users. `user_id` may be empty."""
    yield order_id, user_id
    orders = state.order_pseudonyms.get(order_id, ())
    users = state.pseudonyms.get(user_id, ())
    for index, name in enumerate(orders):
        yield name, users[index] if users else user_id


def orders_of_erased(order: OrderRef, state: State) -> tuple[OrderRef, ...]:
    """What stands for the order where users were erased who redeemed for it."""
    business_id, order_id, user_id = order
    _, *names = order_names(order_id, user_id, state)
    return tuple((business_id, *it) for it in names)
