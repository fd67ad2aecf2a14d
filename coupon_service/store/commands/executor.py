"""Load, decide, apply: the one transaction in which a batch of commands is carried out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Final, cast

import structlog

from coupon_service.errors import reason_name
from coupon_service.model import (
    Adjust,
    Assign,
    AssignRandom,
    ChangeLock,
    Command,
    CommandGroup,
    Done,
    EventType,
    LeaseNeeded,
    Lock,
    Outcome,
    Redeem,
    ReturnToPool,
    Revoke,
    Rollback,
    SetCodeEnabled,
    State,
    Transfer,
)
from coupon_service.model.pseudonyms import NO_PSEUDONYMS, Pseudonyms
from coupon_service.rules import decide
from coupon_service.store.commands.apply import apply
from coupon_service.store.commands.load import load
from coupon_service.store.commands.order_coupons import delete_unused_orders
from coupon_service.store.database import Database
from coupon_service.store.pipeline import Connection, Pipeline
from coupon_service.store.scopes import LoadMemory
from coupon_service.telemetry.metrics import Metrics

EVENTS: Final[Mapping[type[Command], str]] = {
    Redeem: EventType.REDEEMED.name,
    Rollback: EventType.ROLLED_BACK.name,
    Adjust: EventType.ADJUSTED.name,
    Lock: EventType.LOCKED.name,
    Assign: EventType.ASSIGNED.name,
    AssignRandom: EventType.ASSIGNED.name,
    Revoke: EventType.REVOKED.name,
    Transfer: EventType.ASSIGNMENT_TRANSFERRED.name,
    ReturnToPool: EventType.ASSIGNMENT_EXPIRED.name,
}
"""What each command is to write to the ledger; the others say it themselves."""

Leased = Callable[[Sequence[Sequence[Outcome]]], Awaitable[Sequence[CommandGroup]]]


class Executor:
    """Carries out batches. There is no other way to change a code."""

    def __init__(
        self,
        database: Database,
        now: Callable[[], datetime],
        metrics: Metrics,
        pseudonyms: Pseudonyms = NO_PSEUDONYMS,
    ) -> None:
        """`pseudonyms`: what finds those of users who were erased."""
        self._database = database
        self._now = now
        self._metrics = metrics
        self._memory = LoadMemory(pseudonyms)
        self._log = structlog.get_logger(__name__)
        self._warned = False

    async def execute(self, groups: Sequence[CommandGroup]) -> list[list[Outcome]]:
        """Decides and commits the commands of all groups together; an outcome for each command.

        Raises what `Database.transaction` raises; then nothing was done, or (DatabaseUnavailable)
        repeating the same commands finds out.
        """
        return await self._carry_out("commands", groups, None)

    async def execute_leased(
        self, groups: Sequence[CommandGroup], leased: Leased
    ) -> list[list[Outcome]]:
        """As `execute`, for commands that change nothing without a permit.

        While their rows are locked, `leased` gets what they come to without one, and gives them
        back, those with a permit that have got one. It may be called again, with the same commands.
        """
        return await self._carry_out("locks", groups, leased)

    async def _carry_out(
        self, name: str, groups: Sequence[CommandGroup], leased: Leased | None
    ) -> list[list[Outcome]]:
        commands = [command for group in groups for command in group.commands]

        async def work(pipeline: Pipeline) -> tuple[Sequence[CommandGroup], list[list[Outcome]]]:
            state = await load(pipeline, commands, self._now(), lock=True, memory=self._memory)
            if leased is None:
                complete = [it.as_decided() for it in groups]
            else:
                complete = await leased(decide(groups, state, self._now())[0])
            outcomes, write_set = decide(complete, state, self._now())
            apply(pipeline, write_set, state.books)
            if not any(isinstance(it, Done) for decided in outcomes for it in decided):
                # A COMMIT waits for the disk even if all that it writes are row locks: that would
                # tell a code that is hidden from one that does not exist. A repeat needs it, so
                # that what it is answered with is durable where it waits for a standby.
                pipeline.ending = "ROLLBACK"
            else:
                delete_unused_orders(pipeline, state)
            return complete, outcomes

        complete, outcomes = await self._database.batch(name, work)
        if self._memory.anybody_erased and not self._memory.pseudonyms and not self._warned:
            self._warned = True
            self._log.error("users were erased, and COUPON_ERASURE_SECRET is not set")
        self._metrics.commands_decided(counted(complete, outcomes))
        return outcomes

    async def preview(self, groups: Sequence[CommandGroup]) -> list[State]:
        """What the commands would be decided on, without locking or changing anything.

        It is one state for all groups: whoever decides on it decides on a copy.
        """
        commands = [command for group in groups for command in group.commands]

        async def work(connection: Connection) -> State:
            return await load(
                Pipeline(connection), commands, self._now(), lock=False, memory=self._memory
            )

        return [await self._database.read_at_once("preview", work)] * len(groups)


def counted(
    groups: Sequence[CommandGroup], outcomes: Sequence[Sequence[Outcome]]
) -> Counter[tuple[str, str, str]]:
    """How often there was which event, outcome and reason. Who has to come again will be then; a
    lock that got no permit is no command, whatever it was answered with."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for group, decided in zip(groups, outcomes, strict=True):
        for command, outcome in zip(group.commands, decided, strict=True):
            if isinstance(command, Lock) and command.lease is None:
                continue
            event = (
                EVENTS.get(type(command)) or cast("ChangeLock | SetCodeEnabled", command).type.name
            )
            if type(outcome) is Done:
                counts[event, "replayed" if outcome.replayed else "done", ""] += 1
            elif type(outcome) is not LeaseNeeded:
                counts[event, "refused", reason_name(type(outcome))] += 1
    return counts
