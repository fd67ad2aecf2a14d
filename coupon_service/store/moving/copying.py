"""The copy of all rows, as of when the replication slot begins, and what is replicated after it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from time import monotonic
from typing import Final, LiteralString

import psycopg
from psycopg import sql

from coupon_service.store.moving.sides import (
    TOLD_EVERY_S,
    CannotMoveError,
    Connection,
    Names,
    connect,
    told_while,
    until,
)

LAG_MAX_BYTES: Final = 1 << 20
"""What may be left to apply when the pause begins."""

CATCH_UP_POLL_S: Final = 0.2

MAKE_GUARD: Final = """
CREATE FUNCTION {guard}() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('coupon.move', true) IS DISTINCT FROM {token} THEN
        RAISE EXCEPTION 'the shard is being moved here' USING ERRCODE = 'CM001';
    END IF;
    RETURN NULL;
END
$$
"""

OPEN_GUARD: Final = """
CREATE OR REPLACE FUNCTION {guard}() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RETURN NULL;
END
$$
"""

GUARD: Final = "coupon_arriving"

GUARD_TABLE: Final = """
ALTER TABLE {table} DISABLE TRIGGER USER;
CREATE TRIGGER coupon_arriving BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {table}
    FOR EACH STATEMENT EXECUTE FUNCTION {guard}()
"""


def make_guard(target: Connection, names: Names, token: str) -> None:
    """Makes the schema, and in it what will keep others from writing there."""
    with target.transaction():
        target.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(names.schema)))
        guard = names.table(GUARD)
        target.execute(sql.SQL(MAKE_GUARD).format(guard=guard, token=sql.Literal(token)))


def close_to_others(target: Connection, names: Names, tables: Sequence[str]) -> None:
    """Has the tables accept rows of this move only, and empties them of what migrations put in.

    The replication writes past triggers, and so past the guard. Raises CannotMoveError when others
    have written there.
    """
    guard, head = names.table(GUARD), names.table("coupon_audit_head")
    with target.transaction():
        for table in tables:
            guarded = sql.SQL(GUARD_TABLE).format(table=names.table(table), guard=guard)
            target.execute(guarded)
        target.execute(sql.SQL("DELETE FROM {}").format(head))
        for table in tables:
            some = sql.SQL("SELECT EXISTS (SELECT FROM {})").format(names.table(table))
            if target.execute(some).fetchone() != (False,):
                raise CannotMoveError(f"Somebody writes to {table} where the shard is to go.")


def is_guarded(target: Connection, names: Names) -> bool:
    """Whether the schema is one that a move has made, and not yet handed over."""
    name = f"{names.schema}.{GUARD}()"
    return target.execute("SELECT to_regprocedure(%s) IS NOT NULL", [name]).fetchone() == (True,)


def enable_triggers(target: Connection, names: Names, tables: Sequence[str]) -> None:
    """Has the tables' own triggers fire for who writes there. The replication writes past them."""
    with target.transaction():
        for table in tables:
            statement = sql.SQL("ALTER TABLE {} ENABLE TRIGGER USER").format(names.table(table))
            target.execute(statement)


# --- the copy -----------------------------------------------------------------------------------

CREATE_SLOT: Final = "CREATE_REPLICATION_SLOT {} LOGICAL pgoutput (SNAPSHOT 'export')"


class Snapshot:
    """The slot, and a snapshot of all that is in none of its changes; for as long as it is open."""

    def __init__(self, source_url: str, slot: str) -> None:
        self._replication = connect(source_url, replication="database")
        create = sql.SQL(CREATE_SLOT).format(sql.Identifier(slot))
        row = self._replication.execute(create).fetchone()
        if row is None:
            raise psycopg.OperationalError("no replication slot was made")
        self.reader = connect(source_url)
        self.reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        take = sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(row[2]))
        self.reader.execute(take)

    def close(self) -> None:
        """Rows that are deleted from now on are no longer kept for it."""
        self.reader.close()
        self._replication.close()


