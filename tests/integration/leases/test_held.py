"""Locks that are held: admitted, given back, extended and listed."""

# redis-py leaves the type of its keyword arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import pytest
from redis.asyncio import Redis
from support.lease_servers import (
    ANN,
    BOB,
    BOOK,
    CODE,
    CY,
    GRACE_MS,
    PATIENT_MS,
    TTL_MS,
    about,
    acquire,
    soon_ms,
    time_passes,
)

from coupon_service.leases import (
    AcquireStatus,
    AdmitStatus,
    IndexedLock,
    LeaseKey,
    Leases,
    LeaseStats,
)
from coupon_service.leases.scripts import LOCKING_BOOKS


async def both_indexes(leases: Leases) -> tuple[list[IndexedLock], list[IndexedLock]]:
    """What is listed for ann, and for the book."""
    return await leases.list_user("ann"), await leases.list_book(BOOK)


# --- admit --------------------------------------------------------------------------------------


async def test_a_held_lock_is_admitted(leases: Leases) -> None:
    taken = await acquire(leases, ANN, TTL_MS)
    admission = await leases.admit(ANN, taken.expire_ms)

    assert (admission.status, admission.permits_taken) == (AdmitStatus.HELD, 1)


async def test_a_lock_is_admitted_in_the_grace_and_gone_after_it(leases: Leases) -> None:
    taken = await acquire(leases, ANN, 20)
    statuses: set[AdmitStatus] = set()
    while soon_ms(0) < taken.expire_ms + GRACE_MS:
        asked_ms = soon_ms(0)
        admission = await leases.admit(ANN, taken.expire_ms)
        if asked_ms >= taken.expire_ms and soon_ms(0) < taken.expire_ms + GRACE_MS:
            statuses.add(admission.status)
    after = await leases.admit(ANN, taken.expire_ms)

    assert statuses <= {AdmitStatus.HELD}
    assert (after.status, after.permits_taken) == (AdmitStatus.GONE, 0)


async def test_a_lock_that_redis_lost_is_acquired_again(leases: Leases, redis: Redis) -> None:
    taken = await acquire(leases, ANN, TTL_MS)
    await redis.flushdb()
    admission = await leases.admit(ANN, taken.expire_ms)
    again = await leases.admit(ANN, taken.expire_ms)
    blocked = await acquire(leases, BOB, TTL_MS, permits_max=1)

    assert (admission.status, admission.permits_taken) == (AdmitStatus.RETAKEN, 1)
    assert again == admission
    assert blocked.status is AcquireStatus.FULL
    expected = [IndexedLock(ANN, taken.expire_ms)]
    assert await both_indexes(leases) == (expected, expected)


