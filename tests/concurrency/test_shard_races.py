"""Races in several shards at once: what holds for a code, a user, a book and a request_id holds in
each of them by itself, where all have codes, users and request_ids of the same names.

All other races run on shards with `COUPON_TEST_SHARDS=4`.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import grpc
import psycopg
import pytest
from support.calls import batch, item, outcomes_of
from support.invariants import assert_adds_up
from support.service import Api, ServerThread, all_at_once, books, new_codes, reason_of, unique

CALLERS = 25
"""Of each business."""


@contextmanager
def conserved(server: ServerThread) -> Generator[Api]:
    """A client, after whose calls rows, counters and ledger agree in each shard."""
    with closing(Api(server.address)) as api:
        yield api
    with psycopg.connect(server.database_url) as connection:
        assert_adds_up(connection)


def raced(
    businesses: Sequence[str], call: Callable[[str, int], object]
) -> list[tuple[Counter[str], list[Any]]]:
    """What became of so many calls for each business, all at the same time, by turns: how many were
    refused for which reason, or OK, and the answers."""
    calls = [functools.partial(call, it, n) for n in range(CALLERS) for it in businesses]
    results = all_at_once(calls)
    found: list[tuple[Counter[str], list[Any]]] = []
    for place in range(len(businesses)):
        own = results[place :: len(businesses)]
        reasons = Counter(reason_of(it) if isinstance(it, grpc.RpcError) else "OK" for it in own)
        found.append((reasons, [it for it in own if not isinstance(it, grpc.RpcError)]))
    return found


@pytest.mark.parametrize("lock_policy", [books.LOCK_POLICY_OFF, books.LOCK_POLICY_OPTIONAL])
def test_limit_of_a_code_is_exact_in_each_shard(
    sharded: ServerThread, businesses: list[str], lock_policy: books.LockPolicy
) -> None:
    (code,) = new_codes(1)
    allowed = [2, 3, 5, 8]
    with conserved(sharded) as api:
        made: list[str] = []
        for business_id, limit in zip(businesses, allowed, strict=True):
            limits = books.BookLimits(max_redemptions_per_code=limit)
            book = api.book(
                codes=[code], business_id=business_id, limits=limits, lock_policy=lock_policy
            )
            made.append(book.book_id)
        found = raced(
            businesses,
            lambda business_id, n: api.redeem(code, f"user-{n}", business_id=business_id),
        )
        for (reasons, answers), limit, book_id in zip(found, allowed, made, strict=True):
            assert reasons == {"OK": limit, "CODE_LIMIT_EXCEEDED": CALLERS - limit}
            assert {it.redemption.book_id for it in answers} == {book_id}
            assert api.stats(book_id).redemption_count == limit


def test_limits_of_users_and_books_are_exact_in_each_shard(
    sharded: ServerThread, businesses: list[str]
) -> None:
    names = new_codes(CALLERS)
    limits = [
        books.BookLimits(max_redemptions_per_user=3),
        books.BookLimits(max_redemptions=4),
        books.BookLimits(max_redemptions_per_user=5),
        books.BookLimits(max_redemptions=6),
    ]
    with conserved(sharded) as api:
        for business_id, limit in zip(businesses, limits, strict=True):
            api.book(codes=names, business_id=business_id, limits=limit)
        found = raced(
            businesses, lambda business_id, n: api.redeem(names[n], "ann", business_id=business_id)
        )
    assert [reasons["OK"] for reasons, _ in found] == [3, 4, 5, 6]


def test_a_request_id_has_one_effect_in_each_shard(
    sharded: ServerThread, businesses: list[str]
) -> None:
    (code,), request_id = new_codes(1), unique("request")
    with conserved(sharded) as api:
        for business_id in businesses:
            limits = books.BookLimits(max_redemptions_per_code=0)
            api.book(codes=[code], business_id=business_id, limits=limits)
        found = raced(
            businesses,
            lambda business_id, _: api.redeem(
                code, "ann", business_id=business_id, request_id=request_id
            ),
        )
        ids: set[str] = set()
        for reasons, answers in found:
            assert reasons == {"OK": CALLERS}
            assert sum(not it.replayed for it in answers) == 1
            (redemption_id,) = {it.redemption.redemption_id for it in answers}
            ids.add(redemption_id)
        assert len(ids) == len(businesses)


def test_a_code_is_locked_once_in_each_shard(sharded: ServerThread, businesses: list[str]) -> None:
    (code,) = new_codes(1)
    users = [unique("user") for _ in range(CALLERS)]
    with conserved(sharded) as api:
        for business_id in businesses:
            policy = books.LOCK_POLICY_REQUIRED
            api.book(codes=[code], business_id=business_id, lock_policy=policy)
        found = raced(
            businesses, lambda business_id, n: api.lock(code, users[n], business_id=business_id)
        )
        for business_id, (reasons, answers) in zip(businesses, found, strict=True):
            assert reasons == {"OK": 1, "CODE_LOCKED": CALLERS - 1}
            (held,) = answers
            token: dict[str, str] = {"lock_token": held.lock_token, "business_id": business_id}
            api.redeem(code, held.lock.user_id, **token)


def test_batches_over_all_shards_redeem_each_code_as_often_as_it_may(
    sharded: ServerThread, businesses: list[str]
) -> None:
    names, allowed = new_codes(6), [2, 3, 5, 8]
    with conserved(sharded) as api:
        for business_id, limit in zip(businesses, allowed, strict=True):
            limits = books.BookLimits(max_redemptions_per_code=limit)
            api.book(codes=names, business_id=business_id, limits=limits)

        def redeem(n: int) -> list[tuple[str, str, str]]:
            wanted = [(code, it) for code in names for it in businesses]
            wanted = wanted[n:] + wanted[:n] if n % 2 else wanted[::-1]
            items = [item(code, f"user-{n}", business_id=it) for code, it in wanted]
            answer = batch(api, items)
            redeemed = [it.redemption.code for it in answer.results if it.HasField("redemption")]
            outcomes = [(*it, got) for it, got in zip(wanted, outcomes_of(answer), strict=True)]
            assert redeemed == [code for code, _, got in outcomes if got == "OK"]
            return outcomes

        batches: list[Any] = all_at_once([functools.partial(redeem, n) for n in range(12)])
    found = Counter(it for outcomes in batches for it in outcomes)
    for code in names:
        for business_id, limit in zip(businesses, allowed, strict=True):
            assert found[code, business_id, "OK"] == limit
            assert found[code, business_id, "CODE_LIMIT_EXCEEDED"] == 12 - limit
