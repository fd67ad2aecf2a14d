"""Races of codes that go to another book: with redemptions, their repeats, roll-backs and locks."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from functools import partial
from typing import Any

import grpc
import psycopg
import pytest
from support.invariants import assert_adds_up
from support.service import (
    BUSINESS,
    Api,
    ServerThread,
    all_at_once,
    books,
    codes,
    new_codes,
    reason_of,
    settings_for,
    unique,
)

from coupon_service.store import finishing

pytestmark = pytest.mark.one_shard  # some begin before codes are unique within their business

NAMES = 5
USERS = ("ann", "bob", "cid")


@pytest.fixture(scope="module", params=["books of now", "a book of before"])
def api(
    request: pytest.FixtureRequest,
    new_database: Callable[[], AbstractContextManager[str]],
    redis_server_url: str,
) -> Iterator[Callable[[], tuple[Api, str, list[str]]]]:
    """A client, and an active book with codes; its codes are unique over all businesses where it is
    of before."""
    with new_database() as database_url:
        settings = settings_for(database_url, redis_server_url, locks_per_user_max=100)
        with ServerThread(settings) as running, closing(Api(running.address)) as api:
            made = [book_with_codes(api) for _ in range(2)] if "before" in request.param else []
            list(finishing.finish(database_url))
            yield lambda: (api, *(made.pop() if made else book_with_codes(api)))
            with psycopg.connect(database_url) as connection:
                assert_adds_up(connection)


POLICY = {"lock_policy": books.LOCK_POLICY_OPTIONAL, "business_id": BUSINESS or "shop"}


def book_with_codes(api: Api) -> tuple[str, list[str]]:
    names = new_codes(NAMES)
    return api.book(codes=names, **POLICY).book_id, names


def reuse(api: Api, before: str, after: str, names: list[str]) -> int:
    """Closes a book while its codes are used, and imports them into the other one."""
    api.close_book(before)
    (result,) = api.import_codes(after, names)
    return result.created_count


def settled(call: Callable[[], Any]) -> Any:
    """The answer, or the reason, after as many tries as it takes to know it."""
    while True:
        try:
            return call()
        except grpc.RpcError as error:
            if reason_of(error) not in ("CONTENTION", "OVERLOADED", "DATABASE_UNAVAILABLE"):
                return reason_of(error)


def code_in(api: Api, code: str, book_id: str) -> codes.CouponCode:
    return api.codes.GetCode(codes.GetCodeRequest(code=code, book_id=book_id)).coupon_code


@pytest.mark.parametrize("another", range(2))
def test_each_attempt_is_made_once_in_whatever_book(
    api: Callable[[], tuple[Api, str, list[str]]], another: int
) -> None:
    client, before, names = api()
    after = client.book(**POLICY).book_id
    undone = {names[0]: client.redeem(names[0], "dan").redemption.redemption_id}
    attempts = [
        partial(client.redeem, name, user, request_id=unique("request"))
        for name in names
        for user in USERS
    ]
    locks = [
        partial(client.lock, name, "eve", request_id=unique("request"))
        for name in names
        for _ in range(2)
    ]
    rollbacks = [partial(client.rollback, it) for it in undone.values()] * 9
    calls: list[Callable[[], object]] = [*attempts * 4, *locks * 3]
    calls[len(calls) // 2 : len(calls) // 2] = [
        partial(reuse, client, before, after, names),
        *rollbacks,
    ]
    results = dict[int, Any](enumerate(all_at_once([partial(settled, it) for it in calls])))
    assert NAMES in results.values()
    numbers = {id(it): number for number, it in enumerate(attempts)}
    first: dict[int, Any] = {}
    for at, call in enumerate(calls):
        number = numbers.get(id(call))
        if number is not None and not isinstance(results[at], str):
            first.setdefault(number, results[at].redemption)
    for lock in (it for it in results.values() if hasattr(it, "lock_token")):
        settled(partial(client.unlock, lock.lock_token))
    uses: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for at, attempt in enumerate(attempts):
        again = settled(attempt)
        if at in first:
            assert again.replayed
            assert again.redemption == first[at]
        if not isinstance(again, str):
            uses[again.redemption.code][again.redemption.book_id] += 1
    for name in names:
        assert uses[name][after] == 1
        assert uses[name][before] <= 1
        for book_id in (before, after):
            assert code_in(client, name, book_id).redemption_count == uses[name][book_id]
    assert Counter(it == "ALREADY_ROLLED_BACK" for it in map(settled, rollbacks)) == {True: 9}
