"""Deletes the counts of days, weeks and months that are over."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Final

from coupon_service.maintenance.periodic import run_periodically
from coupon_service.store.commands.period_counters import delete_past_periods
from coupon_service.store.database import Database

INTERVAL_S: Final = 3_600
ROWS: Final = 1_000
"""Deleted in one transaction."""


class PeriodPruner:
    """Deletes the rows of periods in which nobody can redeem any more.

    Nothing waits for it. Should several workers do it at once, each deletes others.
    """

    def __init__(self, database: Database, now: Callable[[], datetime]) -> None:
        self._database = database
        self._now = now

    async def run(self) -> None:
        """Prunes until it is cancelled."""
        await run_periodically(self.prune, lambda: INTERVAL_S, failed="pruning of periods failed")

    async def prune(self) -> int:
        """Deletes all such rows, and says how many. Raises what Database.transaction raises."""
        pruned = 0
        while deleted := await self._database.transaction(
            "prune_periods",
            lambda connection: delete_past_periods(connection, self._now(), ROWS),
        ):
            pruned += deleted
        return pruned
