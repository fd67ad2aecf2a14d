"""The schema: brought up to date, taken back, and compared with what this version needs.

The steps are the SQL files of the folder ``migrations``, run by yoyo-migrations.
"""

# yoyo has no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import glob
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Final, TypeAlias
from urllib.parse import urlencode

import psycopg
import yoyo
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow
from yoyo.backends import DatabaseBackend
from yoyo.migrations import Migration, MigrationList

from coupon_service.errors import Contention, DatabaseUnavailable
from coupon_service.store import citus
from coupon_service.store.pipeline import Connection
from coupon_service.store.server_check import SELECT_SERVER, server_problems
from coupon_service.store.sessions import ONLY_SHARD, ShardPlace, options, sentence_of, url_parts

MIGRATION_LOCK: Final = 0x636F75706F6E
"""The advisory lock that lets one process at a time change the schema; the number means nothing."""

LOCK_TIMEOUT_MS: Final = 60_000
"""How long to wait for another process, and for the tables to be free."""

LOCK_POLL_S: Final = 0.05

APPLICATION_NAME: Final = "coupon_service migrate"
"""Of its connections, in pg_stat_activity."""

TIMEOUTS_MS: Final = {"lock_timeout": LOCK_TIMEOUT_MS, "statement_timeout": 0}
"""Of its sessions, whatever the role has. Steps without a transaction go without, behind a pooler:
what is set for a session there is left behind for others."""


Steps: TypeAlias = MigrationList
"""The steps that there are, each of them read."""


def step_names() -> list[str]:
    """The ids of the steps that this version needs."""
    return [it.stem for it in _folder().glob("*.sql") if ".rollback" not in it.suffixes]


def read_steps() -> Steps:
    """The steps that there are. yoyo cannot read them in several threads at once."""
    steps = yoyo.read_migrations(glob.escape(str(_folder())))
    for step in steps:
        step.load()
    return steps


def apply(
    database_url: str,
    *,
    pooled: bool = False,
    shard: ShardPlace = ONLY_SHARD,
    steps: Steps | None = None,
    done: Callable[[str], None] = lambda _: None,
) -> list[str]:
    """Brings the schema up to date; returns the ids of the steps that were needed.

    The schema of a shard is made where there is none. Where the events of the ledger were copied
    without its sequence, that goes on above them. `steps`: those that there are, where they have
    been read; `done`: called with the id of each.

    A step is done and recorded in one transaction: after a crash it is either done or not begun.
    One that says `transactional: false`, as what is built CONCURRENTLY has to, is one whose
    statements can be repeated.

    Raises DatabaseUnavailable, also when the server is not one that will do, or Contention when
    others hold it up for LOCK_TIMEOUT_MS.
    """
    with _exclusive(database_url, shard, pooled=pooled) as backend:
        needed = backend.to_apply(steps or read_steps())
        for step in needed:
            with _in_transaction(backend, step):
                step.process_steps(backend, "apply")
                backend.mark_one(step, log=False)
            done(step.id)
        _advance_numbers(backend)
        return [step.id for step in needed]


def rollback(
    database_url: str,
    *,
    count: int | None = None,
    pooled: bool = False,
    shard: ShardPlace = ONLY_SHARD,
    steps: Steps | None = None,
    done: Callable[[str], None] = lambda _: None,
) -> list[str]:
    """Takes back the last `count` steps, or all of them, and what is stored in their tables.

    Returns their ids, the last step first. Other arguments, and what it raises: as of `apply`.
    """
    with _exclusive(database_url, shard, pooled=pooled) as backend:
        undone = backend.to_rollback(steps or read_steps())[:count]
        for step in undone:
            with _in_transaction(backend, step):
                step.process_steps(backend, "rollback")
                backend.unmark_one(step, log=False)
            done(step.id)
        return [step.id for step in undone]


def status(
    database_url: str,
    *,
    pooled: bool = False,
    shard: ShardPlace = ONLY_SHARD,
    steps: Steps | None = None,
) -> list[tuple[str, bool]]:
    """Every step in order, and whether it has been applied. Raises as `apply` does."""
    with _exclusive(database_url, shard, pooled=pooled) as backend:
        return [(step.id, backend.is_applied(step)) for step in steps or read_steps()]


