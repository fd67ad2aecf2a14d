"""When a call is tried again: after which errors, after which pause, and for how long."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from grpc import StatusCode

from coupon_service.client.errors import (
    UNKNOWN_OUTCOMES,
    Contention,
    CouponError,
    ResourceExhausted,
    StreamEnded,
)
from coupon_service.client.settings import ClientSettings

RETRIES_PER_SUCCESS: Final = 0.2


def is_retryable(error: CouponError) -> bool:
    """Whether the same call, with the same request_id, may have another answer soon."""
    if isinstance(error, ResourceExhausted):
        # gRPC has the same status for messages that are too large.
        return error.retry_after_s is not None
    return error.status in UNKNOWN_OUTCOMES or isinstance(error, Contention)


class RetryBudget:
    """How many repeats a client may still make: see ClientSettings."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._left = float(size)

    def earn(self) -> None:
        """A call was successful."""
        if self._left < self._size:
            self._left = min(self._left + RETRIES_PER_SUCCESS, self._size)

    def spend(self) -> bool:
        """Whether there is a repeat left, which is taken."""
        if self._left < 1:
            return False
        self._left -= 1
        return True


@dataclass(slots=True)
class Attempts:
    """The tries of one call, which begin now. `request_id`: of the call, for its errors."""

    settings: ClientSettings
    budget: RetryBudget
    now_s: Callable[[], float]
    request_id: str = ""
    _deadline_s: float = 0
    _failures: int = 0
    _outcome_unknown: bool = False
    _explanation: CouponError | None = None
    """Of the latest try that did not just run out of time."""

    def __post_init__(self) -> None:
        self._deadline_s = self.now_s() + self.settings.timeout_s

    def timeout_s(self) -> float:
        """The time that the next try has."""
        return max(min(self.settings.try_timeout_s, self._deadline_s - self.now_s()), 0.001)

    def progressed(self) -> None:
        """Part of the answer has come: from here on it is as at the beginning."""
        self._failures = 0
        self._explanation = None
        self._deadline_s = self.now_s() + self.settings.timeout_s

    def pause_s(self, error: CouponError) -> float:
        """How long to wait before the next try. Raises the error where none may follow,
        from that of an earlier try which says more than that there was no answer."""
        self._outcome_unknown |= error.outcome_unknown
        pause_s = self._backoff_s(error)
        in_time = self.now_s() + pause_s < self._deadline_s
        if not (is_retryable(error) and in_time and self.budget.spend()):
            error.outcome_unknown = self._outcome_unknown
            error.request_id = self.request_id
            if error.status is StatusCode.DEADLINE_EXCEEDED and self._explanation is not None:
                raise error from self._explanation
            raise error
        if error.status is not StatusCode.DEADLINE_EXCEEDED:
            self._explanation = error
        self._failures += 1
        return pause_s

    def _backoff_s(self, error: CouponError) -> float:
        if isinstance(error, StreamEnded) and not self._failures:
            return 0
        settings = self.settings
        asked_s = error.retry_after_s or 0
        longest_s = min(
            settings.backoff_min_s * 2 ** min(self._failures, 16), settings.backoff_max_s
        )
        spread = random.uniform(0.5, 1)  # noqa: S311 - so that not all come back at once
        return asked_s + longest_s * spread
