"""Locks of codes in a real Redis: what each call promises."""

# redis-py leaves the type of its keyword arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from dataclasses import replace

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
    keys_of,
    keys_of_locks,
    soon_ms,
    time_passes,
)

from coupon_service.leases import (
    AcquireResult,
    AcquireStatus,
    AdmitStatus,
    IndexedLock,
    LeaseKey,
    LeaseRequest,
    Leases,
    ReleaseRequest,
)
from coupon_service.leases.scripts import index_member, user_index

# --- acquire ------------------------------------------------------------------------------------


async def test_the_first_lock_is_granted_and_counts_itself(leases: Leases) -> None:
    before_ms = soon_ms(TTL_MS)
    taken = await acquire(leases, ANN, TTL_MS)

    assert taken.status is AcquireStatus.GRANTED
    assert taken.lock_id == "lock-a"
    assert taken.permits_taken == 1
    assert taken.retry_after_ms is None
    assert before_ms <= taken.expire_ms <= soon_ms(TTL_MS)


async def test_the_permit_of_another_is_counted_with_the_time_it_has_left(leases: Leases) -> None:
    await acquire(leases, ANN, TTL_MS)
    await acquire(leases, BOB, TTL_MS // 2)
    taken = await acquire(leases, CY, 1_000)

    assert taken.permits_taken == 3
    assert taken.retry_after_ms is not None
    assert 1_000 < taken.retry_after_ms <= TTL_MS // 2 + GRACE_MS


async def test_the_same_user_gets_the_same_lock_and_no_more_time(leases: Leases) -> None:
    first = await acquire(leases, ANN, TTL_MS)
    again = await acquire(leases, LeaseKey(CODE, BOOK, "ann", "lock-z"), 2 * TTL_MS)

    assert again.status is AcquireStatus.HELD_BEFORE
    assert (again.lock_id, again.expire_ms) == ("lock-a", first.expire_ms)
    assert again.permits_taken == 1
    assert [lock.key.lock_id for lock in await leases.list_user("ann")] == ["lock-a"]


async def test_the_same_call_again_finds_its_own_lock(leases: Leases) -> None:
    first = await acquire(leases, ANN, TTL_MS)
    await time_passes(2)
    again = await acquire(leases, ANN, TTL_MS)

    assert again == replace(first, status=AcquireStatus.HELD_BEFORE)
    expected = [IndexedLock(ANN, first.expire_ms)]
    assert await leases.list_user("ann") == await leases.list_book(BOOK) == expected


async def test_many_permits_are_acquired_together(leases: Leases) -> None:
    """The answers are in order, also over several pipelines, and each is its own."""
    await acquire(leases, LeaseKey("CODE7", BOOK, "ann", "lock-a"), TTL_MS)
    requests = [
        LeaseRequest(
            LeaseKey(f"CODE{i}", f"book-{i % 3}", f"user-{i}", f"lock-{i}"), TTL_MS, permits_max=1
        )
        for i in range(100)
    ]
    requests += [
        LeaseRequest(LeaseKey(f"ANY{i}", BOOK, "eve", f"eve-{i}"), TTL_MS) for i in range(5)
    ]
    taken = await leases.acquire_each(requests)

    locks = [it for it in taken if isinstance(it, AcquireResult)]
    assert [it.lock_id for it in locks] == [request.key.lock_id for request in requests]
    refused = {7: AcquireStatus.FULL, 103: AcquireStatus.LIMIT, 104: AcquireStatus.LIMIT}
    expected = [refused.get(i, AcquireStatus.GRANTED) for i in range(len(requests))]
    assert [it.status for it in locks] == expected
    listed = [lock for i in range(3) for lock in await leases.list_book(f"book-{i}")]
    ends_ms = {it.lock_id: it.expire_ms for it in locks if it.status is AcquireStatus.GRANTED}
    assert {lock.key.lock_id for lock in listed} == {*ends_ms, "lock-a"}
    assert all(
        about(it.expire_ms, ends_ms[it.key.lock_id]) for it in listed if it.key.lock_id in ends_ms
    )
    assert len(await leases.list_user("eve")) == 3
    assert await leases.list_user("user-7") == []
    assert await leases.acquire_each([]) == []


async def test_many_are_released_at_once(leases: Leases) -> None:
    requests = [
        LeaseRequest(
            LeaseKey(f"MANY{i}", f"book-{i % 3}", f"user-{max(i, 2)}", f"lock-{i}"), TTL_MS
        )
        for i in range(100)
    ]
    await leases.acquire_each(requests)
    ends = [ReleaseRequest(it.key, tombstone_until_ms=soon_ms()) for it in requests]
    assert await leases.release_each(ends[:50]) == 50
    assert await leases.release_each(ends) == 50
    assert await leases.release_each([]) == 0
    assert [lock for i in range(3) for lock in await leases.list_book(f"book-{i}")] == []
    assert await leases.list_user("user-2") == []
    again = await leases.acquire_each(requests)
    assert {it.status for it in again if isinstance(it, AcquireResult)} == {AcquireStatus.GONE}
    await acquire(leases, LeaseKey("MANY99", BOOK, "ann", "lock-a"), TTL_MS, permits_max=1)


async def test_codes_do_not_share_permits(leases: Leases) -> None:
    await acquire(leases, LeaseKey("CODE1", BOOK, "ann", "lock-1"), TTL_MS)

    assert (
        await acquire(leases, LeaseKey("CODE2", BOOK, "bob", "lock-2"), TTL_MS)
    ).permits_taken == 1


async def test_no_more_than_permits_max_are_let_in(leases: Leases) -> None:
    await acquire(leases, ANN, TTL_MS, permits_max=1)
    refused = await acquire(leases, BOB, TTL_MS, permits_max=1)
    again = await acquire(leases, LeaseKey(CODE, BOOK, "ann", "lock-c"), TTL_MS, permits_max=1)

    assert refused.status is AcquireStatus.FULL
    assert refused.permits_taken == 1
    assert refused.retry_after_ms is not None
    assert again.status is AcquireStatus.HELD_BEFORE
    assert await leases.list_user("bob") == []


async def test_a_permit_ends_with_its_time_and_not_before_the_grace(leases: Leases) -> None:
    first = await acquire(leases, ANN, 20, permits_max=1)
    taken = await acquire(leases, BOB, TTL_MS, permits_max=1)
    while taken.status is AcquireStatus.FULL:
        taken = await acquire(leases, BOB, TTL_MS, permits_max=1)

    assert (taken.status, taken.permits_taken) == (AcquireStatus.GRANTED, 1)
    assert soon_ms(0) >= first.expire_ms + GRACE_MS
    assert not await leases.release(ANN)


async def test_thousands_of_ended_permits_do_not_count_and_go(leases: Leases, redis: Redis) -> None:
    permits, locks = f"coupon:{{{CODE}}}:places", f"coupon:{{{CODE}}}:locks"
    ended = {f"uold{i}": 1 for i in range(9_000)} | {"uann": 2}
    await redis.zadd(permits, ended)
    await redis.hset(locks, mapping=dict.fromkeys(ended, "1:0:0:lock-old"))
    taken = await acquire(leases, ANN, TTL_MS, permits_max=1)

    assert (taken.status, taken.lock_id, taken.permits_taken) == (
        AcquireStatus.GRANTED,
        "lock-a",
        1,
    )
    assert (await redis.zcard(permits), await redis.hlen(locks)) == (1, 1)


async def test_nothing_is_left_in_redis_when_the_time_of_all_is_over(
    leases: Leases, redis: Redis
) -> None:
    await acquire(leases, ANN, 20)
    await leases.acquire_transient(CODE, "attempt", "bob", 20)
    await leases.release(CY, tombstone_until_ms=soon_ms(20))
    await time_passes(20 + GRACE_MS)

    assert await keys_of_locks(redis) == [f"coupon:book:{{{BOOK}}}:locks"]
    assert await redis.pttl(f"coupon:book:{{{BOOK}}}:locks") > 0


async def test_a_released_lock_leaves_nothing_behind(leases: Leases, redis: Redis) -> None:
    await acquire(leases, ANN, TTL_MS)
    await leases.acquire_transient(CODE, "attempt", "cy", TTL_MS)
    await leases.release(ANN)
    await leases.release_transient(CODE, "attempt", "cy")

    assert await keys_of_locks(redis) == []


async def test_every_key_has_an_end(leases: Leases, redis: Redis) -> None:
    await acquire(leases, ANN, TTL_MS)
    await acquire(leases, BOB, 20)
    await leases.acquire_transient(CODE, "attempt", "cy", TTL_MS // 2)
    await leases.release(BOB, tombstone_until_ms=soon_ms())

    ends = {key: await redis.pttl(key) for key in await keys_of(redis)}

    assert 0 < ends.pop(f"coupon:{{{CODE}}}:redeeming:cy") <= TTL_MS // 2
    assert len(ends) == 6
    assert all(left > TTL_MS - PATIENT_MS for left in ends.values()), ends


# --- limit of a user ----------------------------------------------------------------------------


async def test_a_user_holds_no_more_locks_than_allowed(leases: Leases) -> None:
    for i in range(3):
        await acquire(leases, LeaseKey(f"CODE{i}", BOOK, "ann", f"lock-{i}"), TTL_MS)
    refused = await acquire(leases, LeaseKey("CODE9", BOOK, "ann", "lock-9"), TTL_MS)
    other = await acquire(leases, LeaseKey("CODE9", BOOK, "bob", "lock-b"), TTL_MS)

    assert refused.status is AcquireStatus.LIMIT
    assert (other.status, other.permits_taken) == (AcquireStatus.GRANTED, 1)
    assert len(await leases.list_user("ann")) == 3


async def test_at_the_limit_a_user_still_gets_the_locks_he_holds(leases: Leases) -> None:
    for i in range(3):
        await acquire(leases, LeaseKey(f"CODE{i}", BOOK, "ann", f"lock-{i}"), TTL_MS)
    again = await acquire(leases, LeaseKey("CODE0", BOOK, "ann", "lock-z"), TTL_MS)
    repeated = await acquire(leases, LeaseKey("CODE1", BOOK, "ann", "lock-1"), TTL_MS)

    assert (again.status, again.lock_id) == (AcquireStatus.HELD_BEFORE, "lock-0")
    assert (repeated.status, repeated.lock_id) == (AcquireStatus.HELD_BEFORE, "lock-1")


async def test_attempts_at_one_code_count_as_the_one_lock_that_may_come_of_them(
    leases: Leases, redis: Redis
) -> None:
    """In a cluster they may be counted by one master before any has asked another for a permit."""
    attempts = [LeaseKey(CODE, BOOK, "ann", f"attempt-{i}") for i in range(3)]
    await redis.zadd(user_index("ann"), {index_member(it): soon_ms() for it in attempts})
    taken = await acquire(leases, ANN, TTL_MS)
    other = await acquire(leases, LeaseKey("CODE9", BOOK, "ann", "lock-9"), TTL_MS)

    assert (taken.status, taken.lock_id) == (AcquireStatus.GRANTED, "lock-a")
    assert other.status is AcquireStatus.LIMIT


async def test_two_attempts_at_once_get_no_lock_above_the_limit(leases: Leases) -> None:
    for i in range(3):
        await acquire(leases, LeaseKey(f"CODE{i}", BOOK, "ann", f"lock-{i}"), TTL_MS)
    above = [LeaseKey(CODE, BOOK, "ann", f"above-{i}") for i in range(3)]
    answers = await leases.acquire_each([LeaseRequest(it, TTL_MS) for it in (*above, above[0])])

    locks = [it for it in answers if isinstance(it, AcquireResult)]
    assert [it.status for it in locks] == [AcquireStatus.LIMIT] * 4
    assert {it.key.lock_id for it in await leases.list_user("ann")} == {
        "lock-0",
        "lock-1",
        "lock-2",
    }
    assert (await acquire(leases, BOB, TTL_MS)).permits_taken == 1


async def test_a_lock_given_back_or_ended_counts_no_longer(leases: Leases) -> None:
    await acquire(leases, LeaseKey("CODE0", BOOK, "ann", "lock-0"), TTL_MS)
    await acquire(leases, LeaseKey("CODE1", BOOK, "ann", "lock-1"), TTL_MS)
    await acquire(leases, LeaseKey("CODE2", BOOK, "ann", "lock-2"), 1)
    await leases.release(LeaseKey("CODE0", BOOK, "ann", "lock-0"))
    await time_passes(1)

    for i in (3, 4):
        taken = await acquire(leases, LeaseKey(f"CODE{i}", BOOK, "ann", f"lock-{i}"), TTL_MS)
        assert taken.status is AcquireStatus.GRANTED


async def test_a_refused_lock_does_not_count(leases: Leases) -> None:
    await acquire(leases, BOB, TTL_MS)
    for i in range(5):
        await acquire(leases, LeaseKey(CODE, BOOK, "ann", f"lock-{i}"), TTL_MS, permits_max=1)

    assert (
        await acquire(leases, LeaseKey("CODE1", BOOK, "ann", "l"), TTL_MS)
    ).status is AcquireStatus.GRANTED


# --- transient permits ---------------------------------------------------------------------------


async def test_attempts_do_not_count_each_other_while_no_one_else_holds_a_lock(
    leases: Leases,
) -> None:
    answers = [
        await leases.acquire_transient(CODE, attempt_id, "ann", TTL_MS)
        for attempt_id in ("attempt-1", "attempt-2", "attempt-1")
    ]

    assert [answer.permits_taken for answer in answers] == [1, 1, 1]
    assert answers[0].own_lock_id is None


async def test_each_attempt_of_a_user_is_a_permit_that_a_lock_counts(leases: Leases) -> None:
    for attempt_id in ("attempt-1", "attempt-2", "attempt-1"):
        await leases.acquire_transient(CODE, attempt_id, "ann", TTL_MS)

    assert (await acquire(leases, BOB, TTL_MS)).permits_taken == 3


async def test_an_attempt_leaves_the_room_that_a_lock_left_to_an_earlier_one(
    leases: Leases,
) -> None:
    # Limit 2: the lock fits beside the first attempt; a second attempt in between must not pass
    # for the first, which does not know of the lock.
    await leases.acquire_transient(CODE, "attempt-1", "ann", TTL_MS)
    lock = await acquire(leases, BOB, TTL_MS)
    second = await leases.acquire_transient(CODE, "attempt-2", "cy", TTL_MS)

    assert (lock.permits_taken, second.permits_taken) == (2, 3)


async def test_a_lock_never_blocks_its_holder(leases: Leases) -> None:
    lock = await acquire(leases, ANN, TTL_MS)
    own = await leases.acquire_transient(CODE, "attempt-1", "ann", TTL_MS)
    await acquire(leases, LeaseKey("CODE2", BOOK, "ann", "lock-2"), TTL_MS)
    await acquire(leases, LeaseKey("CODE2", BOOK, "bob", "lock-3"), TTL_MS)
    beside = await leases.acquire_transient("CODE2", "attempt-1", "ann", TTL_MS)

    assert own.permits_taken == 1
    assert (own.own_lock_id, own.own_expire_ms) == ("lock-a", lock.expire_ms)
    assert own.retry_after_ms is None
    assert beside.permits_taken == 2


async def test_a_lock_blocks_everyone_else(leases: Leases) -> None:
    await acquire(leases, ANN, TTL_MS)
    other = await leases.acquire_transient(CODE, "attempt-1", "bob", TTL_MS)

    assert other.permits_taken == 2
    assert other.retry_after_ms is not None
    assert (other.own_lock_id, other.own_expire_ms) == (None, None)


async def test_a_transient_permit_counts_for_a_lock_until_it_is_given_back(leases: Leases) -> None:
    await leases.acquire_transient(CODE, "attempt-1", "ann", TTL_MS)
    during = await acquire(leases, BOB, TTL_MS)
    await leases.release(BOB)
    await leases.release_transient(CODE, "attempt-1", "ann")
    after = await acquire(leases, LeaseKey(CODE, BOOK, "bob", "lock-c"), TTL_MS)

    assert (during.permits_taken, after.permits_taken) == (2, 1)


async def test_an_attempt_that_asks_again_gets_no_more_time(leases: Leases) -> None:
    await leases.acquire_transient(CODE, "attempt-1", "ann", TTL_MS)
    await leases.acquire_transient(CODE, "attempt-1", "ann", 9 * TTL_MS)
    other = await leases.acquire_transient(CODE, "attempt-2", "bob", TTL_MS)

    assert other.retry_after_ms is not None
    assert other.retry_after_ms <= TTL_MS


async def test_a_transient_permit_that_was_forgotten_ends_by_itself(leases: Leases) -> None:
    await leases.acquire_transient(CODE, "attempt-1", "ann", 20)
    await time_passes(20)

    assert (await acquire(leases, BOB, TTL_MS)).permits_taken == 1


async def test_whoever_redeems_without_a_token_gets_no_new_lock_meanwhile(leases: Leases) -> None:
    # The attempt would not know of it, and so leave it beside the redemption.
    for attempt_id in ("attempt-1", "attempt-2"):
        await leases.acquire_transient(CODE, attempt_id, "ann", TTL_MS)
    answers: list[AcquireResult] = []
    for attempt_id in ("attempt-1", "attempt-2"):
        answers.append(await acquire(leases, ANN, TTL_MS))
        await leases.release_transient(CODE, attempt_id, "ann")
    after = await acquire(leases, LeaseKey(CODE, BOOK, "ann", "lock-b"), TTL_MS)

    assert [taken.status for taken in answers] == [AcquireStatus.FULL, AcquireStatus.FULL]
    assert [taken.retry_after_ms is not None for taken in answers] == [True, True]
    assert (after.status, after.permits_taken) == (AcquireStatus.GRANTED, 1)


async def test_an_attempt_that_was_forgotten_keeps_its_user_out_for_its_time_only(
    leases: Leases,
) -> None:
    await leases.acquire_transient(CODE, "attempt-1", "ann", 20)
    await time_passes(20)

    assert (
        await acquire(leases, LeaseKey(CODE, BOOK, "ann", "l"), TTL_MS)
    ).status is AcquireStatus.GRANTED


async def test_an_attempt_leaves_the_lock_alone_that_its_user_holds(leases: Leases) -> None:
    lock = await acquire(leases, ANN, TTL_MS)
    await leases.acquire_transient(CODE, "attempt-1", "ann", TTL_MS)
    again = await acquire(leases, ANN, TTL_MS)
    shown = await leases.admit(ANN, lock.expire_ms)

    assert (again.status, shown.status) == (AcquireStatus.HELD_BEFORE, AdmitStatus.HELD)


# --- peek ---------------------------------------------------------------------------------------


async def test_a_preview_shows_who_holds_the_code_and_changes_nothing(
    leases: Leases, redis: Redis
) -> None:
    nobody = await leases.peek(CODE, "ann", "lock-a")
    assert await keys_of(redis) == []
    await acquire(leases, ANN, TTL_MS)
    await acquire(leases, BOB, TTL_MS)
    await leases.acquire_transient(CODE, "attempt", "cy", TTL_MS)
    before = {key: await redis.dump(key) for key in await keys_of(redis)}
    ann, cy = await leases.peek(CODE, "ann", "lock-a"), await leases.peek(CODE, "cy")

    assert (nobody.others, nobody.retry_after_ms, nobody.holds, nobody.gone) == (
        *(0, None, False, False),
    )
    assert (ann.others, ann.holds, ann.gone) == (1, True, False)
    assert (cy.others, cy.holds, cy.gone) == (2, False, False)
    assert cy.retry_after_ms is not None
    assert {key: await redis.dump(key) for key in await keys_of(redis)} == before


async def test_a_preview_shows_that_a_lock_was_released_or_replaced(leases: Leases) -> None:
    await acquire(leases, ANN, TTL_MS)
    await leases.release(ANN, tombstone_until_ms=soon_ms())
    given_up = await leases.peek(CODE, "ann", "lock-a")
    await acquire(leases, LeaseKey(CODE, BOOK, "ann", "lock-b"), TTL_MS)
    replaced = await leases.peek(CODE, "ann", "lock-x")

    assert (given_up.holds, given_up.gone) == (False, True)
    assert (replaced.holds, replaced.gone) == (True, True)


# --- a lock that follows another ----------------------------------------------------------------


async def test_a_lock_that_follows_gets_the_permit_of_the_one_that_is_over(leases: Leases) -> None:
    old = await acquire(leases, ANN, 20, permits_max=1)
    await time_passes(20)
    newer = LeaseRequest(CY._replace(user_id="ann"), TTL_MS, permits_max=1, follows="lock-a")
    taken = await leases.acquire(newer)
    shown = await leases.admit(ANN, old.expire_ms)
    await time_passes(GRACE_MS)
    other = await acquire(leases, BOB, TTL_MS, permits_max=1)

    assert (taken.status, taken.lock_id, taken.permits_taken) == (
        *(AcquireStatus.GRANTED, "lock-c", 1),
    )
    assert taken.expire_ms > old.expire_ms
    assert shown.status is AdmitStatus.GONE
    assert other.status is AcquireStatus.FULL


async def test_it_leaves_any_other_lock_of_the_user_alone(leases: Leases) -> None:
    await acquire(leases, ANN, TTL_MS)
    request = LeaseRequest(CY._replace(user_id="ann"), TTL_MS, follows="lock-x")
    taken = await leases.acquire(request)

    assert (taken.status, taken.lock_id) == (AcquireStatus.HELD_BEFORE, "lock-a")


async def test_it_is_acquired_as_any_lock_where_the_other_has_no_permit_any_more(
    leases: Leases,
) -> None:
    request = LeaseRequest(ANN, TTL_MS, permits_max=1, follows="lock-x")
    taken = await leases.acquire(request)
    beside = await leases.acquire(replace(request, key=BOB))

    assert (taken.status, beside.status) == (AcquireStatus.GRANTED, AcquireStatus.FULL)


async def test_it_does_not_fit_where_others_have_all_permits(leases: Leases) -> None:
    await acquire(leases, ANN, TTL_MS)
    await acquire(leases, BOB, TTL_MS)
    request = LeaseRequest(CY._replace(user_id="ann"), TTL_MS, permits_max=1, follows="lock-a")
    taken = await leases.acquire(request)

    assert (taken.status, taken.permits_taken) == (AcquireStatus.FULL, 2)


async def test_a_lock_does_not_follow_while_its_user_redeems_without_a_token(
    leases: Leases,
) -> None:
    await acquire(leases, ANN, TTL_MS)
    await leases.acquire_transient(CODE, "attempt", "ann", TTL_MS)
    request = LeaseRequest(CY._replace(user_id="ann"), TTL_MS, follows="lock-a")

    assert (await leases.acquire(request)).status is AcquireStatus.FULL
