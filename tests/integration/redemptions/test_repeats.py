"""What a request_id means where calls differ: refusals, batches, and what came in between."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC
from typing import Any

import grpc
import pytest
from support.calls import (
    ALL_OR_NOTHING,
    BEST_EFFORT,
    batch,
    close,
    extend,
    item,
    outcomes_of,
    pause,
    reason_name,
    redemption,
    unlock_by_id,
)
from support.service import (
    Api,
    Refused,
    all_at_once,
    assignments,
    books,
    new_codes,
    redemptions,
    refused,
    struct,
    unique,
)

OPTIONAL = books.LOCK_POLICY_OPTIONAL
FAILED = grpc.StatusCode.FAILED_PRECONDITION


def rolled_back(redemption: redemptions.Redemption) -> dict[str, str]:
    """What is told of a redemption that was rolled back."""
    time = redemption.rollback_time.ToDatetime(UTC)
    return {"redemption_id": redemption.redemption_id, "rollback_time": time.isoformat()}


def twice(**more: Any) -> dict[str, Any]:
    """Fields of a book whose codes can be used twice."""
    return {"limits": books.BookLimits(max_redemptions_per_code=2), **more}


# --- only effects are recorded ------------------------------------------------------------------


@dataclass
class Refusal:
    """A call that is refused, and what has to happen for it to be carried out."""

    reason: str
    call: Callable[[str], Any]
    make_possible: Callable[[], object]


def activate(api: Api, book_id: str, request_id: str = "") -> books.ActivateCouponBookResponse:
    request = books.ActivateCouponBookRequest(
        book_id=book_id, request_id=request_id or unique("request")
    )
    return api.books.ActivateCouponBook(request)


def redeem_in_a_book_that_is_paused(api: Api) -> Refusal:
    (code,) = new_codes(1)
    book_id = api.book(codes=[code]).book_id
    pause(api, book_id)
    return Refusal(
        "BOOK_NOT_ACTIVE",
        lambda request_id: api.redeem(code, "ann", request_id=request_id),
        lambda: activate(api, book_id),
    )


def redeem_past_the_lock_of_another(api: Api) -> Refusal:
    code = api.code(lock_policy=OPTIONAL)
    token = api.lock(code, unique("holder")).lock_token
    return Refusal(
        "CODE_LOCKED",
        lambda request_id: api.redeem(code, "ann", request_id=request_id),
        lambda: api.unlock(token),
    )


def lock_past_the_lock_of_another(api: Api) -> Refusal:
    code, user = api.code(lock_policy=OPTIONAL), unique("user")
    token = api.lock(code, unique("holder")).lock_token
    return Refusal(
        "CODE_LOCKED",
        lambda request_id: api.lock(code, user, request_id=request_id),
        lambda: api.unlock(token),
    )


def lock_a_code_that_is_disabled(api: Api) -> Refusal:
    code, user = api.code(lock_policy=OPTIONAL), unique("user")
    api.disable(code)
    return Refusal(
        "CODE_DISABLED",
        lambda request_id: api.lock(code, user, request_id=request_id),
        lambda: api.enable(code),
    )


def assign_what_another_has(api: Api) -> Refusal:
    code = api.code()
    api.assign(code, "bob")
    return Refusal(
        "CODE_ALREADY_ASSIGNED",
        lambda request_id: api.assign(code, "ann", request_id=request_id),
        lambda: api.revoke(code, "bob"),
    )


def assign_random_where_none_is_left(api: Api) -> Refusal:
    book_id = api.book().book_id
    return Refusal(
        "NO_CODES_AVAILABLE",
        lambda request_id: api.assign_random(book_id, "ann", request_id=request_id),
        lambda: api.import_codes(book_id, new_codes(1)),
    )


def enable_a_code_that_is_enabled(api: Api) -> Refusal:
    code = api.code()
    return Refusal(
        "INVALID_STATE_TRANSITION",
        lambda request_id: api.enable(code, request_id=request_id),
        lambda: api.disable(code),
    )


def pause_a_book_that_is_not_active(api: Api) -> Refusal:
    book_id = api.draft().book_id
    return Refusal(
        "INVALID_STATE_TRANSITION",
        lambda request_id: pause(api, book_id, request_id),
        lambda: activate(api, book_id),
    )


@pytest.mark.parametrize(
    "prepare",
    [
        redeem_in_a_book_that_is_paused,
        redeem_past_the_lock_of_another,
        lock_past_the_lock_of_another,
        lock_a_code_that_is_disabled,
        assign_what_another_has,
        assign_random_where_none_is_left,
        enable_a_code_that_is_enabled,
        pause_a_book_that_is_not_active,
    ],
    ids=lambda prepare: prepare.__name__,
)
def test_what_was_refused_may_be_tried_again_with_the_same_id(
    api: Api, prepare: Callable[[Api], Refusal]
) -> None:
    refusal, request_id = prepare(api), unique("request")
    for _ in range(2):
        with refused(refusal.reason):
            refusal.call(request_id)
    refusal.make_possible()
    assert not refusal.call(request_id).replayed
    assert refusal.call(request_id).replayed


def test_what_was_refused_may_be_tried_again_with_other_parameters(api: Api) -> None:
    code, request_id = api.code(assignment_policy=books.ASSIGNMENT_POLICY_REQUIRED), unique("id")
    api.assign(code, "ann")
    with refused("CODE_NOT_ASSIGNED_TO_USER"):
        api.redeem(code, "bob", request_id=request_id)
    assert not api.redeem(code, "ann", request_id=request_id).replayed


# --- what an id names ---------------------------------------------------------------------------


def test_without_an_id_every_call_is_an_attempt_of_its_own(api: Api) -> None:
    code = api.code(**twice())
    request = api.redeem_request(code, "ann", request_id="")
    answers = [api.redemptions.RedeemCode(request) for _ in range(2)]
    assert [it.replayed for it in answers] == [False, False]
    assert [it.counts.code_redemption_count for it in answers] == [1, 2]
    ids = [event.request_id for event in api.events(code=code)]
    assert len(set(ids)) == 2
    assert all(ids)


def test_an_id_names_attempts_on_other_codes_and_by_other_methods_as_well(api: Api) -> None:
    first, second = new_codes(2)
    api.book(codes=[first, second], lock_policy=OPTIONAL)
    request_id, user = unique("request"), unique("user")
    for code in (first, second):
        answers = [
            api.assign(code, user, request_id=request_id),
            api.lock(code, user, request_id=request_id),
            api.redeem(code, user, request_id=request_id),
            api.disable(code, request_id=request_id),
            api.enable(code, request_id=request_id),
        ]
        assert [it.replayed for it in answers] == [False] * 5


def test_a_code_is_the_same_however_it_is_typed(api: Api) -> None:
    code, request_id = api.code(**twice()), unique("request")
    first = api.redeem(code, "ann", request_id=request_id)
    again = api.redeem(f"{code[:5]}-{code[5:].lower()}", "ann", request_id=request_id)
    assert again.replayed
    assert again.redemption == first.redemption


# --- batches ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mode", [BEST_EFFORT, ALL_OR_NOTHING], ids=["best effort", "all or nothing"]
)
@pytest.mark.parametrize("policy", [books.LOCK_POLICY_OFF, OPTIONAL])
def test_a_batch_shares_one_id_over_its_codes(
    api: Api, mode: redemptions.BatchMode.ValueType, policy: books.LockPolicy.ValueType
) -> None:
    names, request_id = new_codes(3), unique("request")
    book = api.book(codes=names, lock_policy=policy)
    items = [item(code, "ann") for code in names]
    first = batch(api, items, mode, request_id)
    again = batch(api, items[::-1], mode, request_id)
    assert (outcomes_of(first), outcomes_of(again)) == (["OK"] * 3, ["REPLAYED"] * 3)
    assert again.redeemed_count == 3
    assert [it.redemption for it in again.results][::-1] == [it.redemption for it in first.results]
    assert [it.counts for it in again.results] == [it.counts for it in first.results]
    assert api.event_names(book_id=book.book_id).count("REDEEMED") == 3


def test_a_batch_that_is_repeated_does_what_was_refused_before(api: Api) -> None:
    names, request_id = new_codes(3), unique("request")
    api.book(codes=names)
    items = [item(code, "ann") for code in names]
    api.disable(names[1])
    first = batch(api, items, BEST_EFFORT, request_id)
    api.enable(names[1])
    again = batch(api, items, BEST_EFFORT, request_id)
    assert outcomes_of(first) == ["OK", "CODE_DISABLED", "OK"]
    assert outcomes_of(again) == ["REPLAYED", "OK", "REPLAYED"]


def test_all_or_nothing_that_was_refused_is_tried_again_as_a_whole(api: Api) -> None:
    names, request_id = new_codes(3), unique("request")
    api.book(codes=names)
    items = [item(code, "ann") for code in names]
    api.disable(names[1])
    assert batch(api, items, ALL_OR_NOTHING, request_id).redeemed_count == 0
    api.enable(names[1])
    assert outcomes_of(batch(api, items, ALL_OR_NOTHING, request_id)) == ["OK"] * 3


def test_an_item_with_other_parameters_is_refused_and_the_others_are_repeats(api: Api) -> None:
    first, second = new_codes(2)
    api.book(codes=[first, second], **twice())
    request_id = unique("request")
    batch(api, [item(first, "ann"), item(second, "ann")], BEST_EFFORT, request_id)
    changed = [item(first, "ann"), item(second, "bob")]
    answer = batch(api, changed, BEST_EFFORT, request_id)
    assert outcomes_of(answer) == ["REPLAYED", "REQUEST_ID_REUSED"]
    answer = batch(api, changed, ALL_OR_NOTHING, request_id)
    assert outcomes_of(answer) == ["REQUEST_ID_REUSED"] * 2


def test_an_item_and_a_call_of_its_own_are_the_same_attempt(api: Api) -> None:
    code, request_id = api.code(**twice()), unique("request")
    single = api.redeem(code, "ann", request_id=request_id)
    items = [item(code, "ann", request_id=request_id), item(code, "ann")]
    answer = batch(api, items)
    assert outcomes_of(answer) == ["REPLAYED", "OK"]
    assert answer.results[0].redemption == single.redemption


def test_users_of_a_batch_share_one_id(api: Api) -> None:
    book_id = api.book(codes=3, limits=books.BookLimits(max_assignments_per_user=1)).book_id
    request = assignments.BatchAssignRandomCodesRequest(
        book_id=book_id, user_ids=["ann", "bob"], request_id=unique("request")
    )
    first = api.assignments.BatchAssignRandomCodes(request).results
    request.user_ids.append("eve")
    again = api.assignments.BatchAssignRandomCodes(request).results
    assert [it.replayed for it in again] == [True, True, False]
    assert [it.assignment for it in again[:2]] == [it.assignment for it in first]
    request.metadata.update({"a": 1})
    changed = api.assignments.BatchAssignRandomCodes(request).results
    assert [reason_name(it.error) for it in changed] == ["REQUEST_ID_REUSED"] * 3


# --- what came in between -----------------------------------------------------------------------


def test_a_redemption_that_was_rolled_back_is_reported_to_a_repeat(api: Api) -> None:
    code, request_id = api.code(), unique("request")
    first = api.redeem(code, "ann", order_id="order 1", request_id=request_id).redemption
    undone = api.rollback(first.redemption_id).redemption
    for _ in range(2):
        with refused("ALREADY_ROLLED_BACK", FAILED) as it:
            api.redeem(code, "ann", order_id="order 1", request_id=request_id)
        assert it.metadata == rolled_back(undone)
    assert redemption(api, first.redemption_id) == undone
    assert api.get_code(code).redemption_count == 0
    anew = api.redeem(code, "ann", order_id="order 1")
    assert not anew.replayed
    assert anew.redemption.redemption_id != first.redemption_id
    with refused("ALREADY_ROLLED_BACK"):
        api.redeem(code, "ann", order_id="order 1", request_id=request_id)


def test_a_repeat_with_other_parameters_is_refused_whatever_came_since(api: Api) -> None:
    code, request_id = api.code(), unique("request")
    first = api.redeem(code, "ann", request_id=request_id).redemption
    api.rollback(first.redemption_id)
    with refused("REQUEST_ID_REUSED"):
        api.redeem(code, "bob", request_id=request_id)


def test_a_redemption_with_a_lock_that_was_rolled_back_is_reported_to_a_repeat(api: Api) -> None:
    code, user, request_id = api.code(lock_policy=OPTIONAL), unique("user"), unique("id")
    token = api.lock(code, user).lock_token
    fields: dict[str, Any] = {"lock_token": token, "request_id": request_id}
    api.rollback(api.redeem(code, user, **fields).redemption.redemption_id)
    with refused("ALREADY_ROLLED_BACK"):
        api.redeem(code, user, **fields)
    assert api.get_code(code).redemption_count == 0


def test_a_redemption_is_rolled_back_once_whoever_asks(api: Api) -> None:
    code, request_id = api.code(), unique("request")
    redemption_id = api.redeem(code, "ann").redemption.redemption_id
    first = api.rollback(redemption_id, request_id=request_id)
    api.redeem(code, "bob")
    again = api.rollback(redemption_id, request_id=request_id)
    assert again.replayed
    assert (again.redemption, again.counts) == (first.redemption, first.counts)
    with refused("ALREADY_ROLLED_BACK") as it:
        api.rollback(redemption_id)
    assert it.metadata == rolled_back(first.redemption)
    assert api.get_code(code).redemption_count == 1


def test_items_of_a_batch_that_were_rolled_back_are_reported_to_a_repeat(api: Api) -> None:
    names, request_id = new_codes(3), unique("request")
    api.book(codes=names)
    items = [item(code, "ann") for code in names]
    first = batch(api, items, BEST_EFFORT, request_id)
    undone = api.rollback(first.results[1].redemption.redemption_id).redemption
    again = batch(api, items, BEST_EFFORT, request_id)
    assert outcomes_of(again) == ["REPLAYED", "ALREADY_ROLLED_BACK", "REPLAYED"]
    assert again.redeemed_count == 2
    assert dict(again.results[1].error.metadata) == rolled_back(undone)


@pytest.mark.parametrize("policy", [books.LOCK_POLICY_OFF, OPTIONAL])
def test_each_item_of_all_or_nothing_that_was_carried_out_answers_for_itself(
    api: Api, policy: books.LockPolicy.ValueType
) -> None:
    names, request_id = new_codes(4), unique("request")
    api.book(codes=names, lock_policy=policy)
    items = [item(code, "ann") for code in names[:3]]
    first = batch(api, items, ALL_OR_NOTHING, request_id)
    api.rollback(first.results[1].redemption.redemption_id)
    for repeated in (items, items[::-1]):
        again = batch(api, repeated, ALL_OR_NOTHING, request_id)
        assert outcomes_of(again) == ["REPLAYED", "ALREADY_ROLLED_BACK", "REPLAYED"]
        assert again.redeemed_count == 2
        assert "item" not in again.results[1].error.metadata
    # With an item that was not in it, it is another batch, of which nothing is carried out.
    more = batch(api, [*items, item(names[3], "ann")], ALL_OR_NOTHING, request_id)
    assert outcomes_of(more) == ["ALREADY_ROLLED_BACK"] * 4
    assert api.get_code(names[3]).redemption_count == 0


def test_a_code_that_is_no_longer_disabled_or_enabled_is_reported_to_a_repeat(api: Api) -> None:
    code, off, on = api.code(), unique("off"), unique("on")
    api.disable(code, request_id=off)
    assert api.disable(code, request_id=off).replayed
    api.enable(code, request_id=on)
    with refused("INVALID_STATE_TRANSITION", FAILED) as it:
        api.disable(code, request_id=off)
    assert it.metadata == {"state": "AVAILABLE"}
    api.redeem(code, "ann")
    assert api.enable(code, request_id=on).replayed
    api.disable(code)
    with refused("INVALID_STATE_TRANSITION") as it:
        api.enable(code, request_id=on)
    assert it.metadata == {"state": "DISABLED"}
    assert api.disable(code, request_id=off).replayed
    assert api.event_names(code=code) == [
        "CODE_DISABLED",
        "CODE_ENABLED",
        "REDEEMED",
        "CODE_DISABLED",
    ]


Answer = tuple[str, dict[str, str]]
"""The reason of a refusal and its metadata, or OK."""


def answer_to(call: Callable[[], object]) -> Answer:
    """What a call is answered."""
    try:
        call()
    except grpc.RpcError as error:
        it = Refused()
        it.error = error
        assert it.status is FAILED
        return it.reason, it.metadata
    return "OK", {}


def assign_this_code(api: Api, code: str, request_id: str) -> Answer:
    return answer_to(lambda: api.assign(code, "ann", request_id=request_id))


def assign_any_code(api: Api, code: str, request_id: str) -> Answer:
    book_id = api.get_code(code).book_id
    return answer_to(lambda: api.assign_random(book_id, "ann", request_id=request_id))


def assign_any_code_in_a_batch(api: Api, code: str, request_id: str) -> Answer:
    request = assignments.BatchAssignRandomCodesRequest(
        book_id=api.get_code(code).book_id, user_ids=["ann"], request_id=request_id
    )
    (result,) = api.assignments.BatchAssignRandomCodes(request).results
    if result.HasField("error"):
        return reason_name(result.error), dict(result.error.metadata)
    assert result.assignment.state == assignments.ASSIGNMENT_STATE_ACTIVE
    return "OK", {}


@pytest.mark.parametrize(
    "assign",
    [assign_this_code, assign_any_code, assign_any_code_in_a_batch],
    ids=lambda assign: assign.__name__,
)
def test_an_assignment_that_is_no_longer_active_is_reported_to_a_repeat(
    api: Api, assign: Callable[[Api, str, str], Answer]
) -> None:
    code, request_id = api.code(**twice()), unique("request")
    assert assign(api, code, request_id) == ("OK", {})
    redeemed = [api.redeem(code, "ann").redemption.redemption_id for _ in range(2)]
    used_up = "ASSIGNMENT_NOT_ACTIVE", {"state": "REDEEMED"}
    assert assign(api, code, request_id) == used_up
    api.rollback(redeemed[0])
    assert assign(api, code, request_id) == ("OK", {})
    api.revoke(code, "ann")
    revoked = "ASSIGNMENT_NOT_ACTIVE", {"state": "REVOKED"}
    assert assign(api, code, request_id) == revoked
    assert api.get_code(code).assignment_count == 0
    api.assign(code, "ann")  # another one
    assert assign(api, code, request_id) == revoked
    assert api.event_names(code=code).count("ASSIGNED") == 2


def test_a_revocation_is_answered_as_recorded_when_the_code_was_assigned_anew(api: Api) -> None:
    code, request_id = api.code(**twice()), unique("request")
    api.assign(code, "ann", metadata=struct(from_=1))
    api.redeem(code, "ann")
    first = api.revoke(code, "ann", request_id=request_id)
    assert api.revoke(code, "ann", request_id=request_id).assignment == first.assignment
    api.assign(code, "ann", metadata=struct(from_=2))
    api.redeem(code, "ann")
    again = api.revoke(code, "ann", request_id=request_id)
    assert again.replayed
    assert again.assignment.state == assignments.ASSIGNMENT_STATE_REVOKED
    assert again.assignment.redemption_count == first.assignment.redemption_count == 1
    assert not again.assignment.HasField("metadata")
    assert api.get_code(code).assignment_count == 1


@pytest.mark.parametrize("verb", ["activate", "pause"])
def test_a_book_that_is_no_longer_in_the_state_it_was_brought_to_is_reported(
    api: Api, verb: str
) -> None:
    request_id = unique("request")
    if verb == "activate":
        book_id, repeat, undo, state = api.draft().book_id, activate, pause, "PAUSED"
    else:
        book_id, repeat, undo, state = api.book().book_id, pause, activate, "ACTIVE"
    first = repeat(api, book_id, request_id)
    assert repeat(api, book_id, request_id).coupon_book == first.coupon_book
    undo(api, book_id, "")
    with refused("INVALID_STATE_TRANSITION") as it:
        repeat(api, book_id, request_id)
    assert it.metadata == {"state": state}
    close(api, book_id)
    with refused("INVALID_STATE_TRANSITION") as it:
        repeat(api, book_id, request_id)
    assert it.metadata == {"state": "CLOSED"}


ENDS = {"release": "RELEASED", "redeem": "REDEEMED", "redeem without its token": "REDEEMED"}


def end(api: Api, held: redemptions.LockCodeResponse, how: str) -> None:
    """Ends a lock."""
    if how == "release":
        api.unlock(held.lock_token)
    elif how == "redeem":
        api.redeem(held.lock.code, held.lock.user_id, lock_token=held.lock_token)
    else:
        api.redeem(held.lock.code, held.lock.user_id)


@pytest.mark.parametrize("how", ENDS)
def test_a_lock_that_has_ended_is_reported_to_repeats_of_acquiring_and_extending_it(
    api: Api, how: str
) -> None:
    code, user = api.code(lock_policy=OPTIONAL, **twice()), unique("user")
    taken, extended = unique("taken"), unique("extended")
    held = api.lock(code, user, request_id=taken)
    longer = extend(api, held.lock_token, ttl_s=200, request_id=extended)
    again = api.lock(code, user, request_id=taken)
    assert again.replayed
    assert (again.lock, again.lock_token) == (longer.lock, longer.lock_token)
    end(api, held, how)
    for call in (
        lambda: api.lock(code, user, request_id=taken),
        lambda: extend(api, held.lock_token, ttl_s=200, request_id=extended),
    ):
        with refused("LOCK_EXPIRED", FAILED) as it:
            call()
        assert it.metadata == {"state": ENDS[how]}
    api.lock(code, unique("another"))


def test_an_extension_that_is_sent_many_times_at_once_counts_once(api: Api) -> None:
    token = api.lock(api.code(lock_policy=OPTIONAL), unique("user"), ttl_s=10).lock_token
    request_id = unique("request")
    all_at_once([lambda: extend(api, token, ttl_s=20, request_id=request_id)] * 10)
    for seconds in (30, 40):
        extend(api, token, ttl_s=seconds)
    with refused("LOCK_LIMIT_EXCEEDED"):
        extend(api, token, ttl_s=50)


def test_a_lock_that_is_requested_many_times_at_once_is_one_permit(api: Api) -> None:
    code, user = api.code(lock_policy=OPTIONAL, **twice()), unique("user")
    answers: list[Any] = all_at_once([lambda: api.lock(code, user)] * 10)
    assert len({it.lock_token for it in answers}) == 1
    api.lock(code, unique("another"))
    locked = {it.lock_id for it in api.events(code=code)}
    assert len(locked) == 2


def test_a_release_by_an_operator_and_one_by_the_holder_are_the_same(api: Api) -> None:
    held = api.lock(api.code(lock_policy=OPTIONAL), unique("user"))
    assert not unlock_by_id(api, held.lock.lock_id).replayed
    assert api.unlock(held.lock_token).replayed


def test_who_stopped_waiting_for_a_lock_finds_it_held(api: Api) -> None:
    names = new_codes(40)
    book = api.book(codes=names, lock_policy=OPTIONAL)
    requests = [
        redemptions.LockCodeRequest(code=code, user_id=unique("user"), request_id=unique("request"))
        for code in names
    ]
    for n, request in enumerate(requests):
        with suppress(grpc.RpcError):  # its outcome is open
            api.redemptions.LockCode(request, timeout=0.001 + n * 0.0003)
    for request in requests:
        held = api.redemptions.LockCode(request)
        with refused("CODE_LOCKED"):
            api.lock(request.code, unique("another"))
        api.redeem(request.code, request.user_id, lock_token=held.lock_token)
    api.update(book.book_id, lock_policy=books.LOCK_POLICY_OFF)
    assert api.stats(book.book_id).redeemed_count == len(names)
