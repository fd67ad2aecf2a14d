"""The coalescer: one transaction for commands that arrive together, and what bounds it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import perf_counter
from typing import Any
from uuid import uuid4

import pytest
from prometheus_client import CollectorRegistry

from coupon_service.batching.batcher import (
    PART_SIZE,
    CommandLanes,
    LazyCommand,
    MicroBatcher,
    MicroBatcherSettings,
)
from coupon_service.batching.linger import BUSY_SIZE
from coupon_service.errors import (
    Contention,
    DeadlineExceeded,
    FieldViolation,
    InvalidArgument,
    NoCodesAvailable,
    Overloaded,
)
from coupon_service.model import Call, CommandGroup, EventType, Outcome, SetCodeEnabled
from coupon_service.telemetry.metrics import Metrics


class Transactions:
    """Stands in for the database: notes each batch and ends it when it is told to."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.error: Exception | None = None
        self.poison = ""

    async def execute(self, units: Sequence[CommandGroup]) -> list[list[Outcome]]:
        self.batches.append([_name(unit) for unit in units])
        await self.open.wait()
        if self.error is not None:
            raise self.error
        if self.poison in self.batches[-1]:
            raise ValueError(self.poison)
        return [[NoCodesAvailable(_name(unit)) for _ in unit.commands] for unit in units]


def _name(unit: CommandGroup) -> str:
    command = unit.commands[0]
    assert isinstance(command, SetCodeEnabled)
    return command.code


def _unit(code: str, *, size: int = 1, deadline: float | None = None) -> CommandGroup:
    command = SetCodeEnabled(
        call=Call("test", "request", deadline=deadline),
        type=EventType.CODE_DISABLED,
        code=code,
        event_id=uuid4(),
        fingerprint=0,
    )
    return CommandGroup((command,) * size)


def _coalescer(
    transactions: Transactions, **changes: float
) -> MicroBatcher[CommandGroup, list[Outcome]]:
    settings = {
        "batch_max_size": 4,
        "batches_in_flight": 1,
        "batch_max_wait_ms": 60_000,
        "queue_max_size": 8,
    } | changes
    return MicroBatcher(
        transactions.execute,
        MicroBatcherSettings(**settings),  # type: ignore[arg-type]
        Metrics(CollectorRegistry()),
    )


def _submit(
    coalescer: MicroBatcher[CommandGroup, list[Outcome]] | CommandLanes,
    *units: CommandGroup | LazyCommand[Any],
) -> list[asyncio.Task[list[Outcome]]]:
    return [asyncio.ensure_future(coalescer.submit(unit)) for unit in units]


async def _turns() -> None:
    """More turns of the event loop than a batch waits."""
    for _ in range(20):
        await asyncio.sleep(0)


async def _answers(tasks: Sequence[asyncio.Task[list[Outcome]]]) -> list[str]:
    return [str(outcome) for outcomes in await asyncio.gather(*tasks) for outcome in outcomes]


async def test_a_command_that_finds_the_service_idle_is_carried_out_at_once() -> None:
    transactions = Transactions()
    outcomes = await _coalescer(transactions).submit(_unit("A"))
    assert [str(outcome) for outcome in outcomes] == ["A"]
    assert transactions.batches == [["A"]]


async def test_what_arrives_during_a_batch_shares_the_next_one() -> None:
    transactions = Transactions()
    transactions.open.clear()
    coalescer = _coalescer(transactions)
    tasks = _submit(coalescer, _unit("A"))
    await _turns()
    tasks += _submit(coalescer, *map(_unit, "BCD"))
    await _turns()
    transactions.open.set()
    assert await _answers(tasks) == ["A", "B", "C", "D"]
    assert transactions.batches == [["A"], ["B", "C", "D"]]


async def test_a_batch_has_a_greatest_size_and_a_large_unit_is_never_split() -> None:
    transactions = Transactions()
    transactions.open.clear()
    coalescer = _coalescer(transactions)
    tasks = _submit(coalescer, _unit("A"))
    await _turns()
    tasks += _submit(coalescer, *map(_unit, "BCDEF"))
    await _turns()
    transactions.open.set()
    await asyncio.gather(*tasks)
    assert transactions.batches == [["A"], ["B", "C", "D", "E"], ["F"]]
    await coalescer.submit(_unit("G", size=20))
    assert transactions.batches[-1] == ["G"]


