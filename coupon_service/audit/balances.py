"""What the events of a book come to: the opening balances that stand for those that were archived.

Stored counts equal the balances and what the ledger has since, as they equalled the ledger before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from hashlib import sha256
from typing import Any, Final
from uuid import UUID

# The types of events, as they are stored.
ASSIGNED: Final = 10
REVOKED: Final = 11
REDEEMED: Final = 16
ROLLED_BACK: Final = 17
ASSIGNMENT_EXPIRED: Final = 20
ASSIGNMENT_TRANSFERRED: Final = 21
ADJUSTED: Final = 22

_ENDS: Final = frozenset({REVOKED, ASSIGNMENT_EXPIRED, ASSIGNMENT_TRANSFERRED})


@dataclass(slots=True)
class CodeBalance:
    """Of a code: redemptions that were not rolled back, assignments that have not ended, and of the
    redemptions those that count for a user of the code."""

    redemptions: int = 0
    assignments: int = 0
    user_redemptions: int = 0


@dataclass(frozen=True, slots=True)
class BookBalance:
    """Of a book. `redemptions`: not rolled back; `discount_minor` is theirs, as it was adjusted.
    `on_orders`: those of them that were for an order, with `order_discount_minor`.
    """

    redemptions: int = 0
    rollbacks: int = 0
    assignments: int = 0
    discount_minor: int = 0
    on_orders: int = 0
    order_discount_minor: int = 0

    def as_json(self) -> dict[str, int]:
        """By the names of the values."""
        return asdict(self)


def balance_from_json(values: Mapping[str, Any]) -> BookBalance:
    """What `as_json` made. Raises KeyError and ValueError."""
    return BookBalance(**{it.name: int(values[it.name]) for it in fields(BookBalance)})


@dataclass(slots=True)
class _Live:
    code: str
    discount_minor: int
    counts_user: bool
    has_order: bool


@dataclass(slots=True)
class Balances:
    """Adds up events, which come in the order of their numbers."""

    codes: dict[str, CodeBalance] = field(default_factory=dict[str, CodeBalance])
    _live: dict[UUID, _Live] = field(default_factory=dict[UUID, _Live])
    _rollbacks: int = 0

    def add(self, facts: Mapping[str, Any], *, has_order: bool) -> None:
        """Adds an event. Raises ValueError for one about a redemption that was not added."""
        code, event_type = facts["code"], facts["type"]
        balance = self.codes.setdefault(code, CodeBalance())
        if event_type == ASSIGNED:
            balance.assignments += 1
        elif event_type in _ENDS:
            balance.assignments -= 1
        elif event_type == REDEEMED:
            counts_user = facts["user_code_redemptions"] is not None
            balance.redemptions += 1
            balance.user_redemptions += counts_user
            discount = facts["discount_minor"] or 0
            self._live[facts["event_id"]] = _Live(code, discount, counts_user, has_order)
        elif event_type in (ROLLED_BACK, ADJUSTED):
            self._change(facts, balance, rolled_back=event_type == ROLLED_BACK)

    def _change(self, facts: Mapping[str, Any], balance: CodeBalance, *, rolled_back: bool) -> None:
        live = self._live.get(facts["redemption_id"])
        if live is None:
            raise ValueError(f"Event {facts['event_id']} is about a redemption of before.")
        if not rolled_back:
            live.discount_minor = facts["discount_minor"] or 0
            return
        del self._live[facts["redemption_id"]]
        balance.redemptions -= 1
        balance.user_redemptions -= live.counts_user
        self._rollbacks += 1

    @property
    def book(self) -> BookBalance:
        """What they come to in all."""
        on_orders = [it for it in self._live.values() if it.has_order]
        return BookBalance(
            redemptions=len(self._live),
            rollbacks=self._rollbacks,
            assignments=sum(it.assignments for it in self.codes.values()),
            discount_minor=sum(it.discount_minor for it in self._live.values()),
            on_orders=len(on_orders),
            order_discount_minor=sum(it.discount_minor for it in on_orders),
        )

    @property
    def of_codes(self) -> dict[str, CodeBalance]:
        """Those of codes that have any, in the order of the codes."""
        nothing = CodeBalance()
        return {code: it for code, it in sorted(self.codes.items()) if it != nothing}

    def digest(self) -> bytes:
        """A hash of the balances of all codes."""
        summed = sha256()
        for code, it in self.of_codes.items():
            counts = f"\t{it.redemptions}\t{it.assignments}\t{it.user_redemptions}\n"
            summed.update(code.encode() + counts.encode())
        return summed.digest()
