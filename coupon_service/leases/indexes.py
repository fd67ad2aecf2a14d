"""The indexes of locks: those of a user, which count them, and those of a book, for the sweeper.

What is built here are commands; who sends them is `leases.py`.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

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


class Entry(NamedTuple):
    """A lock in an index, of its user or of its book."""

    key: LeaseKey
    of_book: bool


class IndexWrite(NamedTuple):
    """A command that writes entries of an index, or that a book has locks."""

    command: RedisCommand
    entries: Sequence[Entry] = ()
    expire_ms: int = 0
    """When the entries end; 0 when they are removed."""
    book_id: str = ""


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

    def add(self, key: LeaseKey, expire_ms: int) -> list[IndexWrite]:
        """A lock in both indexes, or its other expiry."""
        return [
            *(self.entry(Entry(key, of_book), expire_ms) for of_book in (False, True)),
            *(IndexWrite(it, book_id=key.book_id) for it in self.write_book(key.book_id)),
        ]

    def entry(self, entry: Entry, expire_ms: int) -> IndexWrite:
        """One entry; it is removed when ``expire_ms`` is 0."""
        index = _index_of(entry)
        member = index_member(entry.key)
        if not expire_ms:
            return IndexWrite(("ZREM", index, member), (entry,))
        keep_ms = _ENDED_KEPT_MS if entry.of_book else 0
        command = self._scripts.index(index, member, expire_ms=expire_ms, keep_ms=keep_ms)
        return IndexWrite(command, (entry,), expire_ms)

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

    def book_missed(self, book_id: str) -> None:
        """The book could not be written down, and has to be with its next lock."""
        self._books_written.pop(book_id, None)


def remove(keys: Iterable[LeaseKey]) -> list[IndexWrite]:
    """Takes locks out of the indexes of their users and books: a command for each index."""
    entries: defaultdict[str, list[Entry]] = defaultdict(list)
    for key in keys:
        for entry in (Entry(key, of_book=False), Entry(key, of_book=True)):
            entries[_index_of(entry)].append(entry)
    return [
        IndexWrite(("ZREM", index, *(index_member(it.key) for it in each)), each)
        for index, each in entries.items()
    ]


def _index_of(entry: Entry) -> str:
    return book_index(entry.key.book_id) if entry.of_book else user_index(entry.key.user_id)
