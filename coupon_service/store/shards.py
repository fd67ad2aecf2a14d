"""The schemas of shards: all of them brought up to date, taken back and looked at, at once.

What is done for a shard is done in its schema alone, so that each of them goes on where it was when
all are done again.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from queue import SimpleQueue
from typing import Final, TypeAlias

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow

from coupon_service.errors import CouponServiceError, DatabaseUnavailable
from coupon_service.store import citus, finishing, migrations
from coupon_service.store.migrations import APPLICATION_NAME, Steps
from coupon_service.store.placement import HOPS_MAX, Address, address_of, read_forward, url_at
from coupon_service.store.sessions import (
    ONLY_SHARD,
    ShardPlace,
    options,
    sentence_of,
    url_parts,
)

Place: TypeAlias = tuple[str, ShardPlace]
"""The URL of a shard's server, and where its tables are there."""

Tell: TypeAlias = Callable[[str], None]
Connection: TypeAlias = psycopg.Connection[TupleRow]

AT_ONCE_MAX: Final = 8
"""Shards whose schemas are changed at a time."""

ATTEMPTS_MAX: Final = 5
"""Of a shard whose indexes are built CONCURRENTLY: PostgreSQL has each wait for the transactions of
the others, and ends one of two that wait for each other."""


class ShardsFailedError(Exception):
    """Some or all shards could not be changed; a sentence for each of them."""


# --- changed ------------------------------------------------------------------------------------


def up(places: Sequence[Place], *, pooled: bool = False) -> Iterator[str]:
    """Brings the schemas of all shards up to date, and makes them where there are none; says how
    far it is. Raises ShardsFailedError, after all of them have been tried."""
    steps, places = migrations.read_steps(), located(places)
    yield from _at_once(places, partial(_up, steps=steps, pooled=pooled))


def _up(url: str, shard: ShardPlace, tell: Tell, steps: Steps, pooled: bool) -> None:
    with _connected(url, ONLY_SHARD) as connection:
        _refuse_unsharded(connection)
    with _connected(url, shard) as connection:
        _refuse_other_shard(connection, shard)
    _bring_up(url, shard, tell, steps, pooled)
    with _connected(url, shard) as connection:
        citus.prepare(connection, shard.schema)
        connection.execute(MARK, [shard.step])


def bring_up(url: str, shard: ShardPlace) -> None:
    """Brings the schema of a shard up to date that is about to come there."""
    with _connected(url, ONLY_SHARD) as connection:
        _refuse_unsharded(connection)
    _bring_up(url, shard, lambda _: None, migrations.read_steps(), pooled=False)


def _bring_up(url: str, shard: ShardPlace, tell: Tell, steps: Steps, pooled: bool) -> None:
    for attempts_left in reversed(range(ATTEMPTS_MAX)):
        try:
            migrations.apply(
                url,
                pooled=pooled,
                shard=shard,
                steps=steps,
                done=lambda step: tell(f"applied {step}"),
            )
            for progress in finishing.finish(url, shard, steps):
                tell(progress)
            break
        except DatabaseUnavailable as error:
            if not (attempts_left and isinstance(error.__cause__, psycopg.errors.DeadlockDetected)):
                raise


def down(places: Sequence[Place], to: str | None, *, pooled: bool = False) -> Iterator[str]:
    """Takes back the steps after `to`, or all of them, in all shards; says how far it is. Raises
    ShardsFailedError."""
    steps, places = migrations.read_steps(), located(places)
    yield from _at_once(places, partial(_down, to=to, steps=steps, pooled=pooled))


def _down(
    url: str, shard: ShardPlace, tell: Tell, to: str | None, steps: Steps, pooled: bool
) -> None:
    found = migrations.status(url, pooled=pooled, shard=shard, steps=steps)
    undone = steps_after(to, found)
    if finishing.COMPLETED_STEP in undone:
        for progress in finishing.unfinish(url, shard):
            tell(progress)
        with _connected(url, shard) as connection:
            connection.execute(UNMARK, [shard.step])
            citus.take_back(connection)
    migrations.rollback(
        url,
        count=len(undone),
        shard=shard,
        steps=steps,
        done=lambda step: tell(f"rolled back {step}"),
    )


