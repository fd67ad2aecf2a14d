"""What serves the businesses of one schema: its pool, batchers, locks, servicers and sweepers.

There is one of these, unless COUPON_SHARDS says otherwise.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

import structlog

from coupon_service import wiring
from coupon_service.audit.checkpoints import Signer
from coupon_service.batching import (
    BatchingSettings,
    CommandLanes,
    DetachedTasks,
    MicroBatcher,
    Rush,
)
from coupon_service.checkout import Checkout
from coupon_service.erasure import Eraser
from coupon_service.leases import Leases
from coupon_service.locks.acquire import LockAcquirer
from coupon_service.locks.extend import LockExtender
from coupon_service.locks.history import LockHistory
from coupon_service.locks.release import LockReleaser
from coupon_service.locks.service import LockService
from coupon_service.locks.token import LockTokens
from coupon_service.locks.transfers import AssignmentTransfers
from coupon_service.maintenance.ledger_sealer import LedgerSealer
from coupon_service.maintenance.lock_sweeper import LockSweeper
from coupon_service.maintenance.period_pruner import PeriodPruner
from coupon_service.maintenance.periodic import run_periodically
from coupon_service.maintenance.pool_sweeper import PoolSweeper
from coupon_service.maintenance.refusal_pruner import RefusalPruner
from coupon_service.maintenance.refusal_writer import RefusalWriter
from coupon_service.model.pseudonyms import Pseudonyms
from coupon_service.model.scopes import shard_of_book
from coupon_service.ratelimit.erasures import keys_of_user
from coupon_service.ratelimit.windows import Windows
from coupon_service.rpc.audit_watches import AuditWatches
from coupon_service.rpc.checkout_streams import CheckoutStreams
from coupon_service.rpc.context import RequestContext
from coupon_service.rpc.open_streams import OpenStreams
from coupon_service.rpc.paging import PageTokens
from coupon_service.rpc.refused_attempts import RefusalRecorder, RefusedCodes
from coupon_service.rpc.servicers.assignments import AssignmentServicer
from coupon_service.rpc.servicers.audit import AuditServicer
from coupon_service.rpc.servicers.books import CouponBookServicer
from coupon_service.rpc.servicers.codes import CouponCodeServicer
from coupon_service.rpc.servicers.redemptions import RedemptionServicer
from coupon_service.settings import Settings
from coupon_service.store.books import Books
from coupon_service.store.bulk.code_changes import CodeChanger
from coupon_service.store.bulk.exports import CodeExporter
from coupon_service.store.bulk.generation import CodeGenerator
from coupon_service.store.bulk.imports import CodeImporter
from coupon_service.store.bulk.lane import BulkLane
from coupon_service.store.commands.executor import Executor
from coupon_service.store.database import Database
from coupon_service.store.ledger_feed import LedgerFeed
from coupon_service.store.ledger_horizon import LedgerHorizon
from coupon_service.store.ledger_verifier import LedgerVerifier
from coupon_service.store.queries.lookups import Lookups
from coupon_service.store.queries.reads import Reads
from coupon_service.store.replica import NearReads, ReadReplica
from coupon_service.store.sessions import ONLY_SHARD, ShardPlace
from coupon_service.telemetry.metrics import Metrics

S = TypeVar("S")

if TYPE_CHECKING:
    from coupon_service.telemetry.tracing import Tracer


@dataclass(frozen=True, slots=True)
class SharedParts:
    """What a worker has once, however many shards there are."""

    settings: Settings
    batching: BatchingSettings
    leases: Leases
    windows: Windows
    pseudonyms: Pseudonyms
    tokens: LockTokens
    page_tokens: PageTokens
    rushes: Mapping[str, Rush]
    streams: CheckoutStreams
    watchers: OpenStreams
    authenticate: Callable[[str, RequestContext], None]
    detached: DetachedTasks
    metrics: Metrics
    tracer: Tracer | None
    now: Callable[[], datetime]


@dataclass(frozen=True, slots=True)
class Replica:
    """The read replica, and how to get there."""

    database: Database
    bulk_database: Database
    state: ReadReplica
    metrics: Metrics

    def near(self, primary: S, replica: S) -> NearReads[S]:
        """What answers with the one or the other."""
        return NearReads(primary, replica, self.state, self.metrics)

    async def run(self) -> None:
        """Looks how far it is behind until it is cancelled."""
        await run_periodically(
            self.state.probe,
            lambda: self.state.interval_s,
            failed="replica check failed",
            at_once=True,
        )


class Shard:
    """Everything that answers calls from one schema of PostgreSQL."""

    def __init__(
        self, database_url: str, shared: SharedParts, place: ShardPlace = ONLY_SHARD
    ) -> None:
        """`place`: of the tables there. Raises DatabaseUnavailable for a URL that PostgreSQL cannot
        read."""
        settings, metrics, tracer = shared.settings, shared.metrics, shared.tracer
        leases, now = shared.leases, shared.now
        self._shared, self._place = shared, place
        self.database = Database(
            wiring.database_settings(database_url, settings, place), metrics, tracer
        )
        self.bulk_database = Database(
            wiring.bulk_database_settings(database_url, settings, place), metrics, tracer
        )
        self._lane = BulkLane(self.bulk_database)
        self._replica = self._make_replica()
        self.refusal_writer = RefusalWriter(self.database, metrics, shared.pseudonyms)
        self._make_batchers()
        self.locks = self._make_locks()
        self._add_servicers()
        self.lock_sweeper = LockSweeper(
            self.commands,
            self._reads,
            leases,
            now,
            settings.sweep_interval_ms,
            lambda book_id: shard_of_book(book_id, place.of) == place.number,
        )
        self.pool_sweeper = PoolSweeper(
            self.commands,
            self._reads,
            wiring.lock_limits(settings),
            now,
            settings.sweep_interval_ms,
        )
        self.sealer = LedgerSealer(
            LedgerHorizon(self.database),
            self._reads,
            self.bulk_database,
            self._lane,
            settings.seal_interval_ms,
        )
        self._pruner = PeriodPruner(self.database, now)
        kept = timedelta(days=settings.refusals_kept_days)
        self._refusal_pruner = RefusalPruner(self.database, now, kept)

    def _make_replica(self) -> Replica | None:
        """What asks the read replica, if there is one."""
        settings, metrics, tracer = self._shared.settings, self._shared.metrics, self._shared.tracer
        if settings.replica_url is None:
            return None
        url = settings.replica_url.get_secret_value()
        database = Database(wiring.replica_settings(url, settings), metrics, tracer)
        bulk_database = Database(wiring.replica_bulk_settings(url, settings), metrics, tracer)
        state = ReadReplica(self.database, database, settings.replica_max_lag_ms, metrics)
        return Replica(database, bulk_database, state, metrics)

    def _make_batchers(self) -> None:
        """What is done for many callers at once: commands, previews of them, and small reads."""
        shared = self._shared
        batching, metrics, tracer = shared.batching, shared.metrics, shared.tracer
        self._executor = executor = Executor(self.database, shared.now, metrics, shared.pseudonyms)
        self.commands = CommandLanes(
            MicroBatcher(
                executor.execute,
                batching.commands,
                metrics,
                tracer=tracer,
                rush=shared.rushes["changes"],
            ),
            MicroBatcher(executor.execute, batching.bulk, metrics, "bulk", tracer),
            batching.bulk_part_size,
        )
        self._previews = MicroBatcher(
            executor.preview, batching.reads, metrics, "looks", tracer, shared.rushes["looks"]
        )
        lookups = Lookups(self.database)
        self._lookups = MicroBatcher(
            lookups.execute, batching.reads, metrics, "lookups", tracer, shared.rushes["lookups"]
        )
        self._reads = Reads(self.database, self._lookups.submit)

    def _make_locks(self) -> LockService:
        """Locks, of which those that are requested, or released, at the same time go together."""
        shared = self._shared
        leases, tokens, detached, now = shared.leases, shared.tokens, shared.detached, shared.now
        metrics, tracer, batching = shared.metrics, shared.tracer, shared.batching.locks
        limits = wiring.lock_limits(shared.settings)
        history = LockHistory(
            self._previews, self.commands, self._executor, self._reads, tokens, now
        )
        acquirer = LockAcquirer(history, leases, limits, detached, now)
        release = LockReleaser(history, leases, detached).release
        self._acquirer = MicroBatcher(
            acquirer.acquire, batching, metrics, "locks", tracer, shared.rushes["locks"]
        )
        self._releaser = MicroBatcher(
            release, batching, metrics, "unlocks", tracer, shared.rushes["unlocks"]
        )
        extender = LockExtender(history, leases, limits, detached, now)
        return LockService(
            self._acquirer,
            self._releaser,
            extender,
            history,
            leases,
            tokens,
            acquirer.take_over,
        )

    def _add_servicers(self) -> None:
        """Makes a servicer for each service of the contract."""
        shared, commands, reads, locks = self._shared, self.commands, self._reads, self.locks
        settings, leases, tokens, now = shared.settings, shared.leases, shared.tokens, shared.now
        page_tokens, detached = shared.page_tokens, shared.detached
        checkout = Checkout(
            self._previews,
            commands,
            leases,
            tokens,
            detached,
            wiring.transient_ttl_ms(settings),
            now,
        )
        transfers = AssignmentTransfers(commands, leases, tokens, detached)
        life_max_ms = wiring.lock_limits(settings).life_max_ms
        books = Books(self.database, now, life_max_ms)
        lane, replica = self._lane, self._replica
        near_books, near_reads, lanes = NearReads(books), NearReads(reads), NearReads(lane)
        if replica is not None:
            near_books = replica.near(books, Books(replica.database, now, life_max_ms))
            near_reads = replica.near(reads, Reads(replica.database))
            lanes = replica.near(lane, BulkLane(replica.bulk_database))
        self.books = CouponBookServicer(books, near_books, page_tokens, now)
        self.codes = CouponCodeServicer(
            books,
            reads,
            CodeGenerator(self.database, lane, now),
            CodeImporter(self.database, lane, now, shared.pseudonyms),
            CodeExporter(lanes),
            CodeChanger(lane, now, shared.metrics),
            commands,
            locks,
            page_tokens,
            now,
        )
        self.assignments = AssignmentServicer(commands, reads, locks, transfers, page_tokens, now)
        codes = RefusedCodes(wiring.token_secrets(settings))
        recorder = RefusalRecorder(
            self.refusal_writer.add, codes, now, unknown_codes=settings.refusals_unknown_codes
        )
        self.redemptions = RedemptionServicer(
            checkout,
            locks,
            reads,
            near_reads,
            page_tokens,
            shared.streams,
            now,
            codes,
            recorder if settings.refusals_kept_days else None,
        )
        feed = LedgerFeed(self.database, shared.metrics)
        watches = AuditWatches(feed, page_tokens, shared.watchers, shared.authenticate)
        self.audit = AuditServicer(
            near_reads,
            self._make_eraser(lane),
            page_tokens,
            feed,
            watches,
            LedgerVerifier(lane),
            Signer(wiring.token_secrets(settings)[0]),
            shared.metrics,
            self._place.schema,
        )

    def _make_eraser(self, lane: BulkLane) -> Eraser:
        shared = self._shared
        calls, guesses = wiring.call_limits(shared.settings), wiring.guess_limits(shared.settings)

        async def forget_calls(user_id: str, businesses: Collection[str]) -> None:
            keys = keys_of_user(user_id, businesses, calls, guesses)
            await shared.windows.forget(list(keys))

        return Eraser(
            self.database,
            lane,
            self.commands,
            self._reads,
            shared.leases,
            forget_calls,
            shared.pseudonyms,
            shared.now,
            shared.metrics,
            structlog.get_logger("coupon_service.erasure"),
        )

    async def open(self) -> None:
        """Starts connecting; does not wait for PostgreSQL, which may come later."""
        for database in self._databases():
            await database.open()

    def maintenance(self) -> Iterator[Awaitable[None]]:
        """What tidies up for as long as the server runs."""
        for each in (
            self.lock_sweeper,
            self.pool_sweeper,
            self.sealer,
            self._pruner,
            self._refusal_pruner,
        ):
            yield each.run()
        if self._replica is not None:
            yield self._replica.run()

    @property
    def replica_state(self) -> ReadReplica | None:
        """What is known of the read replica, if there is one."""
        return self._replica.state if self._replica is not None else None

    async def drain_locks(self) -> None:
        """Returns when every lock that was asked for, or given back, has been seen to."""
        await self._acquirer.drain()
        await self._releaser.drain()

    async def close(self) -> None:
        """Waits for the transactions that are under way, then closes the connections."""
        await self.refusal_writer.drain()
        for database in self._databases():
            await database.close()

    def _databases(self) -> Iterator[Database]:
        yield self.database
        yield self.bulk_database
        if self._replica is not None:
            yield self._replica.database
            yield self._replica.bulk_database
