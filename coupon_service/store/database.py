"""The pool, and the one helper in which a transaction begins and ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, TypeVar

import psycopg
import structlog
from psycopg import errors as pg
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from coupon_service.errors import (
    Contention,
    CouponServiceError,
    DatabaseUnavailable,
    Overloaded,
)
from coupon_service.store import citus
from coupon_service.store.arrays import text_array
from coupon_service.store.pipeline import Connection, Pipeline, RoundTrip
from coupon_service.store.placement import (
    ARRIVING,
    HOPS_MAX,
    MISPLACED,
    Forward,
    address_of,
    find_forward,
    moved,
)
from coupon_service.store.sessions import DatabaseSettings, connection_arguments
from coupon_service.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from coupon_service.telemetry.tracing import Tracer

T = TypeVar("T")

Work = Callable[[Connection], Awaitable[T]]
Batch = Callable[[Pipeline], Awaitable[T]]

CONNECTION_TRIED_S: Final = 1.0
"""How long to find out why there is no connection."""

ARRIVING_MAX_S: Final = 1.0
"""How long a transaction is tried again at a place where the shard is about to arrive."""

ARRIVING_POLL_S: Final = 0.02

RETRIED = (pg.LockNotAvailable, pg.DeadlockDetected, pg.SerializationFailure)
"""Conflicts with other transactions: nothing was done, and doing it again may work."""

TOO_LONG = (pg.QueryCanceled,)
"""A statement took longer than statement_timeout: nothing was done, and another try at once would
only add to what is too much already."""

UNREACHABLE = (psycopg.OperationalError, psycopg.InterfaceError, pg.ReadOnlySqlTransaction)
"""PostgreSQL is down, restarting, out of disk, or no longer the primary; or the line is cut."""


class Database:
    """A connection pool whose transactions are never cut short by a caller that stops waiting."""

    def __init__(
        self, settings: DatabaseSettings, metrics: Metrics, tracer: Tracer | None = None
    ) -> None:
        self.settings = self._given = settings
        self._parameters = _parameters_of_transactions(settings)
        self._log = structlog.get_logger(__name__)
        self._metrics = metrics
        self._tracer = tracer
        self._running: set[asyncio.Task[object]] = set()
        self._unbatched = asyncio.Semaphore(settings.unbatched_max)
        self._in_use = 0
        self._silence_max_s = (settings.statement_timeout_ms + settings.tcp_user_timeout_ms) / 1000
        self._check: asyncio.Task[None] | None = None
        self._locating = asyncio.Lock()
        self._is_located = not settings.shard.schema
        self.is_unfit = False
        """Whether the readiness check found that it cannot be used as it is: then what PostgreSQL
        refuses is no fault of a statement."""
        self._connecting = ContextVar[DatabaseSettings]("connecting")
        # What a URL that nobody can read would fail with, at once.
        arguments = connection_arguments(settings)
        self.pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            self._located_url if settings.shard.schema else settings.url,
            connection_class=Connection,
            min_size=settings.pool_min_size,
            max_size=settings.pool_max_size,
            timeout=settings.pool_timeout_ms / 1000,
            max_idle=settings.idle_ms / 1000,
            # It tries after 1, 2, 4, 8, ... seconds and then gives up, and the next who asks makes
            # it begin anew: so that it finds PostgreSQL soon after it is back.
            reconnect_timeout=3,
            reconnect_failed=self._ask_anew,
            open=False,
            name=settings.application_name,
            configure=self._configure,
            kwargs=self._located_arguments if settings.shard.schema else arguments,
        )

    async def open(self) -> None:
        """Starts connecting; does not wait for PostgreSQL, which may come later."""
        await self.pool.open(wait=False)

    async def close(self) -> None:
        """Waits for the transactions that are under way, then closes the connections."""
        while self._running:
            await asyncio.wait(self._running)
        if self._check is not None:
            await asyncio.wait([self._check])
        await self.pool.close()

    async def _configure(self, connection: Connection) -> None:
        """Raises psycopg.OperationalError for one to where the shard was when it was begun."""
        if self.settings.shard.schema and self._connecting.get(None) is not self.settings:
            raise psycopg.OperationalError("the shard has moved meanwhile")
        connection.place = self.settings
        connection.silence_max_s = self._silence_max_s
        connection.prepares = self.settings.prepared_statements
        if self.settings.on_citus:
            connection.is_on_citus = True
            connection.add_notice_handler(connection.notice)
            await connection.execute(citus.GO_ON, prepare=False)

    # --- where it is ----------------------------------------------------------------------------

    @property
    def has_moved(self) -> bool:
        """Whether the tables are elsewhere than where the settings said."""
        return self.settings.move_number > 0

    async def look_for_move(self) -> bool:
        """Goes on where the shard is, when it is not here any more; says whether it is not."""
        return await self._find_elsewhere(self.settings)

    async def _located_url(self) -> str:
        """Where to connect to: at first it is asked whether that is elsewhere by now."""
        if not self._is_located:
            async with self._locating:
                if not self._is_located:
                    await self._locate()
        self._connecting.set(self.settings)
        return self.settings.url

    def _ask_anew(self, _: AsyncConnectionPool[Connection]) -> None:
        """After a while without an answer: another node of Citus may stand for the one that was."""
        if self.settings.on_citus:
            self.settings, self._is_located = self._given, False

    def _located_arguments(self) -> dict[str, Any]:
        return connection_arguments(self.settings)

    async def _locate(self) -> None:
        """Follows forwarding addresses from where the settings say; a place that cannot be reached
        is asked when it can."""
        for _ in range(HOPS_MAX):
            arguments = connection_arguments(self.settings)
            async with await Connection.connect(self.settings.url, **arguments) as connection:
                forward = await find_forward(connection, self.settings)
            if forward is None:
                break
            self._go_to(forward)
            if forward.on_citus:  # of which any node knows it
                break
        self._is_located = True

    async def _find_elsewhere(self, tried: DatabaseSettings) -> bool:
        """Whether the shard is elsewhere than where it was `tried`."""
        async with self._locating:
            if self.settings is tried and self._is_located:
                try:
                    async with self.pool.connection() as connection:
                        forward = await find_forward(connection, tried)
                except psycopg.Error:
                    return False
                if forward is not None:
                    self._go_to(forward)
                    await self.pool.drain()
        return self.settings is not tried

    def _go_to(self, forward: Forward) -> None:
        self.settings = moved(self.settings, forward)
        self._parameters = _parameters_of_transactions(self.settings)
        place = {"shard": self.settings.shard.schema, "server": str(address_of(self.settings.url))}
        if forward.on_citus:
            self._log.info("shard found", **place)
        else:
            self._log.warning("shard has moved", **place, update="COUPON_SHARD_URLS")

    # --- transactions ---------------------------------------------------------------------------

    async def connection_error(self) -> psycopg.Error | None:
        """Why no connection can be made, which the pool keeps to itself; None when one can.

        Takes CONNECTION_TRIED_S at most.
        """
        try:
            async with asyncio.timeout(CONNECTION_TRIED_S):
                arguments = connection_arguments(self.settings)
                connection = await Connection.connect(self.settings.url, **arguments)
        except TimeoutError:
            return psycopg.OperationalError(f"no answer within {CONNECTION_TRIED_S:.0f} s")
        except psycopg.Error as error:
            return error
        await connection.close()
        return None

    async def transaction(self, name: str, work: Work[T]) -> T:
        """Runs `work` in one transaction (READ COMMITTED) and commits it; any error rolls back.

        `work` may run up to `attempts_max` times, so that it must be safe to repeat, also after a
        commit whose answer was lost. It runs in a task of its own: a caller that is cancelled stops
        waiting, the transaction goes on. `name` is what the log calls it when it was slow. Only so
        many go on at a time that those who share a connection always get theirs.

        Raises Contention or Overloaded (nothing was changed), DatabaseUnavailable (it may have
        been, or be changed later; a repeat finds out), and what `work` raises, which has to be
        decided under locks that a first try, not yet committed, would make it wait for.
        """
        return await self._run_unbatched(name, _in_transaction(work, self._parameters))

    async def batch(self, name: str, work: Batch[T]) -> T:
        """Like `transaction`, for statements that travel together, and with BEGIN and COMMIT.

        What `work` has added and not run when it returns is run with the COMMIT.
        """
        return await self._run(name, _pipelined(work, self._parameters))

    async def read(self, name: str, work: Work[T]) -> T:
        """Like `transaction`, for statements that change nothing: each sees its own snapshot."""
        return await self._run_unbatched(name, self._reading(work))

    async def read_at_once(self, name: str, work: Work[T]) -> T:
        """Like `read`, without waiting for other reads: for what there is only one of at a time."""
        return await self._run(name, self._reading(work))

    def _reading(self, work: Work[T]) -> Work[T]:
        return _in_transaction(work, self._parameters) if self._parameters else work

    async def _run_unbatched(self, name: str, work: Work[T]) -> T:
        await self._unbatched.acquire()
        task = self._start(name, work)
        # Not when the caller stops waiting: the connection is in use until then.
        task.add_done_callback(lambda _: self._unbatched.release())
        return await asyncio.shield(task)

    async def _run(self, name: str, work: Work[T]) -> T:
        return await asyncio.shield(self._start(name, work))

    def _start(self, name: str, work: Work[T]) -> asyncio.Task[T]:
        attempts = self._attempts(name, work)
        if self._tracer is not None:
            attempts = self._tracer.around(f"transaction {name}", "postgresql", attempts)
        task = asyncio.ensure_future(attempts)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[object]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # seen, also when nobody waits for it any more

    async def _attempts(self, name: str, work: Work[T]) -> T:
        started = perf_counter()
        slowest = RoundTrip()
        is_open = is_begun = False
        attempts_left = self.settings.attempts_max
        try:
            while True:
                attempts_left -= 1
                place = self.settings
                try:
                    async with self.pool.connection() as connection:
                        place = connection.place or place
                        is_begun = True
                        self._in_use += 1
                        connection.slowest = RoundTrip()
                        connection.has_asked_elsewhere = False
                        try:
                            return await work(connection)
                        finally:
                            slowest = max(slowest, connection.slowest, key=lambda it: it.seconds)
                            self._in_use -= 1
                            connection.silence_max_s = self._silence_max_s
                except CouponServiceError:
                    raise  # decided, under the locks that an earlier try would still hold
                except Exception as error:
                    is_open = is_open or _line_was_cut(error)
                    if place.shard.schema and await self._is_elsewhere(error, place, started):
                        attempts_left += 1
                        continue
                    if self._is_tried_again(error, attempts_left):
                        continue
                    failure = DatabaseUnavailable() if is_open else self._failure(error)
                    if failure is None:
                        raise
                    raise failure from error
        finally:
            seconds = perf_counter() - started
            self._metrics.transaction_finished(seconds)
            if is_begun and seconds > self.settings.slow_ms / 1000:
                self._log.warning(
                    "slow transaction",
                    name=name,
                    seconds=round(seconds, 3),
                    slowest_trip=str(slowest),
                    slowest_trip_seconds=round(slowest.seconds, 3),
                )

    async def _is_elsewhere(
        self, error: Exception, tried: DatabaseSettings, started_s: float
    ) -> bool:
        """Whether nothing was done since the shard is, or is about to be, elsewhere."""
        arrives = isinstance(error, psycopg.Error) and error.sqlstate == ARRIVING
        if not (arrives or isinstance(error, MISPLACED)):
            return False
        if await self._find_elsewhere(tried):
            return True
        if not arrives or perf_counter() - started_s > ARRIVING_MAX_S:
            return False
        await asyncio.sleep(ARRIVING_POLL_S)
        return True

    def _is_tried_again(self, error: Exception, attempts_left: int) -> bool:
        if isinstance(error, RETRIED):
            reason = type(error).__name__
            self._metrics.transaction_conflicted(reason, retried=attempts_left > 0)
            return attempts_left > 0
        if isinstance(error, (*TOO_LONG, PoolTimeout)) or not isinstance(error, UNREACHABLE):
            return False
        self._check_connections()
        return attempts_left > 0 and _line_was_cut(error)

    def _failure(self, error: Exception) -> CouponServiceError | None:
        """What the error means to the caller of a transaction that was surely rolled back."""
        if isinstance(error, (*RETRIED, *TOO_LONG)):
            return Contention()
        if isinstance(error, PoolTimeout):
            # The pool counts connections that it only tries to make as well.
            return Overloaded() if self._in_use else DatabaseUnavailable()
        if isinstance(error, psycopg.Error) and error.sqlstate == ARRIVING:
            return DatabaseUnavailable()
        refused = self.is_unfit and isinstance(error, psycopg.Error)
        return DatabaseUnavailable() if refused or isinstance(error, UNREACHABLE) else None

    def _check_connections(self) -> None:
        """Lets the pool replace broken connections, once at a time, and nobody waits for it."""
        if self._check is None or self._check.done():
            self._check = asyncio.ensure_future(self.pool.check())


def _parameters_of_transactions(settings: DatabaseSettings) -> tuple[str, ...]:
    """The names and values that each transaction begins with; empty when the session has them."""
    if settings.parameters_from != "transaction":
        return ()
    parameters = settings.session_parameters
    return text_array(parameters), text_array(parameters.values())


def _in_transaction(work: Work[T], parameters: Sequence[str]) -> Work[T]:
    async def run(connection: Connection) -> T:
        async with connection.transaction():
            return await work(connection)

    async def batch(pipeline: Pipeline) -> T:
        await pipeline.run()
        return await work(pipeline.connection)

    return _pipelined(batch, parameters) if parameters else run


SET_PARAMETERS: Final = """
SELECT set_config(name, value, true) FROM unnest(%s::text[], %s::text[]) AS parameter (name, value)
"""


def _pipelined(work: Batch[T], parameters: Sequence[str]) -> Work[T]:
    async def run(connection: Connection) -> T:
        pipeline = Pipeline(connection)
        try:
            pipeline.add("BEGIN")
            if parameters:
                pipeline.add(SET_PARAMETERS, parameters)
            value = await work(pipeline)
            if connection.is_on_citus:
                await pipeline.run()  # nothing that another node was asked for may be committed
            pipeline.add(pipeline.ending)
            await pipeline.run()
        except BaseException:
            if not connection.closed:
                await connection.rollback()
            raise
        return value

    return run


def _line_was_cut(error: BaseException) -> bool:
    """Whether the connection was lost, rather than refused or out of resources.

    The transaction may have been committed, or be so later: a COMMIT that waits for a standby
    outlives its connection, and so do its locks. A second try on another connection finds out,
    since every change is recorded under the id of its attempt. Only one that decides does, though:
    one that conflicts, or finds no connection, leaves the outcome open.
    """
    return isinstance(
        error, (pg.AdminShutdown, pg.CrashShutdown, pg.IdleInTransactionSessionTimeout)
    ) or (type(error) is psycopg.OperationalError)
