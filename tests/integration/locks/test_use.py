"""What a lock is good for: redeeming with it, showing its token, making it last longer."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest
from grpc import StatusCode
from support.calls import about, extend, get_lock, locking_code, locks_of, ttl_s
from support.service import Api, audit, books, new_codes, redemptions, refused, unique

from coupon_service.leases import Leases, TransientResult
from coupon_service.locks.token import sign, verify

OFF = books.LOCK_POLICY_OFF
OPTIONAL = books.LOCK_POLICY_OPTIONAL
REQUIRED = books.LOCK_POLICY_REQUIRED
HELD = redemptions.LOCK_STATE_HELD

PATIENCE_S = 10

UNKNOWN_ID = "00000000-0000-4000-8000-000000000000"


# --- redeeming with one -------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [OPTIONAL, REQUIRED])
def test_a_redemption_uses_its_lock_up(api: Api, policy: books.LockPolicy.ValueType) -> None:
    code, user = locking_code(api, uses=2, lock_policy=policy), unique("user")
    held = api.lock(code, user)
    redeemed = api.redeem(code, user, lock_token=held.lock_token)
    assert redeemed.redemption.lock_id == held.lock.lock_id
    event = api.events(code=code)[-1]
    assert (event.lock_id, event.fence) == (held.lock.lock_id, held.lock.fence)
    assert get_lock(api, held.lock.lock_id).state == redemptions.LOCK_STATE_REDEEMED
    assert locks_of(api, user_id=user) == []
    with refused("LOCK_EXPIRED", StatusCode.FAILED_PRECONDITION):
        api.redeem(code, user, lock_token=held.lock_token)
    assert api.get_code(code).redemption_count == 1
    newer = api.lock(code, user)
    assert newer.lock.fence > held.lock.fence
    api.redeem(code, user, lock_token=newer.lock_token)


def test_a_book_can_require_a_lock(api: Api) -> None:
    code, user = locking_code(api, lock_policy=REQUIRED), unique("user")
    api.lock(code, user)
    with refused("LOCK_REQUIRED", StatusCode.FAILED_PRECONDITION):
        api.redeem(code, user)


def test_the_holder_who_redeems_without_its_token_uses_its_lock_up(api: Api) -> None:
    code, user = locking_code(api, uses=2), unique("user")
    held = api.lock(code, user)
    redeemed = api.redeem(code, user).redemption
    assert redeemed.lock_id == held.lock.lock_id
    assert get_lock(api, held.lock.lock_id).state == redemptions.LOCK_STATE_REDEEMED
    assert locks_of(api, user_id=user) == []
    with refused("LOCK_EXPIRED"):
        api.redeem(code, user, lock_token=held.lock_token)
    api.redeem(code, "another")  # there is no permit left that nobody uses


def test_whoever_redeems_without_a_token_gets_no_lock_beside_it(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, user = locking_code(api, uses=3), unique("user")
    placed, go_on = Event(), Event()
    acquire_transient = Leases.acquire_transient

    async def held_up(
        leases: Leases, code: str, attempt_id: str, user_id: str, ttl_ms: int
    ) -> TransientResult:
        permit = await acquire_transient(leases, code, attempt_id, user_id, ttl_ms)
        placed.set()
        await asyncio.to_thread(go_on.wait, PATIENCE_S)
        return permit

    monkeypatch.setattr(Leases, "acquire_transient", held_up)
    with ThreadPoolExecutor(1) as another:
        redeeming = another.submit(api.redeem, code, user)
        assert placed.wait(PATIENCE_S)
        try:
            with refused("CODE_LOCKED", StatusCode.FAILED_PRECONDITION) as refusal:
                api.lock(code, user)
        finally:
            go_on.set()
        redeeming.result()
    assert 0 < int(refusal.metadata["retry_after_ms"]) <= PATIENCE_S * 1_000
    monkeypatch.undo()
    held = api.lock(code, user)
    redeemed = api.redeem(code, user)
    assert redeemed.redemption.lock_id == held.lock.lock_id


def test_a_lock_is_not_held_again_after_its_redemption_was_rolled_back(api: Api) -> None:
    code, user = locking_code(api), unique("user")
    held = api.lock(code, user)
    redeemed = api.redeem(code, user, lock_token=held.lock_token).redemption
    api.rollback(redeemed.redemption_id)
    assert get_lock(api, held.lock.lock_id).state == redemptions.LOCK_STATE_REDEEMED
    with refused("LOCK_EXPIRED"):
        api.redeem(code, user, lock_token=held.lock_token)
    api.redeem(code, "another")


def test_a_lock_is_no_claim_on_a_disabled_code(api: Api) -> None:
    code, user = locking_code(api), unique("user")
    token = api.lock(code, user).lock_token
    api.disable(code)
    with refused("CODE_DISABLED"):
        api.redeem(code, user, lock_token=token)
    api.enable(code)
    api.redeem(code, user, lock_token=token)


def test_a_token_is_for_one_code_and_one_user(api: Api) -> None:
    code, other = new_codes(2)
    api.book(codes=[code, other], lock_policy=OPTIONAL)
    user, another = unique("user"), unique("another")
    token = api.lock(code, user).lock_token
    for where, who in ((other, user), (code, another)):
        with refused("LOCK_TOKEN_MISMATCH", StatusCode.FAILED_PRECONDITION):
            api.redeem(where, who, lock_token=token)
    api.redeem(code, user, lock_token=token)


def test_a_token_that_was_altered_or_made_by_others_proves_nothing(api: Api) -> None:
    code, user = locking_code(api), unique("user")
    token = api.lock(code, user).lock_token
    claims = verify(token, [b"only the tests sign with this one"])
    altered = [f"{token[:n]}{'A' if token[n] != 'A' else 'B'}{token[n + 1 :]}" for n in (0, 40, -1)]
    forged = sign(claims, b"somebody else's secret")
    for bad in (*altered, token[:-1], token + "A", forged, "nonsense", "ä" * 10, "x" * 5_000):
        for call in (
            lambda bad=bad: api.redeem(code, user, lock_token=bad),
            lambda bad=bad: extend(api, bad),
            lambda bad=bad: api.unlock(bad),
        ):
            with refused("LOCK_TOKEN_MISMATCH"):
                call()
    assert [it.state for it in locks_of(api, user_id=user)] == [HELD]
    api.redeem(code, user, lock_token=token)


# --- extending one ------------------------------------------------------------------------------


def test_a_lock_is_extended_three_times(api: Api) -> None:
    code, user = locking_code(api), unique("user")
    held = api.lock(code, user, ttl_s=10)
    answers: list[Any] = [held]
    for seconds in (20, 30, 40):
        answers.append(extend(api, answers[-1].lock_token, ttl_s=seconds))
    assert [ttl_s(it.lock) for it in answers] == [about(s) for s in (10, 20, 30, 40)]
    assert {(it.lock.lock_id, it.lock.fence, it.lock.state) for it in answers} == {
        (held.lock.lock_id, held.lock.fence, HELD)
    }
    assert len({it.lock_token for it in answers}) == 4
    last = answers[-1]
    assert get_lock(api, held.lock.lock_id) == last.lock
    with refused("LOCK_LIMIT_EXCEEDED", StatusCode.FAILED_PRECONDITION) as it:
        extend(api, last.lock_token, ttl_s=50)
    assert it.metadata == {"limit": "3"}
    assert get_lock(api, held.lock.lock_id) == last.lock
    events = api.events(code=code, types=[audit.AUDIT_EVENT_TYPE_LOCK_EXTENDED])
    assert [event.expire_time for event in events] == [it.lock.expire_time for it in answers[1:]]
    assert {event.lock_id for event in events} == {held.lock.lock_id}
    api.redeem(code, user, lock_token=last.lock_token)


def test_an_extension_never_makes_a_lock_shorter(api: Api) -> None:
    held = api.lock(locking_code(api), unique("user"), ttl_s=60)
    assert extend(api, held.lock_token, ttl_s=5).lock.expire_time == held.lock.expire_time


def test_the_old_token_of_an_extended_lock_is_good_until_its_time(api: Api) -> None:
    code, user = locking_code(api), unique("user")
    held = api.lock(code, user, ttl_s=30)
    extend(api, held.lock_token, ttl_s=60)
    api.redeem(code, user, lock_token=held.lock_token)


def test_a_lock_that_has_ended_cannot_be_extended(api: Api) -> None:
    for redeemed in (True, False):
        code, user = locking_code(api), unique("user")
        token = api.lock(code, user).lock_token
        if redeemed:
            api.redeem(code, user, lock_token=token)
        else:
            api.unlock(token)
        with refused("LOCK_EXPIRED", StatusCode.FAILED_PRECONDITION):
            extend(api, token)
