"""Protection against brute force: limits for those who try codes that do not exist.

Only a miss is counted, in Redis for all workers together; who never misses costs nothing. After
the last miss that the limit allows every look-up of that user is refused, also of codes that
exist, else a hit could be told from a miss. A worker learns it with the miss, or with the user's
next one if another worker had it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from time import monotonic
from typing import Any, Final, Protocol

from limits import RateLimitItem

from coupon_service.errors import LocksUnavailable, RateLimited
from coupon_service.ratelimit.callers import (
    REMEMBERED_MAX,
    Caller,
    CallerLimits,
    CallerPolicy,
    user_identity,
)
from coupon_service.ratelimit.windows import DenyList, Window, Windows

NOTHING: Final = nullcontext()


class GuessObserver(Protocol):
    """Who is notified of those who guess."""

    def guess_alarm(self, kind: str) -> None:
        """A limit has been reached. `kind`: user, service or peer."""
        ...


class GuessGuard:
    """Counts unknown codes against the caller and against the users whom the call names.

    A service is trusted with the users that it names: its customers' mistakes are counted against
    them, and against the service only when it has a limit of its own. `log`: a structlog logger.
    """

    def __init__(
        self, limits: CallerLimits, windows: Windows, observer: GuessObserver, log: Any
    ) -> None:
        self._limits = CallerPolicy(limits)
        self._windows = windows
        self._without_redis = _WorkerWindows()
        self._observer = observer
        self._log = log
        self._denied = DenyList()
        self._look_ups: Counter[str] = Counter()

    def look_up(self, caller: Caller, amount: int = 1) -> AbstractContextManager[None]:
        """While so many look-ups are under way.

        An end user has no more of them at a time than guesses, since all are made before the first
        is counted. Raises RateLimited.
        """
        counted = caller.end_user and self._limits.end_users
        return self._counted_look_up(caller, amount) if counted and amount else NOTHING

    @contextmanager
    def _counted_look_up(self, caller: Caller, amount: int) -> Generator[None]:
        name = self._limits.identity(caller)
        under_way = self._look_ups[name]
        limit = min(item.amount for item in self._limits.end_users)
        if under_way and under_way + amount > limit:
            raise RateLimited(
                "Too many codes are looked up at the same time.", retry_after_ms=1_000
            )
        self._look_ups[name] += amount
        try:
            yield
        finally:
            self._look_ups[name] -= amount
            if not self._look_ups[name]:
                del self._look_ups[name]

    def refusal(self, caller: Caller, user_id: str, business_id: str = "") -> RateLimited | None:
        """Why codes are not looked up now for this caller and user, of this business, if they are
        not."""
        if not self._denied:
            return None
        names = self._suspects(caller, {user_id: 1}, business_id)
        left_ms = max((self._denied.left_ms(name) for name in names), default=0)
        return _refusal(left_ms) if left_ms else None

    async def missed(
        self, caller: Caller, misses: Mapping[str, int], business_id: str = ""
    ) -> RateLimited | None:
        """Counts unknown codes, given by the user they were looked up for; "": for nobody.

        `business_id`: of the users; empty: the caller's.

        Returns the refusal when there have been more of them than a limit allows.
        """
        suspects = self._suspects(caller, misses, business_id)
        hits = [
            (name, (item, item.key_for("guesses", name), amount))
            for name, (items, amount) in suspects.items()
            for item in items
        ]
        if not hits:
            return None
        counts, lefts_ms = await self._hit([hit for _, hit in hits])
        refused_ms = 0
        for (name, (item, _, amount)), count, left_ms in zip(hits, counts, lefts_ms, strict=True):
            if count >= item.amount:
                self._denied.add(name, max(left_ms, self._denied.left_ms(name)))
                if count - amount < item.amount:
                    self._alarm(caller, name, item)
            if count > item.amount:
                refused_ms = max(refused_ms, left_ms)
        return _refusal(refused_ms) if refused_ms else None

    def _suspects(
        self, caller: Caller, misses: Mapping[str, int], business_id: str
    ) -> dict[str, tuple[Sequence[RateLimitItem], int]]:
        """Against whom the misses count: by name the limits, and how many there are."""
        if self._limits.exempt(caller):
            return {}
        suspects: dict[str, tuple[Sequence[RateLimitItem], int]] = {
            user_identity(business_id or caller.business_id, user_id): (
                self._limits.end_users,
                count,
            )
            for user_id, count in misses.items()
            if user_id and not caller.end_user  # who speaks for nobody else
        }
        suspects[self._limits.identity(caller)] = self._limits.of(caller), sum(misses.values())
        return suspects

    async def _hit(self, hits: Sequence[Window]) -> tuple[list[int], list[int]]:
        """The counts, and for those that are used up how long their windows last."""
        try:
            counts = await self._windows.hit(hits)
            lefts_ms = [
                await self._windows.left_ms([key]) if count >= item.amount else 0
                for (item, key, _), count in zip(hits, counts, strict=True)
            ]
        except LocksUnavailable:
            return self._without_redis.hit(hits)
        return counts, lefts_ms

    def _alarm(self, caller: Caller, name: str, item: RateLimitItem) -> None:
        kind, _, who = name.partition("/")
        self._observer.guess_alarm(kind)
        self._log.warning(
            "guess limit reached",
            kind=kind,
            who=who,
            limit=str(item),
            caller=caller.caller,
            peer=caller.peer,
        )


class _WorkerWindows:
    """The counts of this worker alone, while Redis does not answer; as many as REMEMBERED_MAX."""

    def __init__(self) -> None:
        self._windows: dict[str, tuple[int, float]] = {}

    def hit(self, hits: Sequence[Window]) -> tuple[list[int], list[int]]:
        """The counts after these hits, and how long the windows last, in milliseconds."""
        counts: list[int] = []
        lefts_ms: list[int] = []
        now_s = monotonic()
        for item, key, amount in hits:
            count, end_s = self._windows.pop(key, (0, 0.0))
            if end_s <= now_s:
                count, end_s = 0, now_s + item.get_expiry()
            if len(self._windows) >= REMEMBERED_MAX:
                del self._windows[next(iter(self._windows))]
            self._windows[key] = count + amount, end_s
            counts.append(count + amount)
            lefts_ms.append(round((end_s - now_s) * 1000))
        return counts, lefts_ms


def _refusal(left_ms: int) -> RateLimited:
    return RateLimited("Too many unknown codes were looked up.", retry_after_ms=left_ms)
