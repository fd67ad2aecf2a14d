"""Races of many callers: limits hold exactly, and each effect happens at most once."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import pytest
from support.service import (
    Api,
    all_at_once,
    assignments,
    books,
    codes,
    new_codes,
    reason_of,
    redemptions,
    refused,
    unique,
)

CALLERS = 100


def outcomes(results: Sequence[Any]) -> Counter[str]:
    """The number of results with each reason, or OK."""
    return Counter(reason_of(it) if isinstance(it, grpc.RpcError) else "OK" for it in results)


def reason_or_ok(call: Callable[[], object]) -> str:
    """The reason of a call that fails, or OK."""
    try:
        call()
    except grpc.RpcError as error:
        return reason_of(error)
    return "OK"


def redeem_all(api: Api, code: str, callers: int = CALLERS, **fields: Any) -> list[Any]:
    """Redeem one code for many users concurrently."""
    return all_at_once(
        [functools.partial(api.redeem, code, f"user-{n}", **fields) for n in range(callers)]
    )


def assert_conserved(api: Api, book_id: str, succeeded: int) -> None:
    """OK answers = redeemed codes = counters = ledger rows."""
    stats = api.stats(book_id)
    events = Counter(api.event_names(book_id=book_id))
    listed = api.codes.ListCodes(codes.ListCodesRequest(book_id=book_id, page_size=1_000)).codes
    assert stats.redemption_count == succeeded
    assert events["REDEEMED"] - events["ROLLED_BACK"] == succeeded
    assert sum(code.redemption_count for code in listed) == succeeded


@pytest.mark.parametrize("lock_policy", [books.LOCK_POLICY_OFF, books.LOCK_POLICY_OPTIONAL])
@pytest.mark.parametrize("limit", [1, 10])
def test_limit_of_a_code_is_exact(api: Api, limit: int, lock_policy: books.LockPolicy) -> None:
    (code,) = new_codes(1)
    book = api.book(
        codes=[code],
        lock_policy=lock_policy,
        limits=books.BookLimits(max_redemptions_per_code=limit),
    )
    found = outcomes(redeem_all(api, code))
    used_up = "CODE_ALREADY_REDEEMED" if limit == 1 else "CODE_LIMIT_EXCEEDED"
    assert found == {"OK": limit, used_up: CALLERS - limit}
    assert_conserved(api, book.book_id, limit)


def test_limit_per_user_and_code_is_exact(api: Api) -> None:
    limits = books.BookLimits(max_redemptions_per_code=0, max_redemptions_per_user_per_code=3)
    (code,) = new_codes(1)
    book = api.book(codes=[code], limits=limits)
    found = outcomes(all_at_once([lambda: api.redeem(code, "one user")] * CALLERS))
    assert found == {"OK": 3, "USER_LIMIT_EXCEEDED": CALLERS - 3}
    assert_conserved(api, book.book_id, 3)


def test_limit_per_user_in_a_book_is_exact(api: Api) -> None:
    names = new_codes(CALLERS)
    book = api.book(codes=names, limits=books.BookLimits(max_redemptions_per_user=5))
    calls = [functools.partial(api.redeem, code, "one user") for code in names]
    assert outcomes(all_at_once(calls)) == {"OK": 5, "USER_LIMIT_EXCEEDED": CALLERS - 5}
    assert_conserved(api, book.book_id, 5)


def test_limit_of_a_book_is_exact(api: Api) -> None:
    names = new_codes(CALLERS)
    book = api.book(codes=names, limits=books.BookLimits(max_redemptions=7))
    calls = [functools.partial(api.redeem, code, code) for code in names]
    assert outcomes(all_at_once(calls)) == {"OK": 7, "BOOK_LIMIT_EXCEEDED": CALLERS - 7}
    assert_conserved(api, book.book_id, 7)


def test_order_redeems_a_code_once(api: Api) -> None:
    (code,) = new_codes(1)
    book = api.book(codes=[code], limits=books.BookLimits(max_redemptions_per_code=0))
    found = outcomes(redeem_all(api, code, order_id="the order"))
    assert found == {"OK": 1, "ORDER_ALREADY_REDEEMED": CALLERS - 1}
    assert_conserved(api, book.book_id, 1)


def test_concurrent_repeats_have_one_effect_and_one_answer(api: Api) -> None:
    (code,) = new_codes(1)
    book = api.book(codes=[code], limits=books.BookLimits(max_redemptions_per_code=0))
    request = api.redeem_request(code, "user")
    results = all_at_once([lambda: api.redemptions.RedeemCode(request)] * CALLERS)
    assert outcomes(results) == {"OK": CALLERS}
    assert len({it.redemption.redemption_id for it in results}) == 1
    assert sum(not it.replayed for it in results) == 1
    assert_conserved(api, book.book_id, 1)


def test_limit_of_random_assignments_per_user_is_exact(api: Api) -> None:
    book = api.book(codes=CALLERS, limits=books.BookLimits(max_assignments_per_user=2))
    results = all_at_once([lambda: api.assign_random(book.book_id, "one user")] * 20)
    assert outcomes(results) == {"OK": 2, "USER_LIMIT_EXCEEDED": 18}
    assert api.stats(book.book_id).assignment_count == 2


def test_each_random_code_goes_to_one_user(api: Api) -> None:
    book = api.book(codes=60)
    results: list[Any] = all_at_once(
        [functools.partial(_until_settled, api, book.book_id, f"user-{n}") for n in range(CALLERS)]
    )
    assert outcomes(results) == {"OK": 60, "NO_CODES_AVAILABLE": CALLERS - 60}
    given = [it.assignment.code for it in results if not isinstance(it, grpc.RpcError)]
    assert len(set(given)) == 60
    stats = api.stats(book.book_id)
    assert (stats.available_count, stats.assigned_count) == (0, 60)


def _until_settled(api: Api, book_id: str, user_id: str) -> Any:
    """Retry while concurrent assignments have locked all remaining codes."""
    while True:
        try:
            return api.assign_random(book_id, user_id)
        except grpc.RpcError as error:
            if reason_of(error) != "CONTENTION":
                raise


def test_concurrent_repeats_of_a_random_assignment_give_one_code(api: Api) -> None:
    book = api.book(codes=CALLERS)
    request = assignments.AssignRandomCodeRequest(
        book_id=book.book_id, user_id="user", request_id=unique("request")
    )
    results = all_at_once([lambda: api.assignments.AssignRandomCode(request)] * CALLERS)
    assert outcomes(results) == {"OK": CALLERS}
    assert len({it.assignment.code for it in results}) == 1
    assert api.stats(book.book_id).assigned_count == 1


def test_code_is_assigned_to_one_of_many_users(api: Api) -> None:
    code = api.code()
    calls = [functools.partial(api.assign, code, f"user-{n}") for n in range(CALLERS)]
    assert outcomes(all_at_once(calls)) == {"OK": 1, "CODE_ALREADY_ASSIGNED": CALLERS - 1}


@pytest.mark.parametrize("limit", [1, 10])
def test_code_has_as_many_locks_as_its_limit(api: Api, limit: int) -> None:
    code = api.code(
        lock_policy=books.LOCK_POLICY_REQUIRED,
        limits=books.BookLimits(max_redemptions_per_code=limit),
    )
    calls = [functools.partial(api.lock, code, unique("user")) for _ in range(CALLERS)]
    results = all_at_once(calls)
    assert outcomes(results) == {"OK": limit, "CODE_LOCKED": CALLERS - limit}
    held = [it for it in results if not isinstance(it, grpc.RpcError)]
    redeem = [
        functools.partial(api.redeem, code, it.lock.user_id, lock_token=it.lock_token)
        for it in held
    ]
    assert outcomes(all_at_once(redeem)) == {"OK": limit}


def test_lock_reserves_a_use_against_other_users(api: Api) -> None:
    (code,) = new_codes(1)
    book = api.book(
        codes=[code],
        lock_policy=books.LOCK_POLICY_OPTIONAL,
        limits=books.BookLimits(max_redemptions_per_code=3),
    )
    holder = api.lock(code, "holder")
    found = outcomes(redeem_all(api, code, 30))
    assert found["OK"] + found["CODE_LOCKED"] == 30
    assert 1 <= found["OK"] <= 2  # a redemption in flight holds a permit as well
    for n in range(2 - found["OK"]):
        api.redeem(code, f"late-{n}")
    with refused("CODE_LOCKED"):
        api.redeem(code, "too late")
    api.redeem(code, "holder", lock_token=holder.lock_token)
    assert_conserved(api, book.book_id, 3)


@pytest.mark.parametrize("lock_policy", [books.LOCK_POLICY_OFF, books.LOCK_POLICY_OPTIONAL])
def test_a_limit_that_a_code_has_of_its_own_is_exact(
    api: Api, lock_policy: books.LockPolicy
) -> None:
    (code,) = new_codes(1)
    book = api.book(lock_policy=lock_policy)
    row = codes.NewCode(code=code, terms=codes.CodeTerms(max_redemptions=3))
    api.import_codes(book.book_id, [row])
    found = outcomes(redeem_all(api, code))
    assert found == {"OK": 3, "CODE_LIMIT_EXCEEDED": CALLERS - 3}
    assert_conserved(api, book.book_id, 3)


def test_imports_and_assignments_give_a_user_as_many_codes_as_are_allowed(api: Api) -> None:
    plain, own = new_codes(40), new_codes(40)
    book = api.book(codes=plain, limits=books.BookLimits(max_assignments_per_user=5))

    def give(n: int) -> str:
        if n % 2:
            row = codes.NewCode(code=own[n // 2], user_id="one user")
            (answer,) = api.import_codes(book.book_id, [row])
            return "OK" if answer.assigned_count else "NOT_ASSIGNED"
        return reason_or_ok(functools.partial(api.assign, plain[n // 2], "one user"))

    found = Counter(all_at_once([functools.partial(give, n) for n in range(80)]))
    assert found["OK"] == 5
    assert found["USER_LIMIT_EXCEEDED"] + found["NOT_ASSIGNED"] == 75
    stats = api.stats(book.book_id)
    assert (stats.assignment_count, stats.code_count) == (5, 80 - found["NOT_ASSIGNED"])


def test_a_code_that_many_import_is_for_one_of_their_users(api: Api) -> None:
    names = new_codes(20)
    book = api.book()

    def upload(n: int) -> codes.ImportCodesResponse:
        rows = [codes.NewCode(code=code, user_id=f"user-{n}") for code in names]
        (answer,) = api.import_codes(book.book_id, rows)
        return answer

    answers: list[codes.ImportCodesResponse] = all_at_once(
        [functools.partial(upload, n) for n in range(10)]
    )
    assert sum(it.created_count for it in answers) == 20
    assert sum(it.assigned_count for it in answers) == 20
    assert Counter(api.event_names(book_id=book.book_id))["ASSIGNED"] == 20
    assert all(api.get_code(code).assignment_count == 1 for code in names)


def test_redemption_is_rolled_back_once(api: Api) -> None:
    (code,) = new_codes(1)
    book = api.book(codes=[code])
    redemption_id = api.redeem(code, "user").redemption.redemption_id
    results = all_at_once([functools.partial(api.rollback, redemption_id)] * CALLERS)
    assert outcomes(results) == {"OK": 1, "ALREADY_ROLLED_BACK": CALLERS - 1}
    assert_conserved(api, book.book_id, 0)


def test_rollbacks_and_redemptions_never_exceed_the_limit(api: Api) -> None:
    limit = 5
    (code,) = new_codes(1)
    book = api.book(codes=[code], limits=books.BookLimits(max_redemptions_per_code=limit))

    def redeem_and_roll_back(n: int) -> str:
        try:
            redeemed = api.redeem(code, f"user-{n}")
        except grpc.RpcError as error:
            return reason_of(error)
        assert 1 <= redeemed.counts.code_redemption_count <= limit
        if n % 2:
            api.rollback(redeemed.redemption.redemption_id)
            return "ROLLED_BACK"
        return "OK"

    found = Counter(
        all_at_once([functools.partial(redeem_and_roll_back, n) for n in range(CALLERS)])
    )
    assert found["OK"] <= limit
    assert_conserved(api, book.book_id, found["OK"])


def test_all_or_nothing_batches_are_atomic(api: Api) -> None:
    names = new_codes(10)
    book = api.book(codes=names)

    def batch(n: int) -> redemptions.BatchRedeemCodesResponse:
        ordered = names if n % 2 else names[::-1]  # in both orders, which must not deadlock
        items = [redemptions.RedeemItem(code=code, user_id=f"user-{n}") for code in ordered]
        return api.redemptions.BatchRedeemCodes(
            redemptions.BatchRedeemCodesRequest(
                items=items,
                mode=redemptions.BATCH_MODE_ALL_OR_NOTHING,
                request_id=unique("request"),
            )
        )

    results: list[Any] = all_at_once([functools.partial(batch, n) for n in range(30)])
    assert sorted(it.redeemed_count for it in results) == [0] * 29 + [10]
    assert_conserved(api, book.book_id, 10)