def steps_after(to: str | None, found: Sequence[tuple[str, bool]]) -> list[str]:
    """The applied steps after this one; all of them without one."""
    applied = [step for step, is_applied in found if is_applied]
    return applied[applied.index(to) + 1 :] if to in applied else [] if to else applied


def _at_once(
    places: Sequence[Place], work: Callable[[str, ShardPlace, Tell], None]
) -> Iterator[str]:
    told: SimpleQueue[str | None] = SimpleQueue()

    def do(url: str, shard: ShardPlace) -> None:
        try:
            work(url, shard, lambda line: told.put(f"{shard.schema}: {line}"))
        finally:
            told.put(None)

    with ThreadPoolExecutor(min(len(places), AT_ONCE_MAX)) as threads:
        doing = [threads.submit(do, *place) for place in places]
        for _ in doing:
            while (line := told.get()) is not None:
                yield line
    failures = [*_failures(places, doing)]
    if failures:
        raise ShardsFailedError("\n".join(failures))


def _failures(places: Sequence[Place], done: Sequence[Future[None]]) -> Iterator[str]:
    for (_, shard), it in zip(places, done, strict=True):
        error = it.exception()
        if isinstance(error, (CouponServiceError, finishing.CannotFinishError, WrongSchemaError)):
            yield f"{shard.schema}: {error}"
        elif error is not None:
            raise error


# --- told apart ---------------------------------------------------------------------------------


class WrongSchemaError(Exception):
    """The database has other tables than those of the shards that the settings name."""


MARK: Final = """
INSERT INTO coupon_finished_steps (step, finish_time) VALUES (%s, now()) ON CONFLICT DO NOTHING
"""

UNMARK: Final = "DELETE FROM coupon_finished_steps WHERE step = %s"

SELECT_MARKS: Final = "SELECT step FROM coupon_finished_steps WHERE step LIKE 'shard %'"


def _refuse_other_shard(connection: Connection, shard: ShardPlace) -> None:
    """Raises WrongSchemaError for a schema that was made for another number of shards."""
    for mark in _marks(connection):
        if mark != shard.step:
            raise WrongSchemaError(
                f"It was made as {mark}, and would now be {shard.step}: the number of shards"
                " cannot be changed, since businesses do not move with it."
            )


def _marks(connection: Connection) -> list[str]:
    if not _has_table(connection, "coupon_finished_steps"):
        return []
    return [step for (step,) in connection.execute(SELECT_MARKS).fetchall()]


HAS_TABLE: Final = """
SELECT EXISTS (SELECT FROM pg_class WHERE oid = to_regclass(%s) AND relkind IN ('r', 'p'))
"""


def _has_table(connection: Connection, name: str) -> bool:
    return connection.execute(HAS_TABLE, [name]).fetchone() == (True,)


HAS_BOOKS: Final = "SELECT EXISTS (SELECT FROM coupon_books)"


def _refuse_unsharded(connection: Connection) -> None:
    """Raises WrongSchemaError for a database with books that are in no shard."""
    if not _has_table(connection, "coupon_books"):
        return
    if connection.execute(HAS_BOOKS).fetchone() == (True,):
        raise WrongSchemaError(
            "The database has coupon books that are in no shard, and they cannot be moved to one:"
            " use another database, or COUPON_SHARDS=1."
        )


def refuse_shards(url: str) -> None:
    """Raises WrongSchemaError for a database that has shards, where there are to be none."""
    with _connected(url, ONLY_SHARD) as connection:
        if _has_table(connection, f"{ShardPlace(0, 2).schema}.coupon_finished_steps"):
            raise WrongSchemaError("The database has shards: COUPON_SHARDS has to say how many.")


# --- found --------------------------------------------------------------------------------------


def located(places: Sequence[Place]) -> list[Place]:
    """Where the shards are, of which some may have been moved; one that cannot be reached is where
    it was known to be."""
    urls = [url for url, _ in places]
    with ThreadPoolExecutor(min(len(places), AT_ONCE_MAX)) as threads:
        return [*threads.map(partial(_located, urls=urls), places)]


