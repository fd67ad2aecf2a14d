"""Codes that are imported with their users: decided and written as other assignments are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Final
from uuid import UUID

from coupon_service.errors import CouponServiceError
from coupon_service.model import (
    Assign,
    Book,
    Call,
    Code,
    CodeState,
    CodeTerms,
    CommandGroup,
    Event,
    EventType,
    State,
    UserCounts,
    WriteSet,
    event_id,
    fingerprint,
)
from coupon_service.model.codes import bucket_of
from coupon_service.rules import decide, in_scope
from coupon_service.store.commands.apply import apply
from coupon_service.store.commands.limit_counters import select_users
from coupon_service.store.erasures import NOBODY_ERASED, ErasedUsers
from coupon_service.store.events import select_events_by_id
from coupon_service.store.pipeline import Connection, Pipeline

Counts = Mapping[str, UserCounts]
"""What users have done in a book, where it limits that."""

NOTHING: Final = WriteSet(
    codes={}, assignments={}, users={}, totals={}, periods={}, orders={}, events=(), stats={}
)
"""What has to be written where no code is assigned."""


async def select_counts(
    connection: Connection,
    book: Book,
    users: Iterable[str],
    erased: ErasedUsers = NOBODY_ERASED,
    *,
    lock: bool,
) -> Counts:
    """The counts of the users, with those from before they were erased; with `lock`, locked against
    all batches."""
    if not book.limits.any_per_user:
        return {}
    wanted = set(users)
    if not wanted:
        return {}
    pipeline = Pipeline(connection)
    whose = {name: it for it in wanted for name in (it, *erased.pseudonyms.get(it, ()))}
    rows = select_users(
        pipeline,
        {(book.book_id, user_id) for user_id in wanted},
        {(book.book_id, name) for name in whose.keys() - wanted},
        lock=lock,
    )
    await pipeline.run()
    counts: dict[str, UserCounts] = {}
    for _, name, redemptions, assignments in rows:
        before = counts.get(whose[name], UserCounts())
        counts[whose[name]] = UserCounts(
            before.redemptions + redemptions, before.assignments + assignments
        )
    return counts


async def select_attempts(
    connection: Connection, book: Book, users: Mapping[str, str], call: Call
) -> Mapping[UUID, Event]:
    """What the ledger has of the attempts to assign codes to their users. `users`: by code, of
    codes that another book had."""
    if not users:
        return {}
    attempts = (in_scope(_assign(*it, book, call), book.book_id) for it in users.items())
    return await select_events_by_id(connection, [it.event_id for it in attempts])


def decide_assignments(
    book: Book,
    users: Mapping[str, str],
    terms: Mapping[str, CodeTerms],
    counts: Counts,
    attempts: Mapping[UUID, Event],
    call: Call,
    now: datetime,
    erased: ErasedUsers = NOBODY_ERASED,
) -> tuple[Mapping[str, CouponServiceError], WriteSet]:
    """Why codes that do not exist yet cannot be assigned to their users, and what has to be written
    for the others. `users`: by code. `attempts`: that were made before, in another book.

    The attempts have the ids and the fingerprints that AssignCode would give them.
    """
    state = State(
        books={book.book_id: book},
        users={(book.book_id, user_id): it for user_id, it in counts.items()},
        pseudonyms=erased.pseudonyms,
        erasures=erased.under_way,
        events=dict(attempts),
    )
    for code in users:
        state.put_code(Code(code, book.book_id, CodeState.AVAILABLE, 0, 0, terms=terms.get(code)))
    commands = tuple(_assign(code, user_id, book, call) for code, user_id in users.items())
    (outcomes,), write_set = decide([CommandGroup(commands)], state, now)
    refused = {
        command.code: outcome
        for command, outcome in zip(commands, outcomes, strict=True)
        if isinstance(outcome, CouponServiceError)
    }
    return refused, write_set


def _assign(code: str, user_id: str, book: Book, call: Call) -> Assign:
    attempt = call.caller, call.request_id, code
    return Assign(
        call=call,
        code=code,
        event_id=event_id(bucket_of(code), EventType.ASSIGNED, *attempt),
        fingerprint=fingerprint(user_id, book.book_id, None),
        user_id=user_id,
        book_id=book.book_id,
    )


async def write_assignments(connection: Connection, book: Book, write_set: WriteSet) -> None:
    """Writes what was decided, of codes that this transaction has made."""
    pipeline = Pipeline(connection)
    # Who counts codes counts them as they are in the end.
    apply(pipeline, replace(write_set, stats={}), {book.book_id: book})
    await pipeline.run()
