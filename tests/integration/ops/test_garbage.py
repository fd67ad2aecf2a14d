"""What calls leave in memory."""

from __future__ import annotations

import gc
from types import FunctionType
from typing import Any

from grpc import StatusCode
from support.calls import extend, get_lock, locking_code, locks_of
from support.service import Api, books, refused, unique

CALLS = 5


def test_calls_leave_nothing_of_ours_that_only_the_collector_can_free(api: Api) -> None:
    # grpc.aio leaves some: the function that looks for the handler of a call.
    def shop() -> None:
        code, user = locking_code(api, uses=3, lock_policy=books.LOCK_POLICY_OPTIONAL), unique("u")
        for _ in range(CALLS):
            held = extend(api, api.lock(code, user).lock_token)
            get_lock(api, held.lock.lock_id)
            assert locks_of(api, user_id=user)
            api.validate(code, user)
            api.unlock(held.lock_token)
            with refused("LOCK_EXPIRED", StatusCode.FAILED_PRECONDITION):
                api.redeem(code, user, lock_token=held.lock_token)
            done = api.redeem(code, user)
            api.rollback(done.redemption.redemption_id)

    shop()
    gc.collect()
    gc.disable()
    try:
        shop()
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found = set(map(_name, gc.garbage))
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not {it for it in found if it.startswith("coupon_service.")}


def _name(it: object) -> str:
    named: Any = it if isinstance(it, FunctionType) else type(it)
    return f"{named.__module__}.{named.__qualname__}"
