"""Races of many callers for a budget: it holds exactly."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import psycopg
from support.invariants import assert_adds_up
from support.service import Api, ServerThread, all_at_once, books, euros, new_codes, reason_of

CALLERS = 100


def raced(calls: Sequence[Callable[[], object]]) -> Counter[str]:
    """How many of the calls, made at the same time, had which reason, or OK."""
    results: list[Any] = all_at_once(calls)
    return Counter(reason_of(it) if isinstance(it, grpc.RpcError) else "OK" for it in results)


def assert_conserved(server: ServerThread, *made: books.CouponBook) -> None:
    """Rows, counters and ledger of the books agree."""
    with psycopg.connect(server.database_url) as connection:
        assert_adds_up(connection, [book.book_id for book in made])


def test_budget_is_exact(api: Api, server: ServerThread) -> None:
    names = new_codes(CALLERS)
    book = api.book(codes=names, limits=books.BookLimits(max_discount_minor=799))
    calls = [functools.partial(api.redeem, it, it, order_amount=euros(1_000)) for it in names]
    assert raced(calls) == {"OK": 7, "BUDGET_EXCEEDED": CALLERS - 7}
    assert api.stats(book.book_id).discount_given.amount_minor == 700
    assert_conserved(server, book)


def test_rollbacks_and_redemptions_never_exceed_the_budget(api: Api, server: ServerThread) -> None:
    names = new_codes(CALLERS)
    book = api.book(codes=names, limits=books.BookLimits(max_discount_minor=500))

    def redeem_and_roll_back(n: int) -> str:
        try:
            redeemed = api.redeem(names[n], "user", order_amount=euros(1_000)).redemption
        except grpc.RpcError as error:
            return reason_of(error)
        if n % 2:
            api.rollback(redeemed.redemption_id)
            return "ROLLED_BACK"
        return "OK"

    found = Counter(
        all_at_once([functools.partial(redeem_and_roll_back, n) for n in range(CALLERS)])
    )
    assert found["OK"] <= 5
    assert found.keys() <= {"OK", "ROLLED_BACK", "BUDGET_EXCEEDED"}
    assert api.stats(book.book_id).discount_given.amount_minor == 100 * found["OK"]
    assert_conserved(server, book)
