"""What is counted and timed, and the HTTP endpoint that Prometheus reads it from.

Labels are method, status, reason and pool, never a code or a user: their number stays bounded.

Several workers share one endpoint by prometheus_client's multiprocess mode. The environment of a
worker names an empty folder in ``PROMETHEUS_MULTIPROC_DIR`` before prometheus_client is imported;
the worker counts into files there, and the supervisor serves what they come to
(``telemetry/multiprocess.py``).
"""

from __future__ import annotations

import http.server
import json
import socket
import socketserver
import threading
from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, MetricsHandler

BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
BUCKETS_REDIS_S = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1)
BUCKETS_COMMANDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
REDIS_ERRORS = ("silent", "unreachable", "refused", "other")
BOOK_EVENTS = ("BOOK_RUNNING_LOW", "BOOK_USED_UP")
CONFLICTS = ("LockNotAvailable", "DeadlockDetected", "SerializationFailure")


class MetricsServerError(Exception):
    """The metrics endpoint cannot listen where it is to."""


Child = TypeVar("Child", bound=Counter | Gauge | Histogram)


class Children(dict[tuple[str, ...], Child]):
    """The children of a metric by their label values, found without the cost of ``labels()``."""

    def __init__(self, metric: Child) -> None:
        super().__init__()
        self._metric = metric

    def __missing__(self, labels: tuple[str, ...]) -> Child:
        child = self[labels] = self._metric.labels(*labels)
        return child


class Durations(Histogram):
    """A histogram that also takes many durations at once, in a tenth of the time for each."""

    def observe_all(self, seconds: Sequence[float]) -> None:
        """As ``observe`` of each."""
        self._sum.inc(sum(seconds))  # pyright: ignore[reportUnknownMemberType]
        for place, count in Counts(bisect_left(self._upper_bounds, it) for it in seconds).items():
            self._buckets[place].inc(count)  # pyright: ignore[reportUnknownMemberType]


