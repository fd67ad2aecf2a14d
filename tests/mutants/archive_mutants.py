"""Mutants of archives of the ledger."""

# pyright: reportUnknownMemberType=false

from __future__ import annotations

from typing import Any
from unittest import mock

from coupon_service.audit import balances
from coupon_service.rules import decision, repeats
from coupon_service.store import erasures
from coupon_service.store.archiving import archive, events

Mutant = Any


def archives_not_asked_for_repeats() -> Mutant:
    """What the ledger does not have was never done."""
    return mock.patch.object(repeats, "archived_attempt", return_value=None)


def changed_while_it_is_archived() -> Mutant:
    """A redemption that the ledger still has is rolled back, whatever the file says of it."""
    return mock.patch.object(decision, "archived_redemption", return_value=None)


def roll_backs_not_in_the_balance() -> Mutant:
    """Opening balances count what was redeemed."""
    return mock.patch.object(balances, "ROLLED_BACK", -1)


def ids_kept_when_events_are_back() -> Mutant:
    """What was restored still counts as archived."""
    return mock.patch.object(events, "FORGET_ARCHIVED", "SELECT %s")


def orders_not_kept() -> Mutant:
    """Who had something on an order is forgotten with the ledger."""
    return mock.patch.object(archive, "keep_orders", return_value=None)


def archived_orders_not_erased() -> Mutant:
    """An erasure looks for orders in the ledger alone."""
    return mock.patch.object(erasures, "SELECT_ARCHIVED", "SELECT WHERE false AND %s <> %s")
