"""What a lock, and a redemption with its token, wait for, and what waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import Any
from unittest import mock

import pytest
from support.calls import (
    ALL_OR_NOTHING,
    BEST_EFFORT,
    batch,
    item,
    locking_code,
    locks_of,
    outcomes_of,
    tried,
)
from support.service import Api, ServerThread, books, new_codes, refused, unique
from support.waiting import until
from support.work_done import work_done

from coupon_service.leases import Leases

PATIENCE_S = 10
LOCKS_OF_A_USER = 5


@contextmanager
def held_up(step: str) -> Generator[tuple[Event, Event]]:
    """Redis does not answer to a step of leases: events that it was asked, and that lets it go
    on."""
    asked, go_on = Event(), Event()
    real: Any = getattr(Leases, step)

    async def patched(leases: Leases, *arguments: Any, **named: Any) -> Any:
        asked.set()
        await asyncio.to_thread(go_on.wait, PATIENCE_S)
        return await real(leases, *arguments, **named)

    with mock.patch.object(Leases, step, patched):
        try:
            yield asked, go_on
        finally:
            go_on.set()


@contextmanager
def begun(call: Callable[[], Any]) -> Generator[Future[Any]]:
    """A call that goes on in a thread of its own."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(call)


# --- round trips --------------------------------------------------------------------------------


def test_a_lock_is_one_transaction_in_which_redis_is_asked_once(
    api: Api, server: ServerThread
) -> None:
    code, user = locking_code(api), unique("user")
    api.lock(locking_code(api), user)
    with work_done(server) as work:
        _, steps = work.of(lambda: api.lock(code, user))
    trips = [it for it in steps if it in ("BEGIN", "round trip", "COMMIT")]
    assert trips == ["BEGIN", "round trip", "COMMIT", "round trip"]
    after_look = steps[steps.index("round trip") :]
    assert "redis" in after_look[: after_look.index("COMMIT")]
    assert "redis" not in steps[: steps.index("round trip")]


def test_a_redemption_with_a_token_takes_no_more_trips_than_one_without(
    api: Api, server: ServerThread
) -> None:
    def trips() -> int:
        code, user = locking_code(api), unique("user")
        token = api.lock(code, user).lock_token
        _, steps = work.of(lambda: api.redeem(code, user, lock_token=token))
        assert "redis" in steps[: steps.index("COMMIT")]
        return steps.count("round trip")

    with work_done(server) as work:
        until(lambda: trips() == 2)  # a Redis that is slower than PostgreSQL costs more


# --- a silent Redis -----------------------------------------------------------------------------


def test_a_silent_redis_keeps_no_row_locked(api: Api) -> None:
    code, user, another = locking_code(api, uses=3), unique("user"), unique("another")
    token = api.lock(code, another).lock_token
    with held_up("acquire_each") as (asked, go_on), begun(lambda: api.lock(code, user)) as locking:
        assert asked.wait(PATIENCE_S)
        api.redeem(code, another, lock_token=token)
        api.disable(code)
        api.enable(code)
        assert not locking.done()
        go_on.set()
        held = locking.result()
    assert [it.lock_id for it in locks_of(api, user_id=user)] == [held.lock.lock_id]
    api.redeem(code, user, lock_token=held.lock_token)


def test_a_permit_that_comes_too_late_is_given_back_when_it_does_not_fit_any_more(api: Api) -> None:
    code, user = locking_code(api, uses=2), unique("user")
    tokens = {it: api.lock(code, it).lock_token for it in (unique("one"), unique("two"))}
    with held_up("acquire_each") as (asked, go_on), begun(lambda: api.lock(code, user)) as locking:
        assert asked.wait(PATIENCE_S)
        for holder, token in tokens.items():
            api.redeem(code, holder, lock_token=token)
        go_on.set()
        with refused("CODE_LIMIT_EXCEEDED"):
            locking.result()
    assert locks_of(api, user_id=user) == []


def test_a_redemption_is_decided_with_what_redis_says_too_late_for_its_rows(api: Api) -> None:
    code, user = locking_code(api, uses=2), unique("user")
    token = api.lock(code, user).lock_token
    with (
        held_up("admit") as (asked, go_on),
        begun(lambda: api.redeem(code, user, lock_token=token)) as redeeming,
    ):
        assert asked.wait(PATIENCE_S)
        api.disable(code)
        api.enable(code)  # the row is not locked
        assert not redeeming.done()
        api.redeem(code, unique("another"))
        go_on.set()
        assert redeeming.result().redemption.lock_id
    assert api.get_code(code).redemption_count == 2


@pytest.mark.parametrize("mode", [BEST_EFFORT, ALL_OR_NOTHING])
def test_a_lock_that_redis_calls_gone_too_late_is_refused(api: Api, mode: Any) -> None:
    code, user = locking_code(api, uses=2), unique("user")
    held = api.lock(code, user)
    items = [item(code, user, lock_token=held.lock_token)]
    with (
        held_up("admit") as (asked, go_on),
        begun(lambda: batch(api, items, mode)) as redeeming,
    ):
        assert asked.wait(PATIENCE_S)
        api.unlock(held.lock_token)
        go_on.set()
        assert outcomes_of(redeeming.result()) == ["LOCK_EXPIRED"]
    assert api.get_code(code).redemption_count == 0


# --- permits on their way back ------------------------------------------------------------------


def test_nobody_waits_for_a_permit_that_keeps_nobody_out(api: Api) -> None:
    for uses in (1, 0):
        code, user = locking_code(api, uses=uses), unique("user")
        token = api.lock(code, user).lock_token
        with held_up("release") as (asked, go_on):
            api.redeem(code, user, lock_token=token)
            assert asked.wait(PATIENCE_S)
            assert not go_on.is_set()
            expected = "OK" if uses == 0 else "CODE_ALREADY_REDEEMED"
            for who in (user, unique("another")):
                assert tried(lambda code=code, who=who: api.lock(code, who)) == expected


def test_a_redemption_waits_for_its_permit_where_it_would_keep_somebody_out(api: Api) -> None:
    code, user = locking_code(api, uses=2), unique("user")
    token = api.lock(code, user).lock_token
    with (
        held_up("release") as (asked, go_on),
        begun(lambda: api.redeem(code, user, lock_token=token)) as redeeming,
    ):
        assert asked.wait(PATIENCE_S)
        assert not redeeming.done()
        go_on.set()
        redeeming.result()
    api.lock(code, unique("another"))


def test_a_lock_whose_permit_is_on_its_way_back_is_none_of_those_that_a_user_may_have(
    api: Api,
) -> None:
    *names, last, none = new_codes(LOCKS_OF_A_USER + 2)
    limits = books.BookLimits(max_redemptions_per_code=1)
    api.book(codes=[*names, last, none], lock_policy=books.LOCK_POLICY_OPTIONAL, limits=limits)
    user = unique("user")
    tokens = [api.lock(code, user).lock_token for code in names]
    with refused("LOCK_LIMIT_EXCEEDED"):
        api.lock(last, user)
    with held_up("release") as (asked, _):
        api.redeem(names[0], user, lock_token=tokens[0])
        assert asked.wait(PATIENCE_S)
        api.lock(last, user)
        with refused("LOCK_LIMIT_EXCEEDED"):
            api.lock(none, user)
    until(lambda: len(locks_of(api, user_id=user)) == LOCKS_OF_A_USER)
