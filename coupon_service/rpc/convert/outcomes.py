"""What became of a command, for those who answer with it."""

from __future__ import annotations

from coupon_service.errors import CouponServiceError
from coupon_service.model import Done, Outcome


def done_of(outcome: Outcome) -> Done:
    """The outcome of a command that was carried out. Raises the error of one that was not."""
    if isinstance(outcome, CouponServiceError):
        raise outcome
    if isinstance(outcome, Done):
        return outcome
    raise AssertionError("a command that needs a lease came back without one")