def _located(place: Place, urls: Sequence[str]) -> Place:
    url, shard = place
    number = 0
    for _ in range(HOPS_MAX if shard.schema else 0):
        try:
            with _connected(url, ONLY_SHARD) as connection:
                forward = read_forward(connection, shard.schema, number)
        except DatabaseUnavailable:
            break
        if forward is None:
            break
        url, number = url_at(forward.address, url, urls), forward.number
    return url, shard


# --- looked at ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ShardStatus:
    """What a shard is like. `step`: the last one of its schema, empty where it has none.

    `problem`: why it cannot be used, empty when it can. `has_moved`: it is not where the settings
    have it.
    """

    server: str
    schema: str
    step: str = ""
    books: int = 0
    problem: str = ""
    has_moved: bool = False


def look(places: Sequence[Place]) -> list[ShardStatus]:
    """The state of each shard, all asked at once."""
    needed = migrations.step_names()
    with ThreadPoolExecutor(min(len(places), AT_ONCE_MAX)) as threads:
        found = located(places)
        looking = [threads.submit(_look, url, shard, needed) for url, shard in found]
        return [
            replace(it.result(), has_moved=here != place)
            for it, here, place in zip(looking, found, places, strict=True)
        ]


SELECT_STATUS: Final = """
SELECT current_schema(), coalesce((SELECT max(migration_id) FROM _yoyo_migration), ''),
    (SELECT count(*) FROM unnest(%s::text[]) AS needed (step)
        WHERE step NOT IN (SELECT migration_id FROM _yoyo_migration)),
    (SELECT count(*) FROM coupon_books)
"""


def _look(url: str, shard: ShardPlace, needed: Sequence[str]) -> ShardStatus:
    server = str(address_of(url))
    try:
        with _connected(url, shard) as connection:
            if not _has_table(connection, "coupon_books"):
                return ShardStatus(server, shard.schema, problem=_why_absent(url, shard))
            row = connection.execute(SELECT_STATUS, [list(needed)]).fetchone()
            schema, step, missing, books = row or ("", "", 0, 0)
            schema = shard.schema or schema  # a node of Citus does not know that of this session
            marks = _marks(connection)
            if citus.is_there(connection):
                server = _node(connection, shard.schema) or server
    except DatabaseUnavailable as error:
        return ShardStatus(server, shard.schema, problem=str(error))
    problem = f"{missing} steps are missing: migrate up" if missing else ""
    if shard.step and marks != [shard.step]:
        problem = f"is {', '.join(marks) or 'no shard'}, not {shard.step}"
    return ShardStatus(server, schema, step, books, problem)


def _why_absent(url: str, shard: ShardPlace) -> str:
    """Why there are no tables of the shard."""
    try:
        if not shard.schema:
            refuse_shards(url)
        with _connected(url, ONLY_SHARD) as connection:
            _refuse_unsharded(connection)
    except WrongSchemaError as error:
        return str(error)
    return "has no tables: migrate up"


def _node(connection: Connection, schema: str) -> str:
    """The node of Citus that has the schema; empty for one that is not distributed."""
    row = connection.execute(citus.SELECT_NODE, [schema]).fetchone()
    return str(Address(*row[:3])) if row is not None else ""


CONNECT_TIMEOUT_S: Final = 5


@contextmanager
def _connected(url: str, shard: ShardPlace) -> Generator[Connection]:
    """A connection in autocommit mode. Raises DatabaseUnavailable."""
    parts = {
        **url_parts(url),
        "application_name": APPLICATION_NAME,
        "client_encoding": "UTF8",
        "options": options(url, {**shard.parameters, **citus.MIGRATION_PARAMETERS}),
        "connect_timeout": str(CONNECT_TIMEOUT_S),
    }
    try:
        with psycopg.connect(make_conninfo(**parts), autocommit=True) as connection:
            yield connection
    except psycopg.Error as error:
        raise DatabaseUnavailable(sentence_of(error)) from error
