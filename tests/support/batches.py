"""A MicroBatcher on a fake database, which records what shares a transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from prometheus_client import CollectorRegistry

from coupon_service.batching import (
    BatchingSettings,
    CommandLanes,
    LazyCommand,
    MicroBatcher,
    MicroBatcherSettings,
    Rush,
)
from coupon_service.errors import NoCodesAvailable
from coupon_service.model import Call, CommandGroup, EventType, Outcome, SetCodeEnabled
from coupon_service.telemetry.metrics import Metrics

LINGER = BatchingSettings().reads.linger
BUSY_SIZE = LINGER.busy_size


class Transactions:
    """A fake database: it records each batch, and completes it once `open` is set."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.error: Exception | None = None
        self.poison = ""

    async def execute(self, groups: Sequence[CommandGroup]) -> list[list[Outcome]]:
        self.batches.append([_name(each) for each in groups])
        await self.open.wait()
        if self.error is not None:
            raise self.error
        if self.poison in self.batches[-1]:
            raise ValueError(self.poison)
        return [[NoCodesAvailable(_name(each)) for _ in each.commands] for each in groups]


def _name(of: CommandGroup) -> str:
    command = of.commands[0]
    assert isinstance(command, SetCodeEnabled)
    return command.code


def group(code: str, *, size: int = 1, deadline: float | None = None) -> CommandGroup:
    command = SetCodeEnabled(
        call=Call("test", "request", deadline=deadline),
        type=EventType.CODE_DISABLED,
        code=code,
        event_id=uuid4(),
        fingerprint=0,
    )
    return CommandGroup((command,) * size)


def micro_batcher(
    transactions: Transactions, rush: Rush | None = None, **changes: Any
) -> MicroBatcher[CommandGroup, list[Outcome]]:
    """A batcher of up to four commands, whose queue holds eight."""
    settings: dict[str, Any] = {
        "batch_max_size": 4,
        "batches_in_flight": 1,
        "batch_max_wait_ms": 60_000,
        "queue_max_size": 8,
        "linger": LINGER,
    } | changes
    return MicroBatcher(
        transactions.execute,
        MicroBatcherSettings(**settings),
        Metrics(CollectorRegistry()),
        rush=rush,
    )


def submit(
    batcher: MicroBatcher[CommandGroup, list[Outcome]] | CommandLanes,
    *groups: CommandGroup | LazyCommand[Any],
) -> list[asyncio.Task[list[Outcome]]]:
    return [asyncio.ensure_future(batcher.submit(each)) for each in groups]


async def turns() -> None:
    """Yield to the event loop more often than a batch waits."""
    for _ in range(20):
        await asyncio.sleep(0)


async def answers(tasks: Sequence[asyncio.Task[list[Outcome]]]) -> list[str]:
    return [str(outcome) for outcomes in await asyncio.gather(*tasks) for outcome in outcomes]
