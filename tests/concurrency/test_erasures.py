"""A user redeems while it is erased: limits hold exactly, and nothing is lost or left over."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from typing import Any

import psycopg
import pytest
from support.calls import tried
from support.invariants import assert_adds_up
from support.service import (
    Api,
    ServerThread,
    all_at_once,
    audit,
    books,
    euros,
    new_codes,
    settings_for,
    unique,
)
from support.time_zones import zone_at_noon
from support.traces import traces_in

CALLERS = 100
LIMIT = 5


class Pair:
    """Two servers on data of their own, where nobody was erased yet."""

    def __init__(self, servers: tuple[ServerThread, ServerThread]) -> None:
        self.database_url = servers[0].database_url
        redis_url = servers[0].settings.redis_url
        assert redis_url is not None
        self.redis_url = redis_url.get_secret_value()
        self.apis = tuple(Api(it.address) for it in servers)

    def adds_up(self) -> None:
        with psycopg.connect(self.database_url) as connection:
            assert_adds_up(connection)

    def erase(self, user_id: str) -> None:
        """Until it is done, on the second server."""
        request = audit.EraseUserRequest(user_id=user_id, request_id=unique("ticket"))
        *_, last = self.apis[1].audit.EraseUser(request)
        assert last.erasure.state == audit.ERASURE_STATE_ERASED

    def beside(self, user_id: str, calls: Sequence[Callable[[], object]], times: int = 1) -> None:
        """All calls at once, while the user is erased so often."""
        eraser = threading.Thread(target=lambda: [self.erase(user_id) for _ in range(times)])
        eraser.start()
        all_at_once(calls)
        eraser.join()


@pytest.fixture
def pair(new_database: Callable[[], AbstractContextManager[str]], redis_url: str) -> Iterator[Pair]:
    with (
        new_database() as database_url,
        ServerThread(settings_for(database_url, redis_url)) as first,
        ServerThread(settings_for(database_url, redis_url)) as second,
    ):
        made = Pair((first, second))
        with closing(made.apis[0]), closing(made.apis[1]):
            yield made


def redeemed_in(api: Api, book: books.CouponBook) -> int:
    return api.stats(book.book_id).redemption_count


@pytest.mark.parametrize("codes", [1, CALLERS])
@pytest.mark.parametrize("before", [0, 1])
def test_a_limit_of_the_user_is_exact(pair: Pair, codes: int, before: int) -> None:
    """`before`: whether somebody was erased before, so that all workers know of it."""
    api, user = pair.apis[0], unique("user")
    if before:
        pair.erase(unique("somebody"))
    names = new_codes(codes)
    limits = books.BookLimits(
        max_redemptions_per_code=0,
        max_redemptions_per_user=LIMIT,
        max_redemptions_per_user_per_code=LIMIT,
    )
    period = books.PeriodLimits(
        period=books.PERIOD_MONTH,
        time_zone=zone_at_noon(),
        max_redemptions_per_user=LIMIT,
    )
    book = api.book(codes=names, limits=limits, period_limits=period)
    calls = [
        functools.partial(tried, functools.partial(pair.apis[n % 2].redeem, names[n % codes], user))
        for n in range(CALLERS)
    ]
    pair.beside(user, calls)
    pair.adds_up()
    assert redeemed_in(api, book) <= LIMIT
    all_at_once(calls)
    assert redeemed_in(api, book) == LIMIT
    pair.erase(user)
    all_at_once(calls)
    assert redeemed_in(api, book) == LIMIT
    pair.adds_up()
    pair.erase(user)
    assert traces_in(pair.database_url, pair.redis_url, [user]) == []


def test_an_order_that_others_redeem_for_is_exact(pair: Pair) -> None:
    api, user, order_id = pair.apis[0], unique("user"), unique("order")
    names = new_codes(CALLERS)
    book = api.book(
        codes=names,
        order_policy=books.ORDER_POLICY_COMBINABLE,
        discount=books.Discount(percent_off=books.PercentOff(basis_points=1_000)),
        limits=books.BookLimits(max_redemptions_per_order=8),
    )
    order: dict[str, Any] = {"order_id": order_id, "order_amount": euros(10_000)}
    for code in names[:3]:
        api.redeem(code, user, **order)
    calls = [
        functools.partial(
            tried, functools.partial(pair.apis[n % 2].redeem, names[n], unique("other"), **order)
        )
        for n in range(3, CALLERS)
    ]
    pair.beside(user, calls)
    pair.adds_up()
    all_at_once(calls)
    assert redeemed_in(api, book) == 8
    pair.adds_up()


def test_nothing_is_left_over_however_a_user_is_erased_at_once(pair: Pair) -> None:
    api, user, names = pair.apis[0], unique("user"), new_codes(40)
    api.book(
        codes=names,
        lock_policy=books.LOCK_POLICY_OPTIONAL,
        limits=books.BookLimits(max_assignments_per_user=1_000),
    )

    def call(n: int) -> str:
        api = pair.apis[n % 2]
        calls: list[Callable[[], object]] = [
            lambda: api.assign(names[n], user),
            lambda: api.lock(names[n], user),
            lambda: api.redeem(names[n], user),
            lambda: api.transfer(names[n - 1], user, unique("other")),
            lambda: api.rollback(api.redeem(names[n], user).redemption.redemption_id),
        ]
        return tried(calls[n % len(calls)])

    pair.beside(user, [functools.partial(call, n) for n in range(40)] * 2, times=3)
    pair.adds_up()
    pair.erase(user)
    pair.adds_up()
    assert traces_in(pair.database_url, pair.redis_url, [user]) == []
