"""Small and large calls side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from support.batches import Transactions, group, micro_batcher, submit, turns

from coupon_service.batching import CommandLanes
from coupon_service.errors import (
    Contention,
    CouponServiceError,
    DatabaseUnavailable,
    NoCodesAvailable,
    Overloaded,
)
from coupon_service.model import CommandGroup, Outcome

PART = 5


def lanes(transactions: Transactions, queue_max_size: int = 100) -> CommandLanes:
    bounds: dict[str, Any] = {"batch_max_size": PART, "queue_max_size": queue_max_size}
    return CommandLanes(
        micro_batcher(transactions, **bounds), micro_batcher(transactions, **bounds), PART
    )


async def test_a_large_call_does_not_hold_up_a_small_one() -> None:
    transactions = Transactions()
    transactions.open.clear()
    them = lanes(transactions)
    large = submit(them, group("A", size=4))
    await turns()
    small = submit(them, group("B"))
    await turns()
    assert transactions.batches == [["A"], ["B"]]
    transactions.open.set()
    await asyncio.gather(*large, *small)


async def test_a_large_call_is_carried_out_in_parts_unless_it_is_all_or_nothing() -> None:
    transactions = Transactions()
    them = lanes(transactions)
    outcomes = await them.submit(group("A", size=2 * PART + 1))
    assert len(outcomes) == 2 * PART + 1
    assert transactions.batches == [["A"]] * 3
    commands = group("B", size=2 * PART + 1).commands
    await them.submit(CommandGroup(commands, atomic=True))
    assert transactions.batches == [["A"]] * 3 + [["B"]]


async def test_the_commands_of_a_part_that_failed_have_its_error() -> None:
    transactions = Transactions()
    them = lanes(transactions)
    running = submit(them, group("A", size=2 * PART))
    while len(transactions.batches) < 2:
        await asyncio.sleep(0)
        if len(transactions.batches) == 1:
            transactions.open.clear()
    transactions.error = Contention()
    transactions.open.set()
    (outcomes,) = await asyncio.gather(*running)
    assert [type(outcome) for outcome in outcomes] == [
        *[NoCodesAvailable] * PART,
        *[Contention] * PART,
    ]


async def test_a_large_call_fails_as_a_whole_when_all_its_parts_fail_alike() -> None:
    transactions = Transactions()
    transactions.error = Contention()
    them = lanes(transactions)
    with pytest.raises(Contention):
        await them.submit(group("A", size=2 * PART))


async def test_a_large_call_whose_parts_fail_differently_is_answered_part_by_part() -> None:
    """One of them may have been carried out, and the other not."""
    transactions = Transactions()
    errors: list[CouponServiceError] = [DatabaseUnavailable(), Contention()]
    execute = transactions.execute

    async def failing(groups: Sequence[CommandGroup]) -> list[list[Outcome]]:
        transactions.error = errors.pop(0)
        return await execute(groups)

    transactions.execute = failing
    outcomes = await lanes(transactions).submit(group("A", size=2 * PART))
    assert [type(outcome) for outcome in outcomes] == [
        *[DatabaseUnavailable] * PART,
        *[Contention] * PART,
    ]


async def test_a_large_call_that_does_not_fit_into_the_queue_is_refused_as_a_whole() -> None:
    transactions = Transactions()
    transactions.open.clear()
    them = lanes(transactions, 2 * PART)
    waiting = submit(them, group("A", size=PART), group("B", size=PART))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await them.submit(group("C", size=PART + 1))
    transactions.open.set()
    await asyncio.gather(*waiting)
    assert "C" not in [name for batch in transactions.batches for name in batch]
