"""BatchRedeemCodes: a result for each item, or all or nothing."""

from __future__ import annotations

import pytest
from grpc import StatusCode
from support.calls import (
    ALL_OR_NOTHING,
    BEST_EFFORT,
    batch,
    get_lock,
    item,
    locks_of,
    outcomes_of,
    redemption,
)
from support.service import Api, books, euros, new_codes, redemptions, refused, unique

OPTIONAL = books.LOCK_POLICY_OPTIONAL
REQUIRED = books.LOCK_POLICY_REQUIRED
NOT_OURS = "bm90IG9uZSBvZiBvdXJz"
"""A lock token that this service never made."""

both_modes = pytest.mark.parametrize(
    "mode", [BEST_EFFORT, ALL_OR_NOTHING], ids=["best effort", "all or nothing"]
)


@both_modes
def test_a_thousand_codes_are_redeemed_in_one_call(
    api: Api, mode: redemptions.BatchMode.ValueType
) -> None:
    names = new_codes(1_000)
    book = api.book(codes=names)
    answer = batch(api, [item(code, "ann") for code in names], mode)
    assert answer.redeemed_count == 1_000
    assert [it.redemption.code for it in answer.results] == names
    stats = api.stats(book.book_id)
    assert (stats.redeemed_count, stats.redemption_count) == (1_000, 1_000)


def test_a_thousand_codes_of_a_book_with_locking_are_redeemed_without_locks(api: Api) -> None:
    names = new_codes(1_000)
    api.book(codes=names, lock_policy=OPTIONAL)
    assert batch(api, [item(code, "ann") for code in names], ALL_OR_NOTHING).redeemed_count == 1_000


def test_each_item_has_its_own_order_amount_metadata_and_counts(api: Api) -> None:
    first, second = new_codes(2)
    limits = books.BookLimits(max_redemptions_per_code=3)
    api.book(codes=[first, second], limits=limits)
    items = [
        item(first, "ann", order_id="order 1", order_amount=euros(1_000)),
        item(second, "bob", order_id="order 2", order_amount=euros(2_000)),
    ]
    items[1].metadata.update({"till": 7})
    answer = batch(api, items)
    one, two = (it.redemption for it in answer.results)
    assert (one.user_id, one.order_id, one.discount) == ("ann", "order 1", euros(100))
    assert (two.user_id, two.order_id, two.discount) == ("bob", "order 2", euros(200))
    assert (len(one.metadata), two.metadata["till"]) == (0, 7)
    assert [it.counts.code_redemption_count for it in answer.results] == [1, 1]
    assert redemption(api, two.redemption_id) == two


def test_best_effort_redeems_what_can_be_redeemed(api: Api) -> None:
    good, used, off, poor = new_codes(4)
    api.book(codes=[good, used, off])
    api.book(codes=[poor], min_order_amount_minor=5_000)
    (unknown,) = new_codes(1)
    api.redeem(used, "ann")
    api.disable(off)
    answer = batch(api, [item(code, "ann") for code in (used, good, off, unknown, poor)])
    assert outcomes_of(answer) == [
        "CODE_ALREADY_REDEEMED",
        "OK",
        "CODE_DISABLED",
        "CODE_NOT_FOUND",
        "ORDER_BELOW_MINIMUM",
    ]
    assert answer.redeemed_count == 1
    assert answer.results[4].error.metadata == {"minimum_minor": "5000", "currency_code": "EUR"}
    assert not answer.results[0].HasField("counts")


def test_best_effort_is_the_default(api: Api) -> None:
    (code,), (unknown,) = new_codes(1), new_codes(1)
    api.book(codes=[code])
    answer = batch(
        api, [item(unknown, "ann"), item(code, "ann")], redemptions.BATCH_MODE_UNSPECIFIED
    )
    assert outcomes_of(answer) == ["CODE_NOT_FOUND", "OK"]