async def test_what_arrives_within_a_few_turns_of_the_event_loop_shares_a_batch() -> None:
    transactions = Transactions()
    coalescer = _coalescer(transactions)
    tasks = _submit(coalescer, _unit("A"))
    await asyncio.sleep(0)
    tasks += _submit(coalescer, _unit("B"))
    await asyncio.gather(*tasks)
    assert transactions.batches == [["A", "B"]]


async def _after_a_large_batch(
    transactions: Transactions, **changes: float
) -> MicroBatcher[CommandGroup, list[Outcome]]:
    """A coalescer that has just been busy."""
    coalescer = _coalescer(
        transactions, **{"batch_max_size": 2 * BUSY_SIZE, "queue_max_size": 100} | changes
    )
    await coalescer.submit(_unit("large", size=BUSY_SIZE))
    transactions.batches.clear()
    return coalescer


async def test_a_busy_coalescer_waits_as_long_as_more_arrive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quiet_s = 0.5  # long enough for a busy machine to be in time
    monkeypatch.setattr("coupon_service.batching.linger.LINGER_S", quiet_s)
    transactions = Transactions()
    coalescer = await _after_a_large_batch(transactions)
    tasks = _submit(coalescer, _unit("A"))
    for name in "BCD":
        await asyncio.sleep(quiet_s / 10)
        tasks += _submit(coalescer, _unit(name))
    await asyncio.gather(*tasks)
    assert transactions.batches == [["A", "B", "C", "D"]]


@pytest.mark.parametrize(
    ("changes", "size"), [({"batch_max_wait_ms": 0}, 1), ({"batch_max_size": BUSY_SIZE}, BUSY_SIZE)]
)
async def test_a_busy_coalescer_does_not_wait_when_it_is_time_or_enough(
    changes: dict[str, float], size: int
) -> None:
    transactions = Transactions()
    coalescer = await _after_a_large_batch(transactions, **changes)
    tasks = _submit(coalescer, _unit("A", size=size))
    await _turns()
    assert transactions.batches == [["A"]]
    await asyncio.gather(*tasks)


async def test_a_batch_that_is_full_waits_no_longer() -> None:
    transactions = Transactions()
    coalescer = _coalescer(transactions)
    tasks = _submit(coalescer, *map(_unit, "ABCD"))
    await asyncio.sleep(0)
    tasks += _submit(coalescer, _unit("E"))
    await asyncio.gather(*tasks)
    assert transactions.batches == [["A", "B", "C", "D"], ["E"]]


