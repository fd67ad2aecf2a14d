"""Acquires permits, many at a time, together with the entries of their locks in the indexes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from coupon_service.errors import LocksUnavailable
from coupon_service.leases.index_repairs import IndexWriter
from coupon_service.leases.indexes import Entry, Indexes, IndexWrite, remove
from coupon_service.leases.results import AcquireResult, AcquireStatus, LeaseKey, LeaseRequest
from coupon_service.leases.scripts import LeaseScripts
from coupon_service.redis_client.connect import AnyPipelines
from coupon_service.redis_client.exchange import RedisCommand, unavailable

# By how much an index may be off, since the clock of Redis goes on between permit and entries.
_APART_MS = 10

_ACQUIRE_STATUS = {
    "TAKEN": AcquireStatus.GRANTED,
    "SAME": AcquireStatus.HELD_BEFORE,
    "AGAIN": AcquireStatus.HELD_BEFORE,
    "OTHER": AcquireStatus.HELD_BEFORE,
    "GONE": AcquireStatus.GONE,
    "FULL": AcquireStatus.FULL,
}


class Acquisition:
    """What is asked of Redis for new locks, and what its replies say."""

    def __init__(
        self,
        redis: AnyPipelines,
        scripts: LeaseScripts,
        indexes: Indexes,
        writer: IndexWriter,
        grace_ms: int,
        locks_per_user_max: int,
    ) -> None:
        self._redis = redis
        self._scripts = scripts
        self._indexes = indexes
        self._writer = writer
        self._grace_ms = grace_ms
        self._locks_per_user_max = locks_per_user_max

    async def acquire(
        self, requests: Sequence[LeaseRequest]
    ) -> list[AcquireResult | LocksUnavailable]:
        """The answer to each request, in one pipeline, and a second one where something is put
        right."""
        listings: defaultdict[tuple[str, int], list[LeaseKey]] = defaultdict(list)
        for request in requests:
            listings[request.key.book_id, request.ttl_ms].append(request.key)
        books = {book_id for book_id, _ in listings}
        try:
            replies = iter(
                await self._redis.replies(
                    *chain.from_iterable(map(self._asking, requests)),
                    *(self._indexes.list_of_book(*of, listed) for of, listed in listings.items()),
                    *chain.from_iterable(map(self._indexes.write_book, books)),
                )
            )
        except LocksUnavailable as error:
            return [error] * len(requests)
        asked = [(next(replies), next(replies)) for _ in requests]
        listed = {of: next(replies) for of in listings}
        written = list(replies)
        found = [
            self._found(request, *answers, listed[request.key.book_id, request.ttl_ms], *written)
            for request, answers in zip(requests, asked, strict=True)
        ]
        corrections = list(chain.from_iterable(writes for _, writes in found))
        if corrections:
            try:
                await self._writer.write(corrections)
            except LocksUnavailable as error:
                return [error if writes else result for result, writes in found]
        return [result for result, _ in found]

    def _asking(self, request: LeaseRequest) -> tuple[RedisCommand, RedisCommand]:
        """For an entry in the index of the user, and for the permit."""
        counted = self._indexes.count(
            request.key, request.ttl_ms, self._locks_per_user_max + request.locks_not_counted
        )
        if request.takes_over is not None:
            return counted, self._scripts.take_over(
                request.key,
                request.takes_over,
                grace_ms=self._grace_ms,
                permits_max=request.permits_max,
            )
        permit = self._scripts.acquire(
            request.key,
            ttl_ms=request.ttl_ms,
            grace_ms=self._grace_ms,
            permits_max=request.permits_max,
            follows=request.follows,
        )
        return counted, permit

    def _giving_up(self, request: LeaseRequest, held_id: str) -> RedisCommand:
        """For a permit that was granted, to this attempt or another of the user's, and that the
        user may not have."""
        held = request.key._replace(lock_id=held_id)
        if request.takes_over is not None:
            taken = request.takes_over.key
            return self._scripts.hand_back(held, taken, grace_ms=self._grace_ms)
        return self._scripts.release(held, attempt=True)

    def _found(
        self,
        request: LeaseRequest,
        counted_ms: Any,
        permit: Any,
        listed_ms: Any,
        *written: Any,
    ) -> tuple[AcquireResult | LocksUnavailable, Sequence[IndexWrite]]:
        """What the replies say of a request, and what has to be put right then."""
        key, unreached = request.key, False
        for reply in (counted_ms, permit, listed_ms, *written):
            if isinstance(reply, Exception):
                if isinstance(permit, LocksUnavailable):  # of the index the others are undone
                    return permit, remove((key,))
                if not isinstance(reply, LocksUnavailable):
                    return unavailable(reply), ()
                unreached = True
        outcome, held_id, expire_ms, permits_taken, others_end_in_ms = permit
        status = _ACQUIRE_STATUS[outcome]
        result = AcquireResult(
            status, held_id, expire_ms, permits_taken, time_left(others_end_in_ms)
        )
        # A lock that the index has not, either, is of an attempt that gives it up just now.
        if outcome in ("TAKEN", "SAME", "OTHER") and not counted_ms:
            return replace(result, status=AcquireStatus.LIMIT), (
                IndexWrite(self._giving_up(request, held_id)),
                self._indexes.entry(Entry(key, of_book=True), 0),
            )
        if held_id != key.lock_id or status not in (
            AcquireStatus.GRANTED,
            AcquireStatus.HELD_BEFORE,
        ):
            return result, remove((key,))
        if unreached:
            counted_ms, listed_ms = self._without_index(key, expire_ms, counted_ms, listed_ms)
        apart_ms = max(abs(counted_ms - expire_ms), abs(listed_ms - expire_ms))
        if apart_ms > (_APART_MS if outcome == "TAKEN" else 0):
            return result, self._indexes.add(key, expire_ms)
        return result, ()

    def _without_index(
        self, key: LeaseKey, expire_ms: int, counted_ms: Any, listed_ms: Any
    ) -> tuple[Any, Any]:
        """The ends of the entries of a lock, as if those that cannot be reached were written: that
        is made up for."""
        self._indexes.book_missed(key.book_id)
        ends: list[Any] = []
        for of_book, entry_ms in ((False, counted_ms), (True, listed_ms)):
            if isinstance(entry_ms, LocksUnavailable):
                self._writer.missed((Entry(key, of_book),), expire_ms)
            ends.append(expire_ms if isinstance(entry_ms, LocksUnavailable) else entry_ms)
        return ends[0], ends[1]


def time_left(others_end_in_ms: int) -> int | None:
    """Until the first permit of someone else ends; None when no one else has one."""
    return None if others_end_in_ms < 0 else others_end_in_ms
