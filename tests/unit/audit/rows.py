"""Rows of a ledger that is only in memory, and their keys."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any
from uuid import UUID

from coupon_service.audit.leaves import leaf_of, row_of
from coupon_service.audit.seals import (
    Leaf,
    Link,
    Position,
    begin_chain,
    extend_chain,
    make_seal,
    position_of,
)

LOG_ID = UUID("6ba7b810-9dad-41d1-80b4-00c04fd430c8")
NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)
USERS = ("ann", "bob", "Zoë", "")


def uuid(chance: Random) -> UUID:
    return UUID(int=chance.getrandbits(128))


def columns(chance: Random, sequence: int) -> dict[str, Any]:
    """A row by its columns, some without a value."""

    def maybe(value: Any) -> Any:
        return value if chance.random() < 0.6 else None

    user = chance.choice(USERS)
    other = maybe("carl") if user else None
    return {
        "sequence": sequence,
        "event_id": uuid(chance),
        "book_id": uuid(chance),
        "event_time": NOON + timedelta(microseconds=chance.randrange(10**12)),
        "fingerprint": chance.randrange(-(2**63), 2**63),
        "bucket": chance.randrange(64),
        "type": chance.randrange(1, 25),
        "state_before": maybe(chance.randrange(1, 5)),
        "state_after": maybe(chance.randrange(1, 5)),
        "code_redemptions": maybe(chance.randrange(9)),
        "code_redemption_limit": maybe(chance.randrange(9)),
        "user_code_redemptions": maybe(chance.randrange(9)),
        "order_amount_minor": maybe(chance.randrange(2**40)),
        "discount_minor": maybe(chance.randrange(2**40)),
        "fence": maybe(chance.randrange(2**50)),
        "expire_time": maybe(NOON),
        "redemption_id": maybe(uuid(chance)),
        "lock_id": maybe(uuid(chance)),
        "code": maybe("SPRING-ÄÖ"),
        "user_id": user or None,
        "order_id": maybe("order-1"),
        "order_user_id": maybe(user or None),
        "other_user_id": other,
        "caller": chance.choice(["shop", user or "shop", other or "shop"]),
        "peer": "10.0.0.1",
        "user_agent": maybe("grpc-python") or "",
        "request_id": f"request-{sequence}",
        "currency_code": maybe("EUR"),
        "benefit": maybe("free coffee"),
        "metadata": maybe('{"channel": "web"}'),
        "book_version": maybe(3),
    }


@dataclass
class Ledger:
    """Rows with numbers of which some were never used, and their seals."""

    rows: list[dict[str, Any]]
    keys: dict[str, bytes]
    links: list[Link] = field(default_factory=list)

    def leaves(self, first: int, last: int) -> list[Leaf]:
        found = [it for it in self.rows if first <= it["sequence"] <= last]
        return [(it["sequence"], leaf_of(row_of(it), self.keys)) for it in found]

    def seal(self, last: int) -> None:
        before = self.position()
        leaves = self.leaves(before.last_sequence + 1, last)
        seal, packed = make_seal(before.number + 1, before.last_sequence + 1, last, leaves, NOON)
        self.links.append(Link(seal, extend_chain(before.chain, seal), packed))

    def position(self) -> Position:
        return position_of(self.links[-1]) if self.links else Position(0, 0, begin_chain(LOG_ID))


def sealed_ledger(chance: Random, *, rows: int = 60, a_seal: int = 17) -> Ledger:
    """One of which all rows are sealed."""
    sequences: list[int] = []
    sequence = 0
    for _ in range(rows):
        sequence += chance.choice([1, 1, 1, 1, 2, 200])
        sequences.append(sequence)
    keys = {user: chance.randbytes(32) for user in (*USERS, "carl")}
    ledger = Ledger([columns(chance, it) for it in sequences], keys)
    for end in (*range(a_seal - 1, rows, a_seal), rows - 1):
        if not ledger.links or sequences[end] > ledger.position().last_sequence:
            ledger.seal(sequences[end])
    return ledger
