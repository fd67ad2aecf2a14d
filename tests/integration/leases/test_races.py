"""Many callers, on connections of their own as processes have them, want the same code at once."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from support.lease_servers import acquire
from support.service import unique

from coupon_service.leases import AcquireStatus, AdmitStatus, LeaseKey, Leases

BOOK = "book-1"
TTL_MS = 60_000
PATIENT_MS = 5_000  # a busy machine is no silent Redis


@pytest.fixture
async def clients(redis_url: str) -> AsyncIterator[list[Leases]]:
    clients = [Leases(redis_url, timeout_ms=PATIENT_MS, grace_ms=2) for _ in range(3)]
    yield clients
    for leases in clients:
        await leases.close()


@dataclass
class Code:
    """A code as the database knows it, and who holds it as far as the holders know."""

    code: str
    limit: int
    redemptions: int = 0
    held: set[str] = field(default_factory=set[str])
    times_s: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])

    async def fits(self, permits_taken: int) -> bool:
        """The look at the count, some time after the permit was taken."""
        await asyncio.sleep(random.choice([0, 0.001, 0.008]))
        return self.redemptions + permits_taken <= self.limit

    def check(self) -> None:
        assert self.redemptions + len(self.held) <= self.limit

    def most_held_at_once(self) -> int:
        edges = [(begin_s, 1) for begin_s, _ in self.times_s]
        edges += [(end_s, -1) for _, end_s in self.times_s]
        most = now = 0
        for _, change in sorted(edges):
            now += change
            most = max(most, now)
        return most


async def hold_for_a_while(leases: Leases, code: Code, name: str) -> None:
    """Holds a permit that fits until its time is over, or gives it back before."""
    ttl_ms = random.randint(1, 15)
    lock = LeaseKey(code.code, BOOK, f"user-{name}", f"lock-{name}")
    taken = await acquire(leases, lock, ttl_ms, permits_max=code.limit)
    begin_s = time.time()
    if taken.status is not AcquireStatus.FULL and await code.fits(taken.permits_taken):
        if random.random() < 0.5:
            code.times_s.append((begin_s, max(begin_s, taken.expire_ms / 1000)))
            return
        await asyncio.sleep(random.random() * ttl_ms / 1000)
        end_s = min(time.time(), taken.expire_ms / 1000)
        code.times_s.append((begin_s, max(begin_s, end_s)))
    await leases.release(lock)


async def redeem_with_lock(leases: Leases, code: Code, name: str) -> None:
    """Takes a lock; then redeems or unlocks it."""
    lock = LeaseKey(code.code, BOOK, f"user-{name}", f"lock-{name}")
    await asyncio.sleep(random.random() / 100)
    taken = await acquire(leases, lock, TTL_MS)
    if not await code.fits(taken.permits_taken):
        await leases.release(lock)
        return
    code.held.add(name)
    code.check()
    await asyncio.sleep(random.random() / 50)
    if random.random() < 0.5:
        admission = await leases.admit(lock, taken.expire_ms)
        assert admission.status is AdmitStatus.HELD
        code.redemptions += 1
    code.held.remove(name)
    code.check()
    await leases.release(lock, tombstone_until_ms=taken.expire_ms)
    admission = await leases.admit(lock, taken.expire_ms)
    assert admission.status is AdmitStatus.GONE


async def redeem_without_lock(leases: Leases, code: Code, name: str) -> None:
    await asyncio.sleep(random.random() / 100)
    taken = await leases.acquire_transient(code.code, name, f"user-{name}", TTL_MS)
    if await code.fits(taken.permits_taken):
        code.redemptions += 1
        code.check()
    await leases.release_transient(code.code, name, f"user-{name}")


@pytest.mark.parametrize("limit", [1, 3])
async def test_no_more_than_the_limit_hold_a_code_at_once(
    clients: list[Leases], limit: int
) -> None:
    code = Code("SUMMER25", limit)

    async def caller(number: int) -> None:
        attempt = 0
        while len(code.times_s) < 80:
            attempt += 1
            await hold_for_a_while(clients[number % 3], code, f"{number}-{attempt}")

    async with asyncio.timeout(60), asyncio.TaskGroup() as callers:
        for number in range(8):
            callers.create_task(caller(number))

    assert code.most_held_at_once() <= limit


@pytest.mark.parametrize("limit", [1, 2, 4])
async def test_locks_and_redemptions_together_never_exceed_the_limit(
    clients: list[Leases], limit: int
) -> None:
    redemptions = 0
    for round_ in range(60):
        code = Code(f"CODE{round_}", limit)
        async with asyncio.TaskGroup() as callers:
            for i in range(limit + 5):
                redeem = random.choice([redeem_with_lock, redeem_without_lock])
                callers.create_task(redeem(clients[i % 3], code, str(i)))
        redemptions += code.redemptions

    assert redemptions > 0


async def test_of_many_at_once_exactly_as_many_as_fit_get_in(clients: list[Leases]) -> None:
    for limit in (1, 10):
        answers = await asyncio.gather(
            *(
                acquire(
                    clients[i % 3], LeaseKey(f"CODE{limit}", BOOK, f"user-{i}", f"lock-{i}"), TTL_MS
                )
                for i in range(100)
            )
        )
        assert sum(answer.permits_taken <= limit for answer in answers) == limit


async def test_in_a_storm_on_a_locked_code_someone_gets_it_when_it_is_free(
    clients: list[Leases],
) -> None:
    code = Code("SUMMER25", 1)
    await acquire(clients[0], LeaseKey(code.code, BOOK, "ann", "lock-a"), 50)
    free = asyncio.Event()

    async def caller(number: int) -> None:
        leases = clients[number % 3]
        lock = LeaseKey(code.code, BOOK, f"user-{number}", f"lock-{number}")
        while not free.is_set():
            taken = await acquire(leases, lock, TTL_MS, permits_max=code.limit)
            if taken.status is not AcquireStatus.FULL:
                if await code.fits(taken.permits_taken):
                    free.set()
                else:
                    await leases.release(lock)

    async with asyncio.timeout(20), asyncio.TaskGroup() as callers:
        for number in range(20):
            callers.create_task(caller(number))


async def test_many_locks_of_one_user_at_once_stay_within_the_limit(clients: list[Leases]) -> None:
    answers = await asyncio.gather(
        *(
            acquire(clients[i % 3], LeaseKey(f"CODE{i}", BOOK, "ann", f"lock-{i}"), TTL_MS)
            for i in range(50)
        )
    )
    granted = {answer.lock_id for answer in answers if answer.status is AcquireStatus.GRANTED}

    assert len(granted) == 5
    assert {lock.key.lock_id for lock in await clients[0].list_user("ann")} == granted
    assert {lock.key.lock_id for lock in await clients[0].list_book(BOOK)} == granted


async def test_one_user_asking_many_times_at_once_gets_one_lock(clients: list[Leases]) -> None:
    user = unique("ann")
    answers = await asyncio.gather(
        *(
            acquire(clients[i % 3], LeaseKey("CODE", BOOK, user, f"lock-{i}"), TTL_MS)
            for i in range(50)
        )
    )
    statuses = [answer.status for answer in answers]

    assert statuses.count(AcquireStatus.GRANTED) == 1
    assert set(statuses) == {AcquireStatus.GRANTED, AcquireStatus.HELD_BEFORE}
    assert len({(answer.lock_id, answer.expire_ms) for answer in answers}) == 1
    assert {answer.permits_taken for answer in answers} == {1}
    listed = await clients[0].list_user(user)
    assert [lock.key.lock_id for lock in listed] == [answers[0].lock_id]
