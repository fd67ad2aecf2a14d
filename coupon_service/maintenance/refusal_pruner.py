"""Deletes refused attempts that have been kept for long enough."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from coupon_service.maintenance.periodic import run_periodically
from coupon_service.store.database import Database
from coupon_service.store.refusals import delete_old_refusals

INTERVAL_S: Final = 3_600
ROWS: Final = 1_000
"""Deleted in one transaction."""


class RefusalPruner:
    """Deletes what is older than `kept`: all of it where none are kept any more.

    Nothing waits for it. Should several workers do it at once, each deletes others.
    """

    def __init__(self, database: Database, now: Callable[[], datetime], kept: timedelta) -> None:
        self._database = database
        self._now = now
        self._kept = kept

    async def run(self) -> None:
        """Prunes until it is cancelled."""
        await run_periodically(self.prune, lambda: INTERVAL_S, failed="pruning of refusals failed")

    async def prune(self) -> int:
        """Deletes all such rows, and says how many. Raises what Database.transaction raises."""
        before = self._now() - self._kept
        pruned = 0
        while deleted := await self._database.transaction(
            "prune_refusals",
            lambda connection: delete_old_refusals(connection, before, ROWS),
        ):
            pruned += deleted
        return pruned
