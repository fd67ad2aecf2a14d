"""Locks of codes in a real Redis: what each call promises."""

# redis-py leaves the type of its keyword arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from coupon_service.leases import (
    AdmitStatus,
    Census,
    IndexedLock,
    Leases,
    TakeStatus,
)
from coupon_service.leases.commands import LOCKING_BOOKS

CODE = "SUMMER25"
BOOK = "book-1"
TTL_MS = 60_000
GRACE_MS = 40
PATIENT_MS = 5_000  # a busy machine is no silent Redis


@pytest.fixture
async def leases(redis_url: str) -> AsyncIterator[Leases]:
    leases = Leases(redis_url, timeout_ms=PATIENT_MS, grace_ms=GRACE_MS, locks_per_user_max=3)
    yield leases
    await leases.close()


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = Redis.from_url(redis_url, decode_responses=True)
    yield client
    await client.aclose()


def soon_ms(ms: int = TTL_MS) -> int:
    return time.time_ns() // 1_000_000 + ms


async def time_passes(ms: int) -> None:
    """Until ``ms`` have passed by the clock that Redis reads as well."""
    end_ms = soon_ms(ms)
    while soon_ms(0) <= end_ms:
        await asyncio.sleep(0.002)


async def keys_of_locks(redis: Redis) -> list[str]:
    """All keys but the one that has all books."""
    return [str(key) for key in await redis.keys() if key != LOCKING_BOOKS]


# --- acquire ------------------------------------------------------------------------------------


async def test_the_first_lock_is_granted_and_counts_itself(leases: Leases) -> None:
    before_ms = soon_ms(TTL_MS)
    taken = await leases.acquire(CODE, BOOK, "ann", "lock-a", TTL_MS)

    assert taken.status is TakeStatus.GRANTED
    assert taken.lock_id == "lock-a"
    assert taken.places_taken == 1
    assert taken.retry_after_ms is None
    assert before_ms <= taken.expire_ms <= soon_ms(TTL_MS)