async def test_a_batch_waits_for_a_bounded_time() -> None:
    transactions = Transactions()
    coalescer = _coalescer(transactions, batch_max_wait_ms=0)
    tasks = _submit(coalescer, _unit("A"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    tasks += _submit(coalescer, _unit("B"))
    await asyncio.gather(*tasks)
    assert transactions.batches == [["A"], ["B"]]


async def test_several_batches_can_be_under_way() -> None:
    transactions = Transactions()
    transactions.open.clear()
    coalescer = _coalescer(transactions, batches_in_flight=2)
    tasks: list[asyncio.Task[list[Outcome]]] = []
    for name in "ABC":
        tasks += _submit(coalescer, _unit(name))
        await _turns()
    assert transactions.batches == [["A"], ["B"]]
    transactions.open.set()
    await asyncio.gather(*tasks)
    assert transactions.batches == [["A"], ["B"], ["C"]]


async def test_a_full_queue_is_told_at_once() -> None:
    transactions = Transactions()
    transactions.open.clear()
    coalescer = _coalescer(transactions)
    tasks = _submit(coalescer, _unit("A"))
    await _turns()
    tasks += _submit(coalescer, _unit("B", size=4), _unit("C", size=4))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await coalescer.submit(_unit("D"))
    transactions.open.set()
    await asyncio.gather(*tasks)
    assert [str(outcome) for outcome in await coalescer.submit(_unit("E"))] == ["E"]


async def test_a_command_whose_deadline_has_passed_is_not_carried_out() -> None:
    transactions = Transactions()
    transactions.open.clear()
    coalescer = _coalescer(transactions)
    tasks = _submit(coalescer, _unit("A"))
    await _turns()
    tasks += _submit(coalescer, _unit("B", deadline=perf_counter() - 1), _unit("C"))
    transactions.open.set()
    with pytest.raises(DeadlineExceeded):
        await tasks[1]
    assert await _answers([tasks[0], tasks[2]]) == ["A", "C"]
    assert transactions.batches == [["A"], ["C"]]


async def test_a_caller_that_stops_waiting_before_its_turn_is_left_out() -> None:
    transactions = Transactions()
    transactions.open.clear()
    coalescer = _coalescer(transactions)
    tasks = _submit(coalescer, _unit("A"))
    await _turns()
    tasks += _submit(coalescer, *map(_unit, "BC"))
    await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.sleep(0)
    transactions.open.set()
    assert await _answers([tasks[0], tasks[2]]) == ["A", "C"]
    assert transactions.batches == [["A"], ["C"]]


async def test_a_caller_that_stops_waiting_does_not_disturb_its_batch() -> None:
    transactions = Transactions()
    transactions.open.clear()
    coalescer = _coalescer(transactions)
    tasks = _submit(coalescer, _unit("A"))
    await _turns()
    tasks += _submit(coalescer, _unit("B"))
    tasks[0].cancel()
    await asyncio.sleep(0)
    transactions.open.set()
    assert await _answers(tasks[1:]) == ["B"]
    assert transactions.batches == [["A"], ["B"]]


async def test_a_failed_transaction_fails_all_its_callers() -> None:
    transactions = Transactions()
    transactions.open.clear()
    transactions.error = Contention()
    coalescer = _coalescer(transactions)
    tasks = _submit(coalescer, *map(_unit, "ABC"))
    await asyncio.sleep(0)
    transactions.open.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [Contention] * 3


async def test_a_command_that_breaks_its_batch_only_fails_itself() -> None:
    transactions = Transactions()
    transactions.open.clear()
    transactions.poison = "C"
    coalescer = _coalescer(transactions)
    tasks = _submit(coalescer, *map(_unit, "ABCD"))
    await asyncio.sleep(0)
    transactions.open.set()
    with pytest.raises(ValueError, match="C"):
        await tasks[2]
    assert await _answers([tasks[0], tasks[1], tasks[3]]) == ["A", "B", "D"]


async def test_draining_carries_out_what_waits() -> None:
    transactions = Transactions()
    coalescer = _coalescer(transactions, batches_in_flight=2, batch_max_wait_ms=60_000)
    tasks = _submit(coalescer, _unit("A", size=3), _unit("B"))
    await asyncio.sleep(0)
    await coalescer.drain()
    assert all(task.done() for task in tasks) or await asyncio.gather(*tasks)
    assert [name for batch in transactions.batches for name in batch] == ["A", "B"]


def _changes(transactions: Transactions, **changes: float) -> CommandLanes:
    return CommandLanes(_coalescer(transactions, **changes), _coalescer(transactions, **changes))


async def test_a_large_call_does_not_hold_up_a_small_one() -> None:
    transactions = Transactions()
    transactions.open.clear()
    changes = _changes(transactions)
    large = _submit(changes, _unit("A", size=4))
    await _turns()
    small = _submit(changes, _unit("B"))
    await _turns()
    assert transactions.batches == [["A"], ["B"]]
    transactions.open.set()
    await asyncio.gather(*large, *small)


async def test_a_large_call_is_carried_out_in_parts_unless_it_is_all_or_nothing() -> None:
    transactions = Transactions()
    changes = _changes(transactions, batch_max_size=PART_SIZE, queue_max_size=1_000)
    outcomes = await changes.submit(_unit("A", size=2 * PART_SIZE + 1))
    assert len(outcomes) == 2 * PART_SIZE + 1
    assert transactions.batches == [["A"]] * 3
    commands = _unit("B", size=2 * PART_SIZE + 1).commands
    await changes.submit(CommandGroup(commands, atomic=True))
    assert transactions.batches == [["A"]] * 3 + [["B"]]


async def test_the_commands_of_a_part_that_failed_have_its_error() -> None:
    transactions = Transactions()
    changes = _changes(transactions, batch_max_size=PART_SIZE, queue_max_size=1_000)
    running = _submit(changes, _unit("A", size=2 * PART_SIZE))
    while len(transactions.batches) < 2:
        await asyncio.sleep(0)
        if len(transactions.batches) == 1:
            transactions.open.clear()
    transactions.error = Contention()
    transactions.open.set()
    (outcomes,) = await asyncio.gather(*running)
    assert [type(outcome) for outcome in outcomes] == [
        *[NoCodesAvailable] * PART_SIZE,
        *[Contention] * PART_SIZE,
    ]


async def test_a_large_call_fails_as_a_whole_when_all_its_parts_do() -> None:
    transactions = Transactions()
    transactions.error = Contention()
    changes = _changes(transactions, batch_max_size=PART_SIZE, queue_max_size=1_000)
    with pytest.raises(Contention):
        await changes.submit(_unit("A", size=2 * PART_SIZE))


async def test_a_large_call_that_does_not_fit_into_the_queue_is_refused_as_a_whole() -> None:
    transactions = Transactions()
    transactions.open.clear()
    changes = _changes(transactions, batch_max_size=PART_SIZE, queue_max_size=2 * PART_SIZE)
    waiting = _submit(changes, _unit("A", size=PART_SIZE), _unit("B", size=PART_SIZE))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await changes.submit(_unit("C", size=PART_SIZE + 1))
    transactions.open.set()
    await asyncio.gather(*waiting)
    assert "C" not in [name for batch in transactions.batches for name in batch]


async def test_draining_ends_when_nobody_waits_for_what_is_queued() -> None:
    coalescer = _coalescer(Transactions())
    (task,) = _submit(coalescer, _unit("A"))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    await coalescer.drain()


# --- units that are read later ------------------------------------------------------------------


def _later(
    code: str, read: list[str], deadline: float | None = None
) -> LazyCommand[SetCodeEnabled]:
    def command() -> SetCodeEnabled:
        read.append(code)
        if code.startswith("bad"):
            raise InvalidArgument((FieldViolation("code", code),))
        (command,) = _unit(code).commands
        assert isinstance(command, SetCodeEnabled)
        return command

    return LazyCommand(command, deadline)


async def test_requests_are_read_when_their_batch_begins() -> None:
    transactions = Transactions()
    transactions.open.clear()
    coalescer = _coalescer(transactions)
    read: list[str] = []
    wishes = [_later(name, read) for name in ("a", "b", "c")]
    answers = _submit(coalescer, wishes[0])
    await _turns()
    answers += _submit(coalescer, *wishes[1:])
    await _turns()
    assert read == ["a"]
    transactions.open.set()
    await asyncio.gather(*answers)
    assert transactions.batches == [["a"], ["b", "c"]]
    assert [wish.command.code for wish in wishes] == ["a", "b", "c"]


async def test_what_is_wrong_with_a_request_is_told_to_its_caller_alone() -> None:
    transactions = Transactions()
    coalescer = _coalescer(transactions)
    read: list[str] = []
    wishes = [_later(name, read) for name in ("a", "bad", "b")]
    good, bad, other = await asyncio.gather(*_submit(coalescer, *wishes), return_exceptions=True)
    assert isinstance(bad, InvalidArgument)
    assert isinstance(good, list)
    assert isinstance(other, list)
    assert transactions.batches == [["a", "b"]]
    bad, worse = await asyncio.gather(
        *_submit(coalescer, _later("bad", read), _later("bad too", read)), return_exceptions=True
    )
    assert isinstance(bad, InvalidArgument)
    assert isinstance(worse, InvalidArgument)
    assert transactions.batches == [["a", "b"]]


async def test_a_request_whose_deadline_has_passed_is_not_read() -> None:
    read: list[str] = []
    (answer,) = _submit(_coalescer(Transactions()), _later("a", read, perf_counter() - 1))
    with pytest.raises(DeadlineExceeded):
        await answer
    assert read == []


class Slow:
    """Answers every unit with a future."""

    def __init__(self) -> None:
        self.answers: list[asyncio.Future[list[Outcome]]] = []

    async def execute(self, units: Sequence[CommandGroup]) -> list[asyncio.Future[list[Outcome]]]:
        loop = asyncio.get_running_loop()
        self.answers = [loop.create_future() for _ in units]
        return self.answers


async def test_an_answer_may_come_later_than_those_of_the_others() -> None:
    slow = Slow()
    settings = MicroBatcherSettings(4, 1, 60_000, 8)
    coalescer = MicroBatcher(slow.execute, settings, Metrics(CollectorRegistry()))
    first, second, third = (asyncio.ensure_future(coalescer.submit(_unit(it))) for it in "ABC")
    await _turns()
    await coalescer.drain()
    third.cancel()
    slow.answers[1].set_exception(Contention())
    with pytest.raises(Contention):
        await second
    assert not first.done()
    slow.answers[2].set_exception(Contention())  # nobody waits for it
    slow.answers[0].set_result([])
    assert await first == []


async def test_commands_that_are_joined_wait_as_long_as_the_last_of_their_callers() -> None:
    soon, later, never = (_unit("A", deadline=it).commands for it in (1.0, 2.0, None))
    assert CommandGroup(soon + later + soon).deadline == 2.0
    assert CommandGroup(soon + never).deadline is None
