"""A request_id names one attempt: sent twice, it has one effect and two equal answers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from grpc import StatusCode
from support.calls import batch, close, extend, item, pause
from support.service import (
    Api,
    all_at_once,
    assignments,
    audit,
    books,
    codes,
    euros,
    new_codes,
    redemptions,
    refused,
    unique,
)

OPTIONAL = books.LOCK_POLICY_OPTIONAL
MANY = books.BookLimits(max_redemptions_per_code=100)
AT_ONCE = 10


@dataclass
class Attempt:
    """A call that changes something, ready to be made.

    `call` and `others`, which have the same resource and other parameters, take the request_id.
    `beside`: what is written to the ledger with the `event`.
    """

    book_id: str
    event: str
    call: Callable[[str], Any]
    others: list[Callable[[str], Any]] = field(default_factory=list[Callable[[str], Any]])
    beside: tuple[str, ...] = ()

    @property
    def events(self) -> list[str]:
        """What the ledger says of it."""
        return sorted((self.event, *self.beside))


# --- one attempt for each RPC that changes something --------------------------------------------


def create_book(api: Api) -> Attempt:
    business_id = unique("business")

    def call(request_id: str, name: str = "A book") -> books.CreateCouponBookResponse:
        percent = books.Discount(percent_off=books.PercentOff(basis_points=1))
        book = books.CouponBook(
            business_id=business_id, name=name, discount=percent, currency_code="EUR"
        )
        request = books.CreateCouponBookRequest(coupon_book=book, request_id=request_id)
        return api.books.CreateCouponBook(request)

    return Attempt("", "BOOK_CREATED", call, [functools.partial(call, name="Another")])


def update_book(api: Api) -> Attempt:
    book = api.draft()

    def call(request_id: str, etag: str = "", **fields: Any) -> books.UpdateCouponBookResponse:
        changed = books.CouponBook(book_id=book.book_id, etag=etag, **fields)
        request = books.UpdateCouponBookRequest(coupon_book=changed, request_id=request_id)
        request.update_mask.paths.extend(fields)
        return api.books.UpdateCouponBook(request)

    return Attempt(
        book.book_id,
        "BOOK_UPDATED",
        functools.partial(call, name="New"),
        [
            functools.partial(call, name="Other"),
            functools.partial(call, description="New"),
            functools.partial(call, name="New", etag=book.etag),
        ],
    )


def activate_book(api: Api) -> Attempt:
    book = api.draft()

    def call(request_id: str, etag: str = "") -> books.ActivateCouponBookResponse:
        request = books.ActivateCouponBookRequest(
            book_id=book.book_id, etag=etag, request_id=request_id
        )
        return api.books.ActivateCouponBook(request)

    other = functools.partial(call, etag=book.etag)
    return Attempt(book.book_id, "BOOK_ACTIVATED", call, [other])


def pause_book(api: Api) -> Attempt:
    book_id = api.book().book_id
    return Attempt(book_id, "BOOK_PAUSED", functools.partial(pause, api, book_id))


def close_book(api: Api) -> Attempt:
    book_id = api.book().book_id
    return Attempt(book_id, "BOOK_CLOSED", functools.partial(close, api, book_id))


def generate_codes(api: Api) -> Attempt:
    book_id = api.book().book_id

    def call(request_id: str, count: int = 30) -> codes.GenerateCodesResponse:
        request = codes.GenerateCodesRequest(book_id=book_id, count=count, request_id=request_id)
        return list(api.codes.GenerateCodes(request))[-1]

    return Attempt(book_id, "CODES_GENERATED", call, [functools.partial(call, count=29)])


def import_codes(api: Api) -> Attempt:
    book_id, rows = api.book().book_id, [*new_codes(3), "not a code!"]

    def call(request_id: str, rows: Sequence[str] = rows) -> codes.ImportCodesResponse:
        (answer,) = api.import_codes(book_id, rows, request_id=request_id)
        return answer

    return Attempt(book_id, "CODES_IMPORTED", call, [functools.partial(call, rows=rows[:2])])


def disable_code(api: Api) -> Attempt:
    book_id, code = _code(api)
    return Attempt(
        book_id, "CODE_DISABLED", lambda request_id: api.disable(code, request_id=request_id)
    )


def enable_code(api: Api) -> Attempt:
    book_id, code = _code(api)
    api.disable(code)
    return Attempt(
        book_id, "CODE_ENABLED", lambda request_id: api.enable(code, request_id=request_id)
    )


def assign_code(api: Api) -> Attempt:
    book_id, code = _code(api)

    def call(request_id: str, user_id: str = "ann", **fields: Any) -> Any:
        return api.assign(code, user_id, request_id=request_id, **fields)

    other = [functools.partial(call, user_id="bob"), functools.partial(call, metadata={"a": 1})]
    return Attempt(book_id, "ASSIGNED", call, other)


def assign_random_code(api: Api) -> Attempt:
    book_id = api.book(codes=20).book_id

    def call(request_id: str, **fields: Any) -> Any:
        return api.assign_random(book_id, "ann", request_id=request_id, **fields)

    return Attempt(book_id, "ASSIGNED", call, [functools.partial(call, metadata={"a": 1})])


def batch_assign_random_codes(api: Api) -> Attempt:
    book_id = api.book(codes=20).book_id

    def call(request_id: str) -> assignments.BatchAssignResult:
        request = assignments.BatchAssignRandomCodesRequest(
            book_id=book_id, user_ids=["ann"], request_id=request_id
        )
        (result,) = api.assignments.BatchAssignRandomCodes(request).results
        return result

    return Attempt(book_id, "ASSIGNED", call)


def revoke_assignment(api: Api) -> Attempt:
    book_id, code = _code(api)
    for user_id in ("ann", "bob"):
        api.assign(code, user_id)

    def call(request_id: str, user_id: str = "ann") -> assignments.RevokeAssignmentResponse:
        request = assignments.RevokeAssignmentRequest(
            code=code, user_id=user_id, request_id=request_id
        )
        return api.assignments.RevokeAssignment(request)

    return Attempt(book_id, "REVOKED", call, [functools.partial(call, user_id="bob")])


def transfer_assignment(api: Api) -> Attempt:
    book_id, code = _code(api)
    for user_id in ("ann", "bob"):
        api.assign(code, user_id)

    def call(request_id: str, giver: str = "ann", receiver: str = "cat", **fields: Any) -> Any:
        return api.transfer(code, giver, receiver, request_id=request_id, **fields)

    other: list[Callable[[str], Any]] = [
        functools.partial(call, giver="bob"),
        functools.partial(call, receiver="dan"),
        functools.partial(call, metadata={"a": 1}),
        functools.partial(call, book_id=book_id),
    ]
    return Attempt(book_id, "ASSIGNMENT_TRANSFERRED", call, other, beside=("ASSIGNED",))


def lock_code(api: Api) -> Attempt:
    book_id, code = _code(api)
    user_id, another = unique("user"), unique("another")

    def call(request_id: str, user_id: str = user_id, **fields: Any) -> Any:
        return api.lock(code, user_id, request_id=request_id, **fields)

    other = [
        functools.partial(call, user_id=another),
        functools.partial(call, ttl_s=5),
        functools.partial(call, metadata={"a": 1}),
        functools.partial(call, book_id=book_id),
    ]
    return Attempt(book_id, "LOCKED", call, other)


def extend_lock(api: Api) -> Attempt:
    book_id, code = _code(api)
    token = api.lock(code, unique("user")).lock_token

    def call(request_id: str, ttl_s: float = 120) -> redemptions.ExtendLockResponse:
        return extend(api, token, ttl_s=ttl_s, request_id=request_id)

    return Attempt(book_id, "LOCK_EXTENDED", call, [functools.partial(call, ttl_s=130)])


def unlock_code(api: Api) -> Attempt:
    book_id, code = _code(api)
    token = api.lock(code, unique("user")).lock_token

    def call(request_id: str) -> redemptions.UnlockCodeResponse:
        request = redemptions.UnlockCodeRequest(lock_token=token, request_id=request_id)
        return api.redemptions.UnlockCode(request)

    return Attempt(book_id, "UNLOCKED", call)


def redeem_code(api: Api, **fields: Any) -> Attempt:
    book_id, code = _code(api)

    def call(request_id: str, user_id: str = "ann", **changed: Any) -> Any:
        return api.redeem(code, user_id, request_id=request_id, **{**fields, **changed})

    other = [
        functools.partial(call, user_id="bob"),
        functools.partial(call, order_id="order 1"),
        functools.partial(call, order_amount=euros(1)),
        functools.partial(call, metadata={"a": 1}),
        functools.partial(call, book_id=book_id),
    ]
    return Attempt(book_id, "REDEEMED", call, other)


def redeem_code_for_an_order(api: Api) -> Attempt:
    attempt = redeem_code(api, order_id="order 0", order_amount=euros(1_000))
    return Attempt(attempt.book_id, attempt.event, attempt.call, attempt.others[1:3])


def redeem_code_with_a_lock(api: Api) -> Attempt:
    book_id, code = _code(api)
    user_id = unique("user")
    token = api.lock(code, user_id).lock_token

    def call(request_id: str, **fields: Any) -> Any:
        return api.redeem(code, user_id, request_id=request_id, lock_token=token, **fields)

    return Attempt(book_id, "REDEEMED", call, [functools.partial(call, order_id="order 1")])


def redeem_the_last_use_of_a_code(api: Api) -> Attempt:
    (code,) = new_codes(1)
    book_id = api.book(codes=[code]).book_id

    def call(request_id: str, user_id: str = "ann") -> redemptions.RedeemCodeResponse:
        return api.redeem(code, user_id, request_id=request_id, order_id="order 1")

    return Attempt(book_id, "REDEEMED", call, [functools.partial(call, user_id="bob")])


def batch_redeem_codes(api: Api) -> Attempt:
    book_id, code = _code(api)

    def call(request_id: str) -> redemptions.BatchRedeemResult:
        (result,) = batch(api, [item(code, "ann")], request_id=request_id).results
        return result

    return Attempt(book_id, "REDEEMED", call)


def rollback_redemption(api: Api) -> Attempt:
    book_id, code = _code(api)
    redemption_id = api.redeem(code, "ann").redemption.redemption_id

    def call(request_id: str, **fields: Any) -> redemptions.RollbackRedemptionResponse:
        return api.rollback(redemption_id, request_id=request_id, **fields)

    return Attempt(book_id, "ROLLED_BACK", call, [functools.partial(call, metadata={"a": 1})])


def _code(api: Api) -> tuple[str, str]:
    """A new book, and its code, which can be locked, assigned and redeemed often."""
    (code,) = new_codes(1)
    return api.book(codes=[code], lock_policy=OPTIONAL, limits=MANY).book_id, code


EVERY = (
    create_book,
    update_book,
    activate_book,
    pause_book,
    close_book,
    generate_codes,
    import_codes,
    disable_code,
    enable_code,
    assign_code,
    assign_random_code,
    batch_assign_random_codes,
    revoke_assignment,
    transfer_assignment,
    lock_code,
    extend_lock,
    unlock_code,
    redeem_code,
    redeem_code_for_an_order,
    redeem_code_with_a_lock,
    redeem_the_last_use_of_a_code,
    batch_redeem_codes,
    rollback_redemption,
)

every_change = pytest.mark.parametrize("prepare", EVERY, ids=lambda prepare: prepare.__name__)
Prepare = Callable[[Api], Attempt]


def without_replayed(answer: Message) -> Message:
    """The answer, but for whether it is a repeat."""
    same = type(answer)()
    same.CopyFrom(answer)
    same.ClearField("replayed")
    return same


def effects_of(api: Api, attempt: Attempt, request_id: str, answer: Any) -> list[str]:
    """What the ledger says of the attempt."""
    book_id = attempt.book_id or answer.coupon_book.book_id
    name = audit.AuditEventType.Name
    return sorted(
        name(event.type).removeprefix("AUDIT_EVENT_TYPE_")
        for event in api.events(book_id=book_id)
        if event.request_id == request_id
    )


# --- what holds for every one of them -----------------------------------------------------------


@every_change
def test_the_same_call_again_changes_nothing_and_is_answered_the_same(
    api: Api, prepare: Prepare
) -> None:
    attempt, request_id = prepare(api), unique("request")
    first, again = attempt.call(request_id), attempt.call(request_id)
    assert (first.replayed, again.replayed) == (False, True)
    assert without_replayed(first) == without_replayed(again)
    assert effects_of(api, attempt, request_id, first) == attempt.events


@every_change
def test_the_same_call_at_the_same_moment_has_one_effect_and_equal_answers(
    api: Api, prepare: Prepare
) -> None:
    attempt, request_id = prepare(api), unique("request")
    answers = all_at_once([lambda: attempt.call(request_id)] * AT_ONCE)
    failed = [it for it in answers if isinstance(it, grpc.RpcError)]
    assert failed == []
    done: list[Any] = answers
    assert {without_replayed(it).SerializeToString(deterministic=True) for it in done} == {
        without_replayed(done[0]).SerializeToString(deterministic=True)
    }
    assert effects_of(api, attempt, request_id, done[0]) == attempt.events


@every_change
def test_the_same_id_with_other_parameters_is_refused_and_changes_nothing(
    api: Api, prepare: Prepare
) -> None:
    attempt, request_id = prepare(api), unique("request")
    first = attempt.call(request_id)
    for other in attempt.others:
        with refused("REQUEST_ID_REUSED", StatusCode.INVALID_ARGUMENT):
            other(request_id)
    assert effects_of(api, attempt, request_id, first) == attempt.events
    assert without_replayed(attempt.call(request_id)) == without_replayed(first)


@every_change
def test_a_repeat_is_answered_also_when_the_book_is_closed(api: Api, prepare: Prepare) -> None:
    attempt, request_id = prepare(api), unique("request")
    first = attempt.call(request_id)
    book_id = attempt.book_id or first.coupon_book.book_id
    if attempt.event != "BOOK_CLOSED":
        close(api, book_id)
    if attempt.event in ("BOOK_ACTIVATED", "BOOK_PAUSED"):  # that is undone
        with refused("INVALID_STATE_TRANSITION"):
            attempt.call(request_id)
        return
    again = attempt.call(request_id)
    assert again.replayed
    if hasattr(first, "coupon_book"):  # a book is returned as it is now
        assert again.coupon_book.state == books.COUPON_BOOK_STATE_CLOSED
    elif not hasattr(first, "coupon_code"):
        assert without_replayed(again) == without_replayed(first)
