"""Several redemptions of one code in a call: each lock is used once and keeps others out."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import pytest
from support.calls import ALL_OR_NOTHING, batch, item, locking_code, outcomes_of, reasons_of, tried
from support.service import Api, books, new_codes, refused, unique

from coupon_service.batching import CommandLanes
from coupon_service.errors import Contention
from coupon_service.model import CommandGroup, Outcome


def test_nobody_redeems_past_a_lock_with_a_token_and_once_more_without(api: Api) -> None:
    code, user, other = locking_code(api, uses=2), unique("user"), unique("other")
    own, held = api.lock(code, user), api.lock(code, other)
    items = [
        item(code, user, lock_token=own.lock_token, request_id="one"),
        item(code, user, request_id="two"),
    ]
    assert outcomes_of(batch(api, items, ALL_OR_NOTHING)) == ["CODE_LOCKED", "CODE_LOCKED"]
    assert outcomes_of(batch(api, items)) == ["OK", "CODE_LOCKED"]
    assert tried(lambda: api.redeem(code, other, lock_token=held.lock_token)) == "OK"


def test_a_lock_that_a_call_has_used_keeps_nobody_out_of_it(api: Api) -> None:
    code, user = locking_code(api, uses=2), unique("user")
    own = api.lock(code, user)
    items = [item(code, user, lock_token=own.lock_token), item(code, "other", request_id="two")]
    assert outcomes_of(batch(api, items)) == ["OK", "OK"]


def test_a_lock_that_a_call_has_used_without_its_token_keeps_nobody_out_of_it(api: Api) -> None:
    code, user = locking_code(api, uses=3), unique("user")
    api.lock(code, user)
    api.lock(code, unique("beside"))
    items = [item(code, user), item(code, "other", request_id="two")]
    assert outcomes_of(batch(api, items)) == ["OK", "OK"]


def test_a_lock_is_used_by_one_redemption(api: Api) -> None:
    code, user = locking_code(api, uses=3), unique("user")
    own = api.lock(code, user)
    items = [item(code, user, request_id="one"), item(code, user, request_id="two")]
    results = batch(api, items).results
    assert [it.redemption.lock_id for it in results] == [own.lock.lock_id, ""]


def test_a_lock_that_has_ended_does_not_validate_in_a_book_that_went_off_locking(api: Api) -> None:
    (code,), user = new_codes(1), unique("user")
    book = api.book(codes=[code], lock_policy=books.LOCK_POLICY_OPTIONAL)
    token = api.lock(code, user).lock_token
    api.unlock(token)
    api.update(book.book_id, lock_policy=books.LOCK_POLICY_OFF)
    assert reasons_of(api.validate(code, user, lock_token=token)) == ["LOCK_EXPIRED"]
    assert tried(lambda: api.redeem(code, user, lock_token=token)) == "LOCK_EXPIRED"


@pytest.fixture
def second_step_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that come again, now with a permit, meet a conflict."""
    submit = CommandLanes.submit

    def failing(lanes: CommandLanes, group: Any) -> Awaitable[list[Outcome]]:
        if isinstance(group, CommandGroup) and any(
            getattr(it, "lease", 0) for it in group.commands
        ):
            raise Contention
        return submit(lanes, group)

    monkeypatch.setattr(CommandLanes, "submit", failing)


@pytest.mark.usefixtures("second_step_fails")
def test_a_call_of_which_something_was_done_is_not_aborted(api: Api) -> None:
    plain, locking = api.code(), locking_code(api)
    items = [item(plain, "ann"), item(locking, "ann")]
    assert outcomes_of(batch(api, items)) == ["OK", "CONTENTION"]
    assert api.get_code(plain).redemption_count == 1


@pytest.mark.usefixtures("second_step_fails")
def test_a_call_of_which_nothing_was_done_is_aborted(api: Api) -> None:
    plain, locking = api.code(), locking_code(api)
    with refused("CONTENTION"):
        batch(api, [item(locking, "ann"), item(locking_code(api), "ann")])
    with refused("CONTENTION"):
        batch(api, [item(plain, "ann"), item(locking, "ann")], ALL_OR_NOTHING)
    assert api.get_code(plain).redemption_count == 0
