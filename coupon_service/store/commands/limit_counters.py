"""Counters that only some books have: which of them commands need, and reading them.

They are locked after codes and assignments: those of users, then those of books.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Final, LiteralString
from uuid import UUID

from coupon_service.errors import CouponServiceError
from coupon_service.model import (
    Adjust,
    Assign,
    AssignRandom,
    Command,
    HiddenKey,
    Lock,
    OrderPolicy,
    Redeem,
    ReturnToPool,
    Revoke,
    Rollback,
    State,
    Transfer,
    bucket_of_user,
)
from coupon_service.rules import NO_COUPONS, book_named, find_code, hidden_key, is_hidden
from coupon_service.store.arrays import int_array, text_array, uuid_array
from coupon_service.store.commands.order_coupons import orders_of
from coupon_service.store.commands.period_counters import periods_of
from coupon_service.store.pipeline import Pipeline, Rows

UserOfBook = tuple[UUID, str]

Counted = Redeem | Lock | Rollback | Adjust | Assign | Revoke | Transfer | ReturnToPool
"""Commands about codes that have to do with what users have."""

ENSURE_USERS: Final = """
INSERT INTO coupon_user_counters (bucket, book_id, user_id)
SELECT * FROM unnest(%s::smallint[], %s::uuid[], %s::text[])
ON CONFLICT DO NOTHING
"""
SELECT_USERS: Final[LiteralString] = """
SELECT u.book_id, u.user_id, u.redemptions, u.assignments
FROM unnest(%s::smallint[], %s::uuid[], %s::text[]) AS wanted (bucket, book_id, user_id)
JOIN coupon_user_counters AS u USING (bucket, book_id, user_id)
"""
LOCK_USERS: Final[LiteralString] = (
    SELECT_USERS + "ORDER BY u.bucket, u.book_id, u.user_id FOR NO KEY UPDATE OF u"
)
SELECT_TOTALS: Final[LiteralString] = """
SELECT book_id, redemptions, discount_minor FROM coupon_book_totals WHERE book_id = ANY(%s::uuid[])
"""
LOCK_TOTALS: Final[LiteralString] = SELECT_TOTALS + "ORDER BY book_id FOR NO KEY UPDATE"


def select_users(
    pipeline: Pipeline,
    users: Collection[UserOfBook],
    erased: Collection[UserOfBook] = (),
    *,
    lock: bool,
) -> Rows:
    """Adds what reads the counters of these users of books, in the order that all batches lock;
    also of those that were erased, where there are any."""
    if lock:
        pipeline.add(ENSURE_USERS, _arrays(users))
    return pipeline.add(LOCK_USERS if lock else SELECT_USERS, _arrays((*users, *erased)))


def _arrays(users: Iterable[UserOfBook]) -> tuple[str, str, str]:
    keys = sorted({(bucket_of_user(user_id), book_id, user_id) for book_id, user_id in users})
    return (
        int_array([bucket for bucket, _, _ in keys]),
        uuid_array([book_id for _, book_id, _ in keys]),
        text_array([user_id for _, _, user_id in keys]),
    )


def select_totals(pipeline: Pipeline, books: Iterable[UUID], *, lock: bool) -> Rows:
    """Adds what reads what the redemptions of these books come to."""
    return pipeline.add(LOCK_TOTALS if lock else SELECT_TOTALS, (uuid_array(books),))


def limited(
    commands: Iterable[Command], state: State, now: datetime
) -> tuple[set[UserOfBook], set[UUID]]:
    """The users and books whose counters the commands need, by the limits of the books.

    The orders and the counts of periods that they need are put into the state, as nothing until
    they are read.
    None for what its caller cannot see: so it takes no more round trips than what does not exist,
    and nobody makes rows in the books of another business.
    """
    users: set[UserOfBook] = set()
    totals: set[UUID] = set()
    hidden: set[HiddenKey] = set()
    for command in commands:
        if isinstance(command, AssignRandom):
            book = state.books.get(command.book_id)
            if book is not None and command.call.business_id in ("", book.business_id):
                users.add((book.book_id, command.user_id))
            continue
        if not isinstance(command, Counted):
            continue
        business_id = command.call.business_id
        found = find_code(command.code, book_named(command), business_id, state)
        if isinstance(found, CouponServiceError):
            continue
        code, book = found
        if isinstance(command, (Redeem, Lock)) and is_hidden(command, code, book, state, now):
            hidden.add(hidden_key(command, code))
            continue
        if book.limits.any_per_user and not isinstance(command, Adjust):
            users.update((book.book_id, user_id) for user_id in _users_of(command))
        if book.limits.any_total and isinstance(command, (Redeem, Lock, Rollback, Adjust)):
            totals.add(book.book_id)
        if book.order_policy is not OrderPolicy.INDEPENDENT:
            state.order_coupons.update(dict.fromkeys(orders_of(command, book), NO_COUPONS))
        if book.period_limits is not None:
            state.periods.update(dict.fromkeys(periods_of(command, book, now), 0))
    state.hidden = frozenset(hidden)
    return users, totals


def _users_of(command: Counted) -> tuple[str, ...]:
    """Whose counts it has to do with."""
    if isinstance(command, Transfer):
        return command.from_user_id, command.to_user_id
    return (command.user_id,)
