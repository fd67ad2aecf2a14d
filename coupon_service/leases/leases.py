"""Permits on codes, held in Redis for a time.

A lock is one permit on a code for one user. Redis counts the permits and PostgreSQL the
redemptions, so a permit is acquired here first, then the caller reads the count there, and gives
the permit back when ``redemptions + permits_taken`` exceeds the limit. The other order has a
window.

The keys of a code share a hash tag, and no script touches more than one slot. The indexes of users
and books lie in other slots: the permit of a lock and its entries in the indexes of the user, which
counts the user's locks, and of the book are requested together, and withdrawn when one of them is
refused; where Redis's clock went on between them for more than some milliseconds, the expiry of the
permit is written to both indexes. Whatever a crash leaves between these steps ends with the lock.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

from coupon_service.batching import BATCHING_DEFAULTS, BatchingSettings
from coupon_service.errors import LocksUnavailable
from coupon_service.leases.acquisition import Acquisition, time_left
from coupon_service.leases.index_repairs import IndexWriter
from coupon_service.leases.indexes import BOOK_KEPT_MS, Indexes, remove
from coupon_service.leases.results import (
    AcquireResult,
    Admission,
    AdmitStatus,
    IndexedLock,
    LeaseKey,
    LeaseRequest,
    LeaseStats,
    Peek,
    ReleaseRequest,
    TransientResult,
)
from coupon_service.leases.scripts import (
    LOCKING_BOOKS,
    LeaseScripts,
    book_index,
    index_member,
    indexed_lock,
    named_after_user,
    user_index,
)
from coupon_service.leases.server_check import RedisCheck
from coupon_service.redis_client.connect import pipelines_to
from coupon_service.redis_client.exchange import RedisCommand, accepted
from coupon_service.telemetry.metrics import Metrics
from coupon_service.telemetry.readiness import Readiness

if TYPE_CHECKING:
    from coupon_service.telemetry.tracing import Tracer

R = TypeVar("R", LeaseRequest, ReleaseRequest)

_ADMIT_STATUS = {
    "TAKEN": AdmitStatus.RETAKEN,
    "SAME": AdmitStatus.HELD,
    "AGAIN": AdmitStatus.RETAKEN,
    "OTHER": AdmitStatus.GONE,
    "GONE": AdmitStatus.GONE,
}


class Leases:
    """The locks of codes.

    Every method may raise LocksUnavailable: Redis cannot be reached, is silent for ``timeout_ms``,
    or refuses. Whether anything happened is then unknown, and the same call again settles it. All
    times are milliseconds since 1970; whether a lock has ended is decided by the clock of Redis.
    """

    def __init__(
        self,
        redis_url: str,
        *,
        timeout_ms: int = 50,
        grace_ms: int = 5_000,
        locks_per_user_max: int = 5,
        metrics: Metrics | None = None,
        tracer: Tracer | None = None,
        batching: BatchingSettings = BATCHING_DEFAULTS,
    ) -> None:
        """Connects when it is first used.

        grace_ms: how much longer than its token a lock lives, so that a redemption which was
            admitted in time commits before anyone else gets in: the statement timeout and the
            greatest difference between clocks.
        """
        self._scripts = LeaseScripts()
        self._redis = pipelines_to(
            redis_url, self._scripts.sources, timeout_ms, metrics, tracer, batching
        )
        self._grace_ms = grace_ms
        self._metrics = metrics
        self._indexes = Indexes(self._scripts)
        self._writer = IndexWriter(self._redis, self._scripts, self._indexes, metrics)
        self._acquisition = Acquisition(
            self._redis, self._scripts, self._indexes, self._writer, grace_ms, locks_per_user_max
        )
        self._check = RedisCheck(self._redis, self._scripts)

    async def ping(self) -> None:
        """Returns when Redis has answered."""
        await self._redis.run(("PING",))

    async def check(self) -> Mapping[Readiness, str]:
        """What is not as it should be with Redis: problems and warnings, each in a sentence."""
        return await self._check.findings()

    async def repair(self) -> None:
        """Makes up for entries of indexes whose master in a cluster could not be reached."""
        await self._writer.repair()

    async def close(self) -> None:
        """Waits for the calls on their way and closes the connection."""
        await self._redis.close()

    async def acquire(self, request: LeaseRequest) -> AcquireResult:
        """Acquires a permit, unless the user holds one on the code."""
        (result,) = await self.acquire_each((request,))
        if isinstance(result, LocksUnavailable):
            raise result
        return result

    async def acquire_each(
        self, requests: Sequence[LeaseRequest]
    ) -> list[AcquireResult | LocksUnavailable]:
        """As `acquire`, for many: the answer to each, or why there is none."""
        parts = await asyncio.gather(*map(self._acquisition.acquire, self._parts(requests)))
        return list(chain.from_iterable(parts))

    async def acquire_transient(
        self, name: str, attempt_id: str, user_id: str, ttl_ms: int
    ) -> TransientResult:
        """Acquires a permit for one attempt to redeem without a token; ``release_transient`` ends
        it.

        The user's own lock is not counted beside it, and other attempts only while someone else
        holds a lock: among themselves they take turns in PostgreSQL. The user gets no new lock on
        the code meanwhile, since the attempt would not know of it and so not use it up.
        """
        (answer,) = await self._redis.run(
            self._scripts.acquire_transient(name, attempt_id, user_id, ttl_ms)
        )
        permits_taken, others_end_in_ms, own_lock_id, own_expire_ms = answer
        return TransientResult(
            permits_taken,
            time_left(others_end_in_ms),
            own_lock_id or None,
            own_expire_ms or None,
        )

    async def peek(self, name: str, user_id: str, lock_id: str = "") -> Peek:
        """Reads the locks of a code, and ``lock_id`` of this user, and changes nothing."""
        (answer,) = await self._redis.run(self._scripts.peek(name, user_id, lock_id))
        others, others_end_in_ms, own_lock_id, gone = answer
        return Peek(others, time_left(others_end_in_ms), bool(own_lock_id), bool(gone))

    async def admit(self, key: LeaseKey, expire_ms: int) -> Admission:
        """Says whether a lock with a good token that ends at ``expire_ms`` still holds its permit.

        When Redis has lost it, its permit is acquired again, so that the token stays good until
        someone else holds the code.
        """
        (answer,) = await self._redis.run(
            self._scripts.acquire(key, expire_ms=expire_ms, grace_ms=self._grace_ms)
        )
        outcome, _, _, permits_taken, others_end_in_ms = answer
        status = _ADMIT_STATUS[outcome]
        if outcome == "TAKEN" and self._metrics is not None:
            self._metrics.lock_lost()
        if status is AdmitStatus.RETAKEN:
            await self._writer.write(self._indexes.add(key, expire_ms))
        return Admission(status, permits_taken, time_left(others_end_in_ms))

    async def extend(self, key: LeaseKey, new_expire_ms: int) -> int | None:
        """Lets a held lock end at ``new_expire_ms``, never earlier than it would anyway.

        Returns when it ends now; None when it is not held.
        """
        (expire_ms,) = await self._redis.run(
            self._scripts.extend(key, expire_ms=new_expire_ms, grace_ms=self._grace_ms)
        )
        if not expire_ms:
            return None
        await self._writer.write(self._indexes.add(key, expire_ms))
        return expire_ms

    async def release(self, key: LeaseKey, *, tombstone_until_ms: int = 0) -> bool:
        """Gives the permit of a lock back, and says whether it was held. See ReleaseRequest."""
        return await self.release_each((ReleaseRequest(key, tombstone_until_ms),)) == 1

    async def release_each(self, requests: Sequence[ReleaseRequest]) -> int:
        """As `release`, for many: how many of the locks were held."""
        return sum(await asyncio.gather(*map(self._release_part, self._parts(requests))))

    async def _release_part(self, requests: Sequence[ReleaseRequest]) -> int:
        removals = remove(it.key for it in requests)
        replies = await self._redis.replies(
            *(
                self._scripts.release(it.key, tombstone_until_ms=it.tombstone_until_ms)
                for it in requests
            ),
            *(it.command for it in removals),
        )
        self._writer.settle(removals, replies[len(requests) :])
        return sum(map(bool, accepted(replies[: len(requests)])))

    async def abandon(self, key: LeaseKey) -> None:
        """Ends an attempt that ``acquire`` answered with this lock, and that did not come to record
        it.

        The permit is given back with the last attempt that knows of it: another may have recorded
        the lock.
        """
        (released,) = await self._redis.run(self._scripts.release(key, attempt=True))
        if released:
            await self.forget([key])

    async def hand_back(self, key: LeaseKey, taken: LeaseKey) -> None:
        """Ends an attempt whose request took over the permit of `taken`, and that did not come to
        record the lock: as `abandon`, but that the permit goes back to where it was."""
        (given_up,) = await self._redis.run(
            self._scripts.hand_back(key, taken, grace_ms=self._grace_ms)
        )
        if given_up:
            await self.forget([key])

    async def release_transient(self, name: str, attempt_id: str, user_id: str) -> None:
        """Gives the permit of an attempt back."""
        await self._redis.run(*self._scripts.release_transient(name, attempt_id, user_id))

    async def list_user(
        self, user_id: str, after: IndexedLock | None = None, page_size: int = 100
    ) -> list[IndexedLock]:
        """The live locks of a user, those that end first first; ``after``: the page before's last.

        Read from the index alone: a lock that just ended or was released may still be in it.
        """
        return await self._page(user_index(user_id), after, page_size)

    async def list_book(
        self, book_id: str, after: IndexedLock | None = None, page_size: int = 100
    ) -> list[IndexedLock]:
        """The live locks of a book, in the manner of ``list_user``."""
        return await self._page(book_index(book_id), after, page_size)

    async def books(self) -> list[str]:
        """The books that may have locks, live or just ended; may lack one for some seconds after
        Redis has lost its data."""
        since_ms = round(time.time() * 1000) - BOOK_KEPT_MS
        _, books = await self._redis.run(
            ("ZREMRANGEBYSCORE", LOCKING_BOOKS, "-inf", since_ms),
            ("ZRANGE", LOCKING_BOOKS, 0, -1),
        )
        return books

    async def expired(
        self, book_ids: Sequence[str], now_ms: int, limit: int
    ) -> dict[str, list[IndexedLock]]:
        """Locks that ended without a release, grace included, by the caller's clock.

        At most ``limit`` of each book, and only the books that have any. They are listed until
        ``forget``, or for a day.
        """
        until_ms = now_ms - self._grace_ms
        answers = await self._of_books(
            [self._scripts.ended(book_index(it), until_ms, limit) for it in book_ids], []
        )
        found = zip(book_ids, map(_locks, answers), strict=True)
        return {book_id: ended for book_id, ended in found if ended}

    async def stats(self, book_ids: Sequence[str], now_ms: int) -> LeaseStats:
        """How many locks of these books are live, and since when one waits for ``expired``."""
        indexes = list(map(book_index, book_ids))
        live = await self._of_books([("ZCOUNT", it, f"({now_ms}", "+inf") for it in indexes], 0)
        first = await self._of_books([self._scripts.ended(it, now_ms, 1) for it in indexes], [])
        ended_ms = [lock.expire_ms for each in first for lock in _locks(each)]
        return LeaseStats(sum(live), min(ended_ms, default=now_ms) + self._grace_ms)

    async def forget(self, keys: Iterable[LeaseKey]) -> None:
        """Takes locks out of the indexes of their books and users."""
        await self._writer.write(remove(keys))

    async def erase(self, user_id: str, keys: Iterable[LeaseKey]) -> None:
        """Ends these locks of a user, and deletes what names the user: of them, of all that are in
        the index of the user, and what was kept of locks that have ended."""
        indexed = await self.list_user(user_id, page_size=1_000)
        locks = {*keys, *(it.key for it in indexed)}
        await self.release_each([ReleaseRequest(it) for it in locks])
        names = [user_index(user_id), *chain.from_iterable(map(named_after_user, locks))]
        for start in range(0, len(names), self._redis.commands_max):
            some = names[start : start + self._redis.commands_max]
            accepted(await self._redis.replies(*[("DEL", it) for it in some]))

    async def _of_books(self, commands: Sequence[RedisCommand], without: Any) -> list[Any]:
        """The replies to commands on the indexes of many books, a pipeline's worth at a time;
        ``without`` where the master of an index in a cluster cannot be reached."""
        answers: list[Any] = []
        size = self._redis.commands_max
        for start in range(0, len(commands), size):
            replies = await self._redis.replies(*commands[start : start + size])
            answers += [without if isinstance(it, LocksUnavailable) else it for it in replies]
        return list(accepted(answers))

    def _parts(self, requests: Sequence[R]) -> list[Sequence[R]]:
        """The requests by pipelines: two commands each, and some for those of a user or a book."""
        size = self._redis.commands_max // 2 - 2
        return [requests[at : at + size] for at in range(0, len(requests), size)]

    async def _page(
        self, index: str, after: IndexedLock | None, page_size: int
    ) -> list[IndexedLock]:
        """Keyset paging over (expire_ms, member), the order of the index itself."""
        from_ms = after.expire_ms if after else 0
        page: list[IndexedLock] = []
        offset = 0
        while len(page) < page_size:  # once, unless more than a page ends in one millisecond
            (answer,) = await self._redis.run(self._scripts.list(index, from_ms, offset, page_size))
            found = _locks(answer)
            page += [lock for lock in found if after is None or _position(lock) > _position(after)]
            if len(found) < page_size:
                break
            offset += page_size
        return page[:page_size]


def _locks(members_and_scores: list[str]) -> list[IndexedLock]:
    each = iter(members_and_scores)
    return [indexed_lock(member, expire_ms) for member, expire_ms in zip(each, each, strict=True)]


def _position(lock: IndexedLock) -> tuple[int, str]:
    # Text compares by code points, which is the order of its UTF-8 in Redis.
    return lock.expire_ms, index_member(lock.key)
