"""Conservation: OK answers must equal ledger, counters and rows of the database."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import psycopg

from bench.loads.ghz import Load
from bench.servers.stack import BenchError
from coupon_service.model import EventType

COUNTERS: Final = """
SELECT coalesce(sum(redemptions), 0)::bigint, coalesce(sum(assignments), 0)::bigint
FROM coupon_book_counters WHERE book_id = %s
"""
STORED: Final = """
SELECT coalesce(sum(redemptions), 0)::bigint, coalesce(sum(assignments), 0)::bigint
FROM coupon_codes WHERE book_id = %s
"""
LEDGER: Final = """
SELECT type, count(*) FROM redemption_audit WHERE book_id = %s AND code IS NOT NULL GROUP BY type
"""


@dataclass(slots=True)
class Answers:
    """The OK answers and the unknown outcomes of calls that change a book."""

    ok: Counter[EventType] = field(default_factory=Counter[EventType])
    unknown: Counter[EventType] = field(default_factory=Counter[EventType])

    def add(self, event: EventType, load: Load, effects_per_call: int = 1) -> None:
        """Add the answers to calls that write this event."""
        self.ok[event] += load.ok * effects_per_call
        self.unknown[event] += load.unknown * effects_per_call


def check_book(database_url: str, book_id: str, answers: Answers) -> str:
    """The compared sums as one line. Raises BenchError when answers and database differ."""
    with psycopg.connect(database_url) as connection:
        counted = connection.execute(COUNTERS, (book_id,)).fetchone()
        stored = connection.execute(STORED, (book_id,)).fetchone()
        ledger = Counter(
            {EventType(row[0]): row[1] for row in connection.execute(LEDGER, (book_id,))}
        )
    assert counted is not None
    assert stored is not None
    redeemed = ledger[EventType.REDEEMED] - ledger[EventType.ROLLED_BACK]
    ended = ledger[EventType.REVOKED] + ledger[EventType.ASSIGNMENT_TRANSFERRED]
    ended += ledger[EventType.ASSIGNMENT_EXPIRED]
    assigned = ledger[EventType.ASSIGNED] - ended
    _same("redemptions", redeemed, counters=counted[0], codes=stored[0])
    _same("assignments", assigned, counters=counted[1], codes=stored[1])
    for event, ok in answers.ok.items():
        unknown = answers.unknown[event]
        if not ok <= ledger[event] <= ok + unknown:
            raise BenchError(
                f"{ok} calls were answered OK, {unknown} have an unknown outcome, and the ledger"
                f" has {ledger[event]} rows {event.name}."
            )
    parts = [f"{count:,} answers {event.name}" for event, count in sorted(answers.ok.items())]
    parts += [f"{redeemed:,} redemptions in ledger, counters and codes"]
    return "; ".join(parts)


def _same(what: str, ledger: int, **others: int) -> None:
    if any(count != ledger for count in others.values()):
        counts: Mapping[str, int] = {"ledger": ledger, **others}
        raise BenchError(f"The {what} differ: {counts}.")