class Metrics:
    """All that one process counts, registered in ``registry``. Each method is an event."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"coupon_{name}_total", text, labels, registry=registry)

        def duration(
            name: str, text: str, *labels: str, buckets: Sequence[float] = BUCKETS_S
        ) -> Durations:
            name = f"coupon_{name}_seconds"
            return Durations(name, text, labels, registry=registry, buckets=buckets)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            name = f"coupon_{name}"  # livesum: added up over the living workers
            return Gauge(name, text, labels, registry=registry, multiprocess_mode="livesum")

        self._rpc_duration = Children(
            duration("rpc_duration", "Time from a call's arrival to its end.", "method", "status")
        )
        self._rpcs = Children(
            counter("rpcs", "Calls that have ended.", "method", "status", "reason")
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
            duration("batch_wait", "Time that the first command of a batch waited.", "kind")
        )
        self._batch_duration = Children(
            duration("batch_duration", "Time from a batch's start to its end.", "kind")
        )
        self._queue_length = Children(
            gauge("queue_length", "Commands that wait for a batch.", "kind")
        )
        self._dropped = Children(
            counter("commands_dropped", "Commands that were not executed.", "kind", "reason")
        )
        self._commands = Children(
            counter(
                "commands",
                "Commands that were decided, also within batches, by the ledger event that each is"
                " to write. outcome: done, replayed or refused, which has a reason.",
                "event",
                "outcome",
                "reason",
            )
        )
        self._transaction_duration = duration(
            "transaction_duration", "Time of a transaction, with all its tries."
        )
        self._transaction_retries = counter("transaction_retries", "Transactions tried once more.")
        self._transaction_conflicts = Children(
            counter("transaction_conflicts", "Tries that met another transaction.", "reason")
        )
        self._pool_connections = Children(
            gauge("pool_connections", "Open connections to PostgreSQL.", "pool")
        )
        self._pool_idle = Children(
            gauge("pool_idle_connections", "Connections that nobody uses.", "pool")
        )
        self._pool_waiting = Children(
            gauge("pool_waiting", "Transactions that wait for a connection.", "pool")
        )
        self._rate_limit_unchecked = counter(
            "rate_limit_unchecked", "Calls that passed uncounted, since Redis did not answer."
        )
        self._guess_alarms = Children(
            counter("guess_alarms", "Limits of unknown codes that somebody reached.", "kind")
        )
        self._reaches = Children(
            gauge("reaches", "Workers that reach it: postgresql, schema (current), redis.", "what")
        )
        self._redis_duration = duration(
            "redis_duration", "Time of a pipeline to Redis and back.", buckets=BUCKETS_REDIS_S
        )
        self._redis_errors = Children(
            counter(
                "redis_errors",
                "What went wrong with Redis. kind: silent, unreachable, refused or other.",
                "kind",
            )
        )
        self._locks_lost = counter(
            "locks_lost", "Locks with a good token that Redis had lost, and took again."
        )
        self._book_events = Children(
            counter(
                "book_events", "Books that ran low or were used up, by their ledger event.", "event"
            )
        )
        self._begin_at_zero()

    def _begin_at_zero(self) -> None:
        """What may never happen is there from the start: else Prometheus misses the first time."""
        for kind in REDIS_ERRORS:
            self._redis_errors[kind,]
        for event in BOOK_EVENTS:
            self._book_events[event,]
        for reason in CONFLICTS:
            self._transaction_conflicts[reason,]
        for kind in ("changes", "bulk", "looks", "lookups", "locks", "unlocks"):
            for reason in ("OVERLOADED", "DEADLINE_EXCEEDED"):
                self._dropped[kind, reason]
        for kind in ("user", "service", "peer"):
            self._guess_alarms[kind,]

    def rpcs_finished(
        self, method: str, status: str, reason: str, seconds: Sequence[float]
    ) -> None:
        """Calls ended, each after so long. ``reason`` is empty for an OK; ``method`` is one that is
        declared."""
        self._rpc_duration[method, status].observe_all(seconds)
        self._rpcs[method, status, reason].inc(len(seconds))

    def batch_executed(self, kind: str, size: int, seconds: float) -> None:
        """A batch of ``size`` ended, somehow. ``kind``: changes, bulk, looks, lookups,
        locks or unlocks."""
        self._batch_size[kind,].observe(size)
        self._batch_duration[kind,].observe(seconds)

    def batch_waited(self, kind: str, seconds: float) -> None:
        """A batch starts after its first command waited for ``seconds``."""
        self._batch_wait[kind,].observe(seconds)

    def queue_changed(self, kind: str, length: int) -> None:
        """``length`` commands of this process now wait for a batch."""
        self._queue_length[kind,].set(length)

    def command_dropped(self, kind: str, reason: str) -> None:
        """A command was not executed: OVERLOADED or DEADLINE_EXCEEDED."""
        self._dropped[kind, reason].inc()

    def commands_decided(self, counts: Mapping[tuple[str, str, str], int]) -> None:
        """How many commands of a batch that was committed had which event, outcome, and reason."""
        for labels, count in counts.items():
            self._commands[labels].inc(count)

    def transaction_finished(self, seconds: float) -> None:
        """A transaction ended, well or not, after all its tries."""
        self._transaction_duration.observe(seconds)

    def transaction_conflicted(self, reason: str, *, retried: bool) -> None:
        """A try of a transaction failed on another one: deadlock, lock timeout, …"""
        self._transaction_conflicts[reason,].inc()
        if retried:
            self._transaction_retries.inc()

    def pool_sampled(self, pool: str, connections: int, idle: int, waiting: int) -> None:
        """The state of a connection pool of this process, now."""
        self._pool_connections[pool,].set(connections)
        self._pool_idle[pool,].set(idle)
        self._pool_waiting[pool,].set(waiting)

    def redis_exchanged(self, seconds: float) -> None:
        """Redis has answered a pipeline."""
        self._redis_duration.observe(seconds)

    def redis_failed(self, kind: str) -> None:
        """Redis did not answer a pipeline, or refused one of the commands."""
        self._redis_errors[kind,].inc()

    def lock_lost(self) -> None:
        """A lock had to be taken again, since Redis had lost it."""
        self._locks_lost.inc()

    def book_event(self, event: str) -> None:
        """BOOK_RUNNING_LOW or BOOK_USED_UP was written to the ledger."""
        self._book_events[event,].inc()

    def rate_limit_unchecked(self) -> None:
        """A call of somebody with a rate limit passed uncounted: Redis did not answer."""
        self._rate_limit_unchecked.inc()

    def guess_alarm(self, kind: str) -> None:
        """Somebody looked up as many unknown codes as is allowed. ``kind``: user, service, peer."""
        self._guess_alarms[kind,].inc()

    def looked(self, what: str, *, reached: bool) -> None:
        """Whether this process reaches postgresql or redis, or the schema is new enough, now."""
        self._reaches[what,].set(reached)


class MetricsServer:
    """A running endpoint; ``close`` ends it."""

    def __init__(self, server: socketserver.TCPServer) -> None:
        self._server = server
        self._thread = threading.Thread(
            target=server.serve_forever, args=(0.1,), name="metrics", daemon=True
        )
        self._thread.start()

    @property
    def port(self) -> int:
        """The port it listens on, also when a free one was asked for."""
        return self._server.server_address[1]

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def serve_metrics(
    host: str,
    port: int,
    registry: CollectorRegistry,
    alive: Callable[[], bool],
    ready: Callable[[], tuple[bool, Mapping[str, object]]] = lambda: (True, {}),
) -> MetricsServer:
    """Answer ``/metrics`` from ``registry``, ``/healthz`` and ``/readyz`` with 200 or 503.

    ``ready`` also says what the body of ``/readyz`` is, a JSON object. Port 0 takes a free one.
    Requests are answered in threads: ``alive`` and ``ready`` are called from there.

    Raises:
        MetricsServerError: it cannot listen there, for example because the port is in use.
    """

    class Handler(MetricsHandler):
        timeout = 10  # seconds that a client may take to send its request

        def do_GET(self) -> None:  # noqa: N802 - the name is http.server's
            match urlsplit(self.path).path:
                case "/metrics":
                    super().do_GET()
                case "/healthz":
                    self._answer(200, "ok") if alive() else self._answer(503, "no worker runs")
                case "/readyz":
                    is_ready, state = ready()
                    body = json.dumps(state)
                    self._answer(200 if is_ready else 503, body, "application/json")
                case _:
                    self._answer(404, "there are /metrics, /healthz and /readyz")

        def _answer(self, status: int, text: str, kind: str = "text/plain; charset=utf-8") -> None:
            body = f"{text}\n".encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    try:
        return MetricsServer(_Server(host, port, Handler.factory(registry)))
    except OSError as error:
        raise MetricsServerError(
            f"The metrics endpoint cannot listen on {host} port {port}: {error.strerror}."
            " COUPON_METRICS_HOST and COUPON_METRICS_PORT say where it listens."
        ) from error


class _Server(http.server.ThreadingHTTPServer):
    def __init__(self, host: str, port: int, handler: type[Any]) -> None:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family, _, _, _, address = found[0]
        super().__init__((str(address[0]), int(address[1])), handler)

    def server_bind(self) -> None:
        # HTTPServer also looks up the name of the host, which can take seconds without a DNS.
        socketserver.TCPServer.server_bind(self)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        structlog.get_logger("coupon_service.telemetry.metrics").warning(
            "metrics request failed", client=str(client_address), exc_info=True
        )