@contextmanager
def _in_transaction(backend: DatabaseBackend, step: Migration) -> Generator[None]:
    """A transaction for the step, unless it can do without one."""
    if not step.use_transactions:
        yield
        return
    with backend.transaction():
        for name, value in TIMEOUTS_MS.items():
            backend.execute(f"SET LOCAL {name} = {value}")
        yield


LOCK_LEDGER: Final = "LOCK TABLE redemption_audit IN SHARE ROW EXCLUSIVE MODE"

ADVANCE_NUMBERS: Final = """
SELECT setval('redemption_audit_numbers', max(sequence)) FROM redemption_audit
HAVING max(sequence) > coalesce(pg_sequence_last_value('redemption_audit_numbers'), 0)
"""


def _advance_numbers(backend: DatabaseBackend) -> None:
    """Has the ledger draw numbers above all that it has, as after a logical replication."""
    if backend.execute(NUMBERS_ARE_ABOVE).fetchone() != (True,):
        with backend.transaction():
            backend.execute(LOCK_LEDGER)
            backend.execute(ADVANCE_NUMBERS)


MISSING_STEPS: Final = """
SELECT EXISTS (
    SELECT FROM unnest(%s::text[]) AS step (migration_id)
    WHERE NOT EXISTS (
        SELECT FROM _yoyo_migration AS applied WHERE applied.migration_id = step.migration_id))
"""

# The rows are those of a snapshot from before the last number is read, which has to be above them.
NUMBERS_ARE_ABOVE: Final = """
SELECT coalesce(max(sequence), 0) <= coalesce(pg_sequence_last_value('redemption_audit_numbers'), 0)
FROM redemption_audit
"""


HAS_STEP: Final = "SELECT EXISTS (SELECT FROM coupon_finished_steps WHERE step = %s)"


async def schema_is_current(connection: Connection, shard: ShardPlace = ONLY_SHARD) -> bool:
    """Whether every step this version needs has been applied; later steps do not matter. Not where
    the ledger would draw numbers that its events have already, nor where the schema was made for
    another shard.

    For a connection in autocommit mode: a database without any step fails the statement.
    """
    try:
        cursor = await connection.execute(MISSING_STEPS, [step_names()])
    except psycopg.errors.UndefinedTable:
        return False
    if await cursor.fetchone() != (False,):
        return False
    if shard.step:
        cursor = await connection.execute(HAS_STEP, [shard.step])
        if await cursor.fetchone() != (True,):
            return False
    cursor = await connection.execute(NUMBERS_ARE_ABOVE)
    return await cursor.fetchone() == (True,)


@contextmanager
def _exclusive(database_url: str, shard: ShardPlace, *, pooled: bool) -> Generator[DatabaseBackend]:
    """yoyo on the database, for this process alone.

    yoyo's own lock is a row that stays behind when its process is killed, so PostgreSQL's is held
    as well, by a transaction of another connection, with which it ends. One of the session would
    outlive it in a pooler. Under it, a row of yoyo's that is there was left behind.
    """
    if pooled and shard.schema:
        raise DatabaseUnavailable(
            "Through a pooler a session cannot keep to the schema of a shard: name PostgreSQL"
            " itself, and set COUPON_SESSION_PARAMETERS=startup."
        )
    given = {} if pooled else {name: str(value) for name, value in TIMEOUTS_MS.items()}
    if shard.schema:
        given |= {**shard.parameters, **citus.MIGRATION_PARAMETERS}
    parts = {
        **url_parts(database_url),
        "options": options(database_url, given),
        "client_encoding": "UTF8",
        "application_name": APPLICATION_NAME,
        "keepalives_idle": "10",  # one of them waits while the other builds an index
    }
    try:
        if shard.schema:
            _make_schema(make_conninfo(**parts), shard.schema)
        with (
            psycopg.connect(make_conninfo(**parts)) as locking,
            yoyo.get_backend("postgresql+psycopg://?" + urlencode(parts)) as backend,
        ):
            backend.connection.prepare_threshold = None  # poolers may not keep what is prepared
            _check(backend)
            _lock(locking, lock_of(shard))
            backend.break_lock()
            backend.ensure_internal_schema_updated()
            yield backend
    except psycopg.errors.LockNotAvailable as error:
        raise Contention("The schema is being changed, or its tables are in use.") from error
    except psycopg.Error as error:
        raise DatabaseUnavailable(sentence_of(error)) from error


