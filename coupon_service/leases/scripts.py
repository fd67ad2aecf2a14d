"""The lease scripts as Redis commands: which keys, which arguments, in which order.

The text of a script says what its keys, arguments and replies mean.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files

from coupon_service.leases.results import IndexedLock, LeaseKey, Predecessor
from coupon_service.redis_client.exchange import RedisCommand

LOCKING_BOOKS = "coupon:locking-books"
"""A zset: the books that have locks, scored with when that was last written down (ms since 1970).
One key for all books, and so in one slot of a Redis Cluster: each process writes a book once in
some seconds, not with each lock."""


class LeaseScripts:
    """Builds Redis commands that run the scripts, which it reads once."""

    def __init__(self) -> None:
        permits = _text("permits.lua")
        self._sources: dict[str, str] = {}
        self._acquire = self._script(permits + _text("acquire.lua"))
        self._acquire_transient = self._script(permits + _text("acquire_transient.lua"))
        self._peek = self._script(permits + _text("peek.lua"))
        self._take_over = self._script(permits + _text("take_over.lua"))
        self._hand_back = self._script(permits + _text("hand_back.lua"))
        self._release = self._script(permits + _text("release.lua"))
        self._extend = self._script(permits + _text("extend.lua"))
        self._index = self._script(_text("index.lua"))
        self._list = self._script(_text("list.lua"))

    @property
    def sources(self) -> dict[str, str]:
        """The text of each script by its SHA-1."""
        return self._sources

    def acquire(
        self,
        key: LeaseKey,
        *,
        grace_ms: int,
        expire_ms: int = 0,
        ttl_ms: int = 0,
        permits_max: int | None = None,
        follows: str = "",
    ) -> RedisCommand:
        name, user_id, lock_id = key.name, key.user_id, key.lock_id
        keys = (
            *_permits(name),
            _tombstone(name, user_id, lock_id),
            _redeeming(name, user_id),
        )
        at_most = -1 if permits_max is None else max(permits_max, 0)
        times = (expire_ms, ttl_ms, grace_ms)
        return (*self._acquire, 4, *keys, user_id, lock_id, *times, at_most, follows)

    def take_over(
        self, key: LeaseKey, taken: Predecessor, *, grace_ms: int, permits_max: int | None
    ) -> RedisCommand:
        name, user_id, lock_id = key.name, key.user_id, key.lock_id
        keys = (
            *_permits(name),
            _tombstone(name, user_id, lock_id),
            _redeeming(name, user_id),
        )
        at_most = -1 if permits_max is None else max(permits_max, 0)
        of_taken = (taken.key.user_id, taken.key.lock_id)
        times = (taken.expire_ms, grace_ms)
        return (*self._take_over, 4, *keys, user_id, lock_id, *times, at_most, *of_taken)

    def hand_back(self, key: LeaseKey, taken: LeaseKey, *, grace_ms: int) -> RedisCommand:
        name = key.name
        keys = (*_permits(name), _tombstone(name, taken.user_id, taken.lock_id))
        of_taken = (taken.user_id, taken.lock_id)
        return (*self._hand_back, 3, *keys, key.user_id, key.lock_id, grace_ms, *of_taken)

    def acquire_transient(
        self, name: str, attempt_id: str, user_id: str, ttl_ms: int
    ) -> RedisCommand:
        keys = (*_permits(name), _redeeming(name, user_id))
        return (*self._acquire_transient, 3, *keys, user_id, attempt_id, ttl_ms)

    def peek(self, name: str, user_id: str, lock_id: str) -> RedisCommand:
        keys = (*_permits(name), _tombstone(name, user_id, lock_id))
        return (*self._peek, 3, *keys, user_id, lock_id)

    def release(
        self, key: LeaseKey, *, tombstone_until_ms: int = 0, attempt: bool = False
    ) -> RedisCommand:
        name, user_id, lock_id = key.name, key.user_id, key.lock_id
        keys = (*_permits(name), _tombstone(name, user_id, lock_id))
        return (*self._release, 3, *keys, user_id, lock_id, tombstone_until_ms, int(attempt))

    def release_transient(
        self, name: str, attempt_id: str, user_id: str
    ) -> tuple[RedisCommand, ...]:
        return (
            ("ZREM", _permits(name)[0], f"m{attempt_id}"),
            ("SREM", _redeeming(name, user_id), attempt_id),
        )

    def extend(self, key: LeaseKey, *, expire_ms: int, grace_ms: int) -> RedisCommand:
        permits = _permits(key.name)
        return (*self._extend, 2, *permits, key.user_id, key.lock_id, expire_ms, grace_ms)

    def index(
        self,
        index: str,
        *members: str,
        expire_ms: int = 0,
        ttl_ms: int = 0,
        keep_ms: int = 0,
        entries_max: int = 0,
    ) -> RedisCommand:
        return (*self._index, 1, index, expire_ms, ttl_ms, keep_ms, entries_max, *members)

    def list(self, index: str, from_ms: int, offset: int, count: int) -> RedisCommand:
        return (*self._list, 1, index, from_ms, offset, count)

    def ended(self, index: str, until_ms: int, count: int) -> RedisCommand:
        return ("ZRANGEBYSCORE", index, "-inf", until_ms, "WITHSCORES", "LIMIT", 0, count)

    def _script(self, source: str) -> tuple[str, str]:
        sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
        self._sources[sha] = source
        return ("EVALSHA", sha)


def user_index(user_id: str) -> str:
    """The key of the index of a user's locks."""
    return f"coupon:user:{{{user_id}}}:locks"


def book_index(book_id: str) -> str:
    """The key of the index of a book's locks."""
    return f"coupon:book:{{{book_id}}}:locks"


def index_member(key: LeaseKey) -> str:
    """A lock as a member of an index. No id contains NUL: such requests are not valid."""
    return "\0".join(key)


def indexed_lock(member: str, expire_ms: str) -> IndexedLock:
    """The inverse of ``index_member``, with the score of the member."""
    return IndexedLock(LeaseKey(*member.split("\0")), int(expire_ms))


def named_after_user(key: LeaseKey) -> tuple[str, ...]:
    """The keys that are named after the user of a lock."""
    name, user_id = key.name, key.user_id
    return _tombstone(name, user_id, key.lock_id), _redeeming(name, user_id)


def _permits(name: str) -> tuple[str, str]:
    return f"coupon:{{{name}}}:places", f"coupon:{{{name}}}:locks"


def _tombstone(name: str, user_id: str, lock_id: str) -> str:
    # With the user in its name, so that no one buries the lock of another whose lock_id he knows.
    return f"coupon:{{{name}}}:gone:{lock_id}:{user_id}"


def _redeeming(name: str, user_id: str) -> str:
    return f"coupon:{{{name}}}:redeeming:{user_id}"


def _text(name: str) -> str:
    return files("coupon_service.leases").joinpath(name).read_text("utf-8")
