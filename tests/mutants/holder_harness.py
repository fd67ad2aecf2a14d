"""What has to catch the mutants of what goes from one holder to another."""

# pyright: reportPrivateUsage=false, reportUnknownMemberType=false

from __future__ import annotations

from datetime import timedelta
from typing import Any
from unittest import mock

import redis
from mutants.harness import Stack
from support.calls import tried
from support.service import assignments, books, codes, unique

OPTIONAL = books.LOCK_POLICY_OPTIONAL
VALIDITY = timedelta(minutes=1)
SEVERAL = books.BookLimits(max_redemptions_per_code=5)


def forget_all_locks(it: Stack) -> None:
    """Redis has lost its data, but for the clock."""
    with redis.Redis.from_url(it.redis_url) as client:
        names: Any = client.keys("coupon:*")
        if names:
            client.delete(*names)


def guest_who_logs_in(it: Stack) -> None:
    """The token of a lock that went over is dead, also when Redis has forgotten everything."""
    api = it.apis[0]
    code, guest, user = api.code(lock_policy=OPTIONAL, limits=SEVERAL), unique("g"), unique("u")
    old = api.lock(code, guest)
    new = api.lock(code, user, lock_token=old.lock_token)
    forget_all_locks(it)
    reason = tried(lambda: api.redeem(code, guest, lock_token=old.lock_token))
    assert reason == "LOCK_EXPIRED", reason
    assert tried(lambda: api.redeem(code, user, lock_token=new.lock_token)) == "OK"
    it.conserved()


def gift_that_is_locked(it: Stack) -> None:
    """A lock of the giver keeps a code, whatever Redis knows, unless its token is given."""
    api = it.apis[0]
    code, giver = api.code(lock_policy=OPTIONAL, limits=SEVERAL), unique("giver")
    api.assign(code, giver)
    token = api.lock(code, giver).lock_token
    forget_all_locks(it)
    assert tried(lambda: api.transfer(code, giver, "bob")) == "CODE_LOCKED"
    assert tried(lambda: api.transfer(code, giver, "bob", lock_token=token)) == "OK"
    forget_all_locks(it)
    assert tried(lambda: api.redeem(code, giver, lock_token=token)) == "LOCK_EXPIRED"
    it.conserved()


def gift_that_was_used(it: Stack) -> None:
    """What the giver has redeemed stays the giver's, and the end of the code where it was."""
    api = it.apis[0]
    code, giver, receiver = (
        api.code(limits=SEVERAL, assigned_code_validity=VALIDITY),
        unique("giver"),
        unique("receiver"),
    )
    given = api.assign(code, giver).assignment
    redeemed = api.redeem(code, giver).redemption
    it.clock.advance(1_000)
    received = api.transfer(code, giver, receiver).assignment
    assert received.redemption_count == 0, received
    assert received.expire_time == given.expire_time, received
    api.rollback(redeemed.redemption_id)
    it.conserved()


def code_that_was_let_expire(it: Stack) -> None:
    """A code goes back when every lock that was taken in time is over, if it was not redeemed."""
    api, server = it.apis[0], it.servers[0]
    sweeper = server.server.shards[0].pool_sweeper
    book = api.book(
        codes=2,
        limits=SEVERAL,
        lock_policy=OPTIONAL,
        assignment_policy=books.ASSIGNMENT_POLICY_REQUIRED,
        assigned_code_validity=VALIDITY,
        return_to_pool=True,
    )
    used, unused = (api.assign_random(book.book_id, user).assignment.code for user in ("a", "b"))
    api.redeem(used, "a")

    def available() -> list[str]:
        with mock.patch.object(sweeper._reads, "my_turn", return_value=True):
            server.run(sweeper.sweep())
        state = codes.COUPON_CODE_STATE_AVAILABLE
        return [it for it in (used, unused) if api.get_code(it).state == state]

    settings = server.settings
    it.clock.advance(60_000 + settings.lock_ttl_max_ms + settings.lock_grace_ms - 1)
    assert available() == []
    it.clock.advance(1)
    assert available() == [unused]
    gone = api.assignments.ListUserCoupons(assignments.ListUserCouponsRequest(user_id="b"))
    assert gone.coupons[0].assignment.state == assignments.ASSIGNMENT_STATE_REVOKED
    it.conserved()
