"""Fixed windows, counted in Redis for all workers together, and who is refused until one ends.

The notation of limits, their keys and the script that counts are those of `limits` (5.8). Its own
Redis storage takes a connection and more processor time for each question; in the pipelines of
`redis_client`, calls of the same moment ask together, and have the service's timeouts.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Final, TypeAlias

from limits import RateLimitItem
from limits.aio.storage.redis.bridge import RedisBridge

from coupon_service.batching import BATCHING_DEFAULTS, BatchingSettings, MicroBatcher
from coupon_service.errors import LocksUnavailable
from coupon_service.ratelimit.callers import REMEMBERED_MAX
from coupon_service.redis_client.cluster import Address, ClusterPipelines
from coupon_service.redis_client.connect import exchange_with
from coupon_service.redis_client.exchange import accepted

FORGOTTEN_AT_ONCE: Final = 100
"""Windows that are ended in one pipeline."""

Window: TypeAlias = tuple[RateLimitItem, str, int]
"""A limit, the key that it is counted under, and how much is added."""


@dataclass(frozen=True, slots=True)
class _Hit:
    """What one caller adds."""

    windows: Sequence[Window]
    deadline: None = None
    size: Final = 1


class Windows:
    """Counts in Redis. A window begins with the first hit and ends after the time of its limit."""

    def __init__(
        self, url: str, timeout_ms: int, batching: BatchingSettings = BATCHING_DEFAULTS
    ) -> None:
        """Connects when it is first used."""
        script = RedisBridge.SCRIPT_INCR_EXPIRE
        self._sha = hashlib.sha1(script, usedforsecurity=False).hexdigest()
        sources = {self._sha: script.decode()}
        self._redis = exchange_with(url, sources, timeout_ms, batching)
        self._unreached_s: dict[Address | None, float] = {}
        """When each server of a cluster did not answer the last time; None is the only one."""
        self._batcher = MicroBatcher(self._count, batching.rate_windows)

    async def close(self) -> None:
        """Waits for what is on its way and closes the connection."""
        await self._batcher.drain()
        await self._redis.close()

    async def hit(self, windows: Sequence[Window]) -> list[int]:
        """Adds to each window, a limit with a key and how much; the counts after that.

        What several callers add to a window at the same time goes to Redis as one number, and each
        has the count that it would have had alone. Raises LocksUnavailable: Redis did not answer in
        time. It may have counted.
        """
        # Counted also when the caller goes away: else cancelled calls would have no limit.
        counts = await asyncio.shield(self._batcher.submit(_Hit(windows)))
        if isinstance(counts, LocksUnavailable):
            raise counts
        return counts

    async def _count(self, hits: Sequence[_Hit]) -> list[list[int] | LocksUnavailable]:
        amounts: Counter[tuple[str, int]] = Counter()
        for hit in hits:
            for item, key, amount in hit.windows:
                amounts[key, item.get_expiry()] += amount
        try:
            totals = await self._redis.replies(
                *[
                    ("EVALSHA", self._sha, 1, f"coupon:{key}", expiry_s, amount)
                    for (key, expiry_s), amount in amounts.items()
                ]
            )
        except LocksUnavailable as error:
            totals = [error] * len(amounts)
        counts: dict[str, int] = {}
        unreached: dict[str, LocksUnavailable] = {}
        for ((key, _), amount), total in zip(amounts.items(), totals, strict=True):
            if isinstance(total, LocksUnavailable):
                unreached[key] = total
            else:
                (accepted_total,) = accepted((total,))
                counts[key] = accepted_total - amount
        if unreached or self._unreached_s:
            self._note(unreached, counts)
        return [self._answer(hit, counts, unreached) for hit in hits]

    def _answer(
        self, hit: _Hit, counts: dict[str, int], unreached: Mapping[str, LocksUnavailable]
    ) -> list[int] | LocksUnavailable:
        """Adds what a caller adds."""
        answer: list[int] = []
        failed = None
        for _, key, amount in hit.windows:
            if key in unreached:
                failed = unreached[key]
            else:
                counts[key] += amount
                answer.append(counts[key])
        return answer if failed is None else failed

    def _note(self, unreached: Iterable[str], reached: Iterable[str]) -> None:
        for key in reached:
            self._unreached_s.pop(self._server_of(key), None)
        now_s = monotonic()
        for key in unreached:
            self._unreached_s[self._server_of(key)] = now_s

    def unreached(self, windows: Sequence[Window], within_s: float) -> bool:
        """Whether a server that has one of these windows did not answer in the last time."""
        if not self._unreached_s:
            return False
        since_s = monotonic() - within_s
        return any(
            self._unreached_s.get(self._server_of(key), -math.inf) > since_s
            for _, key, _ in windows
        )

    def _server_of(self, key: str) -> Address | None:
        if isinstance(self._redis, ClusterPipelines):
            return self._redis.master_of(f"coupon:{key}")
        return None

    async def left_ms(self, keys: Sequence[str]) -> int:
        """How long until the last of these windows ends. Raises LocksUnavailable."""
        commands = [("PTTL", f"coupon:{key}") for key in keys]
        return max(accepted(await self._redis.replies(*commands)))

    async def forget(self, keys: Sequence[str]) -> None:
        """Ends these windows. Raises LocksUnavailable."""
        for start in range(0, len(keys), FORGOTTEN_AT_ONCE):
            some = keys[start : start + FORGOTTEN_AT_ONCE]
            accepted(await self._redis.replies(*[("DEL", f"coupon:{key}") for key in some]))


class DenyList:
    """Who is refused until when. Of more than REMEMBERED_MAX the first are forgotten."""

    def __init__(self) -> None:
        self._until_s: dict[str, float] = {}

    def __bool__(self) -> bool:
        """Whether anybody may be."""
        return bool(self._until_s)

    def left_ms(self, key: str) -> int:
        """For how long; 0 for who is not."""
        until_s = self._until_s.get(key)
        if until_s is None:
            return 0
        left_ms = round((until_s - monotonic()) * 1000)
        if left_ms <= 0:
            del self._until_s[key]
        return max(left_ms, 0)

    def add(self, key: str, left_ms: int) -> None:
        """From now on, for so long."""
        self._until_s.pop(key, None)
        if len(self._until_s) >= REMEMBERED_MAX:
            del self._until_s[next(iter(self._until_s))]
        self._until_s[key] = monotonic() + left_ms / 1000
