"""Mutants of redemptions whose orders get another amount."""

from __future__ import annotations

from typing import Any
from unittest import mock

from coupon_service.model import Terms
from coupon_service.rules import adjustments, decision
from coupon_service.rules import redemptions as redeeming

Mutant = Any


def terms_of_now() -> Mutant:
    """The discount is what the book would take off today."""
    real = decision.adjust

    def adjust(command: Any, code: Any, book: Any, draft: Any) -> Any:
        now = Terms(book.discount, book.currency_code, book.min_order_amount_minor)
        draft.state.terms[command.redemption.event_id] = now
        return real(command, code, book, draft)

    return mock.patch.object(decision, "adjust", adjust)


def rolled_back_as_it_was_read() -> Mutant:
    """A roll-back takes back the discount that was read before it had the lock."""
    return mock.patch.object(redeeming, "adjusted", _as_it_was_read)


def adjusted_as_it_was_read() -> Mutant:
    """What changes is reckoned from the amount that was read before the lock."""
    return mock.patch.object(adjustments, "adjusted", _as_it_was_read)


def _as_it_was_read(redemption: Any, _: Any) -> Any:
    return redemption
