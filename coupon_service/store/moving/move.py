"""A move from its beginning to its end: copied, followed, compared, switched over, cleaned up.

Until the one COMMIT at the old place that ends its use there, all that was done is undone by
dropping it. From that COMMIT on the shard is at the new place, whatever happens to who moves it;
what is left to clean up then is cleaned up by doing the same again.
"""

from __future__ import annotations

import secrets
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from coupon_service.errors import CouponServiceError
from coupon_service.store import migrations, shards
from coupon_service.store.moving import leftovers
from coupon_service.store.moving.comparison import compare, refuse_other_structure
from coupon_service.store.moving.copying import (
    Catching,
    Snapshot,
    close_to_others,
    copy_tables,
    enable_triggers,
    is_guarded,
    make_guard,
)
from coupon_service.store.moving.pausing import Pause, Pauses
from coupon_service.store.moving.replication import begin_applying, publish, subscribe
from coupon_service.store.moving.requirements import (
    problems_of_schema,
    problems_of_servers,
    read_facts,
)
from coupon_service.store.moving.sides import (
    CannotMoveError,
    Connection,
    Names,
    connect,
    connect_again,
    has_tables,
    tables_of,
    take_locks,
    told_while,
)
from coupon_service.store.moving.switchover import Switchover
from coupon_service.store.moving.unfinished import is_moving, step_of
from coupon_service.store.placement import HOPS_MAX, address_of, read_forward, url_at
from coupon_service.store.sessions import ShardPlace, sentence_of, url_parts

