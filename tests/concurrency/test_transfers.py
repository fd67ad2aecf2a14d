"""Races of codes that are handed over: with each other, with redemptions, and with revocations."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import psycopg
import pytest
from support.invariants import assert_adds_up
from support.service import Api, ServerThread, all_at_once, books, new_codes, reason_of, unique

CALLERS = 100
REQUIRED = books.ASSIGNMENT_POLICY_REQUIRED


def outcomes(results: Sequence[Any]) -> Counter[str]:
    """The number of results with each reason, or OK."""
    return Counter(reason_of(it) if isinstance(it, grpc.RpcError) else "OK" for it in results)


def assert_book_adds_up(server: ServerThread, book_id: str) -> None:
    """Rows, counters and ledger of the book agree."""
    url = server.settings.database_url
    assert url is not None
    with psycopg.connect(url.get_secret_value()) as connection:
        assert_adds_up(connection, [book_id])


@pytest.fixture
def giver() -> str:
    return unique("giver")


def test_one_of_many_receivers_gets_a_code(api: Api, server: ServerThread, giver: str) -> None:
    (code,) = new_codes(1)
    limits = books.BookLimits(max_redemptions_per_code=1, max_assignments_per_user=1)
    book = api.book(codes=[code], limits=limits)
    api.assign(code, giver)
    results = all_at_once(
        [functools.partial(api.transfer, code, giver, f"{giver} {n}") for n in range(CALLERS)]
    )
    assert outcomes(results) == {"OK": 1, "ASSIGNMENT_NOT_ACTIVE": CALLERS - 1}
    assert api.get_code(code).assignment_count == 1
    assert_book_adds_up(server, book.book_id)


def test_a_receiver_gets_as_many_codes_as_the_limit_says(
    api: Api, server: ServerThread, giver: str
) -> None:
    names = new_codes(CALLERS)
    book = api.book(codes=names, limits=books.BookLimits(max_assignments_per_user=3))
    for number, code in enumerate(names):
        api.assign(code, f"{giver} {number}")
    receiver = unique("receiver")
    results = all_at_once(
        [
            functools.partial(api.transfer, code, f"{giver} {number}", receiver)
            for number, code in enumerate(names)
        ]
    )
    assert outcomes(results) == {"OK": 3, "USER_LIMIT_EXCEEDED": CALLERS - 3}
    assert_book_adds_up(server, book.book_id)


@pytest.mark.parametrize("lock_policy", [books.LOCK_POLICY_OFF, books.LOCK_POLICY_OPTIONAL])
def test_a_code_is_redeemed_revoked_or_handed_over(
    api: Api, server: ServerThread, giver: str, lock_policy: books.LockPolicy
) -> None:
    names = new_codes(CALLERS // 4)
    book = api.book(codes=names, assignment_policy=REQUIRED, lock_policy=lock_policy)
    for code in names:
        api.assign(code, giver)
    receiver = unique("receiver")
    calls: list[Callable[[], object]] = []
    for code in names:
        calls += [
            functools.partial(api.redeem, code, giver),
            functools.partial(api.transfer, code, giver, receiver),
            functools.partial(api.revoke, code, giver),
            functools.partial(api.redeem, code, receiver),
        ]
    results = all_at_once(calls)
    for at, code in enumerate(names):
        found = [
            "OK" if not isinstance(it, grpc.RpcError) else reason_of(it)
            for it in results[4 * at : 4 * at + 4]
        ]
        by_giver, handed_over, revoked, by_receiver = (it == "OK" for it in found)
        # One of these three; the receiver can redeem only what was handed over.
        assert by_giver + handed_over + revoked == 1, found
        assert not by_receiver or handed_over, found
        uses = by_giver + by_receiver
        assert api.get_code(code).redemption_count == uses
    assert_book_adds_up(server, book.book_id)