SELECT_CREATABLE: Final = """
SELECT current_user, current_schema(), has_schema_privilege(current_schema(), 'CREATE')
"""


def _make_schema(conninfo: str, schema: str) -> None:
    """Makes the schema of a shard where there is none, which takes a privilege on the database."""
    with psycopg.connect(conninfo) as connection:
        found = connection.execute("SELECT FROM pg_namespace WHERE nspname = %s", [schema])
        if found.fetchone() is None:
            name = sql.Identifier(schema)
            connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(name))


def lock_of(shard: ShardPlace) -> int:
    """The advisory lock of the schema's migrations: those of different shards go on at once."""
    return MIGRATION_LOCK | shard.number + 1 << 48 if shard.schema else MIGRATION_LOCK


def _check(backend: DatabaseBackend) -> None:
    """Raises DatabaseUnavailable for a server or a role that cannot have the schema."""
    major, encoding, read_only = backend.execute(SELECT_SERVER).fetchone()
    problems = server_problems(major, encoding, read_only=read_only)
    if problems:
        raise DatabaseUnavailable(" ".join(problems.values()))
    role, schema, creatable = backend.execute(SELECT_CREATABLE).fetchone()
    if not creatable:
        where = f"the schema {schema}" if schema else "a schema of its search_path"
        raise DatabaseUnavailable(f"The role {role} may not create tables in {where}.")


# The role of the service may have a timeout, by what migrate grants prints. Without parameters, so
# that it is a simple query: one of the extended protocol would keep its snapshot, for whose end an
# index that is built CONCURRENTLY waits.
TRY_LOCK: Final = sql.SQL("""
SELECT pg_try_advisory_xact_lock({lock}),
    set_config('idle_in_transaction_session_timeout', '0', true)
""")

SELECT_HOLDER: Final = """
SELECT pid, usename, application_name, host(client_addr), backend_start::timestamp(0)
FROM pg_locks LEFT JOIN pg_stat_activity USING (pid)
WHERE locktype = 'advisory' AND granted AND objsubid = 1
    AND ((classid::bigint << 32) | objid::bigint) = %s
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


def _lock(connection: psycopg.Connection[TupleRow], lock: int) -> None:
    """Takes the lock of migrations until the transaction ends. Asks again and again, since an index
    that is built CONCURRENTLY would wait for the statement of whoever waits for the lock.

    Raises Contention, which says who holds it.
    """
    deadline_s = monotonic() + LOCK_TIMEOUT_MS / 1000
    try_lock = TRY_LOCK.format(lock=sql.Literal(lock))
    while connection.execute(try_lock).fetchone() != (True, "0"):
        connection.rollback()
        if monotonic() > deadline_s:
            holder = _holder(connection, lock)
            raise Contention(f"Another process is changing the schema{holder}.")
        sleep(LOCK_POLL_S)


def _holder(connection: psycopg.Connection[TupleRow], lock: int) -> str:
    """Who holds the lock, as far as this role may know."""
    found = connection.execute(SELECT_HOLDER, [lock]).fetchone()
    if found is None:
        return ""
    pid, role, application, host, start = found
    return (
        f": backend {pid} of PostgreSQL, {application or 'unnamed'}, role {role or 'unknown'},"
        f" from {host or 'this machine'}, connected since {start}"
    )


def _folder() -> Path:
    """Inside the package when it was installed, beside it in the source tree."""
    package = Path(__file__).parents[1]
    installed = package / "migrations"
    return installed if installed.is_dir() else package.parent / "migrations"
