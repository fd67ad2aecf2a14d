"""The schema: brought up to date, taken back, and compared with what this version needs.

The steps are the SQL files of the folder ``migrations``, run by yoyo-migrations.
"""

# yoyo has no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import glob
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from time import monotonic, sleep
from typing import Final
from urllib.parse import urlencode

import psycopg
import yoyo
from yoyo.backends import DatabaseBackend
from yoyo.migrations import Migration, MigrationList

from coupon_service.errors import Contention, DatabaseUnavailable
from coupon_service.store.pipeline import Connection
from coupon_service.store.server_check import SELECT_SERVER, sentence_of, server_problems
from coupon_service.store.sessions import url_parts

MIGRATION_LOCK: Final = 0x636F75706F6E
"""The advisory lock that lets one process at a time change the schema; the number means nothing."""

LOCK_TIMEOUT_MS: Final = 60_000
"""How long to wait for another process, and for the tables to be free."""

LOCK_POLL_S: Final = 0.05


def apply(database_url: str) -> list[str]:
    """Brings the schema up to date; returns the ids of the steps that were needed.

    A step is done and recorded in one transaction: after a crash it is either done or not begun.
    One that says `transactional: false`, as what is built CONCURRENTLY has to, is one whose
    statements can be repeated.

    Raises DatabaseUnavailable, also when the server is not one that will do, or Contention when
    others hold it up for LOCK_TIMEOUT_MS.
    """
    with _exclusive(database_url) as backend:
        steps = backend.to_apply(_all_steps())
        for step in steps:
            with _in_transaction(backend, step):
                step.process_steps(backend, "apply")
                backend.mark_one(step, log=False)
        return [step.id for step in steps]


def rollback(database_url: str, *, count: int | None = None) -> list[str]:
    """Takes back the last `count` steps, or all of them, and what is stored in their tables.

    Returns their ids, the last step first. Raises as `apply` does.
    """
    with _exclusive(database_url) as backend:
        steps = backend.to_rollback(_all_steps())[:count]
        for step in steps:
            with _in_transaction(backend, step):
                step.process_steps(backend, "rollback")
                backend.unmark_one(step, log=False)
        return [step.id for step in steps]


def status(database_url: str) -> list[tuple[str, bool]]:
    """Every step in order, and whether it has been applied. Raises as `apply` does."""
    with _exclusive(database_url) as backend:
        return [(step.id, backend.is_applied(step)) for step in _all_steps()]


def _in_transaction(backend: DatabaseBackend, step: Migration) -> AbstractContextManager[object]:
    """A transaction for the step, unless it can do without one."""
    step.load()
    return backend.transaction() if step.use_transactions else nullcontext()


MISSING_STEPS: Final = """
SELECT EXISTS (
    SELECT FROM unnest(%s::text[]) AS step (migration_id)
    WHERE NOT EXISTS (
        SELECT FROM _yoyo_migration AS applied WHERE applied.migration_id = step.migration_id))
"""


async def schema_is_current(connection: Connection) -> bool:
    """Whether every step this version needs has been applied; later steps do not matter.

    For a connection in autocommit mode: a database without any step fails the statement.
    """
    needed = [path.stem for path in _folder().glob("*.sql") if ".rollback" not in path.suffixes]
    try:
        cursor = await connection.execute(MISSING_STEPS, [needed])
    except psycopg.errors.UndefinedTable:
        return False
    return await cursor.fetchone() == (False,)


@contextmanager
def _exclusive(database_url: str) -> Generator[DatabaseBackend]:
    """yoyo on the database, for this process alone.

    yoyo's own lock is a row that stays behind when its process is killed, so PostgreSQL's is held
    as well, which ends with the connection; under it, a row that is there was left behind.
    """
    uri = "postgresql+psycopg://?" + urlencode(url_parts(database_url))
    try:
        with yoyo.get_backend(uri) as backend:
            _check(backend)
            backend.execute(f"SET lock_timeout = {LOCK_TIMEOUT_MS}")
            _lock(backend)
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


def _check(backend: DatabaseBackend) -> None:
    """Raises DatabaseUnavailable for a server or a role that cannot have the schema."""
    problems = server_problems(*backend.execute(SELECT_SERVER).fetchone())
    if problems:
        raise DatabaseUnavailable(" ".join(problems.values()))
    role, schema, creatable = backend.execute(SELECT_CREATABLE).fetchone()
    if not creatable:
        where = f"the schema {schema}" if schema else "a schema of its search_path"
        raise DatabaseUnavailable(f"The role {role} may not create tables in {where}.")


def _lock(backend: DatabaseBackend) -> None:
    """Takes the lock of migrations. Asks again and again, since an index that is built CONCURRENTLY
    would wait for the statement of whoever waits for the lock. Raises Contention."""
    deadline_s = monotonic() + LOCK_TIMEOUT_MS / 1000
    while backend.execute(f"SELECT pg_try_advisory_lock({MIGRATION_LOCK})").fetchone() != (True,):
        if monotonic() > deadline_s:
            raise Contention("Another process is changing the schema.")
        sleep(LOCK_POLL_S)


def _all_steps() -> MigrationList:
    return yoyo.read_migrations(glob.escape(str(_folder())))


def _folder() -> Path:
    """Inside the package when it was installed, beside it in the source tree."""
    package = Path(__file__).parents[1]
    installed = package / "migrations"
    return installed if installed.is_dir() else package.parent / "migrations"