PAUSE_MAX_MS: Final = 2_000
"""Longest time in which nobody can write to the shard."""


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
        self._before_url = chain[-2] if len(chain) > 1 else ""
        self._switchover: Switchover | None = None
        self.paused_ms = 0
        """How long nobody could write to the shard."""

    # --- the whole ------------------------------------------------------------------------------

    def plan(self) -> Generator[str]:
        """What a move would do. Raises CannotMoveError, with all that is in its way."""
        names = self._names
        with _told(), connect(self._source_url) as source, connect(self._target_url) as target:
            if self._has_arrived:
                yield f"{names.schema} is at {self._target_address} already"
                if is_guarded(target, names):
                    yield "a move to there is unfinished, in its step: cleaning up"
                    yield "would bring that move to its end"
                return
            if step := step_of(source, target, names):
                yield f"a move of it is unfinished, in its step: {step}"
            if is_moving(source, self._shard):
                raise CannotMoveError("Another process is moving the shard.")
            self._refuse_absent(source)
            if step:
                yield "would undo that move, and begin anew"
            if not is_guarded(target, names):
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
        yield from told_while(self.clean_up, "cleaning up")
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
            except BaseException as error:
                if self._is_undone(error):
                    raise
            finally:
                self.close()
        self._before_url = self._source_url

    def undo(self) -> Generator[str]:
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
        self._refuse_absent(source)
        _refuse(problems_of_servers(read_facts(source), read_facts(target)))
        _refuse(problems_of_schema(source, target, names))
        steps = sql.SQL(SELECT_STEPS).format(names.table("_yoyo_migration"))
        applied = {step for (step,) in source.execute(steps).fetchall()}
        if applied != set(migrations.step_names()):
            raise CannotMoveError("The schema is not at the steps of this version: migrate up.")

    def _refuse_absent(self, source: Connection) -> None:
        """Raises CannotMoveError when the shard is not at the source, or has not quite arrived."""
        if not has_tables(source, self._names.schema):
            raise self._missing()
        if is_guarded(source, self._names):
            raise CannotMoveError(
                f"The move to {address_of(self._source_url)} was cut off after it had switched"
                " over: first do that one again."
            )

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
        publishing = partial(publish, source, names, tables)
        yield from told_while(publishing, "waiting for a moment to publish its tables", source)
        snapshot = Snapshot(self._source_url, self._slot)
        try:
            subscribe(target, names, self._source_url, self._slot)
            yield "replicating"
            yield from copy_tables(snapshot, target, names, tables)
        finally:
            snapshot.close()
        # Before rows are applied: it would wait for locks of theirs, and they for its own.
        enable_triggers(target, names, tables)
        begin_applying(target, names)
        catching = Catching(self._helper, target, self._slot, names.move)
        yield from catching.up()
        pauses = Pauses(source, self._helper, catching, names, tables, self._pause_max_ms)
        since = yield from self._compare_all(pauses)
        self._switchover = Switchover(pauses, target, self._target_address, self._token, since)
        yield from self._switchover.carry_out()
        self.paused_ms = self._switchover.paused_ms

    def _compare_all(self, pauses: Pauses) -> Generator[str, None, int]:
        """Compares all rows, of two snapshots of the same moment; returns the last number of the
        ledger that is in them."""
        names, tables = self._names, pauses.tables
        with connect(self._source_url) as here, connect(self._target_url) as there:

            def share_snapshots(pause: Pause) -> None:
                with self._source.transaction():
                    pause.begin()
                    for reader in (here, there):
                        reader.execute("ROLLBACK")
                        reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                        reader.execute("SELECT pg_current_snapshot()")

            yield from pauses.attempts(share_snapshots)
            rows = 0
            for table in tables:
                work = partial(compare, here, there, names, table)
                doing = f"comparing {table}, compared {rows:,} rows"
                rows += yield from told_while(work, doing, here, there)
            last = sql.SQL(LAST_SEQUENCE).format(names.table("redemption_audit"))
            found = here.execute(last).fetchone()
        yield f"compared {rows:,} rows of {len(tables)} tables: they are the same"
        return found[0] if found else 0

    def _has_switched(self) -> bool:
        switchover = self._switchover
        return switchover is not None and switchover.was_carried_out(self._source_url, self._shard)

    def _is_undone(self, first: BaseException) -> bool:
        """Undoes all after an error, unless the shard has switched over; says which. Raises
        CannotMoveError, with both errors, where that is not possible now."""
        self.close()
        try:
            if self._has_switched():
                return False
            self.give_up()
        except CannotMoveError as error:
            raise CannotMoveError(f"{_reason(first)} {error}") from first
        return True

    # --- the end, whichever ---------------------------------------------------------------------

    def give_up(self) -> None:
        """Undoes all. Raises CannotMoveError where that is not possible now."""
        try:
            with (
                connect_again(self._source_url, self._shard) as self._source,
                connect_again(self._target_url, self._shard) as self._target,
            ):
                self._undo_leftovers()
        except (psycopg.Error, CannotMoveError) as error:
            raise CannotMoveError(
                f"The move was not undone: {_reason(error)} The shard is at"
                f" {address_of(self._source_url)}, where its replication slot keeps WAL: once both"
                " servers answer, undo the move by the same command with --undo."
            ) from error

    def _undo_leftovers(self) -> None:
        if not has_tables(self._source, self._names.schema):
            raise self._missing()
        leftovers.undo(self._source, self._target, self._names)

    def _missing(self) -> CannotMoveError:
        place = address_of(self._source_url)
        return CannotMoveError(f"There is no {self._names.schema} at {place}.")

    def clean_up(self) -> None:
        """Opens the new place to all, and drops what is left of the move on both servers. Raises
        CannotMoveError."""
        try:
            leftovers.finish(self._target_url, self._shard, self._names, self._before_url)
        except (psycopg.Error, CannotMoveError) as error:
            raise CannotMoveError(
                f"The shard is at {self._target_address}, and not all that it left behind could be"
                f" dropped: do the same again. {_reason(error)}"
            ) from error


SELECT_SIZE: Final = """
SELECT coalesce(sum(greatest(reltuples, 0)), 0)::bigint,
    coalesce(sum(pg_total_relation_size(oid)), 0)::bigint
FROM pg_class WHERE relnamespace = to_regnamespace(%s) AND relkind = 'r'
"""

SELECT_STEPS: Final = "SELECT migration_id FROM {}"

LAST_SEQUENCE: Final = "SELECT coalesce(max(sequence), 0) FROM {}"


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


def _refuse(problems: Iterable[str]) -> None:
    found = list(problems)
    if found:
        raise CannotMoveError(" ".join(found))


def _reason(error: BaseException) -> str:
    """Of an error, in a sentence."""
    if isinstance(error, (KeyboardInterrupt, GeneratorExit)):
        return "The move was interrupted."
    said = sentence_of(error) if isinstance(error, psycopg.Error) else str(error)
    said = said or type(error).__name__
    return said if said.endswith((".", "?")) else f"{said}."


@contextmanager
def _told() -> Generator[None]:
    """Turns errors of PostgreSQL into CannotMoveError."""
    try:
        yield
    except psycopg.Error as error:
        raise CannotMoveError(sentence_of(error)) from error
    except CouponServiceError as error:
        raise CannotMoveError(str(error)) from error
