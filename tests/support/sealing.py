"""A ledger with rows of all kinds, sealed, for tests of the store."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from random import Random
from typing import Any
from unittest import mock
from uuid import UUID

import psycopg
from support.ledger_rows import NOW, REDEEMED
from support.store import BULK, opened

from coupon_service.maintenance import ledger_sealer
from coupon_service.maintenance.ledger_sealer import LedgerSealer
from coupon_service.model import Event
from coupon_service.store.bulk.lane import BulkLane
from coupon_service.store.database import Database
from coupon_service.store.events import insert_events
from coupon_service.store.ledger_horizon import LedgerHorizon
from coupon_service.store.queries.reads import Reads

SETTLE_S = 60.0
"""How long a sealer waits for others, on whom nothing depends here."""


@dataclass(frozen=True)
class SealedStore:
    """A store, and what seals its ledger."""

    url: str
    database: Database
    lane: BulkLane
    sealer: LedgerSealer

    async def write(self, events: Sequence[Event]) -> None:
        """Writes the events in one transaction."""
        await self.database.transaction(
            "write", lambda connection: insert_events(connection, events)
        )

    def rows(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """What a query returns."""
        with psycopg.connect(self.url) as connection:
            return connection.execute(query.encode(), parameters).fetchall()

    def tamper(self, *statements: str) -> None:
        """Changes whatever it is, as a superuser who has switched the triggers off."""
        with psycopg.connect(self.url) as connection:
            connection.execute("SET session_replication_role = replica")
            for statement in statements:
                assert connection.execute(statement.encode()).rowcount, statement


@asynccontextmanager
async def sealed_store(url: str) -> AsyncGenerator[SealedStore]:
    """The store of a database."""
    async with opened(url) as database, opened(url, **BULK) as bulk:
        lane = BulkLane(bulk)
        sealer = LedgerSealer(LedgerHorizon(database), Reads(database), bulk, lane, 1_000)
        # Another database may be analyzed just now.
        with mock.patch.object(ledger_sealer, "SETTLE_S", SETTLE_S):
            yield SealedStore(url, database, lane, sealer)


def some_events(count: int, seed: int = 1) -> list[Event]:
    """Events of several users, of which some are about two users, or none."""
    chance = Random(seed)
    events: list[Event] = []
    for number in range(count):
        user = chance.choice(["ann", "bob", "Zoë", None])
        other = chance.choice([None, None, "carl"]) if user else None
        events.append(
            replace(
                REDEEMED,
                event_id=UUID(int=chance.getrandbits(128)),
                user_id=user,
                other_user_id=other,
                caller=chance.choice(["shop", user or "shop", other or "shop"]),
                order_id=f"order-{number}",
                request_id=f"request-{number}",
                fingerprint=chance.randrange(2**40),
                benefit=chance.choice([None, "a gift"]),
                expire_time=chance.choice([None, NOW]),
                metadata=chance.choice([None, '{"b": [1, 2.50], "a": "ü\\u00e4"}']),
            )
        )
    return events
