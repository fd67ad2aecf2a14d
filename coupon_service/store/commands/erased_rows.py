"""Rows of users who were erased and come again: those of before are under pseudonyms.

They are read beside the rows that there are now, by the same statements, and only once anybody was
erased.
"""

from __future__ import annotations

from collections.abc import Iterable

from coupon_service.model import (
    Adjust,
    AssignRandom,
    Command,
    OrderRef,
    PeriodKey,
    Rollback,
    State,
)
from coupon_service.model.pseudonyms import Pseudonyms
from coupon_service.rules import order_named, orders_of_erased, users_of
from coupon_service.store.commands.limit_counters import UserOfBook
from coupon_service.store.commands.read_set import ReadSet


def put_pseudonyms(commands: Iterable[Command], pseudonyms: Pseudonyms, state: State) -> None:
    """Puts those of the users and orders of the commands into the state."""
    commands = list(commands)
    state.pseudonyms = pseudonyms.of_users(it for command in commands for it in users_of(command))
    state.order_pseudonyms = pseudonyms.of_orders(map(order_named, commands))


def add_erased(commands: Iterable[Command], wanted: ReadSet, state: State) -> None:
    """Adds the assignments and redemptions of before, and the redemptions that are rolled back or
    adjusted, whose users may have been erased since they were read."""
    for command in commands:
        if isinstance(command, (Rollback, Adjust)):
            wanted.events.add(command.redemption.event_id)
        if isinstance(command, AssignRandom):
            continue
        for user_id in users_of(command):
            names = state.pseudonyms.get(user_id, ())
            wanted.assignments.update((command.code, it) for it in names)
    for code, order_id, user_id in tuple(wanted.orders):
        orders = state.order_pseudonyms.get(order_id, ())
        users = state.pseudonyms.get(user_id, ())
        wanted.orders.update((code, *it) for it in zip(orders, users, strict=False))


def users_under_pseudonyms(users: Iterable[UserOfBook], state: State) -> set[UserOfBook]:
    """What else counts for these users of books."""
    if not state.pseudonyms:
        return set()
    return {(book, it) for book, user_id in users for it in state.pseudonyms.get(user_id, ())}


def periods_under_pseudonyms(keys: Iterable[PeriodKey], state: State) -> set[PeriodKey]:
    """What else counts for these users in periods."""
    if not state.pseudonyms:
        return set()
    return {
        (book, it, start)
        for book, user_id, start in keys
        for it in state.pseudonyms.get(user_id, ())
    }


def orders_under_pseudonyms(orders: Iterable[OrderRef], state: State) -> set[OrderRef]:
    """What else counts for these orders."""
    if not state.order_pseudonyms:
        return set()
    return {it for order in orders for it in orders_of_erased(order, state)}
