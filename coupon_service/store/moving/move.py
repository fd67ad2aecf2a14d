"""A move from its beginning to its end: copied, followed, compared, switched over, cleaned up.

Until the one COMMIT at the old place that ends its use there, all that was done is undone by
dropping it. From that COMMIT on the shard is at the new place, whatever happens to who moves it;
what is left to clean up then is cleaned up by doing the same again.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from time import sleep
from typing import Final, LiteralString

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from coupon_service.errors import CouponServiceError
from coupon_service.store import migrations, shards
from coupon_service.store.moving.comparison import SINCE, compare, refuse_other_structure
from coupon_service.store.moving.copying import (
    GUARD,
    OPEN_GUARD,
    Catching,
    Pause,
    PauseTooLongError,
    Snapshot,
    close_to_others,
    copy_tables,
    enable_triggers,
    is_guarded,
    make_guard,
)
from coupon_service.store.moving.requirements import (
    grantees,
    problems_of_schema,
    problems_of_servers,
    read_facts,
)
from coupon_service.store.moving.sides import (
    FINISHED_STEPS,
    CannotMoveError,
    Connection,
    Names,
    connect,
    has_tables,
    set_timeout,
    tables_of,
    take_locks,
    until,
)
from coupon_service.store.placement import (
    HOPS_MAX,
    MAKE_PLACES,
    Forward,
    address_of,
    read_arrival,
    read_forward,
    url_at,
    write_arrival,
    write_forward,
)
from coupon_service.store.privileges import statements
from coupon_service.store.sessions import ShardPlace, sentence_of, url_parts

PAUSE_MAX_MS: Final = 2_000
"""Longest time in which nobody can write to the shard."""

SWITCH_ATTEMPTS_MAX: Final = 5
REST_S: Final = 2.0
"""Between two attempts to switch over."""

AGAIN_S: Final = 10.0
"""For a session to end, or a server to answer again, before what was done is left undone."""

GUARD_LOCK_MS: Final = 200
GUARD_DROP_S: Final = 60.0
"""For a moment in which each table of a shard that is at work is free."""

RELEASE_S: Final = 10.0
"""For PostgreSQL to let go of a replication slot."""

NUMBERS_GAP: Final = 100
"""Left out of each sequence on arrival: more than can be drawn and not be replicated."""


class Move:
    """The move of one shard. `url`: of its server by the settings; `known_urls`: of all shards."""

    def __init__(
        self,
        url: str,
        shard: ShardPlace,
        target_url: str,
        known_urls: Sequence[str] = (),
        pause_max_ms: int = PAUSE_MAX_MS,
    ) -> None:
        self._shard = shard
        self._names = Names(shard.schema)
        self._pause_max_ms = pause_max_ms
        chain = _chain(url, shard.schema, known_urls)
        self._source_url = chain[-1]
        self._target_url = _completed(target_url, url)
        self._target_address = address_of(self._target_url)
        self._has_arrived = address_of(chain[-1]) == self._target_address
        self._before_url = chain[-2] if len(chain) > 1 else None
        self._is_switching = False
        self.paused_ms = 0
        """How long nobody could write to the shard."""

    # --- the whole ------------------------------------------------------------------------------

    def plan(self) -> Iterator[str]:
        """What a move would do. Raises CannotMoveError, with all that is in its way."""
        names = self._names
        with _told(), connect(self._source_url) as source, connect(self._target_url) as target:
            if self._has_arrived:
                yield f"{names.schema} is at {self._target_address} already"
                return
            if is_guarded(target, names):
                yield "what a move that was cut off has left there would be dropped"
            else:
                _refuse(problems_of_schema(source, target, names))
            _refuse(problems_of_servers(read_facts(source), read_facts(target)))
            row = source.execute(SELECT_SIZE, [names.schema]).fetchone()
            rows, size = row or (0, 0)
            tables = len(tables_of(source, names.schema))
            yield f"{names.schema}: from {address_of(self._source_url)} to {self._target_address}"
            yield f"would copy about {rows:,} rows of {tables} tables, {size / 1e6:,.1f} MB"
            yield f"would pause its writes for at most {self._pause_max_ms} ms"

    def run(self) -> Generator[str]:
        """Moves it, and says how far it is. What was cut off before is undone first, or brought to
        its end. Raises CannotMoveError; then the shard is where it was, and nothing is left."""
        if not self._has_arrived:
            yield from self._move()
        self.clean_up()
        paused = f"; its writes were paused for {self.paused_ms} ms" if self.paused_ms else ""
        yield f"{self._names.schema} is at {self._target_address}{paused}"

    def _move(self) -> Generator[str]:
        with _told():
            self._open()
            try:
                self._undo_leftovers()
                self._refuse_unfit()
            except BaseException:
                self.close()
                raise
            try:
                yield from self._steps()
            except BaseException:
                if not (self._is_switching and self._was_switched()):
                    self.give_up()
                    raise
            finally:
                self.close()
        self._before_url = self._source_url

    def undo(self) -> Iterator[str]:
        """Undoes what a move that was cut off has left on both servers. Raises CannotMoveError."""
        with _told():
            if self._has_arrived:
                raise CannotMoveError("The shard has arrived there: move it back instead.")
            self._open()
            try:
                self._undo_leftovers()
            finally:
                self.close()
        yield f"{self._names.schema} is at {address_of(self._source_url)}"

    def _open(self) -> None:
        self._token = secrets.token_hex(16)
        self._source = connect(self._source_url)
        self._target = connect(self._target_url, self._token)
        self._helper = connect(self._source_url)
        take_locks(self._source, self._shard, migrations=True)
        take_locks(self._target, self._shard, migrations=False)
        self._slot = self._names.slot(self._source)

    def close(self) -> None:
        """Ends its sessions."""
        for connection in (self._helper, self._source, self._target):
            connection.close()

    def _refuse_unfit(self) -> None:
        """Raises CannotMoveError, before anything is done."""
        names, source, target = self._names, self._source, self._target
        if not has_tables(source, names.schema):
            raise CannotMoveError(f"There is no {names.schema} at {address_of(self._source_url)}.")
        _refuse(problems_of_servers(read_facts(source), read_facts(target)))
        _refuse(problems_of_schema(source, target, names))
        steps = sql.SQL(SELECT_STEPS).format(names.table("_yoyo_migration"))
        applied = {step for (step,) in source.execute(steps).fetchall()}
        if applied != set(migrations.step_names()):
            raise CannotMoveError("The schema is not at the steps of this version: migrate up.")

    # --- the steps ------------------------------------------------------------------------------

    def _steps(self) -> Iterator[str]:
        names, source, target = self._names, self._source, self._target
        yield f"{names.schema}: from {address_of(self._source_url)} to {self._target_address}"
        make_guard(target, names, self._token)
        shards.bring_up(self._target_url, self._shard)
        tables = tables_of(source, names.schema)
        refuse_other_structure(source, target, names)
        close_to_others(target, names, tables)
        yield "made the tables"
        self._publish(tables)
        snapshot = Snapshot(self._source_url, self._slot)
        try:
            self._subscribe()
            yield "replicating"
            yield from copy_tables(snapshot, target, names, tables)
        finally:
            snapshot.close()
        # Before rows are applied: it would wait for locks of theirs, and they for its own.
        enable_triggers(target, names, tables)
        target.execute(_of_move("ALTER SUBSCRIPTION {} ENABLE", names))
        catching = Catching(self._helper, target, self._slot, names.move)
        yield from catching.up()
        since = yield from self._compare_all(catching, tables)
        yield from self._switch(catching, tables, since)

    def _publish(self, tables: Sequence[str]) -> None:
        """Has all changes of the tables in the publication, also of those without a key."""
        names, source = self._names, self._source
        for (table,) in source.execute(SELECT_KEYLESS, [names.schema]).fetchall():
            full = sql.SQL("ALTER TABLE {} REPLICA IDENTITY FULL").format(names.table(table))
            source.execute(full)
        publish = sql.SQL("CREATE PUBLICATION {} FOR TABLE {}").format(
            sql.Identifier(names.move), sql.SQL(", ").join(map(names.table, tables))
        )
        source.execute(publish)

    def _subscribe(self) -> None:
        given = {**url_parts(self._source_url), "application_name": self._names.move}
        conninfo = make_conninfo(**given)  # pyright: ignore[reportArgumentType]
        subscribe = sql.SQL(SUBSCRIBE).format(
            name=sql.Identifier(self._names.move),
            conninfo=sql.Literal(conninfo),
            slot=sql.Literal(self._slot),
        )
        self._target.execute(subscribe)

    def _compare_all(self, catching: Catching, tables: Sequence[str]) -> Generator[str, None, int]:
        """Compares all rows, of two snapshots of the same moment; returns the last number of the
        ledger that is in them."""
        names = self._names
        with connect(self._source_url) as here, connect(self._target_url) as there:
            yield from self._attempts(lambda: self._share_snapshots(catching, tables, here, there))
            rows = 0
            for _, count in compare(here, there, names, tables):
                rows += count
            found = here.execute(
                sql.SQL(LAST_SEQUENCE).format(names.table("redemption_audit"))
            ).fetchone()
        yield f"compared {rows:,} rows of {len(tables)} tables: they are the same"
        return found[0] if found else 0

    def _share_snapshots(
        self, catching: Catching, tables: Sequence[str], here: Connection, there: Connection
    ) -> None:
        """Has both see the same rows from now on."""
        pause = Pause(self._pause_max_ms)
        with self._source.transaction():
            pause.begin(self._source, self._helper, catching, self._names, tables)
            for reader in (here, there):
                reader.execute("ROLLBACK")
                reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                reader.execute("SELECT pg_current_snapshot()")

    def _attempts(self, work: Callable[[], None]) -> Iterator[str]:
        """Does what needs a pause, again when the pause would be too long. Raises CannotMoveError
        when it is so each time."""
        for attempts_left in reversed(range(SWITCH_ATTEMPTS_MAX)):
            try:
                work()
            except PauseTooLongError as error:
                if not attempts_left:
                    raise CannotMoveError(
                        f"A pause of {self._pause_max_ms} ms was not enough: {error}."
                        f"{self._holders()}"
                    ) from error
                yield f"gave up a pause, since {error}"
                sleep(REST_S)
            else:
                return

    def _holders(self) -> str:
        """Who holds the tables, in a sentence; empty for nobody."""
        found = self._helper.execute(SELECT_HOLDERS, [self._names.schema]).fetchall()
        listed = ", ".join(f"backend {pid} ({name or 'unnamed'})" for pid, name in found)
        return f" Long transactions: {listed}." if listed else ""

    # --- the switch -----------------------------------------------------------------------------

    def _switch(self, catching: Catching, tables: Sequence[str], since: int) -> Iterator[str]:
        """Ends the use of the shard here, and begins it there."""
        with self._source.transaction():
            self._source.execute(MAKE_PLACES)
        with self._target.transaction():
            self._target.execute(MAKE_PLACES)
        yield "switching over"
        yield from self._attempts(lambda: self._switch_once(catching, tables, since))

    def _switch_once(self, catching: Catching, tables: Sequence[str], since: int) -> None:
        names, source, target = self._names, self._source, self._target
        pause = Pause(self._pause_max_ms)
        number = read_arrival(source, names.schema)[0] + 1
        self._forward = Forward(number, self._target_address, self._token)
        with source.transaction():
            pause.begin(source, self._helper, catching, names, tables)
            pause.bound(source)
            for _ in compare(source, target, names, list(SINCE), since):
                pause.bound(source)
            with target.transaction():
                pause.bound(target)
                self.hand_over(source, target)
            retire = sql.SQL("ALTER SCHEMA {} RENAME TO {}").format(
                sql.Identifier(names.schema), sql.Identifier(names.retired)
            )
            source.execute(retire)
            write_forward(source, names.schema, self._forward)
            pause.bound(source)
            self._is_switching = True
        self.paused_ms = round(pause.took_s * 1000)

    def hand_over(self, source: Connection, target: Connection) -> None:
        """Has the new place go on above all numbers of the old one, and lets the service's roles
        in; the guard is still up for all who do not come by the forwarding address."""
        names = self._names
        for name, last in source.execute(SELECT_SEQUENCES, [names.schema]).fetchall():
            target.execute(SET_SEQUENCE, [f"{names.schema}.{name}", last + NUMBERS_GAP])
        steps = names.table(FINISHED_STEPS)
        finished = source.execute(sql.SQL(SELECT_FINISHED).format(steps)).fetchall()
        for step in finished:  # the mark of the shard among them
            target.execute(sql.SQL(MARK).format(steps), step)
        row = target.execute("SELECT current_database()").fetchone()
        for role in grantees(source, names):
            for statement in statements(row[0] if row else "", names.schema, role, {}):
                target.execute(statement)

    def _was_switched(self) -> bool:
        """Whether the COMMIT that decides was carried out, of which there was no answer. Raises
        CannotMoveError when that cannot be told."""
        try:
            with _again(self._source_url, self._shard) as source:  # its session before has ended
                forward = read_forward(source, self._names.schema, self._forward.number - 1)
        except (psycopg.Error, CannotMoveError) as error:
            raise CannotMoveError(
                "It cannot be told whether the shard has moved, since the server that it was on"
                " does not answer: do the same again when it does."
            ) from error
        return forward == self._forward

    # --- the end, whichever ---------------------------------------------------------------------

    def give_up(self) -> None:
        """Undoes all. Raises CannotMoveError where that is not possible now."""
        self.close()
        try:
            with (
                _again(self._source_url, self._shard) as self._source,
                _again(self._target_url, self._shard) as self._target,
            ):
                self._undo_leftovers()
        except (psycopg.Error, CannotMoveError) as error:
            raise CannotMoveError(
                f"The move failed, and was not undone, since a server does not answer:"
                f" shards move --undo does so when it does. The shard is at"
                f" {address_of(self._source_url)}, where its replication slot keeps WAL."
            ) from error

    def _undo_leftovers(self) -> None:
        """Drops what moves have left on both servers, while the shard is at the source."""
        names, source, target = self._names, self._source, self._target
        if not has_tables(source, names.schema):
            raise CannotMoveError(f"There is no {names.schema} at {address_of(self._source_url)}.")
        _drop_subscription(target, names)
        if is_guarded(target, names):
            _drop_schema(target, names.schema)
        _drop_schema(target, names.retired)
        _drop_schema(source, names.retired)
        _drop_publication(source, names)
        for (table,) in source.execute(SELECT_FULL, [names.schema]).fetchall():
            default = sql.SQL("ALTER TABLE {} REPLICA IDENTITY DEFAULT").format(names.table(table))
            source.execute(default)

    def clean_up(self) -> None:
        """Opens the new place to all, and drops what is left of the move on both servers."""
        names, url = self._names, self._target_url
        before = self._before_url or ""
        try:
            with _again(url, self._shard) as target:
                number, token = read_arrival(target, names.schema)
                if before:
                    with connect(before) as source:
                        forward = read_forward(source, names.schema, 0)
                    number, token = (forward.number, forward.token) if forward else (number, token)
                with target.transaction():
                    target.execute(MAKE_PLACES)
                    if is_guarded(target, names):
                        guard = names.table(GUARD)
                        target.execute(sql.SQL(OPEN_GUARD).format(guard=guard))
                    write_arrival(target, names.schema, number, token)
                _drop_subscription(target, names)
                _drop_guard(target, names)
                if before:
                    with _again(before, self._shard) as source:
                        _drop_publication(source, names)
                        _drop_schema(source, names.retired)
        except psycopg.Error as error:
            raise CannotMoveError(
                f"The shard is at {self._target_address}, and not all that it left behind could be"
                f" dropped: do the same again. {sentence_of(error)}"
            ) from error


SELECT_SIZE: Final = """
SELECT coalesce(sum(greatest(reltuples, 0)), 0)::bigint,
    coalesce(sum(pg_total_relation_size(oid)), 0)::bigint
