"""Pauses: short times in which nobody writes to the shard, and the new place has all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from time import monotonic, sleep
from typing import Final

import psycopg

from coupon_service.store.moving.copying import EMIT, Catching
from coupon_service.store.moving.sides import (
    CannotMoveError,
    Connection,
    Names,
    lock_tables,
    set_timeout,
    until,
)

ATTEMPTS_MAX: Final = 5
REST_S: Final = 2.0
"""Between two attempts."""

MAINTENANCE_WAIT_MS: Final = 10_000
"""For an autovacuum, which PostgreSQL ends for who waits for it. Nobody is kept waiting by that."""

SPARE_S: Final = 0.05
"""Of the pause, for its end."""

LOCK_SHARE: Final = 0.4
"""Of the pause, that one lock may be waited for."""


class PauseTooLongError(Exception):
    """The pause would be longer than it may be; what it waits for."""


class Pauses:
    """The pauses of one move. `helper`: another session at the source."""

    def __init__(
        self,
        source: Connection,
        helper: Connection,
        catching: Catching,
        names: Names,
        tables: Sequence[str],
        max_ms: int,
    ) -> None:
        self.source = source
        self.helper = helper
        self.catching = catching
        self.names = names
        self.tables = tables
        self.max_ms = max_ms

    def attempts(self, work: Callable[[Pause], None]) -> Iterator[str]:
        """Does what needs a pause, again when the pause would be too long. Raises CannotMoveError
        when it is so each time."""
        for attempts_left in reversed(range(ATTEMPTS_MAX)):
            try:
                work(Pause(self))
            except PauseTooLongError as error:
                if not attempts_left:
                    raise CannotMoveError(
                        f"A pause of {self.max_ms} ms was not enough: {error}.{self._holders()}"
                    ) from error
                yield f"gave up a pause, since {error}"
                sleep(REST_S)
            else:
                return

    def _holders(self) -> str:
        """Who holds the tables, in a sentence; empty for nobody."""
        found = self.helper.execute(SELECT_HOLDERS, [self.names.schema]).fetchall()
        listed = ", ".join(f"backend {pid} ({name or 'unnamed'})" for pid, name in found)
        return f" Long transactions: {listed}." if listed else ""


SELECT_HOLDERS: Final = """
SELECT DISTINCT pid, application_name FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE locktype = 'relation' AND granted AND mode <> 'AccessShareLock' AND pid <> pg_backend_pid()
    AND relation IN (SELECT oid FROM pg_class WHERE relnamespace = to_regnamespace(%s))
LIMIT 3
"""


class Pause:
    """One of them. Others may read meanwhile. `left_s`: of the time that it may take."""

    def __init__(self, pauses: Pauses) -> None:
        self._of = pauses
        self._max_s = pauses.max_ms / 1000
        self._began_s = 0.0

    def begin(self) -> None:
        """In a transaction of the source, with which the pause ends. Raises PauseTooLongError."""
        of, source = self._of, self._of.source
        set_timeout(source, "lock_timeout", MAINTENANCE_WAIT_MS)
        try:
            # An autovacuum of one of them would hold up the pause.
            lock_tables(source, of.names, of.tables, "SHARE UPDATE EXCLUSIVE")
        except psycopg.errors.LockNotAvailable:
            raise PauseTooLongError("the tables are being maintained") from None
        self._began_s = monotonic()
        # PostgreSQL ends it as well, should this process not be able to.
        set_timeout(source, "idle_in_transaction_session_timeout", int(self._max_s * 1000) + 500)
        self.bound(source)
        set_timeout(source, "lock_timeout", max(1, int(self._max_s * 1000 * LOCK_SHARE)))
        try:
            lock_tables(source, of.names, of.tables, "EXCLUSIVE")
        except (
            psycopg.errors.LockNotAvailable,
            psycopg.errors.QueryCanceled,
            psycopg.errors.DeadlockDetected,
        ):
            raise PauseTooLongError("other transactions hold its tables") from None
        row = of.helper.execute(EMIT).fetchone()
        lsn = row[0] if row else ""
        if not until(lambda: of.catching.has(lsn), self.left_s - SPARE_S, 0.01):
            raise PauseTooLongError("the replication is behind")

    def bound(self, connection: Connection) -> None:
        """Lets no statement take longer than the pause may. Raises PauseTooLongError."""
        left_ms = int(self.left_s * 1000)
        if left_ms <= 0:
            raise PauseTooLongError("the comparison takes too long")
        set_timeout(connection, "statement_timeout", left_ms)

    @property
    def left_s(self) -> float:
        """Of the time that the pause may take."""
        return self._max_s - self.took_s

    @property
    def took_s(self) -> float:
        """Since it began."""
        return monotonic() - self._began_s
