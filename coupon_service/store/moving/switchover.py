"""The one moment in which the use of a shard ends at the old place and begins at the new one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import psycopg
from psycopg import sql

from coupon_service.store.moving.comparison import SINCE, compare
from coupon_service.store.moving.pausing import Pause, Pauses
from coupon_service.store.moving.requirements import grantees
from coupon_service.store.moving.sides import (
    FINISHED_STEPS,
    CannotMoveError,
    Connection,
    Names,
    connect_again,
)
from coupon_service.store.placement import (
    MAKE_PLACES,
    Address,
    Forward,
    read_arrival,
    read_forward,
    write_forward,
)
from coupon_service.store.privileges import statements
from coupon_service.store.sessions import ShardPlace

NUMBERS_GAP: Final = 100
"""Left out of each sequence on arrival: more than can be drawn and not be replicated."""


class Switchover:
    """To the target, whose address is left behind. `token`: lets its bearer write there before
    others may. `paused_ms`: how long nobody could write to the shard."""

    def __init__(
        self, pauses: Pauses, target: Connection, address: Address, token: str, since: int
    ) -> None:
        self._pauses = pauses
        self._source = pauses.source
        self._target = target
        self._names = pauses.names
        self._since = since
        number = read_arrival(self._source, self._names.schema)[0] + 1
        self._forward = Forward(number, address, token)
        self._is_committing = False
        self.paused_ms = 0

    def carry_out(self) -> Iterator[str]:
        """Says when a pause was given up. Raises CannotMoveError."""
        for side in (self._source, self._target):
            with side.transaction():
                side.execute(MAKE_PLACES)
        yield "switching over"
        yield from self._pauses.attempts(self._attempt)

    def _attempt(self, pause: Pause) -> None:
        names, source, target = self._names, self._source, self._target
        with source.transaction():
            pause.begin()
            pause.bound(source)
            for table in SINCE:
                compare(source, target, names, table, self._since)
                pause.bound(source)
            with target.transaction():
                pause.bound(target)
                hand_over(source, target, names)
            retire = sql.SQL("ALTER SCHEMA {} RENAME TO {}").format(
                sql.Identifier(names.schema), sql.Identifier(names.retired)
            )
            source.execute(retire)
            write_forward(source, names.schema, self._forward)
            pause.bound(source)
            self._is_committing = True
        self.paused_ms = round(pause.took_s * 1000)

    def was_carried_out(self, source_url: str, shard: ShardPlace) -> bool:
        """Whether the COMMIT that decides was carried out, also when there was no answer to it;
        once the sessions of the move have ended. Raises CannotMoveError when it cannot be told."""
        if not self._is_committing:
            return False
        try:
            with connect_again(source_url, shard) as source:
                forward = read_forward(source, self._names.schema, self._forward.number - 1)
        except (psycopg.Error, CannotMoveError) as error:
            raise CannotMoveError(
                "It cannot be told whether the shard has moved, since the server that it was on"
                " does not answer: do the same again when it does."
            ) from error
        return forward == self._forward


SELECT_SEQUENCES: Final = """
SELECT sequencename::text, last_value FROM pg_sequences
WHERE schemaname = %s AND last_value IS NOT NULL
"""

SET_SEQUENCE: Final = "SELECT setval(%s::regclass, %s)"

SELECT_FINISHED: Final = "SELECT step, finish_time FROM {}"

MARK: Final = """
INSERT INTO {} (step, finish_time) VALUES (%s, %s) ON CONFLICT DO NOTHING
"""


def hand_over(source: Connection, target: Connection, names: Names) -> None:
    """Has the new place go on above all numbers of the old one, and lets the service's roles in;
    the guard is still up for all who do not come by the forwarding address."""
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
