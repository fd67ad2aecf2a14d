"""LockCode with the token of another user, such as a guest who logs in: the lock goes over."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from support.calls import extend, get_lock, locks_of
from support.service import (
    Api,
    all_at_once,
    books,
    new_codes,
    reason_of,
    redemptions,
    refused,
    unique,
)

OPTIONAL = books.LOCK_POLICY_OPTIONAL
REQUIRED = books.LOCK_POLICY_REQUIRED
HELD = redemptions.LOCK_STATE_HELD
RELEASED = redemptions.LOCK_STATE_RELEASED


def take_over(api: Api, code: str, user: str, token: str, **fields: Any) -> Any:
    """LockCode with the token of another user."""
    return api.lock(code, user, lock_token=token, **fields)


def test_the_lock_goes_over_with_its_expiry(api: Api) -> None:
    code, guest, user = api.code(lock_policy=REQUIRED), unique("guest"), unique("user")
    old = api.lock(code, guest, ttl_s=30)
    new = take_over(api, code, user, old.lock_token, ttl_s=600)
    assert not new.replayed
    assert (new.lock.user_id, new.lock.state) == (user, HELD)
    assert new.lock.expire_time == old.lock.expire_time
    assert new.lock.lock_id != old.lock.lock_id
    assert new.lock.fence > old.lock.fence
    assert get_lock(api, old.lock.lock_id).state == RELEASED
    assert locks_of(api, user_id=guest) == []
    assert locks_of(api, user_id=user) == [new.lock]
    for name in (guest, user):
        with refused("LOCK_EXPIRED" if name == guest else "LOCK_TOKEN_MISMATCH"):
            api.redeem(code, name, lock_token=old.lock_token)
    with refused("CODE_LOCKED"):
        api.lock(code, unique("another"))
    api.redeem(code, user, lock_token=new.lock_token)


def test_a_repeat_is_answered_with_the_new_token(api: Api) -> None:
    code, user = api.code(lock_policy=OPTIONAL), unique("user")
    old = api.lock(code, unique("guest"))
    request_id = unique("request")
    first = take_over(api, code, user, old.lock_token, request_id=request_id)
    again = take_over(api, code, user, old.lock_token, request_id=request_id)
    assert again.replayed
    assert (again.lock, again.lock_token) == (first.lock, first.lock_token)
    with refused("LOCK_EXPIRED"):  # another attempt, with a token that is dead
        take_over(api, code, user, old.lock_token)


def test_it_can_be_extended_and_go_on(api: Api) -> None:
    code = api.code(lock_policy=OPTIONAL)
    first = api.lock(code, unique("guest"), ttl_s=30)
    second = take_over(api, code, unique("user"), first.lock_token)
    second = extend(api, second.lock_token, ttl_s=90)
    third = take_over(api, code, unique("other"), second.lock_token)
    assert third.lock.expire_time == second.lock.expire_time
    with refused("LOCK_EXPIRED"):
        extend(api, second.lock_token)


def test_ones_own_token_changes_nothing(api: Api) -> None:
    code, user = api.code(lock_policy=OPTIONAL), unique("user")
    own = api.lock(code, user)
    again = take_over(api, code, user, own.lock_token)
    assert again.replayed
    assert again.lock == own.lock


def test_whoever_has_a_lock_on_the_code_is_answered_with_that(api: Api) -> None:
    limits = books.BookLimits(max_redemptions_per_code=2)
    code, guest, user = api.code(lock_policy=OPTIONAL, limits=limits), unique("g"), unique("u")
    of_guest, own = api.lock(code, guest), api.lock(code, user)
    assert take_over(api, code, user, of_guest.lock_token).lock == own.lock
    api.redeem(code, guest, lock_token=of_guest.lock_token)


def test_the_old_lock_stays_when_the_user_may_not_have_it(api: Api) -> None:
    names = new_codes(6)
    required = books.ASSIGNMENT_POLICY_REQUIRED
    api.book(codes=names, lock_policy=OPTIONAL, assignment_policy=required)
    guest, user = unique("guest"), unique("user")
    api.assign(names[0], guest)
    old = api.lock(names[0], guest)
    with refused("CODE_NOT_ASSIGNED_TO_USER"):
        take_over(api, names[0], user, old.lock_token)
    with refused("LOCK_TOKEN_MISMATCH"):
        take_over(api, names[0], user, old.lock_token[:-2] + "xx")
    api.redeem(names[0], guest, lock_token=old.lock_token)


def test_the_old_lock_stays_when_the_user_has_too_many(api: Api) -> None:
    names = new_codes(6)
    api.book(codes=names, lock_policy=OPTIONAL)
    guest, user = unique("guest"), unique("user")
    old = api.lock(names[5], guest)
    held = [api.lock(code, user) for code in names[:5]]
    with refused("LOCK_LIMIT_EXCEEDED"):
        take_over(api, names[5], user, old.lock_token)
    # The permit went back: nobody else gets in, and the guest does.
    with refused("CODE_LOCKED"):
        api.redeem(names[5], unique("another"))
    assert locks_of(api, user_id=guest) == [old.lock]
    api.unlock(held[0].lock_token)
    new = take_over(api, names[5], user, old.lock_token)
    api.redeem(names[5], user, lock_token=new.lock_token)


def outcomes(results: list[Any]) -> Counter[str]:
    return Counter(reason_of(it) if isinstance(it, grpc.RpcError) else "OK" for it in results)


@pytest.mark.parametrize("uses", [1, 3])
def test_nobody_gets_in_while_a_lock_goes_over(api: Api, uses: int) -> None:
    limits = books.BookLimits(max_redemptions_per_code=uses)
    code = api.code(lock_policy=OPTIONAL, limits=limits)
    held = [api.lock(code, unique("guest"), ttl_s=60) for _ in range(uses)]

    def chain(of: int) -> Any:
        answer = held[of]
        for _ in range(5):
            answer = take_over(api, code, unique("user"), answer.lock_token)
        return answer

    calls: list[Callable[[], Any]] = [functools.partial(chain, of) for of in range(uses)]
    calls += [functools.partial(api.lock, code, unique("other")) for _ in range(50)]
    calls += [functools.partial(api.redeem, code, unique("other")) for _ in range(50)]
    results: list[Any] = all_at_once(calls)
    assert outcomes(results[uses:]) == {"CODE_LOCKED": 100}
    assert outcomes(results[:uses]) == {"OK": uses}
    for last in results[:uses]:
        api.redeem(code, last.lock.user_id, lock_token=last.lock_token)


def test_one_of_many_users_gets_the_lock(api: Api) -> None:
    code = api.code(lock_policy=OPTIONAL)
    old = api.lock(code, unique("guest"), ttl_s=60)
    calls = [
        functools.partial(take_over, api, code, unique("user"), old.lock_token) for _ in range(100)
    ]
    results: list[Any] = all_at_once(calls)
    found = outcomes(results)
    assert found["OK"] == 1
    assert set(found) <= {"OK", "LOCK_EXPIRED", "CODE_LOCKED"}
    (winner,) = (it for it in results if not isinstance(it, grpc.RpcError))
    api.redeem(code, winner.lock.user_id, lock_token=winner.lock_token)


def test_it_is_redeemed_by_the_old_or_by_the_new_holder(api: Api) -> None:
    for _ in range(20):
        code, guest, user = api.code(lock_policy=OPTIONAL), unique("guest"), unique("user")
        old = api.lock(code, guest, ttl_s=60)
        redeemed, taken = all_at_once(
            [
                functools.partial(api.redeem, code, guest, lock_token=old.lock_token),
                functools.partial(take_over, api, code, user, old.lock_token),
            ]
        )
        by_guest = not isinstance(redeemed, grpc.RpcError)
        by_user = not isinstance(taken, grpc.RpcError)
        assert by_guest != by_user
        if by_user:
            assert reason_of(redeemed) in ("LOCK_EXPIRED", "CODE_LOCKED")
            api.redeem(code, user, lock_token=taken.lock_token)
        assert api.get_code(code).redemption_count == 1
