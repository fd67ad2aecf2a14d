"""What books have left, the live locks, and how far the ledger is behind, every few seconds.

It becomes gauges, and events of the ledger where a book runs low or is used up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

import structlog

from coupon_service.errors import LocksUnavailable
from coupon_service.leases import Leases
from coupon_service.maintenance.periodic import run_periodically
from coupon_service.model import StockLevel
from coupon_service.model.times import milliseconds_of
from coupon_service.store.database import Database
from coupon_service.store.erasures import unfinished_s
from coupon_service.store.pipeline import Connection
from coupon_service.store.seals import seal_status
from coupon_service.store.stock import Stock, ledger_lag_s, record_level, select_stocks
from coupon_service.telemetry.metrics import Metrics
from coupon_service.telemetry.replica_gauges import ReplicaGauges

INTERVALS_SHOWN = 3
"""For how many intervals a gauge is shown when there is none newer."""


class StockMonitor:
    """Records in the ledger that books run low, and shows gauges of what no worker counts.

    On every replica, by one of its workers at a time. However many find that a book has come to
    another level, one records it. `series_max`: books that have gauges of their own; first those
    that run low, then those that are used up. `sealing`: whether the ledger is sealed.
    """

    def __init__(
        self,
        databases: Sequence[Database],
        leases: Leases,
        gauges: ReplicaGauges,
        metrics: Metrics,
        now: Callable[[], datetime],
        *,
        interval_ms: int,
        series_max: int,
        sealing: bool,
    ) -> None:
        self._databases = databases
        self._leases = leases
        self._gauges = gauges
        self._metrics = metrics
        self._now = now
        self._interval_s = interval_ms / 1000
        self._series_max = series_max
        self._sealing = sealing
        self._log = structlog.get_logger(__name__)

    async def run(self) -> None:
        """Checks until it is cancelled."""
        await run_periodically(
            self._check_if_due, lambda: self._interval_s, failed="stock check failed"
        )

    async def _check_if_due(self) -> None:
        """Checks, unless another worker of this replica has just done so."""
        if self._gauges.age_s() >= self._interval_s * 0.9:
            await self.check()

    async def check(self) -> None:
        """Reads all of it once, shows it, and records levels that changed. What cannot be reached
        keeps nothing else from being shown. Raises as Database."""
        found = await asyncio.gather(*map(self._read, self._databases), return_exceptions=True)
        pairs = zip(self._databases, found, strict=True)
        read = [(it, seen) for it, seen in pairs if not isinstance(seen, BaseException)]
        if read:
            stocks = [stock for _, (of_one, _) in read for stock in of_one]
            ledgers = [of_ledger for _, (_, of_ledger) in read]
            most = {name: max(it[name] for it in ledgers) for name in ledgers[0]}
            self._show(stocks, most, await self._locks())
        for database, (stocks, _) in read:
            for stock in stocks:
                if stock.level is not stock.recorded:
                    await self._record(database, stock)
        for error in found:
            if isinstance(error, BaseException):
                raise error

    async def _read(self, database: Database) -> tuple[list[Stock], dict[str, float]]:
        async def work(connection: Connection) -> tuple[list[Stock], dict[str, float]]:
            stocks = await select_stocks(connection, self._now())
            lag_s = await ledger_lag_s(connection)
            of_ledger = {
                "coupon_ledger_lag_seconds": lag_s,
                "coupon_erasure_unfinished_seconds": await unfinished_s(connection),
            }
            if self._sealing:
                sealed_number, seal_lag_s = await seal_status(connection)
                of_ledger["coupon_ledger_sealed_number"] = sealed_number
                of_ledger["coupon_ledger_seal_lag_seconds"] = seal_lag_s
            return stocks, of_ledger

        return await database.read_at_once("stock", work)

    async def _locks(self) -> tuple[int, float] | None:
        """Live locks, and for how many seconds one waits for the sweeper; None without Redis."""
        now_ms = milliseconds_of(self._now())
        try:
            stats = await self._leases.stats(await self._leases.books(), now_ms)
        except LocksUnavailable:
            return None
        return stats.live, max(now_ms - stats.waiting_since_ms, 0) / 1000

    def _show(
        self,
        stocks: Sequence[Stock],
        of_ledger: Mapping[str, float],
        locks: tuple[int, float] | None,
    ) -> None:
        shown = sorted(stocks, key=_urgency)[: self._series_max]
        levels = [stock.level for stock in stocks]
        values = {
            "coupon_book_left": {str(it.book_id): it.left for it in shown},
            "coupon_book_low_threshold": {str(it.book_id): it.threshold for it in shown},
            "coupon_books_watched": {level.name: levels.count(level) for level in StockLevel},
            **{name: {"": value} for name, value in of_ledger.items()},
        }
        if locks is not None:
            values["coupon_locks_live"] = {"": locks[0]}
            values["coupon_sweep_lag_seconds"] = {"": locks[1]}
        self._gauges.publish(values, self._interval_s * INTERVALS_SHOWN)

    async def _record(self, database: Database, stock: Stock) -> None:
        types = await database.transaction(
            "book_level", lambda connection: record_level(connection, stock, self._now())
        )
        for it in types:
            self._metrics.book_event(it.name)
            self._log.info(it.name, book_id=str(stock.book_id), left=stock.left)


def _urgency(stock: Stock) -> tuple[int, float]:
    """Least for the book that most needs somebody to do something in time."""
    levels = (StockLevel.LOW, StockLevel.USED_UP, StockLevel.ENOUGH)
    return levels.index(stock.level), stock.left / stock.threshold
