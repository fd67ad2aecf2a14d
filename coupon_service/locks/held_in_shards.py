"""Locks of a user in all shards: Redis has one index of them, each shard the history of its own."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence

from coupon_service.leases import IndexedLock
from coupon_service.locks.service import Held
from coupon_service.model import LockView


class HeldInShards:
    """Tells which locks are held, each by the shard of its book.

    `shard_of`: that of the book with this id; `held`: what tells it, by shard.
    """

    def __init__(self, shard_of: Callable[[str], int], held: Sequence[Held]) -> None:
        self._shard_of = shard_of
        self._held = held

    async def __call__(
        self, indexed: Sequence[IndexedLock], business_id: str
    ) -> list[tuple[IndexedLock, LockView]]:
        """As LockHistory.held."""
        of_shards: defaultdict[int, list[IndexedLock]] = defaultdict(list)
        for lock in indexed:
            of_shards[self._shard_of(lock.key.book_id)].append(lock)
        found = await asyncio.gather(
            *(self._held[shard](locks, business_id) for shard, locks in of_shards.items())
        )
        views = dict(it for each in found for it in each)
        return [(lock, views[lock]) for lock in indexed if lock in views]
