"""Races at the limits of a day: they hold exactly."""

from __future__ import annotations

import functools
from typing import Any

import psycopg
import pytest
from concurrency.test_races import CALLERS, assert_conserved, outcomes
from support.calls import ALL_OR_NOTHING, batch, item
from support.invariants import assert_adds_up
from support.service import Api, ServerThread, all_at_once, books, new_codes
from support.time_zones import zone_at_noon


def book_of(api: Api, names: list[str], **limits: int) -> books.CouponBook:
    """A book with limits a day that does not end meanwhile."""
    period = books.PeriodLimits(period=books.PERIOD_DAY, time_zone=zone_at_noon(), **limits)
    return api.book(
        codes=names, period_limits=period, limits=books.BookLimits(max_redemptions_per_code=0)
    )


def adds_up(server: ServerThread, book: books.CouponBook) -> None:
    with psycopg.connect(server.database_url) as connection:
        assert_adds_up(connection, [book.book_id])


@pytest.mark.parametrize("codes", [1, CALLERS])
def test_limit_of_a_user_is_exact(api: Api, server: ServerThread, codes: int) -> None:
    names = new_codes(codes)
    book = book_of(api, names, max_redemptions_per_user=5)
    calls = [functools.partial(api.redeem, names[n % codes], "one user") for n in range(CALLERS)]
    found = outcomes(all_at_once(calls))
    assert found == {"OK": 5, "USER_PERIOD_LIMIT_EXCEEDED": CALLERS - 5}
    assert_conserved(api, book.book_id, 5)
    adds_up(server, book)


@pytest.mark.parametrize("codes", [1, CALLERS])
def test_limit_of_a_book_is_exact(api: Api, server: ServerThread, codes: int) -> None:
    names = new_codes(codes)
    book = book_of(api, names, max_redemptions=7)
    calls = [functools.partial(api.redeem, names[n % codes], f"user-{n}") for n in range(CALLERS)]
    found = outcomes(all_at_once(calls))
    assert found == {"OK": 7, "BOOK_PERIOD_LIMIT_EXCEEDED": CALLERS - 7}
    assert_conserved(api, book.book_id, 7)
    adds_up(server, book)


def test_limits_of_both_are_exact_with_batches_in_any_order(api: Api, server: ServerThread) -> None:
    names = new_codes(CALLERS)
    book = book_of(api, names, max_redemptions=30, max_redemptions_per_user=4)

    def redeem(n: int) -> Any:
        users = [f"user-{(n + step) % 10}" for step in (0, 3)]
        return batch(api, [item(names[n], users[0]), item(names[n - 1], users[1])], ALL_OR_NOTHING)

    all_at_once([functools.partial(redeem, n) for n in range(CALLERS)])
    redeemed = api.stats(book.book_id).redemption_count
    assert redeemed <= 30
    assert_conserved(api, book.book_id, redeemed)
    adds_up(server, book)


def test_what_is_rolled_back_at_the_same_time_makes_room_exactly_once(
    api: Api, server: ServerThread
) -> None:
    names = new_codes(CALLERS)
    book = book_of(api, names, max_redemptions=20)
    live = [api.redeem(it, "user").redemption.redemption_id for it in names[:20]]

    def call(n: int) -> Any:
        return api.rollback(live[n // 5]) if n % 5 == 0 else api.redeem(names[n], f"user-{n}")

    all_at_once([functools.partial(call, n) for n in range(CALLERS)])
    redeemed = api.stats(book.book_id).redemption_count
    while redeemed < 20:  # what came before the roll-backs was refused
        api.redeem(names[0], "user")
        redeemed += 1
    found = outcomes(all_at_once([lambda: api.redeem(names[0], "user")] * 10))
    assert found == {"BOOK_PERIOD_LIMIT_EXCEEDED": 10}
    assert_conserved(api, book.book_id, 20)
    adds_up(server, book)