FROM pg_class WHERE relnamespace = to_regnamespace(%s) AND relkind = 'r'
"""

SELECT_STEPS: Final = "SELECT migration_id FROM {}"

SELECT_KEYLESS: Final = """
SELECT relname::text FROM pg_class
WHERE relnamespace = to_regnamespace(%s) AND relkind = 'r' AND relreplident = 'd'
    AND NOT EXISTS (SELECT FROM pg_index WHERE indrelid = pg_class.oid AND indisprimary)
"""

SELECT_FULL: Final = """
SELECT relname::text FROM pg_class
WHERE relnamespace = to_regnamespace(%s) AND relkind = 'r' AND relreplident = 'f'
"""

SUBSCRIBE: Final = """
CREATE SUBSCRIPTION {name} CONNECTION {conninfo} PUBLICATION {name}
    WITH (enabled = false, create_slot = false, copy_data = false, slot_name = {slot},
        streaming = off)
"""

LAST_SEQUENCE: Final = "SELECT coalesce(max(sequence), 0) FROM {}"

SELECT_HOLDERS: Final = """
SELECT DISTINCT pid, application_name FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE locktype = 'relation' AND granted AND mode <> 'AccessShareLock' AND pid <> pg_backend_pid()
    AND relation IN (SELECT oid FROM pg_class WHERE relnamespace = to_regnamespace(%s))
