"""What catches mutants of codes that later books get of CLOSED ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

import psycopg
from mutants.harness import Stack
from mutants.meeting import WAITING_FOR_A_LOCK
from mutants.scope_harness import finished
from support.calls import tried
from support.service import Api, books, codes, new_codes, unique
from support.waiting import until

from coupon_service.leases import Leases

BOOK: dict[str, Any] = {"business_id": "ours", "lock_policy": books.LOCK_POLICY_OPTIONAL}


def reuse(api: Api, before: str, code: str) -> str:
    """Closes the book, and gives its code to another one."""
    api.close_book(before)
    return api.book(codes=[code], **BOOK).book_id


def code_in(api: Api, code: str, book_id: str) -> codes.CouponCode:
    """What a code is, or was, in a book."""
    return api.codes.GetCode(codes.GetCodeRequest(code=code, book_id=book_id)).coupon_code


def redemption_repeated_in_another_book(it: Stack) -> None:
    """What was redeemed in the CLOSED book is not redeemed again, also in one of before."""
    api = it.apis[0]
    (code,), once = new_codes(1), unique("request")
    before = api.book(codes=[code], **BOOK).book_id
    api.redeem(code, "user", request_id=once)
    finished(it)
    after = reuse(api, before, code)
    again = api.redeem(code, "user", request_id=once)
    assert (again.replayed, again.redemption.book_id) == (True, before), again
    assert code_in(api, code, after).redemption_count == 0
    it.conserved()


def roll_back_in_the_closed_book(it: Stack) -> None:
    """Each book counts what was done in it, and the other one begins anew."""
    finished(it)
    api = it.apis[0]
    (code,) = new_codes(1)
    before = api.book(codes=[code], **BOOK).book_id
    done = api.redeem(code, "user").redemption
    after = reuse(api, before, code)
    assert [code_in(api, code, book).redemption_count for book in (before, after)] == [1, 0]
    api.redeem(code, "user")
    api.rollback(done.redemption_id)
    assert [code_in(api, code, book).redemption_count for book in (before, after)] == [0, 1]
    it.conserved()


def permit_of_the_closed_book(it: Stack) -> None:
    """Whoever has a permit when the code goes to another book gets past nobody's lock there."""
    finished(it)
    for method, call in (
        ("acquire_transient", it.apis[0].redeem),
        ("acquire_each", it.apis[0].lock),
    ):
        _with_a_late_permit(it, method, call)
    it.conserved()


def _with_a_late_permit(it: Stack, method: str, call: Callable[[str, str], Any]) -> None:
    other = it.apis[1]
    (code,) = new_codes(1)
    before = other.book(codes=[code], **BOOK).book_id
    real, tokens = getattr(Leases, method), list[str]()

    def go_over() -> None:
        reuse(other, before, code)
        tokens.append(other.lock(code, "holder").lock_token)

    async def late(*arguments: Any) -> Any:
        permit = await real(*arguments)
        if not tokens:
            tokens.append("")
            await asyncio.to_thread(go_over)
        return permit

    with mock.patch.object(Leases, method, late):
        assert tried(lambda: call(code, "user")) == "CONTENTION"
    other.redeem(code, "holder", lock_token=tokens[-1])


def codes_of_a_live_book(it: Stack) -> None:
    """Only CLOSED books give their codes away."""
    finished(it)
    api = it.apis[0]
    gone, kept = new_codes(2)
    api.close_book(api.book(codes=[gone], **BOOK).book_id)
    live = api.book(codes=[kept], **BOOK).book_id
    (result,) = api.import_codes(api.draft(**BOOK).book_id, [gone, kept])
    assert result.created_count == 1, result
    assert api.get_code(kept).book_id == live


def change_at_the_last_moment(it: Stack) -> None:
    """What is done to a code in the CLOSED book until it goes over is not lost."""
    finished(it)
    api = it.apis[0]
    (code,) = new_codes(1)
    before = api.book(codes=[code], **BOOK).book_id
    api.close_book(before)
    after = api.book(**BOOK).book_id
    row = codes.NewCode(code=code, user_id="user")  # plain codes wait in COPY
    count = "UPDATE coupon_codes SET assignments = assignments + 1 WHERE code = %s"
    with (
        psycopg.connect(it.database_url, autocommit=True) as observer,
        psycopg.connect(it.database_url) as changing,
        ThreadPoolExecutor(1) as thread,
    ):
        changing.execute(count, [code])
        importing = thread.submit(api.import_codes, after, [row])
        until(lambda: observer.execute(WAITING_FOR_A_LOCK).rowcount)
        changing.commit()
        importing.result()
    assert code_in(api, code, before).assignment_count == 1
    assert code_in(api, code, after).assignment_count == 1