def test_all_or_nothing_redeems_nothing_when_one_item_is_refused(api: Api) -> None:
    first, used, last = new_codes(3)
    book = api.book(codes=[first, used, last])
    (unknown,) = new_codes(1)
    api.redeem(used, "bob")
    items = [item(code, "ann") for code in (first, used, unknown, last)]
    answer = batch(api, items, ALL_OR_NOTHING)
    assert answer.redeemed_count == 0
    # Those that could have been redeemed have the error of the first that could not.
    blamed, own, other, blamed_too = (it.error for it in answer.results)
    assert outcomes_of(answer) == [
        "CODE_ALREADY_REDEEMED",
        "CODE_ALREADY_REDEEMED",
        "CODE_NOT_FOUND",
        "CODE_ALREADY_REDEEMED",
    ]
    assert blamed.metadata["item"] == blamed_too.metadata["item"] == "1"
    assert "item" not in own.metadata
    assert "item" not in other.metadata
    assert api.stats(book.book_id).redemption_count == 1
    assert api.event_names(code=first) == []


@both_modes
def test_items_are_decided_in_order_each_seeing_those_before_it(
    api: Api, mode: redemptions.BatchMode.ValueType
) -> None:
    names = new_codes(3)
    book = api.book(codes=names, limits=books.BookLimits(max_redemptions_per_user=2))
    answer = batch(api, [item(code, "ann") for code in names], mode)
    if mode == BEST_EFFORT:
        assert outcomes_of(answer) == ["OK", "OK", "USER_LIMIT_EXCEEDED"]
        assert api.stats(book.book_id).redemption_count == 2
    else:
        assert outcomes_of(answer) == ["USER_LIMIT_EXCEEDED"] * 3
        assert [it.error.metadata.get("item") for it in answer.results] == ["2", "2", None]
        assert api.stats(book.book_id).redemption_count == 0


def test_a_code_comes_twice_when_its_items_have_their_own_request_ids(api: Api) -> None:
    code = api.code(limits=books.BookLimits(max_redemptions_per_code=2))
    items = [item(code, user, request_id=unique("item")) for user in ("ann", "bob", "eve")]
    answer = batch(api, items)
    assert outcomes_of(answer) == ["OK", "OK", "CODE_LIMIT_EXCEEDED"]
    assert [it.counts.code_redemption_count for it in answer.results[:2]] == [1, 2]
    assert [it.counts.used_up for it in answer.results[:2]] == [False, True]


def test_a_code_that_comes_twice_without_them_is_a_bad_request(api: Api) -> None:
    code = api.code(limits=books.BookLimits(max_redemptions_per_code=2))
    items = [item(code, "ann"), item(code.lower(), "bob"), item("", "eve")]
    with refused("INVALID_ARGUMENT", StatusCode.INVALID_ARGUMENT) as it:
        batch(api, items)
    assert it.fields == ["items[1].code", "items[2].code"]
    assert api.get_code(code).redemption_count == 0


@pytest.mark.parametrize("count", [0, 1_001])
def test_a_batch_has_one_to_a_thousand_items(api: Api, count: int) -> None:
    with refused("INVALID_ARGUMENT") as it:
        batch(api, [item(code, "ann") for code in new_codes(count)])
    assert it.fields == ["items"]


# --- locks --------------------------------------------------------------------------------------


@both_modes
def test_a_batch_mixes_tokens_books_that_lock_and_books_that_do_not(
    api: Api, mode: redemptions.BatchMode.ValueType
) -> None:
    user = unique("user")
    (locked, held, free), (must,), (plain,) = new_codes(3), new_codes(1), new_codes(1)
    api.book(codes=[locked, held, free], lock_policy=OPTIONAL)
    api.book(codes=[must], lock_policy=REQUIRED)
    api.book(codes=[plain])
    with_token, without_token = api.lock(locked, user), api.lock(held, user)
    required = api.lock(must, user)
    items = [
        item(plain, user),
        item(locked, user, lock_token=with_token.lock_token),
        item(held, user),
        item(must, user, lock_token=required.lock_token),
        item(free, user),
    ]
    answer = batch(api, items, mode)
    assert outcomes_of(answer) == ["OK"] * 5
    used = [with_token.lock.lock_id, without_token.lock.lock_id, required.lock.lock_id]
    assert [it.redemption.lock_id for it in answer.results] == ["", used[0], used[1], used[2], ""]
    assert {get_lock(api, lock_id).state for lock_id in used} == {redemptions.LOCK_STATE_REDEEMED}
    assert locks_of(api, user_id=user) == []


