"""The indexes of locks: those of a user, which count them, and those of a book, for the sweeper.

What is built here are commands; who sends them is `leases.py`.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence

from coupon_service.leases.commands import (
    LOCKING_BOOKS,
    Commands,
    book_index,
    index_member,
    user_index,
)
from coupon_service.leases.results import IndexedLock, LeaseRequest, ReleaseRequest
from coupon_service.redis_client.pipelines import Command

BOOK_KEPT_MS = 50 * 60 * 60 * 1000
"""How long a book is one that has locks: one lives for a day at most, and is kept for another."""

# How long an ended lock waits in the index of its book for the sweeper.
_ENDED_KEPT_MS = 24 * 60 * 60 * 1000

# How often a busy book is written down as one that has locks, by each process.
_BOOK_AGAIN_S = 10.0
_BOOKS_REMEMBERED_MAX = 10_000


class Indexes:
    """Builds the commands that write the indexes; times in milliseconds."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self._books_written: dict[str, float] = {}

    def count(self, user_id: str, member: str, ttl_ms: int, entries_max: int) -> Command:
        """A new lock among those of its user, of which there may be so many."""
        return self._commands.index(
            user_index(user_id), member, ttl_ms=ttl_ms, entries_max=entries_max
        )

    def list_of_book(self, book_id: str, ttl_ms: int, members: Sequence[str]) -> Command:
        """New locks among those of their book."""
        return self._commands.index(
            book_index(book_id), *members, ttl_ms=ttl_ms, keep_ms=_ENDED_KEPT_MS
        )

    def add(self, book_id: str, user_id: str, member: str, expire_ms: int) -> Sequence[Command]:
        """A lock in both indexes, or its other expiry."""
        return (
            self._commands.index(user_index(user_id), member, expire_ms=expire_ms),
            self._commands.index(
                book_index(book_id), member, expire_ms=expire_ms, keep_ms=_ENDED_KEPT_MS
            ),
            *self.write_book(book_id),
        )

    def write_book(self, book_id: str) -> Sequence[Command]:
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


def remove(locks: Iterable[IndexedLock | LeaseRequest | ReleaseRequest]) -> list[Command]:
    """Takes locks out of the indexes of their users and books: a command for each index."""
    members: defaultdict[str, list[str]] = defaultdict(list)
    for lock in locks:
        member = index_member(lock.code, lock.book_id, lock.user_id, lock.lock_id)
        members[user_index(lock.user_id)].append(member)
        members[book_index(lock.book_id)].append(member)
    return [("ZREM", index, *each) for index, each in members.items()]