LIMIT 3
"""

SELECT_SEQUENCES: Final = """
SELECT sequencename::text, last_value FROM pg_sequences
WHERE schemaname = %s AND last_value IS NOT NULL
"""

SET_SEQUENCE: Final = "SELECT setval(%s::regclass, %s)"

SELECT_FINISHED: Final = "SELECT step, finish_time FROM {}"

MARK: Final = """
INSERT INTO {} (step, finish_time) VALUES (%s, %s) ON CONFLICT DO NOTHING
"""


# --- what is dropped ----------------------------------------------------------------------------

HAS_SUBSCRIPTION: Final = """
SELECT EXISTS (SELECT FROM pg_subscription WHERE subname = %s AND subdbid = (
    SELECT oid FROM pg_database WHERE datname = current_database()))
"""


def _drop_subscription(target: Connection, names: Names) -> None:
    if target.execute(HAS_SUBSCRIPTION, [names.move]).fetchone() == (True,):
        # Without its slot, which the other server may not be there for.
        target.execute(_of_move("ALTER SUBSCRIPTION {} DISABLE", names))
        target.execute(_of_move("ALTER SUBSCRIPTION {} SET (slot_name = NONE)", names))
        target.execute(_of_move("DROP SUBSCRIPTION {}", names))


def _of_move(statement: LiteralString, names: Names) -> sql.Composed:
    return sql.SQL(statement).format(sql.Identifier(names.move))


END_SENDER: Final = """
SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots
WHERE slot_name = %s AND active_pid IS NOT NULL
"""

DROP_SLOT: Final = """
SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
WHERE slot_name = %s AND NOT active
"""

HAS_SLOT: Final = "SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = %s)"


def _drop_publication(source: Connection, names: Names) -> None:
    """With the slot that its changes are sent from."""
    slot = names.slot(source)

    def is_gone() -> bool:
        source.execute(END_SENDER, [slot])
        with suppress(psycopg.errors.ObjectInUse):
            source.execute(DROP_SLOT, [slot])
        return source.execute(HAS_SLOT, [slot]).fetchone() == (False,)

    if not until(is_gone, RELEASE_S):
        raise CannotMoveError(f"PostgreSQL does not let go of the replication slot {slot}.")
    source.execute(_of_move("DROP PUBLICATION IF EXISTS {}", names))


def _drop_schema(connection: Connection, schema: str) -> None:
    drop = sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema))
    connection.execute(drop)


GUARDED_TABLES: Final = """
SELECT relname::text FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid
WHERE relnamespace = to_regnamespace(%s) AND tgname = %s
"""


def _drop_guard(target: Connection, names: Names) -> None:
    """One table after the other, since the service is at work there."""

    def is_gone() -> bool:
        with suppress(psycopg.errors.LockNotAvailable):
            for (table,) in target.execute(GUARDED_TABLES, [names.schema, GUARD]).fetchall():
                with target.transaction():
                    set_timeout(target, "lock_timeout", GUARD_LOCK_MS)
                    drop = sql.SQL("DROP TRIGGER IF EXISTS {} ON {}")
                    target.execute(drop.format(sql.Identifier(GUARD), names.table(table)))
            return True
        return False

    if not until(is_gone, GUARD_DROP_S):
        raise CannotMoveError("The shard has arrived; its tables are too busy: do the same again.")
    guard = names.table(GUARD)
    target.execute(sql.SQL("DROP FUNCTION IF EXISTS {}()").format(guard))


# --- connections --------------------------------------------------------------------------------


def _chain(url: str, schema: str, known_urls: Sequence[str]) -> list[str]:
    """Where the shard was by the settings, and wherever it went from there."""
    chain, number = [url], 0
    for _ in range(HOPS_MAX):
        with _told(), connect(chain[-1]) as connection:
            forward = read_forward(connection, schema, number)
        if forward is None:
            break
        number = forward.number
        chain.append(url_at(forward.address, url, known_urls))
    return chain


def _completed(url: str, other: str) -> str:
    """The URL, with the user and password of the other one where it has none."""
    given, rest = url_parts(url), url_parts(other)
    named = {it: rest[it] for it in ("user", "password") if it in rest and "user" not in given}
    missing = [it for it in ("host", "dbname") if it not in given]
    if missing:
        raise CannotMoveError(f"--to has no {' and no '.join(missing)}.")
    return make_conninfo(**{**named, **given})  # pyright: ignore[reportArgumentType]


@contextmanager
def _again(url: str, shard: ShardPlace) -> Generator[Connection]:
    """A new session with the locks, once one of before has ended. Raises CannotMoveError."""
    sessions: list[Connection] = []

    def is_there() -> bool:
        try:
            session = connect(url)
        except psycopg.Error:
            return False
        try:
            take_locks(session, shard, migrations=False)
        except CannotMoveError:
            session.close()
            return False
        sessions.append(session)
        return True

    if not until(is_there, AGAIN_S, 0.1):
        raise CannotMoveError(f"{address_of(url)} does not answer, or another process moves there.")
    with sessions[0] as session:
        yield session


def _refuse(problems: Iterable[str]) -> None:
    found = list(problems)
    if found:
        raise CannotMoveError(" ".join(found))


@contextmanager
def _told() -> Generator[None]:
    """Turns errors of PostgreSQL into CannotMoveError."""
    try:
        yield
    except psycopg.Error as error:
        raise CannotMoveError(sentence_of(error)) from error
    except CouponServiceError as error:
        raise CannotMoveError(str(error)) from error
