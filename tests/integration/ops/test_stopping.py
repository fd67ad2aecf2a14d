"""A worker that stops finishes what it had begun, also for callers who no longer wait."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any
from unittest import mock

import grpc
import pytest
from support.calls import locking_code
from support.service import Api, ServerThread, settings_for, unique

from coupon_service.errors import Contention
from coupon_service.leases import Leases
from coupon_service.store.commands import executor

SLOW_S = 0.3
"""How long a step of a slow Redis takes: longer than an idle worker needs to stop."""


class Stopping:
    """A worker that gives calls no time to finish when it stops; `stop_at` a step of Redis."""

    def __init__(self, worker: ServerThread, api: Api) -> None:
        self._worker = worker
        self.api = api

    def stop_at(self, step: str, call: Callable[[], object]) -> None:
        """Makes the call, and stops the worker when it has come to this step."""
        with slow(step) as begun:
            caller = threading.Thread(target=_cut, args=(call,))
            caller.start()
            assert begun.wait(30)
            self._worker.__exit__()
            caller.join()


@contextmanager
def slow(step: str) -> Generator[threading.Event]:
    """Makes a step of all leases slow; the event says that one has begun."""
    real: Any = getattr(Leases, step)
    begun = threading.Event()

    async def slowly(self: Leases, *arguments: Any, **named: Any) -> Any:
        begun.set()
        await asyncio.sleep(SLOW_S)
        return await real(self, *arguments, **named)

    with mock.patch.object(Leases, step, slowly):
        yield begun


def _cut(call: Callable[[], object]) -> None:
    with suppress(grpc.RpcError):
        call()


@pytest.fixture
def stopping(database_url: str, redis_url: str) -> Generator[Stopping]:
    settings = settings_for(database_url, redis_url, shutdown_timeout_ms=0)
    worker = ServerThread(settings).__enter__()  # each test stops it
    api = Api(worker.address)
    yield Stopping(worker, api)
    api.close()


async def permits_taken(redis_url: str, code: str) -> int:
    """How many permits of the code keep others out."""
    leases = Leases(redis_url, timeout_ms=5_000)
    peek = await leases.peek(code, unique("somebody"))
    await leases.close()
    return peek.others


async def test_the_permit_of_an_abandoned_lock_is_given_back(
    stopping: Stopping, redis_url: str
) -> None:
    """One that could not be recorded, so that nobody holds it."""
    api = stopping.api
    code = locking_code(api)
    with mock.patch.object(executor, "apply", side_effect=Contention):
        stopping.stop_at("abandon", lambda: api.lock(code, unique("user")))
    assert await permits_taken(redis_url, code) == 0


async def test_a_lock_that_was_redeemed_with_its_token_is_used_up(
    stopping: Stopping, redis_url: str
) -> None:
    api = stopping.api
    code, user = locking_code(api, uses=2), unique("user")
    token = api.lock(code, user).lock_token
    assert await permits_taken(redis_url, code) == 1
    stopping.stop_at("release", lambda: api.redeem(code, user, lock_token=token))
    assert await permits_taken(redis_url, code) == 0


@pytest.mark.parametrize("step", ["release_transient", "release"])
async def test_a_redemption_without_a_token_leaves_no_permit(
    stopping: Stopping, redis_url: str, step: str
) -> None:
    """Neither its own nor that of the user's lock, which it used up."""
    api = stopping.api
    code, user = locking_code(api, uses=2), unique("user")
    api.lock(code, user)
    stopping.stop_at(step, lambda: api.redeem(code, user))
    assert await permits_taken(redis_url, code) == 0
