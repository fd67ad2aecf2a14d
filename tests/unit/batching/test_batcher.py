"""One transaction for commands that arrive together, and what bounds it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from support.batches import (
    BUSY_SIZE,
    LINGER,
    Transactions,
    answers,
    group,
    micro_batcher,
    submit,
    turns,
)

from coupon_service.batching import BatchingSettings, MicroBatcher, Rush
from coupon_service.batching.linger import LastBatch
from coupon_service.errors import Contention, DeadlineExceeded, Overloaded
from coupon_service.model import CommandGroup, Outcome
from coupon_service.telemetry.metrics import Metrics

SETTINGS = BatchingSettings().commands


async def test_a_command_that_finds_the_service_idle_is_carried_out_at_once() -> None:
    transactions = Transactions()
    outcomes = await micro_batcher(transactions).submit(group("A"))
    assert [str(outcome) for outcome in outcomes] == ["A"]
    assert transactions.batches == [["A"]]


async def test_what_arrives_during_a_batch_shares_the_next_one() -> None:
    transactions = Transactions()
    transactions.open.clear()
    batcher = micro_batcher(transactions)
    tasks = submit(batcher, group("A"))
    await turns()
    tasks += submit(batcher, *map(group, "BCD"))
    await turns()
    transactions.open.set()
    assert await answers(tasks) == ["A", "B", "C", "D"]
    assert transactions.batches == [["A"], ["B", "C", "D"]]


async def test_a_batch_has_a_greatest_size_and_a_large_group_is_never_split() -> None:
    transactions = Transactions()
    transactions.open.clear()
    batcher = micro_batcher(transactions)
    tasks = submit(batcher, group("A"))
    await turns()
    tasks += submit(batcher, *map(group, "BCDEF"))
    await turns()
    transactions.open.set()
    await asyncio.gather(*tasks)
    assert transactions.batches == [["A"], ["B", "C", "D", "E"], ["F"]]
    await batcher.submit(group("G", size=20))
    assert transactions.batches[-1] == ["G"]


async def test_what_arrives_within_a_few_turns_of_the_event_loop_shares_a_batch() -> None:
    transactions = Transactions()
    batcher = micro_batcher(transactions)
    tasks = submit(batcher, group("A"))
    await asyncio.sleep(0)
    tasks += submit(batcher, group("B"))
    await asyncio.gather(*tasks)
    assert transactions.batches == [["A", "B"]]


async def _busy(
    transactions: Transactions, *, for_s: float = 0, **changes: Any
) -> MicroBatcher[CommandGroup, list[Outcome]]:
    """A batcher that has just been busy, with a batch that took so long."""
    settings: dict[str, Any] = {"batch_max_size": 2 * BUSY_SIZE, "queue_max_size": 100} | changes
    batcher = micro_batcher(transactions, **settings)
    transactions.open.clear()
    tasks = submit(batcher, *map(group, "x" * BUSY_SIZE))
    await asyncio.sleep(for_s)
    transactions.open.set()
    await asyncio.gather(*tasks)
    transactions.batches.clear()
    return batcher


async def test_a_busy_batcher_waits_as_long_as_more_arrive() -> None:
    linger_s = 0.5  # long enough for a busy machine to be in time
    transactions = Transactions()
    linger = replace(LINGER, linger_ms=1_000 * linger_s)
    batcher = await _busy(transactions, for_s=2 * linger_s, linger=linger)
    tasks = submit(batcher, group("A"))
    for name in "BCD":
        await asyncio.sleep(linger_s / 10)
        tasks += submit(batcher, group(name))
    await asyncio.gather(*tasks)
    assert transactions.batches == [["A", "B", "C", "D"]]


async def test_a_batcher_waits_for_more_where_those_beside_it_are_busy() -> None:
    linger_s = 0.5
    transactions, rush = Transactions(), Rush()
    rush.executed("another", LastBatch(BUSY_SIZE, 60))
    linger = replace(LINGER, linger_ms=1_000 * linger_s)
    batcher = micro_batcher(transactions, rush, linger=linger)
    tasks = submit(batcher, group("A"))
    await asyncio.sleep(linger_s / 10)
    tasks += submit(batcher, group("B"))
    await asyncio.gather(*tasks)
    assert transactions.batches == [["A", "B"]]


def test_batches_of_others_count_for_as_long_as_a_batch_may_wait() -> None:
    rush = Rush()
    rush.executed("one", LastBatch(3, 0.25))
    rush.executed("other", LastBatch(4, 0.5))
    assert rush.last("one", 60) == LastBatch(7, 0.75)
    assert rush.last("one", -60) == LastBatch(3, 0.25)
    assert rush.last("third", 60) == LastBatch(7, 0.75)
    assert rush.last("third", -60) == LastBatch()


@pytest.mark.parametrize(
    ("changes", "size"), [({"batch_max_wait_ms": 0}, 1), ({"batch_max_size": BUSY_SIZE}, BUSY_SIZE)]
)
async def test_a_busy_batcher_does_not_wait_when_it_is_time_or_enough(
    changes: dict[str, float], size: int
) -> None:
    transactions = Transactions()
    batcher = await _busy(transactions, **changes)
    tasks = submit(batcher, group("A", size=size))
    await turns()
    assert transactions.batches == [["A"]]
    await asyncio.gather(*tasks)


@pytest.mark.parametrize(("for_s", "batch_max_wait_ms"), [(0.2, 10), (0, 60_000)])
async def test_a_busy_batcher_lingers_no_longer_than_a_batch_may_wait_or_the_last_took(
    for_s: float, batch_max_wait_ms: float
) -> None:
    transactions = Transactions()
    linger = replace(LINGER, linger_ms=60_000)
    batcher = await _busy(
        transactions, for_s=for_s, linger=linger, batch_max_wait_ms=batch_max_wait_ms
    )
    async with asyncio.timeout(30):
        await batcher.submit(group("A"))


async def test_a_batch_that_is_full_waits_no_longer() -> None:
    transactions = Transactions()
    batcher = micro_batcher(transactions)
    tasks = submit(batcher, *map(group, "ABCD"))
    await asyncio.sleep(0)
    tasks += submit(batcher, group("E"))
    await asyncio.gather(*tasks)
    assert transactions.batches == [["A", "B", "C", "D"], ["E"]]


async def test_a_batch_waits_for_a_bounded_time() -> None:
    transactions = Transactions()
    batcher = micro_batcher(transactions, batch_max_wait_ms=0)
    tasks = submit(batcher, group("A"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    tasks += submit(batcher, group("B"))
    await asyncio.gather(*tasks)
    assert transactions.batches == [["A"], ["B"]]


async def test_several_batches_can_be_under_way() -> None:
    transactions = Transactions()
    transactions.open.clear()
    batcher = micro_batcher(transactions, batches_in_flight=2)
    tasks: list[asyncio.Task[list[Outcome]]] = []
    for name in "ABC":
        tasks += submit(batcher, group(name))
        await turns()
    assert transactions.batches == [["A"], ["B"]]
    transactions.open.set()
    await asyncio.gather(*tasks)
    assert transactions.batches == [["A"], ["B"], ["C"]]


async def test_a_full_queue_refuses_at_once() -> None:
    transactions = Transactions()
    transactions.open.clear()
    batcher = micro_batcher(transactions)
    tasks = submit(batcher, group("A"))
    await turns()
    tasks += submit(batcher, group("B", size=4), group("C", size=4))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await batcher.submit(group("D"))
    transactions.open.set()
    await asyncio.gather(*tasks)
    assert [str(outcome) for outcome in await batcher.submit(group("E"))] == ["E"]


async def test_a_command_whose_deadline_has_passed_is_not_carried_out() -> None:
    transactions = Transactions()
    transactions.open.clear()
    batcher = micro_batcher(transactions)
    tasks = submit(batcher, group("A"))
    await turns()
    tasks += submit(batcher, group("B", deadline=perf_counter() - 1), group("C"))
    transactions.open.set()
    with pytest.raises(DeadlineExceeded):
        await tasks[1]
    assert await answers([tasks[0], tasks[2]]) == ["A", "C"]
    assert transactions.batches == [["A"], ["C"]]


async def test_a_caller_that_stops_waiting_before_its_turn_is_left_out() -> None:
    transactions = Transactions()
    transactions.open.clear()
    batcher = micro_batcher(transactions)
    tasks = submit(batcher, group("A"))
    await turns()
    tasks += submit(batcher, *map(group, "BC"))
    await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.sleep(0)
    transactions.open.set()
    assert await answers([tasks[0], tasks[2]]) == ["A", "C"]
    assert transactions.batches == [["A"], ["C"]]


async def test_a_caller_that_stops_waiting_does_not_disturb_its_batch() -> None:
    transactions = Transactions()
    transactions.open.clear()
    batcher = micro_batcher(transactions)
    tasks = submit(batcher, group("A"))
    await turns()
    tasks += submit(batcher, group("B"))
    tasks[0].cancel()
    await asyncio.sleep(0)
    transactions.open.set()
    assert await answers(tasks[1:]) == ["B"]
    assert transactions.batches == [["A"], ["B"]]


async def test_a_failed_transaction_fails_all_its_callers() -> None:
    transactions = Transactions()
    transactions.open.clear()
    transactions.error = Contention()
    batcher = micro_batcher(transactions)
    tasks = submit(batcher, *map(group, "ABC"))
    await asyncio.sleep(0)
    transactions.open.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [Contention] * 3


async def test_a_command_that_breaks_its_batch_only_fails_itself() -> None:
    transactions = Transactions()
    transactions.open.clear()
    transactions.poison = "C"
    batcher = micro_batcher(transactions)
    tasks = submit(batcher, *map(group, "ABCD"))
    await asyncio.sleep(0)
    transactions.open.set()
    with pytest.raises(ValueError, match="C"):
        await tasks[2]
    assert await answers([tasks[0], tasks[1], tasks[3]]) == ["A", "B", "D"]


async def test_those_who_wait_can_be_failed_with_the_batch_before() -> None:
    transactions = Transactions()
    transactions.open.clear()
    batcher = micro_batcher(transactions)
    tasks = submit(batcher, group("A"))
    await turns()
    tasks += submit(batcher, *map(group, "BC"))
    await turns()
    until_s = perf_counter()
    tasks += submit(batcher, group("D"))
    await turns()
    batcher.fail_queued(Contention(), until_s)
    transactions.open.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(result, Contention) for result in results] == [False, True, True, False]
    assert transactions.batches == [["A"], ["D"]]


async def test_draining_carries_out_what_waits() -> None:
    transactions = Transactions()
    batcher = micro_batcher(transactions, batches_in_flight=2, batch_max_wait_ms=60_000)
    tasks = submit(batcher, group("A", size=3), group("B"))
    await asyncio.sleep(0)
    await batcher.drain()
    assert all(task.done() for task in tasks) or await asyncio.gather(*tasks)
    assert [name for batch in transactions.batches for name in batch] == ["A", "B"]


async def test_draining_ends_when_nobody_waits_for_what_is_queued() -> None:
    batcher = micro_batcher(Transactions())
    (task,) = submit(batcher, group("A"))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    await batcher.drain()


class Slow:
    """Answers every group with a future."""

    def __init__(self) -> None:
        self.answers: list[asyncio.Future[list[Outcome]]] = []

    async def execute(self, groups: Sequence[CommandGroup]) -> list[asyncio.Future[list[Outcome]]]:
        loop = asyncio.get_running_loop()
        self.answers = [loop.create_future() for _ in groups]
        return self.answers


async def test_an_answer_may_take_longer_than_those_of_the_others() -> None:
    slow = Slow()
    batcher = MicroBatcher(slow.execute, SETTINGS, Metrics(CollectorRegistry()))
    first, second, third = (asyncio.ensure_future(batcher.submit(group(it))) for it in "ABC")
    await turns()
    await batcher.drain()
    third.cancel()
    slow.answers[1].set_exception(Contention())
    with pytest.raises(Contention):
        await second
    assert not first.done()
    slow.answers[2].set_exception(Contention())  # nobody waits for it
    slow.answers[0].set_result([])
    assert await first == []


async def test_commands_that_are_joined_wait_as_long_as_the_last_of_their_callers() -> None:
    soon, later, never = (group("A", deadline=it).commands for it in (1.0, 2.0, None))
    assert CommandGroup(soon + later + soon).deadline == 2.0
    assert CommandGroup(soon + never).deadline is None
