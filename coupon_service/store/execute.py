"""Load, decide, apply: the one transaction in which a batch of commands is carried out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from uuid import UUID

from coupon_service.model import Book, Outcome, State, Unit
from coupon_service.rules import decide
from coupon_service.store.apply import apply
from coupon_service.store.db import Database
from coupon_service.store.load import load
from coupon_service.store.pipeline import Connection, Pipeline


class Executor:
    """Carries out batches. There is no other way to change a code."""

    def __init__(self, database: Database, now: Callable[[], datetime]) -> None:
        self._database = database
        self._now = now
        self._formats: dict[UUID, Book] = {}

    async def execute(self, units: Sequence[Unit]) -> list[list[Outcome]]:
        """Decides and commits the commands of all units together; an outcome for each command.

        Raises what `Database.transaction` raises; then nothing was done, or (DatabaseUnavailable)
        repeating the same commands finds out.
        """
        commands = [command for unit in units for command in unit.commands]

        async def work(pipeline: Pipeline) -> list[list[Outcome]]:
            state = await load(pipeline, commands, self._now(), lock=True, formats=self._formats)
            outcomes, effects = decide(units, state, self._now())
            apply(pipeline, effects, state.books)
            return outcomes

        return await self._database.batch("commands", work)

    async def look(self, units: Sequence[Unit]) -> list[State]:
        """What the commands would be decided on, without locking or changing anything.

        It is one state for all units: whoever decides on it decides on a copy.
        """
        commands = [command for unit in units for command in unit.commands]

        async def work(connection: Connection) -> State:
            return await load(
                Pipeline(connection), commands, self._now(), lock=False, formats=self._formats
            )

        return [await self._database.read_at_once("look", work)] * len(units)
