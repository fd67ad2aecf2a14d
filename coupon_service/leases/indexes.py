"""The indexes of locks: those of a user, which count them, and those of a book, for the sweeper.

What is built here are commands; who sends them is `leases.py`.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence

from coupon_service.leases.results import LeaseKey
from coupon_service.leases.scripts import (
    LOCKING_BOOKS,
    LeaseScripts,
    book_index,
    index_member,
    user_index,
)
from coupon_service.redis_client.exchange import RedisCommand

BOOK_KEPT_MS = 50 * 60 * 60 * 1000
"""How long a book is one that has locks: one lives for a day at most, and is kept for another."""

# How long an ended lock waits in the index of its book for the sweeper.
_ENDED_KEPT_MS = 24 * 60 * 60 * 1000

# How often a busy book is written down as one that has locks, by each process.
_BOOK_AGAIN_S = 10.0
_BOOKS_REMEMBERED_MAX = 10_000


class Indexes:
    """Builds the commands that write the indexes; times in milliseconds."""

    def __init__(self, scripts: LeaseScripts) -> None:
        self._scripts = scripts
        self._books_written: dict[str, float] = {}

    def count(self, key: LeaseKey, ttl_ms: int, entries_max: int) -> RedisCommand:
        """A new lock among those of its user, of which there may be so many."""
        return self._scripts.index(
            user_index(key.user_id), index_member(key), ttl_ms=ttl_ms, entries_max=entries_max
        )

    def list_of_book(self, book_id: str, ttl_ms: int, keys: Iterable[LeaseKey]) -> RedisCommand:
        """New locks among those of their book."""
        return self._scripts.index(
            book_index(book_id), *map(index_member, keys), ttl_ms=ttl_ms, keep_ms=_ENDED_KEPT_MS
        )

    def add(self, key: LeaseKey, expire_ms: int) -> Sequence[RedisCommand]:
        """A lock in both indexes, or its other expiry."""
        member = index_member(key)
        return (
            self._scripts.index(user_index(key.user_id), member, expire_ms=expire_ms),
            self._scripts.index(
                book_index(key.book_id), member, expire_ms=expire_ms, keep_ms=_ENDED_KEPT_MS
            ),
            *self.write_book(key.book_id),
        )

    def write_book(self, book_id: str) -> Sequence[RedisCommand]:
        """Writes down that the book has locks, unless this process did so a moment ago."""
        now_s = time.monotonic()
        if self._books_written.get(book_id, -math.inf) > now_s - _BOOK_AGAIN_S:
            return ()
        if len(self._books_written) >= _BOOKS_REMEMBERED_MAX:
            self._books_written.clear()
        self._books_written[book_id] = now_s
        return (
            ("ZADD", LOCKING_BOOKS, round(time.time() * 1000), book_id),
            ("PEXPIRE", LOCKING_BOOKS, BOOK_KEPT_MS),
        )


def remove(keys: Iterable[LeaseKey]) -> list[RedisCommand]:
    """Takes locks out of the indexes of their users and books: a command for each index."""
    members: defaultdict[str, list[str]] = defaultdict(list)
    for key in keys:
        member = index_member(key)
        members[user_index(key.user_id)].append(member)
        members[book_index(key.book_id)].append(member)
    return [("ZREM", index, *each) for index, each in members.items()]
