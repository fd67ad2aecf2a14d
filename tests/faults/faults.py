"""The faults: how each is injected, for how long, and which outcomes clients may see."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final

import psycopg
from faults.proxy import BLACK_HOLE, PASS, Commit, Proxy, Rule
from faults.stack import DEADLINE_S, Stack, connects, redis_client
from support.waiting import until

Strike = Callable[[Stack, random.Random], AbstractContextManager[None]]

FROZEN_S: Final = DEADLINE_S + 0.5
"""Longer than the deadline of any call."""

OURS: Final = "FROM pg_stat_activity WHERE application_name LIKE 'coupon_service%'"

DATABASE: Final = frozenset({"DATABASE_UNAVAILABLE", "OVERLOADED"})
"""OVERLOADED: calls that wait for a connection while the pool reconnects."""

LOCKS: Final = frozenset({"LOCKS_UNAVAILABLE"})
NOTHING: Final[frozenset[str]] = frozenset()


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault. `strike` starts it on entry and ends it on exit; it holds for `holds_s`.

    `seen`: reasons or statuses that clients may see, in addition to those of a slow machine.
    `surely`: at least one of these is seen. `locking_only`: books without locking are unaffected.
    """

    name: str
    strike: Strike
    holds_s: float = 0.3
    seen: frozenset[str] = NOTHING
    surely: frozenset[str] = NOTHING
    locking_only: bool = False


# --- PostgreSQL ---------------------------------------------------------------------------------


@contextmanager
def postgres_killed(stack: Stack, _: random.Random) -> Generator[None]:
    """kill -9 of all processes, then a restart."""
    stack.postgres.kill()
    yield
    stack.postgres.start()


@contextmanager
def postgres_restarted(stack: Stack, _: random.Random) -> Generator[None]:
    """A clean stop, then a restart."""
    stack.postgres.stop()
    yield
    stack.postgres.start()


@contextmanager
def backends_terminated(stack: Stack, _: random.Random) -> Generator[None]:
    """An operator terminates the service's sessions."""
    with stack.connect() as connection:
        connection.execute(f"SELECT pg_terminate_backend(pid) {OURS}".encode())
    yield


@contextmanager
def backend_killed(stack: Stack, _: random.Random) -> Generator[None]:
    """kill -9 of one session: PostgreSQL terminates all others as well, and recovers."""
    with stack.connect() as connection:
        row: Any = connection.execute(f"SELECT pid {OURS} LIMIT 1".encode()).fetchone()
    with suppress(ProcessLookupError, TypeError):
        os.kill(row[0], signal.SIGKILL)
    yield
    until(lambda: connects(stack.postgres.url))


@contextmanager
def postgres_frozen(stack: Stack, _: random.Random) -> Generator[None]:
    """SIGSTOP of all processes."""
    stack.postgres.pause()
    yield
    stack.postgres.resume()


@contextmanager
def connections_taken(stack: Stack, _: random.Random) -> Generator[None]:
    """Other clients use every connection that PostgreSQL allows."""
    with ExitStack() as others:
        first = others.enter_context(stack.connect())
        with suppress(psycopg.OperationalError):
            while True:
                others.enter_context(stack.connect())
        first.execute(f"SELECT pg_terminate_backend(pid) {OURS}".encode())
        with suppress(psycopg.OperationalError):
            while True:
                others.enter_context(stack.connect())
        yield


@contextmanager
def read_only(stack: Stack, _: random.Random) -> Generator[None]:
    """PostgreSQL is no longer the primary."""
    alter(stack, "default_transaction_read_only", "on")
    yield
    alter(stack, "default_transaction_read_only", "off")


@contextmanager
def standby_away(stack: Stack, _: random.Random) -> Generator[None]:
    """COMMITs wait for a missing synchronous standby, and survive the cut of their lines."""
    with stack.connect() as connection:
        alter(stack, "synchronous_standby_names", "missing")
        until(lambda: connection.execute(f"SELECT {OURS} AND wait_event = 'SyncRep'").rowcount)
        stack.to_postgres.cut()
        yield
        alter(stack, "synchronous_standby_names", "''")


@contextmanager
def rows_locked(stack: Stack, chance: random.Random) -> Generator[None]:
    """Another session holds the rows of all codes for longer than lock_timeout."""
    with stack.connect() as connection, connection.transaction():
        # So that a deadlock is reported to the service, and not to this session.
        connection.execute("SET LOCAL deadlock_timeout = '1min'")
        connection.execute("SELECT FROM coupon_codes FOR UPDATE")
        yield


