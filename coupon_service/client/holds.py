"""Locks that are held while a block runs: for how long still, and when to renew them."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Final

from grpc import StatusCode

from coupon_service.client.errors import CouponError, LockExpired, Problem
from coupon_service.client.values import new_request_id
from coupon_service.v1 import redemption_service_pb2 as pb

RENEW_AT: Final = 0.75
"""After which part of its lifetime a lock is renewed: late, since extensions are few, and early
enough for repeats."""

RETRY_S: Final = 0.5
"""The pause after an extension whose outcome is open."""

LAST_CALL_S: Final = 2.0
"""How long the last call for a lock may take."""

USED: Final = frozenset({pb.LOCK_STATE_REDEEMED, pb.LOCK_STATE_RELEASED})
"""States of locks that nobody has to hold any more."""


class HeldLock:
    """A lock while it is held: `token` is for redeem_code, `lock` is as it was last granted."""

    def __init__(self, granted: pb.LockCodeResponse, began_s: float) -> None:
        self.lock = granted.lock
        self.latest_token = granted.lock_token
        """The lock_token, also of a lock that has ended."""
        self.extension_id = new_request_id()
        """The request_id of the next extension."""
        self._began_s = began_s
        self._end_s = began_s + _lifetime_s(granted)
        self._is_renewable = True

    @property
    def token(self) -> str:
        """The current lock_token. Raises LockExpired when the lock has ended."""
        if self.left_s <= 0:
            raise expired()
        return self.latest_token

    @property
    def left_s(self) -> float:
        """Its end in seconds from now, if it is not renewed: never later than for the service."""
        return self._end_s - time.monotonic()

    @property
    def renew_in_s(self) -> float | None:
        """When to renew it, in seconds from now. None: the service extends it no more."""
        if not self._is_renewable:
            return None
        return max(self._began_s + RENEW_AT * (self._end_s - self._began_s) - time.monotonic(), 0)

    def renewed(self, extended: pb.ExtendLockResponse) -> None:
        """ExtendLock has granted more time."""
        # Measured by the clock of the service alone.
        gained_s = _end_s(extended.lock) - _end_s(self.lock)
        self._began_s = time.monotonic()
        self._end_s += gained_s
        self._is_renewable = gained_s > 0  # not when the service's greatest lifetime is reached
        self.lock, self.latest_token = extended.lock, extended.lock_token
        self.extension_id = new_request_id()

    def not_renewed(self, error: Exception) -> None:
        """ExtendLock failed with this error."""
        self._is_renewable = not isinstance(error, CouponError) or error.outcome_unknown
        if isinstance(error, LockExpired):
            self._end_s = time.monotonic()


def expired() -> LockExpired:
    """The error of whoever needs a lock after its end."""
    message = "The lock has ended before the block that it was held for."
    status = StatusCode.FAILED_PRECONDITION
    return LockExpired(Problem(status, message, "LOCK_EXPIRED", {"state": "EXPIRED"}))


def is_to_be_released(error: BaseException) -> bool:
    """Whether nobody needs the lock of a block that failed so. Not so where it is open whether the
    code was redeemed: a repeat with the same request_id needs it.
    """
    return not (isinstance(error, CouponError) and error.outcome_unknown)


def _lifetime_s(granted: pb.LockCodeResponse) -> float:
    lock = granted.lock
    lifetime_s = _end_s(lock) - lock.create_time.ToNanoseconds() / 1e9
    if granted.replayed:
        # The user may have held it before, and only the clocks tell for how long.
        lifetime_s = min(lifetime_s, _end_s(lock) - datetime.now(UTC).timestamp())
    return lifetime_s


def _end_s(lock: pb.Lock) -> float:
    return lock.expire_time.ToNanoseconds() / 1e9