def test_items_past_the_lock_of_another_are_refused_and_the_others_are_not(api: Api) -> None:
    user, names = unique("user"), new_codes(4)
    taken, free, stale, forged = names
    api.book(codes=names, lock_policy=OPTIONAL)
    holder = api.lock(taken, unique("holder"))
    released = api.lock(stale, user).lock_token
    api.unlock(released)
    items = [
        item(taken, user),
        item(free, user),
        item(stale, user, lock_token=released),
        item(forged, user, lock_token=NOT_OURS),
    ]
    answer = batch(api, items)
    assert outcomes_of(answer) == ["CODE_LOCKED", "OK", "LOCK_EXPIRED", "LOCK_TOKEN_MISMATCH"]
    assert int(answer.results[0].error.metadata["retry_after_ms"]) > 0
    api.redeem(taken, holder.lock.user_id, lock_token=holder.lock_token)


@pytest.mark.parametrize("policy", [OPTIONAL, books.LOCK_POLICY_OFF])
def test_a_bad_token_refuses_all_or_nothing_as_any_other_error(
    api: Api, policy: books.LockPolicy.ValueType
) -> None:
    first, forged, last = new_codes(3)
    book = api.book(codes=[first, forged, last], lock_policy=policy)
    (unknown,) = new_codes(1)
    items = [
        item(first, "ann"),
        item(forged, "ann", lock_token=NOT_OURS),
        item(unknown, "ann"),
        item(last, "ann"),
    ]
    answer = batch(api, items, ALL_OR_NOTHING)
    assert outcomes_of(answer) == [
        "LOCK_TOKEN_MISMATCH",
        "LOCK_TOKEN_MISMATCH",
        "CODE_NOT_FOUND",
        "LOCK_TOKEN_MISMATCH",
    ]
    assert [it.error.metadata.get("item") for it in answer.results] == ["1", None, None, "1"]
    assert api.stats(book.book_id).redemption_count == 0


def test_all_or_nothing_leaves_the_locks_as_they_were_when_it_is_refused(api: Api) -> None:
    user = unique("user")
    mine, taken = new_codes(2)
    api.book(codes=[mine, taken], lock_policy=OPTIONAL)
    lock = api.lock(mine, user)
    api.lock(taken, unique("holder"))
    items = [item(mine, user, lock_token=lock.lock_token), item(taken, user)]
    answer = batch(api, items, ALL_OR_NOTHING)
    assert outcomes_of(answer) == ["CODE_LOCKED", "CODE_LOCKED"]
    assert answer.results[0].error.metadata["item"] == "1"
    assert get_lock(api, lock.lock.lock_id).state == redemptions.LOCK_STATE_HELD
    with refused("CODE_LOCKED"):
        api.redeem(mine, "another")
    api.redeem(mine, user, lock_token=lock.lock_token)


def test_a_repeat_in_a_batch_leaves_a_lock_that_was_acquired_since_alone(api: Api) -> None:
    user, request_id = unique("user"), unique("request")
    code, other = new_codes(2)
    limits = books.BookLimits(max_redemptions_per_code=2)
    api.book(codes=[code, other], lock_policy=OPTIONAL, limits=limits)
    api.redeem(code, user, request_id=request_id)
    held = api.lock(code, user)
    items = [item(code, user, request_id=request_id), item(other, user)]
    assert outcomes_of(batch(api, items, ALL_OR_NOTHING)) == ["REPLAYED", "OK"]
    assert get_lock(api, held.lock.lock_id) == held.lock
    api.redeem(code, user, lock_token=held.lock_token)


def test_a_lock_outlives_a_change_of_the_policy(api: Api) -> None:
    (code,), user = new_codes(1), unique("user")
    book = api.book(codes=[code], lock_policy=REQUIRED)
    lock = api.lock(code, user)
    api.update(book.book_id, lock_policy=books.LOCK_POLICY_OFF)
    answer = batch(api, [item(code, user, lock_token=lock.lock_token)])
    assert answer.results[0].redemption.lock_id == lock.lock.lock_id
    assert get_lock(api, lock.lock.lock_id).state == redemptions.LOCK_STATE_REDEEMED