async def test_a_lost_lock_is_acquired_again_in_its_grace_and_not_after_it(redis_url: str) -> None:
    leases = Leases(redis_url, timeout_ms=PATIENT_MS, grace_ms=TTL_MS)
    in_it = await leases.admit(ANN, soon_ms(-TTL_MS // 2))
    after_it = await leases.admit(BOB, soon_ms(-TTL_MS))
    await leases.close()

    assert (in_it.status, in_it.permits_taken) == (AdmitStatus.RETAKEN, 1)
    assert (after_it.status, after_it.permits_taken) == (AdmitStatus.GONE, 1)


async def test_a_lost_lock_whose_permit_someone_else_has_is_counted_behind(
    leases: Leases, redis: Redis
) -> None:
    taken = await acquire(leases, ANN, TTL_MS)
    await redis.flushdb()
    await acquire(leases, BOB, TTL_MS)
    admission = await leases.admit(ANN, taken.expire_ms)

    assert (admission.status, admission.permits_taken) == (AdmitStatus.RETAKEN, 2)
    assert admission.retry_after_ms is not None


async def test_a_lost_lock_that_did_not_fit_is_not_taken_for_held_later(
    leases: Leases, redis: Redis
) -> None:
    taken = await acquire(leases, ANN, TTL_MS)
    await redis.flushdb()
    await acquire(leases, BOB, TTL_MS)
    await leases.admit(ANN, taken.expire_ms)
    later_ms = taken.expire_ms + 1_000
    await leases.extend(ANN, later_ms)
    beside_bob = await leases.admit(ANN, later_ms)
    await leases.release(BOB)
    alone = await leases.admit(ANN, later_ms)

    assert (beside_bob.status, beside_bob.permits_taken) == (AdmitStatus.RETAKEN, 2)
    assert (alone.status, alone.permits_taken) == (AdmitStatus.RETAKEN, 1)


@pytest.mark.parametrize("part", ["places", "locks"])
async def test_a_lock_of_which_redis_lost_a_part_is_acquired_again(
    leases: Leases, redis: Redis, part: str
) -> None:
    taken = await acquire(leases, ANN, TTL_MS)
    await redis.delete(f"coupon:{{{CODE}}}:{part}")
    admission = await leases.admit(ANN, taken.expire_ms)

    assert (admission.status, admission.permits_taken) == (AdmitStatus.RETAKEN, 1)


async def test_after_a_new_lock_of_the_user_the_old_one_is_gone(leases: Leases) -> None:
    old = await acquire(leases, ANN, TTL_MS)
    await leases.release(ANN)
    await acquire(leases, LeaseKey(CODE, BOOK, "ann", "lock-b"), TTL_MS)

    admission = await leases.admit(ANN, old.expire_ms)

    assert admission.status is AdmitStatus.GONE


# --- release ------------------------------------------------------------------------------------


async def test_a_released_lock_is_gone_until_its_tombstone_ends(leases: Leases) -> None:
    taken = await acquire(leases, ANN, TTL_MS)
    released = await leases.release(ANN, tombstone_until_ms=taken.expire_ms)
    admission = await leases.admit(ANN, taken.expire_ms)
    same = await acquire(leases, ANN, TTL_MS)
    other = await acquire(leases, BOB, TTL_MS)

    assert released
    assert admission.status is AdmitStatus.GONE
    assert same.status is AcquireStatus.GONE
    assert (other.status, other.permits_taken) == (AcquireStatus.GRANTED, 1)
    assert await leases.list_user("ann") == []


async def test_a_lock_that_redis_lost_can_be_made_gone(leases: Leases, redis: Redis) -> None:
    taken = await acquire(leases, ANN, TTL_MS)
    await redis.flushdb()
    released = await leases.release(ANN, tombstone_until_ms=taken.expire_ms)
    admission = await leases.admit(ANN, taken.expire_ms)

    assert not released
    assert admission.status is AdmitStatus.GONE


async def test_an_abandoned_lock_stays_with_others_who_were_answered_with_it(
    leases: Leases,
) -> None:
    await acquire(leases, ANN, TTL_MS)
    await acquire(leases, LeaseKey(CODE, BOOK, "ann", "lock-b"), TTL_MS)  # is told of lock-a
    await leases.abandon(ANN)
    assert (await leases.peek(CODE, "bob")).others == 1
    assert len(await leases.list_user("ann")) == 1
    await leases.abandon(ANN)
    assert (await leases.peek(CODE, "bob")).others == 0
    assert await leases.list_user("ann") == []


async def test_who_gives_up_changes_nothing_of_a_lock_that_redis_had_lost(leases: Leases) -> None:
    expire_ms = soon_ms()
    await leases.admit(ANN, expire_ms)
    await acquire(leases, LeaseKey(CODE, BOOK, "ann", "lock-b"), TTL_MS)
    await leases.abandon(ANN)
    assert (await leases.peek(CODE, "bob")).others == 1


async def test_a_second_release_says_so_and_changes_nothing(leases: Leases) -> None:
    await acquire(leases, ANN, TTL_MS)

    assert await leases.release(ANN)
    assert not await leases.release(ANN)


@pytest.mark.parametrize(
    ("user_id", "lock_id"), [("bob", "lock-a"), ("ann", "lock-b"), ("bob", "lock-b")]
)
async def test_a_release_by_a_stranger_changes_nothing(
    leases: Leases, redis: Redis, user_id: str, lock_id: str
) -> None:
    taken = await acquire(leases, ANN, TTL_MS)
    listed = await both_indexes(leases)
    released = await leases.release(
        LeaseKey(CODE, BOOK, user_id, lock_id), tombstone_until_ms=soon_ms()
    )
    admission = await leases.admit(ANN, taken.expire_ms)

    assert not released
    assert admission.status is AdmitStatus.HELD
    assert await both_indexes(leases) == listed

    await redis.delete(f"coupon:{{{CODE}}}:places", f"coupon:{{{CODE}}}:locks")
    admission = await leases.admit(ANN, taken.expire_ms)
    assert admission.status is AdmitStatus.RETAKEN


# --- extend -------------------------------------------------------------------------------------


async def test_an_extended_lock_ends_later_everywhere(leases: Leases) -> None:
    taken = await acquire(leases, ANN, 30)
    later_ms = taken.expire_ms + TTL_MS
    ends_ms = await leases.extend(ANN, later_ms)
    await time_passes(30 + GRACE_MS)
    again = await acquire(leases, LeaseKey(CODE, BOOK, "ann", "lock-z"), TTL_MS)

    assert ends_ms == later_ms
    assert (again.status, again.expire_ms) == (AcquireStatus.HELD_BEFORE, later_ms)
    expected = [IndexedLock(ANN, later_ms)]
    assert await both_indexes(leases) == (expected, expected)


async def test_an_extension_never_shortens(leases: Leases) -> None:
    taken = await acquire(leases, ANN, TTL_MS)
    ends_ms = await leases.extend(ANN, taken.expire_ms - 1_000)

    assert ends_ms == taken.expire_ms
    assert about((await leases.list_user("ann"))[0].expire_ms, taken.expire_ms)


@pytest.mark.parametrize(("user_id", "lock_id"), [("bob", "lock-a"), ("ann", "lock-b")])
async def test_only_the_holder_extends(leases: Leases, user_id: str, lock_id: str) -> None:
    taken = await acquire(leases, ANN, TTL_MS)
    later_ms = taken.expire_ms + 1_000
    listed = await leases.list_book(BOOK)

    assert await leases.extend(LeaseKey(CODE, BOOK, user_id, lock_id), later_ms) is None
    assert await leases.list_book(BOOK) == listed


async def test_a_lock_that_ended_cannot_be_extended(leases: Leases) -> None:
    await acquire(leases, ANN, 10)
    await time_passes(10 + GRACE_MS)

    assert await leases.extend(ANN, soon_ms()) is None


# --- indexes ------------------------------------------------------------------------------------


async def test_a_book_lists_its_live_locks_page_by_page(leases: Leases) -> None:
    for i in range(7):
        await acquire(leases, LeaseKey(CODE, BOOK, f"user-{i}", f"lock-{i}"), TTL_MS + 10 * i)
    await acquire(leases, LeaseKey(CODE, BOOK, "ended", "lock-x"), 1)
    await acquire(leases, LeaseKey("CODE2", "book-2", "ann", "lock-y"), TTL_MS)
    await time_passes(1)

    pages: list[list[str]] = []
    after: IndexedLock | None = None
    while page := await leases.list_book(BOOK, after, page_size=3):
        pages.append([lock.key.lock_id for lock in page])
        after = page[-1]

    assert pages == [
        ["lock-0", "lock-1", "lock-2"],
        ["lock-3", "lock-4", "lock-5"],
        ["lock-6"],
    ]


async def test_pages_miss_nothing_when_many_locks_end_in_one_millisecond(
    leases: Leases, redis: Redis
) -> None:
    expire_ms = soon_ms()
    for user_id in ("ä", "z", "Z", "\U0001f600", "\uffee", "a", "b", "c"):
        await leases.admit(LeaseKey(CODE, BOOK, user_id, "lock"), expire_ms)

    seen: list[IndexedLock] = []
    while page := await leases.list_book(BOOK, seen[-1] if seen else None, page_size=2):
        seen += page

    assert sorted(lock.key.user_id for lock in seen) == sorted("äzZ\U0001f600\uffeeabc")


async def test_a_page_goes_on_where_its_last_lock_was_although_it_is_gone(leases: Leases) -> None:
    expire_ms = soon_ms()
    for user_id in "abcd":
        await leases.admit(LeaseKey(CODE, BOOK, user_id, "lock"), expire_ms)
    first = await leases.list_book(BOOK, page_size=2)
    await leases.release(LeaseKey(CODE, BOOK, "b", "lock"))

    rest = await leases.list_book(BOOK, first[-1], page_size=9)

    assert [lock.key.user_id for lock in rest] == ["c", "d"]


async def test_a_shorter_lock_does_not_end_the_index(leases: Leases) -> None:
    await acquire(leases, ANN, TTL_MS)
    await acquire(leases, LeaseKey("CODE2", BOOK, "ann", "lock-b"), 1)
    await time_passes(1)

    assert [lock.key.lock_id for lock in await leases.list_user("ann")] == ["lock-a"]


async def test_ended_locks_are_found_until_they_are_forgotten(leases: Leases) -> None:
    await acquire(leases, CY, 1)
    ended = await acquire(leases, ANN, 1)
    await acquire(leases, BOB, TTL_MS)
    await leases.release(CY)
    (entry,) = (await leases.expired([BOOK], soon_ms(GRACE_MS + 100), 10))[BOOK]
    over_ms = entry.expire_ms + GRACE_MS

    assert entry.key == ANN
    assert about(entry.expire_ms, ended.expire_ms)
    assert await leases.expired([BOOK], over_ms - 1, 10) == {}
    assert await leases.expired(["book-2", BOOK], over_ms, 10) == {BOOK: [entry]}
    assert await leases.expired([BOOK], over_ms, 0) == {}
    await leases.forget([entry.key])
    assert await leases.expired([BOOK], over_ms, 10) == {}
    assert [lock.key.lock_id for lock in await leases.list_book(BOOK)] == ["lock-b"]


async def test_forgetting_nothing_is_nothing(leases: Leases) -> None:
    await leases.forget([])


async def test_books_that_have_locks_are_known(leases: Leases, redis: Redis) -> None:
    assert await leases.books() == []
    await acquire(leases, ANN, TTL_MS)
    await acquire(leases, LeaseKey("CODE2", BOOK, "bob", "lock-b"), TTL_MS)
    await acquire(leases, LeaseKey("CODE3", "book-2", "ann", "lock-c"), TTL_MS)
    assert sorted(await leases.books()) == sorted([BOOK, "book-2"])
    days_ago_ms = soon_ms(-3 * 24 * 60 * 60 * 1000)
    await redis.zadd(LOCKING_BOOKS, {BOOK: days_ago_ms})
    assert await leases.books() == ["book-2"]


async def test_live_locks_of_many_books_are_counted(leases: Leases) -> None:
    books = [f"many-{i}" for i in range(70)]
    for i, book in enumerate(books):
        await acquire(leases, LeaseKey(f"CODE{i}", book, f"user-{i}", f"lock-{i}"), TTL_MS)
    now_ms = soon_ms(0)
    stats = await leases.stats(books, now_ms)
    assert stats.live == 70
    assert stats.waiting_since_ms > now_ms

    ended = await acquire(leases, ANN, 1)
    await time_passes(1 + GRACE_MS)
    stats = await leases.stats([*books, BOOK], soon_ms(0))
    assert stats.live == 70
    assert about(stats.waiting_since_ms, ended.expire_ms + GRACE_MS)
    assert await leases.stats([], now_ms) == LeaseStats(0, now_ms + GRACE_MS)
