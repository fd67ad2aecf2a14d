"""Fixed windows, counted in Redis for all workers together, and who is refused until one ends.

The notation of limits, their keys and the script that counts are those of `limits` (5.8). Its own
Redis storage takes a connection and more processor time for each question; in the pipelines of
`redis_client`, calls of the same moment ask together, and have the service's timeouts.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import TypeAlias

from limits import RateLimitItem
from limits.aio.storage.redis.bridge import RedisBridge

from coupon_service.errors import LocksUnavailable
from coupon_service.ratelimit.callers import REMEMBERED_MAX
from coupon_service.redis_client.pipelines import Pipelines, connect

Window: TypeAlias = tuple[RateLimitItem, str, int]
"""A limit, the key that it is counted under, and how much is added."""


@dataclass(slots=True)
class _Hits:
    """What is added to a window, and who wants to know the count after their part of it."""

    expiry_s: int
    amount: int = 0
    waiting: list[tuple[asyncio.Future[int], int]] = field(
        default_factory=list[tuple["asyncio.Future[int]", int]]
    )

    def resolve(self, total: int) -> None:
        """The count after all of it."""
        for count, amount in self.waiting:
            if not count.done():
                count.set_result(total - self.amount + amount)

    def fail(self, error: LocksUnavailable) -> None:
        """It is not known."""
        for count, _ in self.waiting:
            if not count.done():
                count.set_exception(error)


class Windows:
    """Counts in Redis. A window begins with the first hit and ends after the time of its limit."""

    def __init__(self, url: str, timeout_ms: int) -> None:
        """Connects when it is first used."""
        script = RedisBridge.SCRIPT_INCR_EXPIRE
        self._sha = hashlib.sha1(script, usedforsecurity=False).hexdigest()
        sources = {self._sha: script.decode()}
        self._redis = Pipelines(connect(url, timeout_ms), sources, timeout_ms)

        self._next: dict[str, _Hits] = {}
        self._asking: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """Waits for what is on its way and closes the connection."""
        if self._asking is not None:
            await self._asking
        await self._redis.close()

    async def hit(self, windows: Sequence[Window]) -> list[int]:
        """Adds to each window, a limit with a key and how much; the counts after that.

        What several callers add to a window at the same time goes to Redis as one number, and each
        has the count that it would have had alone. Raises LocksUnavailable: Redis did not answer in
        time. It may have counted.
        """
        counts = [self._join(*window) for window in windows]
        if self._asking is None:
            self._asking = asyncio.ensure_future(self._ask())
        try:
            return [await count for count in counts]
        finally:
            for count in counts:
                count.cancel()  # nobody asks for those after one that failed

    def _join(self, item: RateLimitItem, key: str, amount: int) -> asyncio.Future[int]:
        hits = self._next.get(key)
        if hits is None:
            hits = self._next[key] = _Hits(item.get_expiry())
        hits.amount += amount
        count: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        hits.waiting.append((count, hits.amount))
        return count

    async def _ask(self) -> None:
        try:
            while self._next:
                hits, self._next = self._next, {}
                commands = [
                    ("EVALSHA", self._sha, 1, f"coupon:{key}", it.expiry_s, it.amount)
                    for key, it in hits.items()
                ]
                try:
                    totals = await self._redis.run(*commands)
                except LocksUnavailable as error:
                    for it in hits.values():
                        it.fail(error)
                else:
                    for it, total in zip(hits.values(), totals, strict=True):
                        it.resolve(total)
        finally:
            self._asking = None

    async def left_ms(self, keys: Sequence[str]) -> int:
        """How long until the last of these windows ends. Raises LocksUnavailable."""
        return max(await self._redis.run(*(("PTTL", f"coupon:{key}") for key in keys)))


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