@contextmanager
def deadlocks(stack: Stack, _: random.Random) -> Generator[None]:
    """Another session locks the same rows in the opposite order."""
    with stack.connect() as connection, stack.connect() as observer:

        def count() -> int:
            observer.execute("SELECT pg_stat_clear_snapshot()")
            row: Any = observer.execute(
                "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
            ).fetchone()
            return row[0]

        def meet() -> bool:
            with suppress(psycopg.errors.DeadlockDetected), connection.transaction():
                connection.execute("SELECT FROM coupon_book_totals FOR UPDATE")
                time.sleep(0.02)  # meanwhile the service locks codes, and waits for the totals
                connection.execute("SELECT FROM coupon_codes FOR UPDATE")
            return count() > before

        before = count()
        until(meet)
    yield


# --- the lines to PostgreSQL and Redis ----------------------------------------------------------


def ruled(rule: Rule, choose: Callable[[Stack], Proxy], *, then_cut: bool = False) -> Strike:
    """A rule for the lines. With `then_cut` they are cut at its end."""

    @contextmanager
    def strike(stack: Stack, chance: random.Random) -> Generator[None]:
        proxy = choose(stack)
        bytes_ = rule.cut_after_bytes
        proxy.rule = replace(rule, cut_after_bytes=bytes_ and chance.randrange(1, bytes_))
        yield
        proxy.rule = PASS
        if then_cut:
            proxy.cut()

    return strike


def applied(action: Callable[[Proxy], None], choose: Callable[[Stack], Proxy]) -> Strike:
    """A single action on the lines."""

    @contextmanager
    def strike(stack: Stack, _: random.Random) -> Generator[None]:
        action(choose(stack))
        yield

    return strike


def refused(choose: Callable[[Stack], Proxy]) -> Strike:
    """All lines are reset, and new ones are refused."""

    @contextmanager
    def strike(stack: Stack, _: random.Random) -> Generator[None]:
        proxy = choose(stack)
        proxy.rule = Rule(refuse=True)
        proxy.cut()
        yield
        proxy.rule = PASS

    return strike


@contextmanager
def clients_lost(stack: Stack, _: random.Random) -> Generator[None]:
    """PostgreSQL keeps sessions, and their row locks, of clients that are gone."""
    stack.to_postgres.lose_clients()
    yield
    stack.to_postgres.cut()


def commit_cut(where: Commit) -> Strike:
    """A line is cut around exactly one COMMIT."""

    @contextmanager
    def strike(stack: Stack, _: random.Random) -> Generator[None]:
        proxy = stack.to_postgres
        before = proxy.commits_cut
        proxy.rule = Rule(commit=where)
        yield
        until(lambda: proxy.commits_cut > before)

    return strike


# --- Redis --------------------------------------------------------------------------------------


@contextmanager
def redis_killed(stack: Stack, _: random.Random) -> Generator[None]:
    """kill -9, then a restart without data."""
    stack.redis.kill()
    yield
    stack.redis.start()


@contextmanager
def redis_frozen(stack: Stack, _: random.Random) -> Generator[None]:
    """SIGSTOP."""
    stack.redis.pause()
    yield
    stack.redis.resume()


def commanded(*command: str, back: tuple[str, ...] = ()) -> Strike:
    """A command to Redis, and one that reverts it."""

    @contextmanager
    def strike(stack: Stack, _: random.Random) -> Generator[None]:
        with redis_client(stack.redis.url) as client:
            client.execute_command(*command)
            yield
            if back:
                client.execute_command(*back)

    return strike


@contextmanager
def redis_failed_over(stack: Stack, _: random.Random) -> Generator[None]:
    """A second, empty Redis takes over; then the first returns."""
    stack.to_redis.target_port = stack.second_redis.port
    stack.to_redis.cut()
    yield
    stack.to_redis.target_port = stack.redis.port
    stack.to_redis.cut()


# --- clocks -------------------------------------------------------------------------------------


def clock_stepped(**step: float) -> Strike:
    """The service's clock steps, and steps back."""

    @contextmanager
    def strike(stack: Stack, _: random.Random) -> Generator[None]:
        stack.ahead = timedelta(**step)
        yield
        stack.ahead = timedelta()

    return strike


# ------------------------------------------------------------------------------------------------


def alter(stack: Stack, name: str, value: str) -> None:
    """Change a setting of PostgreSQL for all sessions, at once."""
    with stack.connect() as connection:
        connection.execute("SET default_transaction_read_only = off")
        connection.execute(f"ALTER SYSTEM SET {name} = {value}".encode())
        connection.execute("SELECT pg_reload_conf()")


