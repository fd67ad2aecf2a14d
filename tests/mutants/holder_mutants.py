"""Mutants of what goes from one holder to another: assignments, locks, and codes of the pool."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Any
from unittest import mock

from coupon_service.maintenance.pool_sweeper import PoolSweeper
from coupon_service.model import Assignment, AssignmentState, Book
from coupon_service.rules import locks as lock_rules
from coupon_service.rules import pool, transfers
from coupon_service.store.commands import apply as applying
from coupon_service.store.commands import load as loading

Mutant = Any


def old_lock_ended_in_redis_alone() -> Mutant:
    """What goes over to another user is not ended in the ledger."""

    def end_lock(held: Any, *_: object) -> Any:
        return held

    stack = ExitStack()
    stack.enter_context(mock.patch.object(lock_rules, "end_lock", end_lock))
    stack.enter_context(mock.patch.object(transfers, "end_lock", end_lock))
    return stack


def locks_of_the_giver_not_read() -> Mutant:
    """Whoever gives a code away may hold a lock on it that Redis knows of, and nobody else."""
    return mock.patch.object(loading, "select_user_locks", return_value=())


def counts_that_move_with_the_assignment() -> Mutant:
    """What the giver has redeemed counts for the receiver as well."""
    real = transfers._received

    def received(command: Any, given: Assignment, draft: Any) -> Assignment:
        after = real(command, given, draft)
        return replace(after, redemptions=after.redemptions + given.redemptions)

    return mock.patch.object(transfers, "_received", received)


def expiry_that_begins_anew() -> Mutant:
    """The receiver has the code for as long as somebody to whom it is assigned."""
    real = transfers._received

    def received(command: Any, given: Assignment, draft: Any) -> Assignment:
        after = real(command, given, draft)
        left = given.expire_time and given.assign_time and given.expire_time - given.assign_time
        return replace(after, expire_time=left and after.assign_time and after.assign_time + left)

    return mock.patch.object(transfers, "_received", received)


def returned_before_the_grace() -> Mutant:
    """A code goes back when the longest lock is over by its token."""
    real = PoolSweeper.__init__

    def made(self: Any, *arguments: Any) -> None:
        real(self, *arguments)
        self._life_max -= self._grace

    return mock.patch.object(PoolSweeper, "__init__", made)


def returned_although_redeemed() -> Mutant:
    """A code goes back as long as it has a use left."""

    def returns(assignment: Assignment, book: Book) -> bool:
        return book.return_to_pool and assignment.state is AssignmentState.ACTIVE

    stack = ExitStack()
    stack.enter_context(mock.patch.object(pool, "returns_to_pool", returns))
    stack.enter_context(mock.patch.object(applying, "returns_to_pool", returns))
    return stack
