"""How often a caller may call: fixed windows, counted in Redis for all workers together.

Who has been refused is remembered until the window ends, and costs Redis nothing more.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Final, Protocol

from coupon_service.errors import LocksUnavailable, RateLimited
from coupon_service.ratelimit.callers import REMEMBERED_MAX, Caller, CallerLimits, CallerPolicy
from coupon_service.ratelimit.windows import DenyList, Window, Windows

PAUSE_S: Final = 1.0
"""How long nobody asks a Redis that did not answer, so that calls do not wait for it."""


class RateClass(StrEnum):
    """Methods whose calls by one caller are counted together."""

    READS = "reads"
    CHANGES = "changes"
    TILL = "till"


class LimitObserver(Protocol):
    """Who is notified of what the limits do."""

    def rate_limit_unchecked(self) -> None:
        """A call passed uncounted, because Redis did not answer."""
        ...


class RateLimiter:
    """Counts the calls of those who have a limit. While Redis does not answer, nobody has one."""

    def __init__(self, limits: CallerLimits, windows: Windows, observer: LimitObserver) -> None:
        self._limits = CallerPolicy(limits)
        self._windows = windows
        self._observer = observer
        self._denied = DenyList()
        self._known: dict[tuple[object, ...], tuple[str, Sequence[Window]]] = {}

    def limits(self, caller: Caller) -> bool:
        """Whether the calls of this caller are to be counted."""
        return bool(self._limits.of(caller))

    def _windows_of(self, cls: RateClass, caller: Caller) -> tuple[str, Sequence[Window]]:
        """Under which name the calls of this class are counted, and in which windows."""
        # Whoever has a token is counted wherever they call from, on any number of connections.
        peer = caller.peer if caller.anonymous else ""
        who = (cls, caller.caller, caller.business_id, caller.end_user, peer)
        known = self._known.get(who)
        if known is None:
            name = f"{cls}/{self._limits.identity(caller)}"
            items = self._limits.of(caller)
            known = name, [(item, item.key_for("calls", name), 1) for item in items]
            if len(self._known) >= REMEMBERED_MAX:
                self._known.clear()
            self._known[who] = known
        return known

    async def admit(self, cls: RateClass, caller: Caller) -> None:
        """Counts a call of a method of this class. Raises RateLimited when it is too many."""
        name, windows = self._windows_of(cls, caller)
        if left_ms := self._denied.left_ms(name):
            raise _refusal(cls, left_ms)
        if self._windows.unreached(windows, PAUSE_S):
            self._observer.rate_limit_unchecked()
            return
        try:
            counts = await self._windows.hit(windows)
            over = [
                key
                for (item, key, _), count in zip(windows, counts, strict=True)
                if count > item.amount
            ]
            left_ms = await self._windows.left_ms(over) if over else 0
        except LocksUnavailable:
            self._observer.rate_limit_unchecked()
            return
        if left_ms > 0:
            self._denied.add(name, left_ms)
            raise _refusal(cls, left_ms)


def _refusal(cls: RateClass, left_ms: int) -> RateLimited:
    return RateLimited(
        "Too many calls from this caller.", retry_after_ms=left_ms, method_class=cls.value
    )
