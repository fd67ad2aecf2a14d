"""Metrics of a worker process.

No label is a code or a user, so the number of series stays bounded.

Several workers share one endpoint by prometheus_client's multiprocess mode. The environment of a
worker names an empty folder in ``PROMETHEUS_MULTIPROC_DIR`` before prometheus_client is imported;
the worker counts into files there, and the supervisor serves their sum
(``telemetry/multiprocess.py``).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Mapping, Sequence
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from coupon_service.audit.verification import Fault

BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
BUCKETS_REDIS_S = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1)
BUCKETS_COMMANDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
REDIS_ERRORS = ("silent", "unreachable", "refused", "other")
BOOK_EVENTS = ("BOOK_RUNNING_LOW", "BOOK_USED_UP")
FAULTS = tuple(it.name for it in Fault)
CONFLICTS = ("LockNotAvailable", "DeadlockDetected", "SerializationFailure")


Child = TypeVar("Child", bound=Counter | Gauge | Histogram)


class Children(dict[tuple[str, ...], Child]):
    """Children of a metric by their label values, which saves the cost of ``labels()``."""

    def __init__(self, metric: Child) -> None:
        super().__init__()
        self._metric = metric

    def __missing__(self, labels: tuple[str, ...]) -> Child:
        child = self[labels] = self._metric.labels(*labels)
        return child


class Durations(Histogram):
    """A histogram that also observes many durations in one call, which costs far less for each."""

    def observe_all(self, seconds: Sequence[float]) -> None:
        """The same as ``observe`` for each."""
        self._sum.inc(sum(seconds))  # pyright: ignore[reportUnknownMemberType]
        for index, count in Counts(bisect_left(self._upper_bounds, it) for it in seconds).items():
            self._buckets[index].inc(count)  # pyright: ignore[reportUnknownMemberType]


class Metrics:
    """The metrics of one process, registered in ``registry``. Each method records an event."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def duration(
            name: str, text: str, *labels: str, buckets: Sequence[float] = BUCKETS_S
        ) -> Durations:
            return Durations(name, text, labels, registry=registry, buckets=buckets)

        def greatest(name: str, text: str) -> Gauge:
            # livemax: the greatest of the live workers
            return Gauge(name, text, registry=registry, multiprocess_mode="livemax")

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            # livesum: the sum over live workers
            return Gauge(name, text, labels, registry=registry, multiprocess_mode="livesum")

        self._rpc_duration = Children(
            duration(
                "coupon_rpc_duration_seconds",
                "Time from a call's arrival to its completion.",
                "method",
                "status",
                "transport",
            )
        )
        self._rpcs = Children(
            counter(
                "coupon_rpcs_total",
                "Completed calls. transport: call; or stream, for an operation of one.",
                "method",
                "status",
                "reason",
                "transport",
            )
        )
        self._streams = gauge("coupon_streams", "Open Checkout streams.")
        self._watchers = gauge("coupon_audit_watchers", "Open WatchAuditEvents streams.")
        self._watch_lag = greatest(
            "coupon_audit_watch_lag_seconds",
            "For how long the slowest WatchAuditEvents stream has had events to send.",
        )
        self._stall = greatest(
            "coupon_audit_stall_seconds",
            "For how long an open transaction has held new events of the ledger up, while there are"
            " WatchAuditEvents streams.",
        )
        self._batch_size = Children(
            Histogram(
                "coupon_batch_size_commands",
                "Commands in a batch.",
                ("kind",),
                registry=registry,
                buckets=BUCKETS_COMMANDS,
            )
        )
        self._batch_wait = Children(
            duration(
                "coupon_batch_wait_seconds",
                "Time for which the first command of a batch waited.",
                "kind",
            )
        )
        self._batch_duration = Children(
            duration("coupon_batch_duration_seconds", "Time that a batch took to execute.", "kind")
        )
        self._queue_length = Children(
            gauge("coupon_queue_length", "Commands that wait for a batch.", "kind")
        )
        self._dropped = Children(
            counter(
                "coupon_commands_dropped_total",
                "Commands that were not executed.",
                "kind",
                "reason",
            )
        )
        self._commands = Children(
            counter(
                "coupon_commands_total",
                "Decided commands, each item of a batch included, by the ledger event that they"
                " write. outcome: done, replayed or refused, which has a reason.",
                "event",
                "outcome",
                "reason",
            )
        )
        self._transaction_duration = duration(
            "coupon_transaction_duration_seconds", "Time of a transaction, retries included."
        )
        self._transaction_retries = counter(
            "coupon_transaction_retries_total", "Retries of transactions."
        )
        self._transaction_conflicts = Children(
            counter(
                "coupon_transaction_conflicts_total",
                "Attempts that failed on a conflict with another transaction.",
                "reason",
            )
        )
        self._pool_connections = Children(
            gauge("coupon_pool_connections", "Open connections to PostgreSQL.", "pool")
        )
        self._pool_idle = Children(
            gauge("coupon_pool_idle_connections", "Idle connections in the pool.", "pool")
        )
        self._pool_waiting = Children(
            gauge("coupon_pool_waiting", "Transactions that wait for a connection.", "pool")
        )
        self._rate_limit_unchecked = counter(
            "coupon_rate_limit_unchecked_total",
            "Calls that no rate limit was checked for, since Redis did not answer.",
        )
        self._guess_alarms = Children(
            counter(
                "coupon_guess_alarms_total",
                "Times that a caller reached its limit of unknown codes.",
                "kind",
            )
        )
        self._users_erased = counter(
            "coupon_users_erased_total", "Erasures of users that were done."
        )
        self._erased_rows = Children(
            counter("coupon_erased_rows_total", "Rows that erasures of users changed.", "table")
        )
        self._reaches = Children(
            gauge(
                "coupon_reaches",
                "Workers that reach postgresql or redis, or find the schema current.",
                "what",
            )
        )
        self._shard_reaches = Children(
            gauge(
                "coupon_shard_reaches",
                "Workers that can use a shard, by its schema; empty where there is only one.",
                "shard",
            )
        )
        self._redis_duration = duration(
            "coupon_redis_duration_seconds",
            "Round trip of a pipeline to Redis.",
            buckets=BUCKETS_REDIS_S,
        )
        self._redis_errors = Children(
            counter(
                "coupon_redis_errors_total",
                "Failed Redis pipelines. kind: silent, unreachable, refused or other.",
                "kind",
            )
        )
        self._locks_lost = counter(
            "coupon_locks_lost_total",
            "Locks with a valid token that Redis had lost and granted again.",
        )
        self._index_entries_missed = counter(
            "coupon_lock_index_missed_total",
            "Entries of the indexes of locks that could not be written at once, since the master of"
            " the index in a Redis Cluster was unreachable.",
        )
        self._index_entries_repaired = counter(
            "coupon_lock_index_repaired_total",
            "Entries of the indexes of locks that were written later.",
        )
        self._book_events = Children(
            counter(
                "coupon_book_events_total",
                "Books that ran low or were used up, by their ledger event.",
                "event",
            )
        )
        self._replica_lag = greatest(
            "coupon_replica_lag_seconds", "Time for which the read replica was behind the primary."
        )
        self._replica_reads = Children(
            counter(
                "coupon_replica_reads_total",
                "Reads that a read replica may answer. answered_by: replica; or primary, for a"
                " reason: behind, away, failed or not_found.",
                "answered_by",
                "reason",
            )
        )
        self._refusals_written = counter(
            "coupon_refusals_written_total", "Refused attempts that were written for ListRefusals."
        )
        self._refusals_dropped = Children(
            counter(
                "coupon_refusals_dropped_total",
                "Refused attempts that were not written. reason: full, failed or stopped.",
                "reason",
            )
        )
        self._ledger_findings = Children(
            counter(
                "coupon_ledger_findings_total",
                "What VerifyAudit found to be wrong with the ledger. fault: a name of AuditFault.",
                "fault",
            )
        )
        self._create_rare_series()

    def _create_rare_series(self) -> None:
        """Rare events start at zero: Prometheus sees no increase when a series appears at 1."""
        for kind in REDIS_ERRORS:
            self._redis_errors[kind,]
        for event in BOOK_EVENTS:
            self._book_events[event,]
        for fault in FAULTS:
            self._ledger_findings[fault,]
        for reason in CONFLICTS:
            self._transaction_conflicts[reason,]
        for kind in ("changes", "bulk", "looks", "lookups", "locks", "unlocks"):
            for reason in ("OVERLOADED", "DEADLINE_EXCEEDED"):
                self._dropped[kind, reason]
        for kind in ("user", "service", "peer"):
            self._guess_alarms[kind,]
        for reason in ("full", "failed", "stopped"):
            self._refusals_dropped[reason,]
        self._erased_rows["redemption_audit",]
        self._replica_reads["replica", ""]
        for reason in ("behind", "away", "failed", "not_found"):
            self._replica_reads["primary", reason]

    def rpcs_finished(
        self, method: str, status: str, reason: str, seconds: Sequence[float]
    ) -> None:
        """Calls of a declared ``method`` completed; ``reason`` is empty for OK."""
        self._rpcs_finished(method, status, reason, seconds, "call")

    def operations_finished(
        self, method: str, status: str, reason: str, seconds: Sequence[float]
    ) -> None:
        """As ``rpcs_finished``, of operations of Checkout streams."""
        self._rpcs_finished(method, status, reason, seconds, "stream")

    def _rpcs_finished(
        self, method: str, status: str, reason: str, seconds: Sequence[float], transport: str
    ) -> None:
        self._rpc_duration[method, status, transport].observe_all(seconds)
        self._rpcs[method, status, reason, transport].inc(len(seconds))

    def streams_changed(self, count: int) -> None:
        """``count`` Checkout streams of this process are open."""
        self._streams.set(count)

    def ledger_followed(self, followers: int, lag_s: float, stall_s: float) -> None:
        """So many WatchAuditEvents streams of this process are open; the slowest has had events to
        send for `lag_s`, and new ones have been held up for `stall_s`."""
        self._watchers.set(followers)
        self._watch_lag.set(lag_s)
        self._stall.set(stall_s)

    def batch_executed(self, kind: str, size: int, seconds: float) -> None:
        """A batch of ``size`` commands completed or failed. ``kind``: changes, bulk, looks,
        lookups, locks or unlocks."""
        self._batch_size[kind,].observe(size)
        self._batch_duration[kind,].observe(seconds)

    def batch_waited(self, kind: str, seconds: float) -> None:
        """The first command of a batch waited for ``seconds``."""
        self._batch_wait[kind,].observe(seconds)

    def queue_changed(self, kind: str, by: int) -> None:
        """So many commands more of this process wait for a batch, in one of its queues."""
        self._queue_length[kind,].inc(by)

    def command_dropped(self, kind: str, reason: str) -> None:
        """A command was not executed: OVERLOADED or DEADLINE_EXCEEDED."""
        self._dropped[kind, reason].inc()

    def commands_decided(self, counts: Mapping[tuple[str, str, str], int]) -> None:
        """A committed batch had so many commands of each event, outcome and reason."""
        for labels, count in counts.items():
            self._commands[labels].inc(count)

    def user_erased(self, rows: Mapping[str, int]) -> None:
        """A user was erased, with so many rows of each table."""
        self._users_erased.inc()
        for table, count in rows.items():
            self._erased_rows[table,].inc(count)

    def transaction_finished(self, seconds: float) -> None:
        """A transaction committed or failed after ``seconds``, retries included."""
        self._transaction_duration.observe(seconds)

    def transaction_conflicted(self, reason: str, *, retried: bool) -> None:
        """An attempt of a transaction failed on another transaction: deadlock, lock timeout, …"""
        self._transaction_conflicts[reason,].inc()
        if retried:
            self._transaction_retries.inc()

    def pool_sampled(self, pool: str, connections: int, idle: int, waiting: int) -> None:
        """The current state of a connection pool of this process."""
        self._pool_connections[pool,].set(connections)
        self._pool_idle[pool,].set(idle)
        self._pool_waiting[pool,].set(waiting)

    def redis_exchanged(self, seconds: float) -> None:
        """Redis answered a pipeline."""
        self._redis_duration.observe(seconds)

    def redis_failed(self, kind: str) -> None:
        """Redis did not answer a pipeline, or refused one of the commands."""
        self._redis_errors[kind,].inc()

    def lock_lost(self) -> None:
        """Redis had lost a lock, which was acquired again."""
        self._locks_lost.inc()

    def index_entry_missed(self) -> None:
        """An entry of an index of locks could not be written."""
        self._index_entries_missed.inc()

    def index_entry_repaired(self) -> None:
        """Such an entry was written later."""
        self._index_entries_repaired.inc()

    def book_event(self, event: str) -> None:
        """BOOK_RUNNING_LOW or BOOK_USED_UP was written to the ledger."""
        self._book_events[event,].inc()

    def ledger_found(self, fault: str) -> None:
        """VerifyAudit found something; ``fault`` is the name of a Fault."""
        self._ledger_findings[fault,].inc()

    def rate_limit_unchecked(self) -> None:
        """A call passed without a check of its rate limit, since Redis did not answer."""
        self._rate_limit_unchecked.inc()

    def guess_alarm(self, kind: str) -> None:
        """A caller reached its limit of unknown codes. ``kind``: user, service or peer."""
        self._guess_alarms[kind,].inc()

    def refusals_written(self, count: int) -> None:
        """So many refused attempts were written."""
        self._refusals_written.inc(count)

    def refusals_dropped(self, reason: str, count: int) -> None:
        """So many were not: too many waited (full), PostgreSQL did not take them (failed), or the
        process ended (stopped)."""
        self._refusals_dropped[reason,].inc(count)

    def replica_probed(self, lag_s: float) -> None:
        """The read replica was so far behind."""
        self._replica_lag.set(lag_s)

    def replica_read(self, answered_by: str, reason: str) -> None:
        """A read was answered by the replica; or by the primary: behind, away, failed or
        not_found."""
        self._replica_reads[answered_by, reason].inc()

    def dependency_probed(self, what: str, *, reached: bool) -> None:
        """Whether this process reaches ``what``: postgresql, redis, or a schema new enough."""
        self._reaches[what,].set(reached)

    def shard_probed(self, shard: str, *, reached: bool) -> None:
        """Whether this process can use a shard, by its schema."""
        self._shard_reaches[shard,].set(reached)