def to_postgres(stack: Stack) -> Proxy:
    """The lines to PostgreSQL."""
    return stack.to_postgres


def to_redis(stack: Stack) -> Proxy:
    """The lines to Redis."""
    return stack.to_redis


PG: Final = to_postgres
REDIS: Final = to_redis
LATE: Final = frozenset({"LOCK_EXPIRED"})

FAULTS: Final = (
    Fault("PostgreSQL killed", postgres_killed, 1, DATABASE, DATABASE),
    Fault("PostgreSQL restarted", postgres_restarted, 1, DATABASE, DATABASE),
    Fault("its sessions terminated", backends_terminated, seen=DATABASE),
    Fault("a session killed", backend_killed, seen=DATABASE),
    Fault(
        "PostgreSQL frozen",
        postgres_frozen,
        FROZEN_S,
        DATABASE,
        surely=frozenset({"DEADLINE_EXCEEDED"}),
    ),
    Fault("its connections taken", connections_taken, seen=DATABASE),
    Fault("PostgreSQL read-only", read_only, seen=DATABASE, surely=DATABASE),
    # Not surely seen: a second try waits for the rows, and may outlast the fault.
    Fault("a synchronous standby away", standby_away, 1, seen=DATABASE),
    Fault("rows locked", rows_locked, FROZEN_S, surely=frozenset({"CONTENTION"})),
    Fault("deadlocks", deadlocks, 0),
    Fault("lines to PostgreSQL reset", applied(Proxy.cut, PG), seen=DATABASE),
    Fault("lines to PostgreSQL refused", refused(PG), seen=DATABASE, surely=DATABASE),
    Fault("PostgreSQL in a black hole", ruled(BLACK_HOLE, PG), FROZEN_S, DATABASE),
    Fault(
        "PostgreSQL in a black hole, then reset", ruled(BLACK_HOLE, PG, then_cut=True), 1, DATABASE
    ),
    Fault("requests to PostgreSQL lost", ruled(Rule(hold_requests=True), PG), 1, DATABASE),
    Fault("replies of PostgreSQL lost", ruled(Rule(hold_replies=True), PG), 1, DATABASE),
    Fault("PostgreSQL half-open", applied(Proxy.lose_servers, PG), 0, DATABASE),
    Fault("service half-open", clients_lost, 1.5, DATABASE),
    Fault("PostgreSQL slow", ruled(Rule(delay_s=0.03), PG), 0.5),
    Fault(
        "lines to PostgreSQL cut at a byte", ruled(Rule(cut_after_bytes=20_000), PG), 0.3, DATABASE
    ),
    Fault("cut before a COMMIT", commit_cut(Commit.BEFORE), 0, DATABASE),
    Fault("cut after a COMMIT", commit_cut(Commit.AFTER), 0, DATABASE),
    Fault("Redis killed", redis_killed, 0.5, LOCKS, LOCKS, locking_only=True),
    Fault("Redis frozen", redis_frozen, 1, LOCKS, LOCKS, locking_only=True),
    Fault("Redis flushed", commanded("FLUSHALL"), locking_only=True),
    Fault("Redis without its scripts", commanded("SCRIPT", "FLUSH"), locking_only=True),
    Fault(
        "Redis a replica",
        commanded("REPLICAOF", "127.0.0.1", "1", back=("REPLICAOF", "NO", "ONE")),
        seen=LOCKS,
        surely=LOCKS,
        locking_only=True,
    ),
    Fault("Redis failed over", redis_failed_over, 0.3, LOCKS, locking_only=True),
    Fault("lines to Redis reset", applied(Proxy.cut, REDIS), 0.3, LOCKS, locking_only=True),
    Fault("lines to Redis refused", refused(REDIS), 0.5, LOCKS, LOCKS, locking_only=True),
    Fault("Redis in a black hole", ruled(BLACK_HOLE, REDIS), 1, LOCKS, LOCKS, locking_only=True),
    Fault("Redis half-open", applied(Proxy.lose_servers, REDIS), 0.5, LOCKS, locking_only=True),
    Fault("Redis too slow", ruled(Rule(delay_s=0.3), REDIS), 1, LOCKS, LOCKS, locking_only=True),
    Fault(
        "lines to Redis cut at a byte",
        ruled(Rule(cut_after_bytes=5_000), REDIS),
        0.5,
        LOCKS,
        locking_only=True,
    ),
    Fault("the clock an hour ahead", clock_stepped(hours=1), 0.3, LATE, locking_only=True),
    Fault("the clock a minute behind", clock_stepped(minutes=-1), 0.3, LATE, locking_only=True),
)