async def test_the_place_of_another_is_counted_with_the_time_it_has_left(leases: Leases) -> None:
    await leases.acquire(CODE, BOOK, "ann", "lock-a", TTL_MS)
    await leases.acquire(CODE, BOOK, "bob", "lock-b", TTL_MS // 2)
    taken = await leases.acquire(CODE, BOOK, "cy", "lock-c", 1_000)

    assert taken.places_taken == 3
    assert taken.retry_after_ms is not None
    assert 1_000 < taken.retry_after_ms <= TTL_MS // 2 + GRACE_MS


async def test_the_same_user_gets_the_same_lock_and_no_more_time(leases: Leases) -> None:
    first = await leases.acquire(CODE, BOOK, "ann", "lock-a", TTL_MS)
    again = await leases.acquire(CODE, BOOK, "ann", "lock-z", 2 * TTL_MS)

    assert again.status is TakeStatus.HELD_BEFORE
    assert (again.lock_id, again.expire_ms) == ("lock-a", first.expire_ms)
    assert again.places_taken == 1
    assert [lock.lock_id for lock in await leases.list_user("ann")] == ["lock-a"]


async def test_the_same_call_again_finds_its_own_lock(leases: Leases) -> None:
    first = await leases.acquire(CODE, BOOK, "ann", "lock-a", TTL_MS)
    listed = await leases.list_book(BOOK)
    await time_passes(2)
    again = await leases.acquire(CODE, BOOK, "ann", "lock-a", TTL_MS)

    assert again == replace(first, status=TakeStatus.HELD_BEFORE)
    assert await leases.list_book(BOOK) == listed


async def test_codes_do_not_share_places(leases: Leases) -> None:
    await leases.acquire("CODE1", BOOK, "ann", "lock-1", TTL_MS)

    assert (await leases.acquire("CODE2", BOOK, "bob", "lock-2", TTL_MS)).places_taken == 1


async def test_no_more_than_places_max_are_let_in(leases: Leases) -> None:
    await leases.acquire(CODE, BOOK, "ann", "lock-a", TTL_MS, places_max=1)
    refused = await leases.acquire(CODE, BOOK, "bob", "lock-b", TTL_MS, places_max=1)
    again = await leases.acquire(CODE, BOOK, "ann", "lock-c", TTL_MS, places_max=1)

    assert refused.status is TakeStatus.FULL
    assert refused.places_taken == 1
    assert refused.retry_after_ms is not None
    assert again.status is TakeStatus.HELD_BEFORE
    assert await leases.list_user("bob") == []


async def test_a_place_ends_with_its_time_and_not_before_the_grace(leases: Leases) -> None:
    first = await leases.acquire(CODE, BOOK, "ann", "lock-a", 20, places_max=1)
    taken = await leases.acquire(CODE, BOOK, "bob", "lock-b", TTL_MS, places_max=1)
    while taken.status is TakeStatus.FULL:
        taken = await leases.acquire(CODE, BOOK, "bob", "lock-b", TTL_MS, places_max=1)

    assert (taken.status, taken.places_taken) == (TakeStatus.GRANTED, 1)
    assert soon_ms(0) >= first.expire_ms + GRACE_MS
    assert not await leases.release(CODE, BOOK, "ann", "lock-a")


async def test_thousands_of_ended_places_do_not_count_and_go(leases: Leases, redis: Redis) -> None:
    places, locks = f"coupon:{{{CODE}}}:places", f"coupon:{{{CODE}}}:locks"
    ended = {f"uold{i}": 1 for i in range(9_000)} | {"uann": 2}
    await redis.zadd(places, ended)
    await redis.hset(locks, mapping=dict.fromkeys(ended, "1:0:0:lock-old"))
    taken = await leases.acquire(CODE, BOOK, "ann", "lock-a", TTL_MS, places_max=1)

    assert (taken.status, taken.lock_id, taken.places_taken) == (TakeStatus.GRANTED, "lock-a", 1)
    assert (await redis.zcard(places), await redis.hlen(locks)) == (1, 1)


async def test_nothing_is_left_in_redis_when_the_time_of_all_is_over(
    leases: Leases, redis: Redis
) -> None:
    await leases.acquire(CODE, BOOK, "ann", "lock-a", 20)
    await leases.acquire_momentary(CODE, "attempt", "bob", 20)
    await leases.release(CODE, BOOK, "cy", "lock-c", tombstone_until_ms=soon_ms(20))
    await time_passes(20 + GRACE_MS)

    assert await keys_of_locks(redis) == [f"coupon:book:{{{BOOK}}}:locks"]
    assert await redis.pttl(f"coupon:book:{{{BOOK}}}:locks") > 0


async def test_a_released_lock_leaves_nothing_behind(leases: Leases, redis: Redis) -> None:
    await leases.acquire(CODE, BOOK, "ann", "lock-a", TTL_MS)
    await leases.acquire_momentary(CODE, "attempt", "ann", TTL_MS)
    await leases.release(CODE, BOOK, "ann", "lock-a")
    await leases.release_momentary(CODE, "attempt")

    assert await keys_of_locks(redis) == []


async def test_every_key_has_an_end(leases: Leases, redis: Redis) -> None:
    await leases.acquire(CODE, BOOK, "ann", "lock-a", TTL_MS)
    await leases.acquire(CODE, BOOK, "bob", "lock-b", 20)
    await leases.acquire_momentary(CODE, "attempt", "cy", 20)
    await leases.release(CODE, BOOK, "bob", "lock-b", tombstone_until_ms=soon_ms())

    ends = {key: await redis.pttl(key) for key in await redis.keys()}

    assert len(ends) == 6
    assert all(left > TTL_MS - PATIENT_MS for left in ends.values()), ends


# --- limit of a user ----------------------------------------------------------------------------


async def test_a_user_holds_no_more_locks_than_allowed(leases: Leases) -> None:
    for i in range(3):
        await leases.acquire(f"CODE{i}", BOOK, "ann", f"lock-{i}", TTL_MS)
    refused = await leases.acquire("CODE9", BOOK, "ann", "lock-9", TTL_MS)
    other = await leases.acquire("CODE9", BOOK, "bob", "lock-b", TTL_MS)

    assert refused.status is TakeStatus.LIMIT
    assert (other.status, other.places_taken) == (TakeStatus.GRANTED, 1)
    assert len(await leases.list_user("ann")) == 3


async def test_at_the_limit_a_user_still_gets_the_locks_he_holds(leases: Leases) -> None:
    for i in range(3):
        await leases.acquire(f"CODE{i}", BOOK, "ann", f"lock-{i}", TTL_MS)
    again = await leases.acquire("CODE0", BOOK, "ann", "lock-z", TTL_MS)
    repeated = await leases.acquire("CODE1", BOOK, "ann", "lock-1", TTL_MS)

    assert (again.status, again.lock_id) == (TakeStatus.HELD_BEFORE, "lock-0")
    assert (repeated.status, repeated.lock_id) == (TakeStatus.HELD_BEFORE, "lock-1")


async def test_a_lock_given_back_or_ended_counts_no_longer(leases: Leases) -> None:
    await leases.acquire("CODE0", BOOK, "ann", "lock-0", TTL_MS)
    await leases.acquire("CODE1", BOOK, "ann", "lock-1", TTL_MS)
    await leases.acquire("CODE2", BOOK, "ann", "lock-2", 1)
    await leases.release("CODE0", BOOK, "ann", "lock-0")
    await time_passes(1)

    for i in (3, 4):
        taken = await leases.acquire(f"CODE{i}", BOOK, "ann", f"lock-{i}", TTL_MS)
        assert taken.status is TakeStatus.GRANTED


async def test_a_refused_lock_does_not_count(leases: Leases) -> None:
    await leases.acquire(CODE, BOOK, "bob", "lock-b", TTL_MS)
    for i in range(5):
        await leases.acquire(CODE, BOOK, "ann", f"lock-{i}", TTL_MS, places_max=1)

    assert (await leases.acquire("CODE1", BOOK, "ann", "l", TTL_MS)).status is TakeStatus.GRANTED


# --- momentary places ---------------------------------------------------------------------------


async def test_attempts_do_not_count_each_other_while_no_one_else_holds_a_lock(
    leases: Leases,
) -> None:
    answers = [
        await leases.acquire_momentary(CODE, attempt_id, "ann", TTL_MS)
        for attempt_id in ("attempt-1", "attempt-2", "attempt-1")
    ]

    assert [answer.places_taken for answer in answers] == [1, 1, 1]
    assert answers[0].own_lock_id is None


async def test_each_attempt_of_a_user_is_a_place_that_a_lock_counts(leases: Leases) -> None:
    for attempt_id in ("attempt-1", "attempt-2", "attempt-1"):
        await leases.acquire_momentary(CODE, attempt_id, "ann", TTL_MS)

    assert (await leases.acquire(CODE, BOOK, "bob", "lock-b", TTL_MS)).places_taken == 3


async def test_an_attempt_leaves_the_room_that_a_lock_left_to_an_earlier_one(
    leases: Leases,
) -> None:
    # Limit 2: the lock fits beside the first attempt; a second attempt in between must not pass
    # for the first, which does not know of the lock.
    await leases.acquire_momentary(CODE, "attempt-1", "ann", TTL_MS)
    lock = await leases.acquire(CODE, BOOK, "bob", "lock-b", TTL_MS)
    second = await leases.acquire_momentary(CODE, "attempt-2", "cy", TTL_MS)

    assert (lock.places_taken, second.places_taken) == (2, 3)


async def test_a_lock_never_blocks_its_holder(leases: Leases) -> None:
    lock = await leases.acquire(CODE, BOOK, "ann", "lock-a", TTL_MS)
    own = await leases.acquire_momentary(CODE, "attempt-1", "ann", TTL_MS)
    await leases.acquire("CODE2", BOOK, "ann", "lock-2", TTL_MS)
    await leases.acquire("CODE2", BOOK, "bob", "lock-3", TTL_MS)
    beside = await leases.acquire_momentary("CODE2", "attempt-1", "ann", TTL_MS)

    assert own.places_taken == 1
    assert (own.own_lock_id, own.own_expire_ms) == ("lock-a", lock.expire_ms)
    assert own.retry_after_ms is None
    assert beside.places_taken == 2


async def test_a_lock_blocks_everyone_else(leases: Leases) -> None:
    await leases.acquire(CODE, BOOK, "ann", "lock-a", TTL_MS)
    other = await leases.acquire_momentary(CODE, "attempt-1", "bob", TTL_MS)

    assert other.places_taken == 2
    assert other.retry_after_ms is not None
    assert (other.own_lock_id, other.own_expire_ms) == (None, None)


async def test_a_momentary_place_counts_for_a_lock_until_it_is_given_back(leases: Leases) -> None:
    await leases.acquire_momentary(CODE, "attempt-1", "ann", TTL_MS)
    during = await leases.acquire(CODE, BOOK, "bob", "lock-b", TTL_MS)
    await leases.release(CODE, BOOK, "bob", "lock-b")
    await leases.release_momentary(CODE, "attempt-1")
    after = await leases.acquire(CODE, BOOK, "bob", "lock-c", TTL_MS)

    assert (during.places_taken, after.places_taken) == (2, 1)


async def test_an_attempt_that_asks_again_gets_no_more_time(leases: Leases) -> None:
    await leases.acquire_momentary(CODE, "attempt-1", "ann", TTL_MS)
    await leases.acquire_momentary(CODE, "attempt-1", "ann", 9 * TTL_MS)
    other = await leases.acquire_momentary(CODE, "attempt-2", "bob", TTL_MS)

    assert other.retry_after_ms is not None
    assert other.retry_after_ms <= TTL_MS


async def test_a_momentary_place_that_was_forgotten_ends_by_itself(leases: Leases) -> None:
    await leases.acquire_momentary(CODE, "attempt-1", "ann", 20)
    await time_passes(20)

    assert (await leases.acquire(CODE, BOOK, "bob", "lock-b", TTL_MS)).places_taken == 1


# --- peek ---------------------------------------------------------------------------------------


async def test_a_look_tells_who_holds_the_code_and_changes_nothing(
    leases: Leases, redis: Redis
) -> None:
    nobody = await leases.peek(CODE, "ann", "lock-a")
    assert await redis.keys() == []
    await leases.acquire(CODE, BOOK, "ann", "lock-a", TTL_MS)
    await leases.acquire(CODE, BOOK, "bob", "lock-b", TTL_MS)
    await leases.acquire_momentary(CODE, "attempt", "cy", TTL_MS)
    before = {key: await redis.dump(key) for key in await redis.keys()}
    ann, cy = await leases.peek(CODE, "ann", "lock-a"), await leases.peek(CODE, "cy")

    assert (nobody.others, nobody.retry_after_ms, nobody.holds, nobody.gone) == (
        *(0, None, False, False),
    )
    assert (ann.others, ann.holds, ann.gone) == (1, True, False)
    assert (cy.others, cy.holds, cy.gone) == (2, False, False)
    assert cy.retry_after_ms is not None
    assert {key: await redis.dump(key) for key in await redis.keys()} == before


async def test_a_look_tells_that_a_lock_was_given_up_or_replaced(leases: Leases) -> None:
    await leases.acquire(CODE, BOOK, "ann", "lock-a", TTL_MS)
    await leases.release(CODE, BOOK, "ann", "lock-a", tombstone_until_ms=soon_ms())
    given_up = await leases.peek(CODE, "ann", "lock-a")
    await leases.acquire(CODE, BOOK, "ann", "lock-b", TTL_MS)
    replaced = await leases.peek(CODE, "ann", "lock-x")

    assert (given_up.holds, given_up.gone) == (False, True)
    assert (replaced.holds, replaced.gone) == (True, True)


# --- admit --------------------------------------------------------------------------------------


async def test_a_held_lock_is_admitted(leases: Leases) -> None:
    taken = await leases.acquire(CODE, BOOK, "ann", "lock-a", TTL_MS)
    admission = await leases.admit(CODE, BOOK, "ann", "lock-a", taken.expire_ms)

    assert (admission.status, admission.places_taken) == (AdmitStatus.HELD, 1)


async def test_a_lock_is_admitted_in_the_grace_and_gone_after_it(leases: Leases) -> None:
    taken = await leases.acquire(CODE, BOOK, "ann", "lock-a", 20)
    statuses: set[AdmitStatus] = set()
    while soon_ms(0) < taken.expire_ms + GRACE_MS:
        asked_ms = soon_ms(0)
        admission = await leases.admit(CODE, BOOK, "ann", "lock-a", taken.expire_ms)
        if asked_ms >= taken.expire_ms and soon_ms(0) < taken.expire_ms + GRACE_MS:
            statuses.add(admission.status)
    after = await leases.admit(CODE, BOOK, "ann", "lock-a", taken.expire_ms)

    assert statuses <= {AdmitStatus.HELD}
    assert (after.status, after.places_taken) == (AdmitStatus.GONE, 0)


async def test_a_lock_that_redis_lost_is_taken_again(leases: Leases, redis: Redis) -> None:
    taken = await leases.acquire(CODE, BOOK, "ann", "lock-a", TTL_MS)
    listed = await leases.list_book(BOOK)
    await redis.flushdb()
    admission = await leases.admit(CODE, BOOK, "ann", "lock-a", taken.expire_ms)
    again = await leases.admit(CODE, BOOK, "ann", "lock-a", taken.expire_ms)
    blocked = await leases.acquire(CODE, BOOK, "bob", "lock-b", TTL_MS, places_max=1)

    assert (admission.status, admission.places_taken) == (AdmitStatus.RETAKEN, 1)
    assert again == admission
    assert blocked.status is TakeStatus.FULL
    assert await leases.list_book(BOOK) == await leases.list_user("ann") == listed


async def test_a_lost_lock_is_taken_again_in_its_grace_and_not_after_it(redis_url: str) -> None:
    leases = Leases(redis_url, timeout_ms=PATIENT_MS, grace_ms=TTL_MS)
    in_it = await leases.admit(CODE, BOOK, "ann", "lock-a", soon_ms(-TTL_MS // 2))
    after_it = await leases.admit(CODE, BOOK, "bob", "lock-b", soon_ms(-TTL_MS))
    await leases.close()

    assert (in_it.status, in_it.places_taken) == (AdmitStatus.RETAKEN, 1)
    assert (after_it.status, after_it.places_taken) == (AdmitStatus.GONE, 1)


async def test_a_lost_lock_whose_place_someone_else_has_is_counted_behind(
    leases: Leases, redis: Redis
) -> None:
    taken = await leases.acquire(CODE, BOOK, "ann", "lock-a", TTL_MS)
    await redis.flushdb()
    await leases.acquire(CODE, BOOK, "bob", "lock-b", TTL_MS)
    admission = await leases.admit(CODE, BOOK, "ann", "lock-a", taken.expire_ms)

    assert (admission.status, admission.places_taken) == (AdmitStatus.RETAKEN, 2)
    assert admission.retry_after_ms is not None


async def test_a_lost_lock_that_did_not_fit_is_not_taken_for_held_later(
    leases: Leases, redis: Redis
) -> None:
    taken = await leases.acquire(CODE, BOOK, "ann", "lock-a", TTL_MS)
    await redis.flushdb()
    await leases.acquire(CODE, BOOK, "bob", "lock-b", TTL_MS)
    await leases.admit(CODE, BOOK, "ann", "lock-a", taken.expire_ms)
    later_ms = taken.expire_ms + 1_000
    await leases.extend(CODE, BOOK, "ann", "lock-a", later_ms)
    beside_bob = await leases.admit(CODE, BOOK, "ann", "lock-a", later_ms)
    await leases.release(CODE, BOOK, "bob", "lock-b")
    alone = await leases.admit(CODE, BOOK, "ann", "lock-a", later_ms)

    assert (beside_bob.status, beside_bob.places_taken) == (AdmitStatus.RETAKEN, 2)
    assert (alone.status, alone.places_taken) == (AdmitStatus.RETAKEN, 1)


@pytest.mark.parametrize("part", ["places", "locks"])
async def test_a_lock_of_which_redis_lost_a_part_is_taken_again(
    leases: Leases, redis: Redis, part: str
) -> None:
    taken = await leases.acquire(CODE, BOOK, "ann", "lock-a", TTL_MS)
    await redis.delete(f"coupon:{{{CODE}}}:{part}")
    admission = await leases.admit(CODE, BOOK, "ann", "lock-a", taken.expire_ms)

    assert (admission.status, admission.places_taken) == (AdmitStatus.RETAKEN, 1)


async def test_after_a_new_lock_of_the_user_the_old_one_is_gone(leases: Leases) -> None:
    old = await leases.acquire(CODE, BOOK, "ann", "lock-a", TTL_MS)
    await leases.release(CODE, BOOK, "ann", "lock-a")
    await leases.acquire(CODE, BOOK, "ann", "lock-b", TTL_MS)

    admission = await leases.admit(CODE, BOOK, "ann", "lock-a", old.expire_ms)

    assert admission.status is AdmitStatus.GONE


# --- release ------------------------------------------------------------------------------------


async def test_a_released_lock_is_gone_until_its_tombstone_ends(leases: Leases) -> None:
    taken = await leases.acquire(CODE, BOOK, "ann", "lock-a", TTL_MS)
    released = await leases.release(CODE, BOOK, "ann", "lock-a", tombstone_until_ms=taken.expire_ms)
    admission = await leases.admit(CODE, BOOK, "ann", "lock-a", taken.expire_ms)
    same = await leases.acquire(CODE, BOOK, "ann", "lock-a", TTL_MS)
    other = await leases.acquire(CODE, BOOK, "bob", "lock-b", TTL_MS)

    assert released
    assert admission.status is AdmitStatus.GONE
    assert same.status is TakeStatus.GONE
    assert (other.status, other.places_taken) == (TakeStatus.GRANTED, 1)
    assert await leases.list_user("ann") == []


async def test_a_lock_that_redis_lost_can_be_made_gone(leases: Leases, redis: Redis) -> None:
    taken = await leases.acquire(CODE, BOOK, "ann", "lock-a", TTL_MS)
    await redis.flushdb()
    released = await leases.release(CODE, BOOK, "ann", "lock-a", tombstone_until_ms=taken.expire_ms)
    admission = await leases.admit(CODE, BOOK, "ann", "lock-a", taken.expire_ms)

    assert not released
    assert admission.status is AdmitStatus.GONE


async def test_who_gives_up_leaves_a_lock_to_others_that_were_told_of_it(leases: Leases) -> None:
    await leases.acquire(CODE, BOOK, "ann", "lock-a", TTL_MS)
    await leases.acquire(CODE, BOOK, "ann", "lock-b", TTL_MS)  # is told of lock-a
    await leases.give_up(CODE, BOOK, "ann", "lock-a")
    assert (await leases.peek(CODE, "bob")).others == 1
    assert len(await leases.list_user("ann")) == 1
    await leases.give_up(CODE, BOOK, "ann", "lock-a")
    assert (await leases.peek(CODE, "bob")).others == 0
    assert await leases.list_user("ann") == []


async def test_who_gives_up_changes_nothing_of_a_lock_that_redis_had_lost(leases: Leases) -> None:
    expire_ms = soon_ms()
    await leases.admit(CODE, BOOK, "ann", "lock-a", expire_ms)
    await leases.acquire(CODE, BOOK, "ann", "lock-b", TTL_MS)
    await leases.give_up(CODE, BOOK, "ann", "lock-a")
    assert (await leases.peek(CODE, "bob")).others == 1


async def test_a_second_release_says_so_and_changes_nothing(leases: Leases) -> None:
    await leases.acquire(CODE, BOOK, "ann", "lock-a", TTL_MS)

    assert await leases.release(CODE, BOOK, "ann", "lock-a")
    assert not await leases.release(CODE, BOOK, "ann", "lock-a")


@pytest.mark.parametrize(
    ("user_id", "lock_id"), [("bob", "lock-a"), ("ann", "lock-b"), ("bob", "lock-b")]
)
async def test_a_release_by_a_stranger_changes_nothing(
    leases: Leases, redis: Redis, user_id: str, lock_id: str
) -> None:
    taken = await leases.acquire(CODE, BOOK, "ann", "lock-a", TTL_MS)
    listed = await leases.list_book(BOOK)
    released = await leases.release(CODE, BOOK, user_id, lock_id, tombstone_until_ms=soon_ms())
    admission = await leases.admit(CODE, BOOK, "ann", "lock-a", taken.expire_ms)

    assert not released
    assert admission.status is AdmitStatus.HELD
    assert await leases.list_book(BOOK) == await leases.list_user("ann") == listed

    await redis.delete(f"coupon:{{{CODE}}}:places", f"coupon:{{{CODE}}}:locks")
    admission = await leases.admit(CODE, BOOK, "ann", "lock-a", taken.expire_ms)
    assert admission.status is AdmitStatus.RETAKEN


# --- extend -------------------------------------------------------------------------------------


async def test_an_extended_lock_ends_later_everywhere(leases: Leases) -> None:
    taken = await leases.acquire(CODE, BOOK, "ann", "lock-a", 30)
    later_ms = taken.expire_ms + TTL_MS
    ends_ms = await leases.extend(CODE, BOOK, "ann", "lock-a", later_ms)
    await time_passes(30 + GRACE_MS)
    again = await leases.acquire(CODE, BOOK, "ann", "lock-z", TTL_MS)

    assert ends_ms == later_ms
    assert (again.status, again.expire_ms) == (TakeStatus.HELD_BEFORE, later_ms)
    expected = [IndexedLock(CODE, BOOK, "ann", "lock-a", later_ms)]
    assert await leases.list_user("ann") == await leases.list_book(BOOK) == expected


async def test_an_extension_never_shortens(leases: Leases) -> None:
    taken = await leases.acquire(CODE, BOOK, "ann", "lock-a", TTL_MS)
    ends_ms = await leases.extend(CODE, BOOK, "ann", "lock-a", taken.expire_ms - 1_000)

    assert ends_ms == taken.expire_ms
    assert (await leases.list_user("ann"))[0].expire_ms == taken.expire_ms


@pytest.mark.parametrize(("user_id", "lock_id"), [("bob", "lock-a"), ("ann", "lock-b")])
async def test_only_the_holder_extends(leases: Leases, user_id: str, lock_id: str) -> None:
    taken = await leases.acquire(CODE, BOOK, "ann", "lock-a", TTL_MS)
    later_ms = taken.expire_ms + 1_000

    assert await leases.extend(CODE, BOOK, user_id, lock_id, later_ms) is None
    assert (await leases.list_book(BOOK))[0].expire_ms == taken.expire_ms


async def test_a_lock_that_ended_cannot_be_extended(leases: Leases) -> None:
    await leases.acquire(CODE, BOOK, "ann", "lock-a", 10)
    await time_passes(10 + GRACE_MS)

    assert await leases.extend(CODE, BOOK, "ann", "lock-a", soon_ms()) is None


# --- indexes ------------------------------------------------------------------------------------


async def test_a_book_lists_its_live_locks_page_by_page(leases: Leases) -> None:
    for i in range(7):
        await leases.acquire(CODE, BOOK, f"user-{i}", f"lock-{i}", TTL_MS + 10 * i)
    await leases.acquire(CODE, BOOK, "ended", "lock-x", 1)
    await leases.acquire("CODE2", "book-2", "ann", "lock-y", TTL_MS)
    await time_passes(1)

    pages: list[list[str]] = []
    after: IndexedLock | None = None
    while page := await leases.list_book(BOOK, after, page_size=3):
        pages.append([lock.lock_id for lock in page])
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
        await leases.admit(CODE, BOOK, user_id, "lock", expire_ms)

    seen: list[IndexedLock] = []
    while page := await leases.list_book(BOOK, seen[-1] if seen else None, page_size=2):
        seen += page

    assert sorted(lock.user_id for lock in seen) == sorted("äzZ\U0001f600\uffeeabc")


async def test_a_page_goes_on_where_its_last_lock_was_although_it_is_gone(leases: Leases) -> None:
    expire_ms = soon_ms()
    for user_id in "abcd":
        await leases.admit(CODE, BOOK, user_id, "lock", expire_ms)
    first = await leases.list_book(BOOK, page_size=2)
    await leases.release(CODE, BOOK, "b", "lock")

    rest = await leases.list_book(BOOK, first[-1], page_size=9)

    assert [lock.user_id for lock in rest] == ["c", "d"]


async def test_a_shorter_lock_does_not_end_the_index(leases: Leases) -> None:
    await leases.acquire(CODE, BOOK, "ann", "lock-a", TTL_MS)
    await leases.acquire("CODE2", BOOK, "ann", "lock-b", 1)
    await time_passes(1)

    assert [lock.lock_id for lock in await leases.list_user("ann")] == ["lock-a"]


async def test_ended_locks_are_found_until_they_are_forgotten(leases: Leases) -> None:
    await leases.acquire(CODE, BOOK, "cy", "lock-c", 1)
    ended = await leases.acquire(CODE, BOOK, "ann", "lock-a", 1)
    await leases.acquire(CODE, BOOK, "bob", "lock-b", TTL_MS)
    await leases.release(CODE, BOOK, "cy", "lock-c")
    over_ms = ended.expire_ms + GRACE_MS
    entry = IndexedLock(CODE, BOOK, "ann", "lock-a", ended.expire_ms)

    assert await leases.expired([BOOK], over_ms - 1, 10) == {}
    assert await leases.expired(["book-2", BOOK], over_ms, 10) == {BOOK: [entry]}
    assert await leases.expired([BOOK], over_ms, 0) == {}
    await leases.forget([entry])
    assert await leases.expired([BOOK], over_ms, 10) == {}
    assert [lock.lock_id for lock in await leases.list_book(BOOK)] == ["lock-b"]


async def test_forgetting_nothing_is_nothing(leases: Leases) -> None:
    await leases.forget([])


async def test_books_that_have_locks_are_known(leases: Leases, redis: Redis) -> None:
    assert await leases.books() == []
    await leases.acquire(CODE, BOOK, "ann", "lock-a", TTL_MS)
    await leases.acquire("CODE2", BOOK, "bob", "lock-b", TTL_MS)
    await leases.acquire("CODE3", "book-2", "ann", "lock-c", TTL_MS)
    assert sorted(await leases.books()) == sorted([BOOK, "book-2"])
    days_ago_ms = soon_ms(-3 * 24 * 60 * 60 * 1000)
    await redis.zadd(LOCKING_BOOKS, {BOOK: days_ago_ms})
    assert await leases.books() == ["book-2"]


async def test_live_locks_of_many_books_are_counted(leases: Leases) -> None:
    books = [f"many-{i}" for i in range(70)]
    for i, book in enumerate(books):
        await leases.acquire(f"CODE{i}", book, f"user-{i}", f"lock-{i}", TTL_MS)
    now_ms = soon_ms(0)
    census = await leases.census(books, now_ms)
    assert census.live == 70
    assert census.waiting_since_ms > now_ms

    ended = await leases.acquire(CODE, BOOK, "ann", "lock-a", 1)
    await time_passes(1 + GRACE_MS)
    census = await leases.census([*books, BOOK], soon_ms(0))
    assert census.live == 70
    assert census.waiting_since_ms == ended.expire_ms + GRACE_MS
    assert await leases.census([], now_ms) == Census(0, now_ms + GRACE_MS)