SELECT_COLUMNS_OF: Final = """
SELECT attname::text FROM pg_attribute
WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""


def copy_tables(
    snapshot: Snapshot, target: Connection, names: Names, tables: Sequence[str]
) -> Iterator[str]:
    """Copies the rows of the snapshot; says how far it is."""
    rows = size = 0
    told_s = monotonic()
    for number, table in enumerate(tables, 1):
        name = f"{names.schema}.{table}"
        found = target.execute(SELECT_COLUMNS_OF, [name]).fetchall()
        columns = sql.SQL(", ").join(sql.Identifier(column) for (column,) in found)
        parts = {"columns": columns, "table": names.table(table)}
        out = sql.SQL("COPY (SELECT {columns} FROM {table}) TO STDOUT (FORMAT binary)")
        into = sql.SQL("COPY {table} ({columns}) FROM STDIN (FORMAT binary)")
        with target.cursor() as writer, snapshot.reader.cursor() as reader:
            with (
                reader.copy(out.format(**parts)) as given,
                writer.copy(into.format(**parts)) as taken,
            ):
                for block in given:
                    taken.write(block)
                    size += len(block)
                    if monotonic() - told_s > TOLD_EVERY_S:
                        told_s = monotonic()
                        yield f"copying {table}, {size / 1e6:,.0f} MB in all"
            rows += writer.rowcount
        if number == len(tables):
            yield f"copied {rows:,} rows of {number} tables, {size / 1e6:,.1f} MB"
    for table in tables:
        analyze = sql.SQL("ANALYZE {}").format(names.table(table))
        yield from told_while(partial(target.execute, analyze), f"analyzing {table}", target)


# --- what is replicated -------------------------------------------------------------------------

SELECT_LAG: Final[LiteralString] = """
SELECT pg_current_wal_lsn() - confirmed_flush_lsn, active FROM pg_replication_slots
WHERE slot_name = %s
"""


SELECT_ERRORS: Final = "SELECT apply_error_count FROM pg_stat_subscription_stats WHERE subname = %s"


EMIT: Final = "SELECT pg_logical_emit_message(true, 'coupon_move', '')::text"
"""Writes to the WAL, and says how far that is now."""


class Catching:
    """What is still to be applied of what was written to the source."""

    def __init__(
        self, source: Connection, target: Connection, slot: str, subscription: str
    ) -> None:
        self._source = source
        self._target = target
        self._slot = slot
        self._subscription = subscription

    def up(self) -> Iterator[str]:
        """Returns once hardly anything is left; says how much meanwhile."""
        while not until(self._is_near, TOLD_EVERY_S, CATCH_UP_POLL_S):
            self._refuse_errors()
            yield f"catching up, {self.lag_bytes() / 1e6:,.1f} MB behind"
        yield f"caught up, {self.lag_bytes() / 1e6:,.1f} MB behind"

    def _is_near(self) -> bool:
        return self.lag_bytes() <= LAG_MAX_BYTES

    def lag_bytes(self) -> int:
        """What is left. Raises psycopg.OperationalError when the slot is gone."""
        row = self._source.execute(SELECT_LAG, [self._slot]).fetchone()
        if row is None:
            raise psycopg.OperationalError("The replication slot is gone.")
        return int(row[0])

    def _refuse_errors(self) -> None:
        """Raises CannotMoveError when rows cannot be applied."""
        row = self._target.execute(SELECT_ERRORS, [self._subscription]).fetchone()
        if row is not None and row[0]:
            raise CannotMoveError("Rows cannot be applied where they go: see the log there.")

    def has(self, lsn: str) -> bool:
        """Whether the target has, on its disk, all up to there."""
        # Rows that were applied are on its disk no later than a commit of ours, and what has been
        # sent is told again after one.
        for connection in (self._source, self._target):
            connection.execute(EMIT)
        row = self._source.execute(
            "SELECT confirmed_flush_lsn >= %s FROM pg_replication_slots WHERE slot_name = %s",
            [lsn, self._slot],
        ).fetchone()
        return row == (True,)
