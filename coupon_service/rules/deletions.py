"""Which codes can be deleted."""

from __future__ import annotations

from typing import Final

from coupon_service.errors import CodeHasHistory
from coupon_service.model import Code, CodeState, EventType

HISTORY: Final = (
    EventType.ASSIGNED,
    EventType.REVOKED,
    EventType.LOCKED,
    EventType.LOCK_EXTENDED,
    EventType.UNLOCKED,
    EventType.LOCK_EXPIRED,
    EventType.REDEEMED,
    EventType.ROLLED_BACK,
)
"""Events after which a code stays: people have seen it, or the ledger counts what they did."""


def deletion_refusal(code: Code, *, has_history: bool) -> CodeHasHistory | None:
    """Why the code cannot be deleted. `has_history`: the ledger has one of HISTORY of it."""
    untouched = code.state in (CodeState.AVAILABLE, CodeState.DISABLED)
    if untouched and not (has_history or code.redemptions or code.assignments):
        return None
    return CodeHasHistory()
