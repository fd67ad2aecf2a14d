"""Mutants of what is left of erased users: bugs, in this process and for a test only."""

# pyright: reportPrivateUsage=false, reportUnknownMemberType=false

from __future__ import annotations

import asyncio
from typing import Any
from unittest import mock

from mutants.mutants import Mutant, _all

from coupon_service import erasure
from coupon_service.leases import Leases
from coupon_service.rules import decision, repeats
from coupon_service.store.commands import load as loading

ERASED_MEANWHILE_S = 3.0
"""How long somebody who does not know that a user is being erased goes on."""


def pseudonyms_not_looked_up() -> Mutant:
    """Who comes again after an erasure has used nothing."""
    return mock.patch.object(loading, "put_pseudonyms", return_value=None)


def orders_of_erased_users_not_read() -> Mutant:
    """An order has the coupons of those users only who are there."""
    return mock.patch.object(loading, "orders_under_pseudonyms", return_value=set())


def repeats_of_before_unknown() -> Mutant:
    """A repeat of a request of an erased user is compared with a row that says nothing."""
    return mock.patch.object(repeats, "is_erased", return_value=False)


def commands_beside_an_erasure() -> Mutant:
    """Users do what they like while they are being erased."""
    return mock.patch.object(decision, "erasure_refusal", return_value=None)


def who_does_not_know_not_waited_for() -> Mutant:
    """Names are replaced while there are transactions that look for the old ones only."""
    real: Any = loading._load_further

    async def load(*arguments: Any, **named: Any) -> Any:
        await asyncio.sleep(ERASED_MEANWHILE_S)
        return await real(*arguments, **named)

    async def nobody(*_: Any) -> list[str]:
        return []

    return _all(
        mock.patch.object(erasure, "unaware", nobody),
        mock.patch.object(loading, "_load_further", load),
    )


def names_left_in_redis() -> Mutant:
    """Redis forgets when it does."""

    async def erase(*_: Any) -> None:
        return None

    return mock.patch.object(Leases, "erase", erase)
