"""Which rows a batch of commands is decided on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from coupon_service.model import (
    Adjust,
    Assign,
    AssignRandom,
    ChangeLock,
    CodeCommand,
    Command,
    Event,
    EventType,
    Lock,
    Redeem,
    ReturnToPool,
    Revoke,
    Rollback,
    SetCodeEnabled,
    Transfer,
    rollback_id,
)
from coupon_service.rules import book_named, ids_of_attempt
from coupon_service.store.scopes import ScopedCode, Scoping

SHOWING: Final = (Assign, Revoke, Transfer, SetCodeEnabled)
"""Commands whose code is answered in its spelling."""


@dataclass(slots=True)
class ReadSet:
    """The keys of the rows that commands touch, each once. `shown`: codes that are answered in
    their spelling. `locks_of`: codes and users whose locks are of interest. `redemptions`: that may
    have been adjusted; `adjusted`: those that are to be."""

    codes: set[ScopedCode] = field(default_factory=set[ScopedCode])
    shown: set[ScopedCode] = field(default_factory=set[ScopedCode])
    books: set[UUID] = field(default_factory=set[UUID])
    assignments: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])
    events: set[UUID] = field(default_factory=set[UUID])
    random_events: set[UUID] = field(default_factory=set[UUID])
    lock_ids: dict[UUID, str] = field(default_factory=dict[UUID, str])
    locks_of: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])
    orders: set[tuple[str, str, str]] = field(default_factory=set[tuple[str, str, str]])
    redemptions: set[UUID] = field(default_factory=set[UUID])
    adjusted: dict[UUID, Event] = field(default_factory=dict[UUID, Event])
    candidates: Counter[UUID] = field(default_factory=Counter[UUID])
    fences: int = 0


def wanted_by(
    commands: Iterable[Command], scoping: Scoping, later_scopes: Mapping[UUID, int]
) -> ReadSet:
    """The rows that these commands touch. `later_scopes`: see `LoadMemory`."""
    wanted = ReadSet()
    for command in commands:
        if isinstance(command, AssignRandom):
            wanted.books.add(command.book_id)
            wanted.random_events.add(command.event_id)
            wanted.candidates[command.book_id] += 1
            continue
        _add_code(wanted, command, scoping, later_scopes)
        if isinstance(command, (Redeem, Lock, Assign, Revoke, Rollback)) or (
            isinstance(command, ChangeLock) and command.type is EventType.LOCK_EXTENDED
        ):
            wanted.assignments.add((command.code, command.user_id))
        if isinstance(command, Redeem):
            _add_redeem(wanted, command)
        elif isinstance(command, (Rollback, Adjust)):
            _add_redemption(wanted, command)
        else:
            _add_locks(wanted, command)
    return wanted


def _add_code(
    wanted: ReadSet, command: CodeCommand, scoping: Scoping, later_scopes: Mapping[UUID, int]
) -> None:
    """The code that is meant, its book where it is named, and earlier attempts."""
    book_id = book_named(command)
    scope = scoping.scope_of(book_id, command.call.business_id)
    if not scope and book_id is not None:
        scope = later_scopes.get(book_id, scope)
    wanted.codes.add((command.code, scope))
    wanted.events.update(ids_of_attempt(command, scope))
    if isinstance(command, SHOWING):
        wanted.shown.add((command.code, scope))
    if book_id is not None:
        wanted.books.add(book_id)


def _add_locks(wanted: ReadSet, command: CodeCommand) -> None:
    """What a lock or its change, or the end of an assignment, needs."""
    if isinstance(command, Lock):
        wanted.events.add(command.lock_id)
        if command.lock_id != command.event_id:
            wanted.lock_ids[command.lock_id] = command.code
        if command.taken_from is not None:
            wanted.lock_ids[command.taken_from.lock_id] = command.taken_from.code
        wanted.fences += 1
    elif isinstance(command, ChangeLock):
        wanted.lock_ids[command.lock_id] = command.code
    elif isinstance(command, (Transfer, ReturnToPool)):
        user_id = command.from_user_id if isinstance(command, Transfer) else command.user_id
        wanted.assignments.add((command.code, user_id))
        wanted.locks_of.add((command.code, user_id))
    if isinstance(command, Transfer):
        wanted.assignments.add((command.code, command.to_user_id))


def _add_redeem(wanted: ReadSet, command: Redeem) -> None:
    if command.order_id:
        wanted.orders.add((command.code, command.order_id, command.user_id))
    if command.lock is not None:
        wanted.lock_ids[command.lock.lock_id] = command.lock.code
    elif command.lease is not None and command.lease.held_lock_id is not None:
        wanted.lock_ids[command.lease.held_lock_id] = command.code


def _add_redemption(wanted: ReadSet, command: Rollback | Adjust) -> None:
    redemption = command.redemption
    wanted.redemptions.add(redemption.event_id)
    if isinstance(command, Adjust):
        wanted.events.add(rollback_id(redemption.event_id))
        wanted.adjusted[redemption.event_id] = redemption
