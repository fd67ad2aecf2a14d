"""Many codes are changed while others use them: each is decided once, and the counts add up."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import grpc
import psycopg
import pytest
from support.calls import tried
from support.invariants import assert_adds_up
from support.service import Api, ServerThread, all_at_once, books, codes, new_codes, unique

CODES = 300
ROUNDS = 3
ANY_NUMBER = books.BookLimits(max_redemptions_per_code=0)


def change_all(api: Api, book_id: str, change: codes.CodeChange.ValueType) -> Any:
    """Changes all codes of the book; returns the last message."""
    request = codes.ChangeCodesRequest(
        book_id=book_id,
        change=change,
        request_id=unique("request"),
        filter=codes.CodeFilter(prefix="T"),  # as all of `new_codes`
    )
    return list(api.codes.ChangeCodes(request))[-1]


def assert_all_adds_up(server: ServerThread) -> None:
    with psycopg.connect(server.database_url) as connection:
        assert_adds_up(connection)


@pytest.mark.parametrize("use", ["redeem", "lock", "assign"])
def test_a_code_is_either_used_or_deleted(api: Api, server: ServerThread, use: str) -> None:
    for _ in range(ROUNDS):
        names = new_codes(CODES)
        book = api.book(codes=names, lock_policy=books.LOCK_POLICY_OPTIONAL)
        used = names[::3]
        calls: list[Callable[[], object]] = [
            functools.partial(getattr(api, use), code, f"user-{n}") for n, code in enumerate(used)
        ]
        calls.insert(
            len(calls) // 2,
            lambda book_id=book.book_id: change_all(api, book_id, codes.CODE_CHANGE_DELETE),
        )
        results = all_at_once(calls)
        done = results.pop(len(used) // 2)
        found = ["OK" if not isinstance(it, grpc.RpcError) else "refused" for it in results]
        there = api.codes.ExportCodes(codes.ExportCodesRequest(book_id=book.book_id))
        left = sorted(it.code for page in there for it in page.codes)
        assert left == sorted(c for c, it in zip(used, found, strict=True) if it == "OK")
        assert done.total_changed_count == CODES - len(left)
        assert api.stats(book.book_id).code_count == len(left)
        assert_all_adds_up(server)


def test_codes_are_disabled_and_enabled_while_they_are_redeemed_and_assigned(
    api: Api, server: ServerThread
) -> None:
    names = new_codes(CODES)
    book = api.book(codes=names, limits=ANY_NUMBER)
    calls: list[Callable[[], object]] = [
        functools.partial(tried, functools.partial(method, code, f"user-{n % 7}"))
        for n, code in enumerate(names[::2])
        for method in (api.redeem, api.assign)
    ]
    changes = (codes.CODE_CHANGE_DISABLE, codes.CODE_CHANGE_REVOKE, codes.CODE_CHANGE_ENABLE)
    calls += [functools.partial(change_all, api, book.book_id, it) for it in changes * 2]
    results = all_at_once(calls)
    assert {it for it in results if isinstance(it, str)} <= {"OK", "CODE_DISABLED"}
    assert not [it for it in results if isinstance(it, BaseException)]
    assert_all_adds_up(server)
