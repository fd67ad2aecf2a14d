"""EraseUser: nothing that names a user is left, and all else is as it was."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psycopg
import pytest
from grpc import StatusCode
from support.calls import coupons, reasons_of
from support.invariants import assert_adds_up
from support.person import Person, erase, pseudonym_of
from support.service import (
    Api,
    ServerThread,
    audit,
    books,
    codes,
    euros,
    new_codes,
    redemptions,
    refused,
    unique,
)
from support.time_zones import zone_at_noon
from support.traces import traces_in
from support.work_done import work_done

from coupon_service import erasure
from coupon_service.model import Event
from coupon_service.rules import lock_view
from coupon_service.store import erasures

ERASED = audit.ERASURE_STATE_ERASED
COMBINABLE = books.ORDER_POLICY_COMBINABLE
OPTIONAL = books.LOCK_POLICY_OPTIONAL
MANY = books.BookLimits(max_redemptions_per_code=100)


@pytest.fixture
def person(api: Api, server: ServerThread) -> Any:
    """Checks in the end that everything adds up."""
    made = Person(api)
    yield made
    with psycopg.connect(server.database_url) as connection:
        assert_adds_up(connection, made.book_ids)


def traces(server: ServerThread, names: list[str]) -> list[str]:
    assert server.settings.redis_url is not None
    return traces_in(server.database_url, server.settings.redis_url.get_secret_value(), names)


def test_nothing_that_names_the_user_is_left(
    api: Api, server: ServerThread, person: Person
) -> None:
    person.live()
    kept = person.keep_what_is_the_friends()
    assert {it.split(" in ")[0] for it in traces(server, person.names)} == set(person.names)
    progress = erase(api, person.user_id)
    assert traces(server, person.names) == []
    assert {it.split(" in ")[0] for it in traces(server, kept)} == set(kept)
    last = progress[-1].erasure
    assert last.state == ERASED
    assert not progress[-1].replayed
    assert last.changed_rows["redemption_audit"] > 10
    assert last.changed_rows["coupon_assignments"] == 5
    assert last.changed_rows["coupon_user_counters"] == 1
    assert last.changed_rows["coupon_period_counters"] == 1
    assert last.changed_rows["coupon_orders"] == 2


def test_limits_bind_when_the_user_comes_again(api: Api, person: Person) -> None:
    person.live()
    erase(api, person.user_id)
    user, limits = (
        person.user_id,
        books.BookLimits(
            max_redemptions_per_code=5,
            max_redemptions_per_user=2,
            max_redemptions_per_user_per_code=1,
        ),
    )
    names = person.book(4, limits=limits)
    api.redeem(names[0], user)
    erase(api, user)
    with refused("USER_LIMIT_EXCEEDED") as it:
        api.redeem(names[0], user)
    assert it.metadata["limit_name"] == "max_redemptions_per_user_per_code"
    assert reasons_of(api.validate(names[0], user)) == ["USER_LIMIT_EXCEEDED"]
    api.redeem(names[1], user)
    with refused("USER_LIMIT_EXCEEDED") as it:
        api.redeem(names[2], user)
    assert it.metadata["limit_name"] == "max_redemptions_per_user"
    erase(api, user)
    with refused("USER_LIMIT_EXCEEDED"):
        api.redeem(names[2], user)
    api.redeem(names[2], unique("another"))


def test_assignments_in_all_bind(api: Api, person: Person) -> None:
    user, limits = person.user_id, books.BookLimits(max_assignments_per_user=1)
    names = person.book(3, limits=limits)
    api.assign(names[0], user)
    api.redeem(names[0], user)
    erase(api, user)
    with refused("USER_LIMIT_EXCEEDED"):
        api.assign(names[1], user)
    with refused("USER_LIMIT_EXCEEDED"):
        api.assign_random(person.book_ids[0], user)
    row = codes.NewCode(code=new_codes(1)[0], user_id=user)
    (answer,) = api.import_codes(person.book_ids[0], [row])
    assert answer.assigned_count == 0


def test_what_was_not_used_is_given_back(api: Api, person: Person) -> None:
    user, limits = person.user_id, books.BookLimits(max_assignments_per_user=1)
    names = person.book(2, limits=limits)
    api.assign(names[0], user)
    erase(api, user)
    assert api.event_names(code=names[0]) == ["ASSIGNED", "REVOKED"]
    api.assign(names[0], unique("another"))
    api.assign(names[1], user)


def test_limits_a_day_bind(api: Api, person: Person) -> None:
    limits = books.PeriodLimits(
        period=books.PERIOD_MONTH, time_zone=zone_at_noon(), max_redemptions_per_user=1
    )
    names = person.book(2, period_limits=limits)
    redeemed = api.redeem(names[0], person.user_id).redemption
    erase(api, person.user_id)
    with refused("USER_PERIOD_LIMIT_EXCEEDED"):
        api.redeem(names[1], person.user_id)
    api.rollback(redeemed.redemption_id)
    api.redeem(names[1], person.user_id)


def test_an_order_is_not_used_again(api: Api, person: Person) -> None:
    (code,) = person.book(1, limits=MANY)
    order = unique("order")
    api.redeem(code, person.user_id, order_id=order)
    erase(api, person.user_id)
    for user_id in (person.user_id, person.friend):
        with refused("ORDER_ALREADY_REDEEMED"):
            api.redeem(code, user_id, order_id=order)


def test_coupons_of_an_order_go_together_as_before(api: Api, person: Person) -> None:
    sixty = books.Discount(percent_off=books.PercentOff(basis_points=6_000))
    limits = books.BookLimits(max_redemptions_per_order=2)
    names = person.book(4, order_policy=COMBINABLE, discount=sixty, limits=limits)
    order: dict[str, Any] = {"order_id": unique("order"), "order_amount": euros(10_000)}
    first = api.redeem(names[0], person.user_id, **order).redemption
    erase(api, person.user_id)
    second = api.redeem(names[1], person.friend, **order).redemption
    assert second.discount.amount_minor == 4_000
    with refused("ORDER_LIMIT_EXCEEDED"):
        api.redeem(names[2], person.friend, **order)
    api.rollback(first.redemption_id)
    assert api.redeem(names[2], person.friend, **order).redemption.discount.amount_minor == 6_000


def test_redemptions_are_rolled_back_and_adjusted_by_their_id(api: Api, person: Person) -> None:
    limits = books.BookLimits(max_redemptions_per_user=2)
    names = person.book(3, limits=limits)
    first, second = [
        api.redeem(it, person.user_id, order_amount=euros(10_000)).redemption.redemption_id
        for it in names[:2]
    ]
    erase(api, person.user_id)
    name = pseudonym_of(api, person.user_id)
    adjusted = api.adjust(first, euros(5_000)).redemption
    assert adjusted.discount.amount_minor == 500
    assert adjusted.user_id == name
    request_id = unique("request")
    undone = api.rollback(second, request_id=request_id)
    assert undone.redemption.user_id == name
    assert api.rollback(second, request_id=request_id).replayed
    api.redeem(names[2], person.user_id)


def test_a_repeat_is_refused_and_not_carried_out_again(api: Api, person: Person) -> None:
    user = person.user_id
    names = person.book(4, limits=MANY, lock_policy=OPTIONAL)
    requests = [unique("request") for _ in range(5)]
    redeemed = api.redeem(names[0], user, request_id=requests[0]).redemption.redemption_id
    api.assign(names[1], user, request_id=requests[1])
    token = api.lock(names[2], user, request_id=requests[2]).lock_token
    api.transfer(names[1], user, person.friend, request_id=requests[3])
    api.rollback(redeemed, request_id=requests[4])
    erase(api, user)
    with refused("USER_ERASED", StatusCode.FAILED_PRECONDITION):
        api.redeem(names[0], user, request_id=requests[0])
    with refused("USER_ERASED"):
        api.assign(names[1], user, request_id=requests[1])
    with refused("USER_ERASED"):
        api.lock(names[2], user, request_id=requests[2])
    with refused("USER_ERASED"):
        api.transfer(names[1], user, person.friend, request_id=requests[3])
    with refused("USER_ERASED"):
        api.rollback(redeemed, request_id=requests[4])
    with refused("ALREADY_ROLLED_BACK"):
        api.rollback(redeemed)
    with refused("LOCK_EXPIRED"):
        api.redeem(names[2], user, lock_token=token)
    assert api.get_code(names[0]).redemption_count == 0
    assert api.get_code(names[2]).redemption_count == 0


def test_the_ledger_says_that_a_user_was_erased(api: Api, person: Person) -> None:
    person.live()
    ticket = unique("ticket")
    first = erase(api, person.user_id, ticket)[-1]
    (again,) = erase(api, person.user_id, ticket)
    assert again.replayed
    assert again.erasure == first.erasure
    name = first.erasure.pseudonym
    assert name == pseudonym_of(api, person.user_id)
    *_, event = api.events(user_id=name)
    assert event.type == audit.AUDIT_EVENT_TYPE_USER_ERASED
    assert (event.user_id, event.request_id, event.book_id) == (name, ticket, "")
    rows: Any = event.metadata["rows"]
    assert rows["redemption_audit"] == first.erasure.changed_rows["redemption_audit"]
    erase(api, person.user_id)
    assert api.event_names(user_id=name).count("USER_ERASED") == 2


def test_a_user_of_whom_nothing_is_known_is_erased_as_well(api: Api) -> None:
    user = unique("nobody")
    with refused("ERASURE_NOT_FOUND", StatusCode.NOT_FOUND):
        pseudonym_of(api, user)
    last = erase(api, user)[-1].erasure
    assert (last.state, dict(last.changed_rows)) == (ERASED, {})


def test_a_user_who_is_erased_again_is_erased_as_of_then(api: Api) -> None:
    user = unique("again")
    first = erase(api, user)[-1].erasure
    assert first.begin_time.ToNanoseconds() <= first.erase_time.ToNanoseconds()
    *under_way, last = erase(api, user)
    assert not [it for it in under_way if it.erasure.HasField("erase_time")]
    assert last.erasure.begin_time.ToNanoseconds() <= last.erasure.erase_time.ToNanoseconds()
    told = api.audit.GetErasure(audit.GetErasureRequest(user_id=user)).erasure
    assert told.erase_time == last.erasure.erase_time


def test_what_another_call_has_revoked_does_not_stop_an_erasure(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    user, book = unique("twice"), api.book(codes=2)
    assigned = [api.assign_random(book.book_id, user).assignment for _ in range(2)]
    for it in assigned:
        api.revoke(it.code, user)
    stale = [
        (it.code, UUID(book.book_id), book.business_id, it.assign_time.ToDatetime(UTC))
        for it in assigned
    ]
    rows = iter([stale])

    async def select_assigned(connection: Any, user_id: str, count: int) -> Any:
        return next(rows, None) or await erasures.select_assigned(connection, user_id, count)

    monkeypatch.setattr(erasure, "select_assigned", select_assigned)
    assert erase(api, user)[-1].erasure.state == ERASED
    assert next(rows, None) is None


def test_a_lock_that_ends_meanwhile_does_not_stop_an_erasure(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    user, (code,) = unique("leaving"), new_codes(1)
    api.book(codes=[code], lock_policy=OPTIONAL)
    api.redeem(code, user, lock_token=api.lock(code, user).lock_token)
    seen: list[int] = []

    def before_it_ended(history: Sequence[Event], now: datetime) -> Any:
        seen.append(len(history))
        return lock_view(history[:-1] if len(seen) == 1 else history, now)

    monkeypatch.setattr(erasure, "lock_view", before_it_ended)
    assert erase(api, user)[-1].erasure.state == ERASED
    assert seen == [2, 2]


def test_no_caller_can_name_a_pseudonym(api: Api, person: Person) -> None:
    (code,) = person.book(1)
    erase(api, person.user_id)
    name = pseudonym_of(api, person.user_id)
    for call in (
        lambda: api.redeem(code, name),
        lambda: api.assign(code, name),
        lambda: api.redeem(code, unique("another"), order_id=name),
        lambda: erase(api, name),
    ):
        with refused("INVALID_ARGUMENT"):
            call()
    api.redeem(code, "erased-by-mistake")


def test_locks_end_in_redis_as_well(api: Api, person: Person) -> None:
    (code,) = person.book(1, lock_policy=books.LOCK_POLICY_REQUIRED)
    token = api.lock(code, person.user_id).lock_token
    with refused("CODE_LOCKED"):
        api.lock(code, person.friend)
    erase(api, person.user_id)
    assert not api.redemptions.ListLocks(redemptions.ListLocksRequest(user_id=person.user_id)).locks
    with refused("LOCK_EXPIRED"):
        api.redeem(code, person.user_id, lock_token=token)
    api.lock(code, person.friend)


def test_a_redemption_of_an_assigned_code_that_is_undone_can_be_revoked(
    api: Api, person: Person
) -> None:
    (code,) = person.book(1)
    api.assign(code, person.user_id)
    redeemed = api.redeem(code, person.user_id).redemption.redemption_id
    erase(api, person.user_id)
    assert coupons(api, person.user_id) == []
    api.rollback(redeemed)
    api.revoke(code, pseudonym_of(api, person.user_id))
    api.assign(code, person.friend)


def test_a_redemption_takes_no_statement_more(
    api: Api, server: ServerThread, person: Person
) -> None:
    limits = books.BookLimits(
        max_redemptions_per_code=9, max_redemptions_per_user=9, max_redemptions_per_user_per_code=9
    )
    (code,) = person.book(1, limits=limits, order_policy=COMBINABLE)

    def steps(user_id: str) -> list[str]:
        order: dict[str, Any] = {"order_id": unique("order"), "order_amount": euros(1_000)}
        with work_done(server) as work:
            return work.of(lambda: api.redeem(code, user_id, **order))[1]

    before = steps(person.user_id)
    erase(api, person.user_id)
    steps(person.friend)  # finds that somebody was erased
    assert len(steps(person.user_id)) == len(before)


def test_an_erasure_waits_for_who_does_not_know_and_says_so(
    api: Api, server: ServerThread, person: Person
) -> None:
    (code,) = person.book(1)
    with psycopg.connect(server.database_url) as connection:
        connection.execute("SELECT FROM coupon_codes WHERE code = %s FOR UPDATE", [code])
        connection.execute("SELECT FROM coupon_erased_users")
        request = audit.EraseUserRequest(user_id=person.user_id, request_id=unique("ticket"))
        progress = api.audit.EraseUser(request)
        states = [next(progress).erasure.state for _ in range(3)]
        assert states == [audit.ERASURE_STATE_ENDING] * 3
        connection.rollback()
        *_, last = progress
    assert last.erasure.state == ERASED
