"""Writes to the indexes, and what is made up for later.

In a cluster an index is served by another master than the permits of its locks, and no lock is
refused since that master cannot be reached. What could not be written is remembered and written as
soon as it can be. What is lost with the process ends with the lock.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, Final

from coupon_service.errors import LocksUnavailable
from coupon_service.leases.indexes import Entry, Indexes, IndexWrite
from coupon_service.leases.results import LeaseKey
from coupon_service.leases.scripts import LeaseScripts
from coupon_service.redis_client.connect import AnyPipelines
from coupon_service.redis_client.exchange import unavailable
from coupon_service.telemetry.metrics import Metrics

PENDING_MAX: Final = 10_000
"""Entries that are remembered; of more the oldest are forgotten."""


class IndexWriter:
    """Writes entries of indexes, in the order in which they are given."""

    def __init__(
        self, redis: AnyPipelines, scripts: LeaseScripts, indexes: Indexes, metrics: Metrics | None
    ) -> None:
        self._redis = redis
        self._scripts = scripts
        self._indexes = indexes
        self._metrics = metrics
        self._missing: dict[Entry, int] = {}
        """When each entry ends, in milliseconds since 1970; 0 for one that has to go."""

    async def write(self, writes: Sequence[IndexWrite]) -> None:
        """Writes, now or later. Raises LocksUnavailable when Redis cannot be reached at all, or
        refuses."""
        if writes:
            self.settle(writes, await self._redis.replies(*(it.command for it in writes)))

    def settle(self, writes: Iterable[IndexWrite], replies: Iterable[Any]) -> None:
        """Takes note of the replies to writes. Raises LocksUnavailable when Redis refused one."""
        for write, reply in zip(writes, replies, strict=True):
            if isinstance(reply, LocksUnavailable):
                self._indexes.book_missed(write.book_id)
                self.missed(write.entries, write.expire_ms)
            elif isinstance(reply, Exception):
                raise unavailable(reply)
            elif self._missing:
                for entry in write.entries:
                    self._missing.pop(entry, None)

    def missed(self, entries: Iterable[Entry], expire_ms: int) -> None:
        """Takes note of entries that could not be written."""
        for entry in entries:
            self._missing.pop(entry, None)
            if len(self._missing) >= PENDING_MAX:
                del self._missing[next(iter(self._missing))]
            self._missing[entry] = expire_ms
            if self._metrics is not None:
                self._metrics.index_entry_missed()

    async def repair(self) -> None:
        """Writes what is missing, where it can be written by now.

        Raises LocksUnavailable when Redis cannot be reached at all.
        """
        while self._missing and await self._repair_some():
            pass

    async def _repair_some(self) -> bool:
        """A pipeline's worth of it: whether any of that could be settled. The rest has to wait
        behind the others."""
        now_ms = round(time.time() * 1000)
        todo = list(islice(self._missing.items(), self._redis.commands_max // 2))
        held = await self._held({entry.key for entry, expire_ms in todo if expire_ms})
        settled = False
        for entry, expire_ms in todo:
            # A lock whose own master cannot be reached is asked for again.
            if expire_ms and (expire_ms < now_ms or held.get(entry.key) is False):
                settled |= self._missing.pop(entry, None) is not None
        ready = [it for it in todo if it[0] in self._missing and (not it[1] or held[it[0].key])]
        writes = [self._indexes.entry(entry, expire_ms) for entry, expire_ms in ready]
        replies = await self._redis.replies(*(it.command for it in writes)) if writes else ()
        for (entry, expire_ms), reply in zip(ready, replies, strict=True):
            if not isinstance(reply, Exception) and self._missing.get(entry) == expire_ms:
                del self._missing[entry]
                settled = True
                if self._metrics is not None:
                    self._metrics.index_entry_repaired()
        for entry, expire_ms in todo:
            if self._missing.get(entry) == expire_ms:
                self._missing[entry] = self._missing.pop(entry)
        return settled

    async def _held(self, keys: Iterable[LeaseKey]) -> dict[LeaseKey, bool | None]:
        """Whether each lock still has its permit; None where that cannot be told now."""
        asked = list(keys)
        replies = (
            await self._redis.replies(
                *(self._scripts.peek(it.name, it.user_id, "") for it in asked)
            )
            if asked
            else ()
        )
        return {
            key: None if isinstance(reply, Exception) else reply[2] == key.lock_id
            for key, reply in zip(asked, replies, strict=True)
        }
