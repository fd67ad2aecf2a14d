"""Locks that both clients hold while a block runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import pytest
from support.calls import get_lock, locking_code
from support.service import Api, ServerThread, redemptions, settings_for, unique
from support.waiting import until

from coupon_service.client import AsyncCouponClient, CouponClient, HeldLock, errors, holds

HELD = redemptions.LOCK_STATE_HELD
RELEASED = redemptions.LOCK_STATE_RELEASED
REDEEMED = redemptions.LOCK_STATE_REDEEMED


class BlockError(Exception):
    """A block that fails."""


@pytest.fixture
def brief(database_url: str, redis_url: str) -> Iterator[ServerThread]:
    """A service that extends a lock once."""
    with ServerThread(settings_for(database_url, redis_url, lock_extensions_max=1)) as running:
        yield running


@pytest.fixture
def brief_api(brief: ServerThread) -> Iterator[Api]:
    api = Api(brief.address)
    yield api
    api.close()


@pytest.fixture
def renewed_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks are renewed long before they end, so that a busy machine misses no end."""
    monkeypatch.setattr(holds, "RENEW_AT", 0.1)


def state_of(api: Api, lock: Any) -> redemptions.LockState.ValueType:
    return get_lock(api, lock.lock.lock_id).state


async def failing(
    client: AsyncCouponClient, code: str, error: Exception, held: list[HeldLock]
) -> None:
    """A block that fails while it holds the code."""
    async with client.hold(code, unique("user")) as lock:
        held.append(lock)
        raise error


def failing_thread(client: CouponClient, code: str, held: list[HeldLock]) -> None:
    """The same in a thread."""
    with client.hold(code, unique("user")) as lock:
        held.append(lock)
        raise BlockError


async def test_a_block_redeems_with_its_lock(api: Api, server_address: str) -> None:
    code, user = locking_code(api), unique("user")
    async with AsyncCouponClient(server_address) as client, client.hold(code, user) as lock:
        assert state_of(api, lock) == HELD
        await client.redeem_code(code, user, lock_token=lock.token)
    assert state_of(api, lock) == REDEEMED
    code = locking_code(api)
    with CouponClient(server_address) as blocking, blocking.hold(code, user) as lock:
        blocking.redeem_code(code, user, lock_token=lock.token)
    assert state_of(api, lock) == REDEEMED


@pytest.mark.usefixtures("renewed_early")
async def test_a_lock_is_renewed_while_its_block_runs(api: Api, server_address: str) -> None:
    code, user = locking_code(api), unique("user")
    async with AsyncCouponClient(server_address) as client:
        async with client.hold(code, user, ttl_s=3) as lock:
            first = lock.token
            while lock.token == first:
                await asyncio.sleep(0.02)
            await client.redeem_code(code, user, lock_token=lock.token)


@pytest.mark.usefixtures("renewed_early")
def test_a_lock_is_renewed_while_a_thread_is_in_its_block(api: Api, server_address: str) -> None:
    code, user = locking_code(api), unique("user")
    with CouponClient(server_address) as client:
        with client.hold(code, user, ttl_s=3) as lock:
            first = lock.token
            until(lambda: lock.token != first)
            client.redeem_code(code, user, lock_token=lock.token)


async def test_a_block_that_fails_releases_its_lock(api: Api, server_address: str) -> None:
    code, held = locking_code(api), list[HeldLock]()
    async with AsyncCouponClient(server_address) as client:
        with pytest.raises(BlockError):
            await failing(client, code, BlockError(), held)
        assert state_of(api, held[-1]) == RELEASED
        async with client.hold(code, unique("other")):
            pass
    with CouponClient(server_address) as blocking:
        code = locking_code(api)
        with pytest.raises(BlockError):
            failing_thread(blocking, code, held)
    assert state_of(api, held[-1]) == RELEASED


async def test_a_block_that_is_cancelled_releases_its_lock(api: Api, server_address: str) -> None:
    locks = list[Any]()

    async def holding(client: AsyncCouponClient) -> None:
        async with client.hold(locking_code(api), unique("user")) as lock:
            locks.append(lock)
            await asyncio.sleep(60)

    async with AsyncCouponClient(server_address) as client:
        task = asyncio.create_task(holding(client))
        while not locks:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert state_of(api, locks[0]) == RELEASED


async def test_a_lock_is_kept_while_it_is_open_whether_it_was_redeemed(
    api: Api, server_address: str
) -> None:
    held = list[HeldLock]()
    unknown = errors.error_of(errors.Problem(errors.StatusCode.UNAVAILABLE, "", ""))
    async with AsyncCouponClient(server_address) as client:
        with pytest.raises(errors.Unavailable):
            await failing(client, locking_code(api), unknown, held)
    assert state_of(api, held[-1]) == HELD


@pytest.mark.usefixtures("renewed_early")
async def test_a_block_is_cancelled_when_its_lock_is_extended_no_more(
    brief: ServerThread, brief_api: Api
) -> None:
    code, user = locking_code(brief_api), unique("user")
    began_s = time.monotonic()
    async with AsyncCouponClient(brief.address) as client:
        with pytest.raises(errors.LockExpired) as caught:
            async with client.hold(code, user, ttl_s=2):
                await asyncio.sleep(60)
    assert caught.value.state == "EXPIRED"
    assert 2 < time.monotonic() - began_s < 60


async def test_a_block_is_cancelled_when_its_lock_cannot_be_renewed(
    api: Api, server_address: str
) -> None:
    tokens = ["the only one"]
    async with AsyncCouponClient(server_address, token=tokens.pop) as client:
        with pytest.raises(errors.LockExpired):
            async with client.hold(locking_code(api), unique("user"), ttl_s=1):
                await asyncio.sleep(60)


@pytest.mark.usefixtures("renewed_early")
async def test_a_block_that_has_redeemed_may_go_on(brief: ServerThread, brief_api: Api) -> None:
    code, user = locking_code(brief_api), unique("user")
    async with AsyncCouponClient(brief.address) as client:
        async with client.hold(code, user, ttl_s=3) as lock:
            await client.redeem_code(code, user, lock_token=lock.token)
            while lock.left_s > -0.5:
                await asyncio.sleep(0.05)


def test_a_thread_learns_of_the_end_of_its_lock_with_the_next_use(
    brief: ServerThread, brief_api: Api
) -> None:
    code, user = locking_code(brief_api), unique("user")
    with CouponClient(brief.address) as client:
        with pytest.raises(errors.LockExpired), client.hold(code, user, ttl_s=1) as lock:
            until(lambda: lock.token and False)


async def test_a_lock_that_another_call_holds_is_not_held(api: Api, server_address: str) -> None:
    code = locking_code(api)
    async with AsyncCouponClient(server_address) as client:
        async with client.hold(code, unique("user")):
            with pytest.raises(errors.CodeLocked):
                async with client.hold(code, unique("other")):
                    pass


async def test_the_clock_of_the_client_does_not_matter(api: Api, server_address: str) -> None:
    code, user = locking_code(api), unique("user")
    clock = mock.Mock()
    clock.now.return_value.timestamp.side_effect = lambda: time.time() + 3_600
    late: AbstractContextManager[Any] = mock.patch("coupon_service.client.holds.datetime", clock)
    async with AsyncCouponClient(server_address) as client:
        with late:
            async with client.hold(code, user, ttl_s=30) as lock:
                assert 25 < lock.left_s <= 30
