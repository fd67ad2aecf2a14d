"""A read replica: it answers what may be a little behind, while it is known to be near enough.

How far it is behind is measured by positions in the WAL, not by clocks: a position of the primary
is noted with the time, and once the replica has replayed it, it has all that was committed by then.
So an idle primary, a replica that lost its connection, and a wrong clock are no special cases.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from enum import Enum, auto
from math import ceil
from time import monotonic
from typing import Final, Generic, TypeVar

import structlog

from coupon_service.errors import BookNotFound, InvalidArgument
from coupon_service.store.database import Database
from coupon_service.store.pipeline import Connection
from coupon_service.telemetry.metrics import Metrics

S = TypeVar("S")
T = TypeVar("T")

PROBES_WITHIN_LAG: Final = 4
"""Probes in the time that the replica may be behind: answers count as new as the last of them."""

POLL_S: Final = 0.005
"""Between two looks at how far the replica has come, while it is awaited."""


class ReplicaState(Enum):
    """What the last probe has found."""

    OK = auto()
    BEHIND = auto()
    """It answers, and has not replayed in time what the primary had."""
    AWAY = auto()
    """It does not answer, or is no standby; or there was no probe yet."""


WAL_POSITION: Final = "SELECT pg_current_wal_lsn() - '0/0'"
REPLAYED_POSITION: Final = """
SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() - '0/0' END
"""


async def wal_position(connection: Connection) -> int:
    """How far the primary has come."""
    row = await (await connection.execute(WAL_POSITION)).fetchone()
    return int(row[0]) if row is not None else 0


async def replayed_position(connection: Connection) -> int | None:
    """How far the replica has come; None of a server that is none."""
    row = await (await connection.execute(REPLAYED_POSITION)).fetchone()
    return int(row[0]) if row is not None and row[0] is not None else None


class ReadReplica:
    """Knows whether the replica may answer, for which it asks both servers now and then."""

    def __init__(
        self,
        primary: Database,
        replica: Database,
        lag_max_ms: int,
        metrics: Metrics,
    ) -> None:
        self._primary = primary
        self._replica = replica
        self._lag_max_s = lag_max_ms / 1000
        self._metrics = metrics
        self._confirmed_s = -1e9
        self.state = ReplicaState.AWAY
        self._log = structlog.get_logger("coupon_service.store.replica")

    @property
    def interval_s(self) -> float:
        """Between two probes."""
        return self._lag_max_s / PROBES_WITHIN_LAG

    @property
    def lag_ms(self) -> int | None:
        """The replica has all that was committed so many milliseconds ago. None where that is not
        known, or too long ago: then it is not to be asked."""
        lag_s = monotonic() - self._confirmed_s
        if self.state is not ReplicaState.OK or lag_s > self._lag_max_s:
            return None
        return ceil(lag_s * 1000)

    def failed(self) -> None:
        """The replica did not answer: it is not asked until a probe has found it again."""
        self._found(ReplicaState.AWAY, "a read failed")

    async def probe(self) -> None:
        """Looks how far both are. Raises what Database.read_at_once of the primary raises."""
        noted_s = monotonic()
        position = await self._primary.read_at_once("wal_position", wal_position)
        try:
            replayed = await self._replayed(position, noted_s + self._lag_max_s)
        except Exception as error:  # noqa: BLE001 - whatever it is, the primary answers
            self._found(ReplicaState.AWAY, str(error.__cause__ or error))
            return
        if replayed is None:
            self._found(ReplicaState.AWAY, "It is no standby.")
        elif replayed >= position:
            self._confirmed_s = noted_s
            self._metrics.replica_probed(monotonic() - noted_s)
            self._found(ReplicaState.OK)
        else:
            self._metrics.replica_probed(monotonic() - self._confirmed_s)
            self._found(ReplicaState.BEHIND)

    async def _replayed(self, position: int, until_s: float) -> int | None:
        """How far the replica is: at the position, or anywhere when the time is over."""
        while True:
            replayed = await self._replica.read_at_once("replayed_position", replayed_position)
            if replayed is None or replayed >= position or monotonic() >= until_s:
                return replayed
            await asyncio.sleep(POLL_S)

    def _found(self, state: ReplicaState, cause: str = "") -> None:
        if state is not self.state:
            log = self._log.info if state is ReplicaState.OK else self._log.warning
            log("read replica", state=state.name, **({"cause": cause} if cause else {}))
        self.state = state


class NearReads(Generic[S]):
    """Asks the replica where it is near enough, and else the primary.

    `primary` and `replica` answer the same questions, each from its server. Without a replica the
    primary answers everything.
    """

    def __init__(
        self,
        primary: S,
        replica: S | None = None,
        state: ReadReplica | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._primary = primary
        self._replica = replica
        self._state = state
        self._metrics = metrics

    async def ask(self, question: Callable[[S], Awaitable[T]]) -> tuple[T, int | None]:
        """The answer, and for how many milliseconds it may be behind; None of the primary's."""
        state, metrics = self._state, self._metrics
        if self._replica is None or state is None or metrics is None:
            return await question(self._primary), None
        lag_ms = state.lag_ms
        if lag_ms is None:
            reason = "behind" if state.state is ReplicaState.BEHIND else "away"
        else:
            try:
                answer = await question(self._replica)
            except InvalidArgument:
                raise
            except BookNotFound:  # it may be a new one
                reason = "not_found"
            except Exception:  # noqa: BLE001 - it may be a conflict with what it replays
                state.failed()
                reason = "failed"
            else:
                metrics.replica_read("replica", "")
                return answer, lag_ms
        metrics.replica_read("primary", reason)
        return await question(self._primary), None
