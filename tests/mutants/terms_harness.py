"""What has to catch the mutants of what codes say for themselves."""

from __future__ import annotations

import random
import time
from datetime import timedelta
from functools import partial
from typing import Any

import psycopg
from mutants.harness import CALLERS, ROUNDS, UNLIMITED, Stack
from mutants.meeting import BETWEEN_S, one_within_another
from support.calls import tried
from support.service import Api, books, codes, new_codes, unique

from coupon_service.model.times import time_of


def _imported(api: Api, book_id: str, code: str, user_id: str = "", **terms: Any) -> int:
    """How many codes were created."""
    row = codes.NewCode(code=code, user_id=user_id, terms=codes.CodeTerms(**terms))
    (answer,) = api.import_codes(book_id, [row])
    return answer.created_count


def race_for_a_code_with_its_own_limit(it: Stack) -> None:
    """It is redeemed as often as it says, whether the book says more or less."""
    for limits in (UNLIMITED, books.BookLimits()):
        (code,) = new_codes(1)
        _imported(it.apis[0], it.apis[0].book(limits=limits).book_id, code, max_redemptions=3)
        found = it.all_at_once(lambda api, n, code=code: api.redeem(code, f"user-{n}"))
        it.conserved()
        assert found == ["CODE_LIMIT_EXCEEDED"] * (CALLERS - 3) + ["OK"] * 3, found
        with psycopg.connect(it.database_url) as connection:
            query = "SELECT redemption_limit FROM coupon_codes WHERE code = %s"
            assert connection.execute(query, [code]).fetchall() == [(3,)]


def locks_of_a_code_with_its_own_limit(it: Stack) -> None:
    """Each of its uses is kept for who has locked it."""
    for limits in (UNLIMITED, books.BookLimits()):
        (code,) = new_codes(1)
        api = it.apis[0]
        book = api.book(lock_policy=books.LOCK_POLICY_OPTIONAL, limits=limits)
        _imported(api, book.book_id, code, max_redemptions=2)
        calls = (api.lock, api.lock, api.redeem, api.lock)
        found = [tried(partial(call, code, f"user-{n}")) for n, call in enumerate(calls)]
        assert found == ["OK", "OK", "CODE_LOCKED", "CODE_LOCKED"], found
        it.conserved()


def code_outside_its_own_window(it: Stack) -> None:
    """A code is good from its start to its end; a lock that was taken in time is as well."""
    api, (code,) = it.apis[0], new_codes(1)
    book = api.book(lock_policy=books.LOCK_POLICY_OPTIONAL)
    now = time_of(it.clock.now_ms)
    start, end = now + timedelta(minutes=1), now + timedelta(minutes=2)
    _imported(api, book.book_id, code, start_time=start, end_time=end)
    assert tried(lambda: api.redeem(code, "user")) == "CODE_NOT_STARTED"
    it.clock.advance(60_000)
    held = api.lock(code, "user", ttl_s=600)
    it.clock.advance(60_000)
    assert tried(lambda: api.redeem(code, "another")) == "CODE_EXPIRED"
    assert tried(lambda: api.redeem(code, "user")) == "CODE_EXPIRED"
    assert tried(lambda: api.redeem(code, "user", lock_token=held.lock_token)) == "OK"


def code_that_was_imported_for_a_user(it: Stack) -> None:
    """There is no moment at which it is there and not the user's."""
    one, other = it.apis
    (code,) = new_codes(1)
    _imported(one, one.book().book_id, code, "ann")
    assert tried(lambda: other.assign(code, "eve")) == "CODE_ALREADY_ASSIGNED"
    it.conserved()


def race_of_imports_and_assignments_for_a_user(it: Stack) -> None:
    """A user gets as many codes as the book allows, however they come."""
    limits = books.BookLimits(max_assignments_per_user=2)
    names, (own_code,) = new_codes(2), new_codes(1)
    api, other_api = it.apis
    made = api.book(codes=names, limits=limits).book_id
    api.assign(names[0], "user")
    one_within_another(
        it.database_url,
        lambda: api.assign(names[1], "user"),
        lambda: _imported(other_api, made, own_code, "user"),
    )
    it.conserved()
    assert api.stats(made).assignment_count == 2
    for _ in range(ROUNDS // 2):
        plain, own = new_codes(CALLERS), new_codes(2 * CALLERS)[CALLERS:]
        book_id, user = it.apis[0].book(codes=plain, limits=limits).book_id, unique("user")

        def give(
            api: Api,
            n: int,
            plain: list[str] = plain,
            own: list[str] = own,
            book_id: str = book_id,
            user: str = user,
        ) -> None:
            if n % 4 > 1:
                _imported(api, book_id, own[n], user)
            else:
                time.sleep(random.Random(n).uniform(0, 2 * BETWEEN_S))
                tried(lambda: api.assign(plain[n], user))

        assert it.all_at_once(give) == ["OK"] * CALLERS
        it.conserved()
        assert it.apis[0].stats(book_id).assignment_count == 2
