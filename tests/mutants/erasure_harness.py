"""What has to catch the mutants of what is left of erased users."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
from mutants.harness import Stack
from support.calls import tried
from support.person import erase, pseudonym_of
from support.service import books, euros, new_codes, unique
from support.traces import traces_in
from support.waiting import until

ONCE = books.BookLimits(max_redemptions_per_user=1)


def limit_that_was_used_before(it: Stack) -> None:
    """Who comes again finds a limit as it was left."""
    api, user, names = it.apis[0], unique("user"), new_codes(2)
    api.book(codes=names, limits=ONCE)
    api.redeem(names[0], user)
    erase(api, user)
    found = tried(lambda: api.redeem(names[1], user))
    assert found == "USER_LIMIT_EXCEEDED", found
    it.conserved()


def order_of_an_erased_user(it: Stack) -> None:
    """An order has what an erased user has redeemed for it."""
    api, names = it.apis[0], new_codes(2)
    api.book(
        codes=names,
        order_policy=books.ORDER_POLICY_COMBINABLE,
        limits=books.BookLimits(max_redemptions_per_order=1),
    )
    order: dict[str, Any] = {"order_id": unique("order"), "order_amount": euros(1_000)}
    user = unique("user")
    api.redeem(names[0], user, **order)
    erase(api, user)
    found = tried(lambda: api.redeem(names[1], unique("other"), **order))
    assert found == "ORDER_LIMIT_EXCEEDED", found
    it.conserved()


def repeat_of_before(it: Stack) -> None:
    """A repeat of a request of before says that its user was erased."""
    api, user, request_id = it.apis[0], unique("user"), unique("request")
    code = api.code()
    redeem = functools.partial(api.redeem, code, user, request_id=request_id)
    redeem()
    erase(api, user)
    found = tried(redeem)
    assert found == "USER_ERASED", found


def redemption_of_who_is_being_erased(it: Stack) -> None:
    """It is refused, and nothing is written."""
    api, user, code = it.apis[0], unique("user"), it.apis[0].code()
    erase(api, user)
    name = pseudonym_of(api, user)
    change = "UPDATE coupon_erased_users SET state = %s WHERE pseudonym = %s"
    with psycopg.connect(it.database_url, autocommit=True) as connection:
        connection.execute(change, [2, name])
        try:
            found = tried(lambda: api.redeem(code, user))
        finally:
            connection.execute(change, [3, name])
    assert found == "ERASURE_IN_PROGRESS", found


IN_A_TRANSACTION = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND state = 'idle in transaction'
"""


def redemption_beside_the_first_erasure(it: Stack) -> None:
    """Whoever began before anybody was erased does not get past a limit that was used up."""
    api, user, names = it.apis[0], unique("user"), new_codes(2)
    api.book(codes=names, limits=ONCE)
    api.redeem(names[0], user)
    with (
        psycopg.connect(it.database_url, autocommit=True) as connection,
        ThreadPoolExecutor(1) as helper,
    ):
        connection.execute("DELETE FROM coupon_erased_users")
        tried(lambda: api.redeem(names[0], unique("other")))  # which finds that nobody was
        call = helper.submit(lambda: tried(lambda: api.redeem(names[1], user)))
        until(lambda: call.done() or connection.execute(IN_A_TRANSACTION).fetchone() != (0,))
        erase(it.apis[1], user)
        found = call.result()
    assert found in {"USER_LIMIT_EXCEEDED", "ERASURE_IN_PROGRESS"}, found
    it.conserved()


def lock_of_who_is_erased(it: Stack) -> None:
    """Nothing that Redis has names the user any more."""
    api, user = it.apis[0], unique("user")
    code = api.code(lock_policy=books.LOCK_POLICY_OPTIONAL)
    api.lock(code, user)
    erase(api, user)
    found = traces_in(it.database_url, it.redis_url, [user])
    assert not found, found
