"""Seals the ledger, a few seconds behind what is written: whoever changes a row later is found."""

from __future__ import annotations

from typing import Final

from coupon_service.audit.leaves import Row, users_of
from coupon_service.audit.seals import Leaf, Link, extend_chain, make_seal
from coupon_service.maintenance.periodic import run_periodically
from coupon_service.store.bulk.lane import BulkLane
from coupon_service.store.database import Database
from coupon_service.store.ledger_horizon import LedgerHorizon
from coupon_service.store.ledger_rows import leaves_of, select_keys, select_rows
from coupon_service.store.pipeline import Connection
from coupon_service.store.queries.reads import Reads
from coupon_service.store.seals import Head, insert_keys, insert_seal, select_head

SEALED_ROWS: Final = 4_096
"""Rows of one seal at most."""

ROWS_AT_ONCE: Final = 512
"""Read in one step: a few milliseconds of PostgreSQL's, and a few of the event loop's."""

SETTLE_S: Final = 2.0
"""How long to wait for transactions that may still write below what was written by now."""

ATTEMPTS_MAX: Final = 5
"""For one seal, while others erase values or seal as well."""

WHOSE_TURN: Final = "sealer"
"""For the bulk lane, in which businesses take turns."""


class LedgerSealer:
    """Makes seals of all rows up to which the ledger is complete.

    Nothing waits for it. All replicas take turns. Should two do it at once, or one be killed at
    any moment, no row is sealed twice and none is left out: a seal is added in one transaction, and
    only after the one that it was made to follow.
    """

    def __init__(
        self,
        horizon: LedgerHorizon,
        reads: Reads,
        bulk_database: Database,
        lane: BulkLane,
        interval_ms: int,
    ) -> None:
        """`lane`: of the same database."""
        self._horizon = horizon
        self._reads = reads
        self._database = bulk_database
        self._lane = lane
        self._interval_ms = interval_ms

    async def run(self) -> None:
        """Seals until it is cancelled; never with an interval of 0."""
        if self._interval_ms:
            interval_s = self._interval_ms / 1000
            await run_periodically(self.seal, lambda: interval_s, failed="sealing failed")

    async def seal(self) -> int:
        """Seals what there is, and says how many rows. 0 when it is not its turn."""
        if not await self._reads.my_turn("seal", self._interval_ms):
            return 0
        return await self.seal_all()

    async def seal_all(self) -> int:
        """As `seal`, whoever's turn it is. Raises what Database.transaction raises."""
        complete = await self._horizon.settled(SETTLE_S)
        if complete is None:
            return 0
        sealed = attempts = 0
        while attempts < ATTEMPTS_MAX:
            async with self._lane.turn(WHOSE_TURN):
                count = await self._seal_once(complete.number)
            attempts = attempts + 1 if count is None else 0
            sealed += count or 0
            if count is not None and count < SEALED_ROWS:
                break
        return sealed

    async def _seal_once(self, until: int) -> int | None:
        """Makes the next seal, and says of how many rows; None when it has to be tried again."""
        head = await self._lane.read("seal_head", select_head)
        before = head.position
        leaves: list[Leaf] = []
        while len(leaves) < SEALED_ROWS:
            first = leaves[-1][0] + 1 if leaves else before.last_sequence + 1
            rows, keys = await self._rows(first, until, SEALED_ROWS - len(leaves))
            if not rows:
                break
            if len(keys) < len(users := users_of(rows)):
                made = await self._make_keys(users - keys.keys(), head)
                if made is None:
                    return None
                keys |= made
            leaves += await leaves_of(rows, keys)
        if not leaves:
            return 0
        # What follows the last row has been read as well: nothing can come into it any more.
        last = leaves[-1][0] if len(leaves) == SEALED_ROWS else until
        seal, packed = make_seal(
            before.number + 1, before.last_sequence + 1, last, leaves, head.time
        )
        link = Link(seal, extend_chain(before.chain, seal), packed)

        async def add(connection: Connection) -> bool:
            return await insert_seal(connection, link, head)

        return len(leaves) if await self._database.transaction("seal", add) else None

    async def _rows(self, first: int, until: int, count: int) -> tuple[list[Row], dict[str, bytes]]:
        """The next rows, and the keys that their users have."""

        async def work(connection: Connection) -> tuple[list[Row], dict[str, bytes]]:
            async with self._lane.step(connection):
                rows = await select_rows(connection, first, until, min(count, ROWS_AT_ONCE))
                return rows, await select_keys(connection, users_of(rows)) if rows else {}

        return await self._lane.read("rows_to_seal", work)

    async def _make_keys(self, users: set[str], head: Head) -> dict[str, bytes] | None:
        """The keys of users who have none yet; None when it may not make any, since values have
        been erased meanwhile."""

        async def make(connection: Connection) -> dict[str, bytes] | None:
            return await insert_keys(connection, users, head)

        return await self._database.transaction("keys", make)
