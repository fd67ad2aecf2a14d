"""The life of a book: the states it goes through and those that follow from time and use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta

import pytest
from grpc import StatusCode
from support.service import Api, books, from_now, new_codes, refused

Verb = Callable[[Api, str], books.CouponBook]

DRAFT, ACTIVE = books.COUPON_BOOK_STATE_DRAFT, books.COUPON_BOOK_STATE_ACTIVE
PAUSED, CLOSED = books.COUPON_BOOK_STATE_PAUSED, books.COUPON_BOOK_STATE_CLOSED
WAYS: dict[books.CouponBookState.ValueType, Sequence[Verb]] = {
    DRAFT: (),
    ACTIVE: (Api.activate,),
    PAUSED: (Api.activate, Api.pause),
    CLOSED: (Api.close_book,),
}
ALLOWED: dict[tuple[books.CouponBookState.ValueType, Verb], books.CouponBookState.ValueType] = {
    (DRAFT, Api.activate): ACTIVE,
    (PAUSED, Api.activate): ACTIVE,
    (ACTIVE, Api.pause): PAUSED,
    (DRAFT, Api.close_book): CLOSED,
    (ACTIVE, Api.close_book): CLOSED,
    (PAUSED, Api.close_book): CLOSED,
}


@pytest.mark.parametrize("verb", [Api.activate, Api.pause, Api.close_book])
@pytest.mark.parametrize("state", WAYS, ids=books.CouponBookState.Name)
def test_states_lead_where_the_contract_says_and_nowhere_else(
    api: Api, state: books.CouponBookState.ValueType, verb: Verb
) -> None:
    made = api.draft()
    for way in WAYS[state]:
        way(api, made.book_id)
    before = api.get_book(made.book_id)
    assert before.state == before.effective_state == state
    if (state, verb) in ALLOWED:
        after = verb(api, made.book_id)
        assert after.state == after.effective_state == ALLOWED[state, verb]
        assert api.get_book(made.book_id) == after
    else:
        with refused("INVALID_STATE_TRANSITION", StatusCode.FAILED_PRECONDITION) as it:
            verb(api, made.book_id)
        name = books.CouponBookState.Name(state).removeprefix("COUPON_BOOK_STATE_")
        assert it.metadata == {"state": name}
        assert api.get_book(made.book_id) == before


def test_a_closed_book_cannot_be_changed(api: Api) -> None:
    made = api.draft()
    api.close_book(made.book_id)
    with refused("INVALID_STATE_TRANSITION", StatusCode.FAILED_PRECONDITION) as it:
        api.update(made.book_id, name="n")
    assert it.metadata == {"state": "CLOSED"}


@pytest.mark.parametrize(("verb", "state"), [(Api.pause, "PAUSED"), (Api.close_book, "CLOSED")])
def test_nothing_begins_in_a_book_that_is_not_active_and_what_has_begun_can_be_undone(
    api: Api, verb: Verb, state: str
) -> None:
    fresh, used, locked, given = new_codes(4)
    made = api.book(codes=[fresh, used, locked, given], lock_policy=books.LOCK_POLICY_OPTIONAL)
    redemption = api.redeem(used, "user").redemption
    lock_token = api.lock(locked, "user").lock_token
    api.assign(given, "user")
    verb(api, made.book_id)
    for call in (
        lambda: api.redeem(fresh, "user"),
        lambda: api.redeem(locked, "user", lock_token=lock_token),
        lambda: api.lock(fresh, "user"),
        lambda: api.assign(fresh, "user"),
        lambda: api.assign_random(made.book_id, "user"),
    ):
        with refused("BOOK_NOT_ACTIVE", StatusCode.FAILED_PRECONDITION) as it:
            call()
        assert it.metadata == {"state": state}
    api.rollback(redemption.redemption_id)
    api.unlock(lock_token)
    api.revoke(given, "user")
    assert api.stats(made.book_id).available_count == 4


def test_a_draft_has_codes_and_nothing_can_be_done_with_them(api: Api) -> None:
    (code,) = new_codes(1)
    made = api.draft()
    api.import_codes(made.book_id, [code])
    for call in (
        lambda: api.redeem(code, "user"),
        lambda: api.assign(code, "user"),
        lambda: api.assign_random(made.book_id, "user"),
    ):
        with refused("BOOK_NOT_ACTIVE") as it:
            call()
        assert it.metadata == {"state": "DRAFT"}
    api.activate(made.book_id)
    api.redeem(code, "user")


# --- derived states -----------------------------------------------------------------------------


def states(api: Api, book_id: str) -> tuple[str, str]:
    """The stored and the derived state, which a list tells as well."""
    book = api.get_book(book_id)
    request = books.ListCouponBooksRequest(business_id=book.business_id, state=book.state)
    assert book in api.books.ListCouponBooks(request).coupon_books
    stored, derived = map(books.CouponBookState.Name, (book.state, book.effective_state))
    return stored.removeprefix("COUPON_BOOK_STATE_"), derived.removeprefix("COUPON_BOOK_STATE_")


def test_a_book_whose_window_lies_ahead_is_scheduled_and_begins_by_itself(
    api: Api, tomorrow: Api
) -> None:
    (code,) = new_codes(1)
    start = from_now(hours=1)
    made = api.book(codes=[code], start_time=start)
    assert states(api, made.book_id) == ("ACTIVE", "SCHEDULED")
    with refused("BOOK_NOT_STARTED", StatusCode.FAILED_PRECONDITION) as it:
        api.redeem(code, "user")
    assert it.metadata == {"start_time": start.isoformat()}
    assert states(tomorrow, made.book_id) == ("ACTIVE", "ACTIVE")
    api.pause(made.book_id)
    assert states(api, made.book_id) == ("PAUSED", "PAUSED")


@pytest.mark.parametrize(
    ("verbs", "expected"),
    [
        ((), ("DRAFT", "DRAFT")),
        ((Api.activate,), ("ACTIVE", "EXPIRED")),
        ((Api.activate, Api.pause), ("PAUSED", "EXPIRED")),
        ((Api.activate, Api.close_book), ("CLOSED", "CLOSED")),
    ],
)
def test_a_book_in_use_whose_window_has_ended_is_expired(
    api: Api, tomorrow: Api, verbs: Sequence[Verb], expected: tuple[str, str]
) -> None:
    made = api.draft(end_time=from_now(hours=1))
    for verb in verbs:
        verb(api, made.book_id)
    assert states(api, made.book_id) == (expected[0], expected[0])
    assert states(tomorrow, made.book_id) == expected


def test_nothing_is_done_with_the_codes_of_an_expired_book(api: Api) -> None:
    given, code = new_codes(2)
    made = api.book(codes=[given, code], end_time=from_now(hours=1))
    redemption = api.redeem(given, "user").redemption
    end = from_now(seconds=-1)
    api.update(made.book_id, start_time=end - timedelta(days=1), end_time=end)
    for call in (
        lambda: api.redeem(code, "user"),
        lambda: api.assign(code, "user"),
        lambda: api.assign_random(made.book_id, "user"),
    ):
        with refused("BOOK_EXPIRED", StatusCode.FAILED_PRECONDITION) as it:
            call()
        assert it.metadata == {"end_time": end.isoformat()}
    api.rollback(redemption.redemption_id)


def test_a_book_is_exhausted_while_it_is_redeemed_as_often_as_it_allows(api: Api) -> None:
    names = new_codes(4)
    made = api.book(codes=names, limits=books.BookLimits(max_redemptions=2))
    redemption_ids = [api.redeem(code, "user").redemption.redemption_id for code in names[:2]]
    assert states(api, made.book_id) == ("ACTIVE", "EXHAUSTED")
    with refused("BOOK_LIMIT_EXCEEDED", StatusCode.FAILED_PRECONDITION) as it:
        api.redeem(names[2], "user")
    assert it.metadata == {"limit": "2"}
    api.rollback(redemption_ids[0])
    assert states(api, made.book_id) == ("ACTIVE", "ACTIVE")
    api.redeem(names[2], "user")
    api.pause(made.book_id)
    assert states(api, made.book_id) == ("PAUSED", "PAUSED")


def test_limits_that_a_draft_is_given_later_hold_like_those_it_was_made_with(api: Api) -> None:
    names = new_codes(4)
    made = api.draft()
    api.import_codes(made.book_id, names)
    limits = books.BookLimits(max_redemptions=3, max_redemptions_per_user=1)
    api.update(made.book_id, limits=limits)
    api.activate(made.book_id)
    api.redeem(names[0], "a")
    with refused("USER_LIMIT_EXCEEDED"):
        api.redeem(names[1], "a")
    for code, user_id in zip(names[1:3], ("b", "c"), strict=True):
        api.redeem(code, user_id)
    assert states(api, made.book_id) == ("ACTIVE", "EXHAUSTED")
    with refused("BOOK_LIMIT_EXCEEDED"):
        api.redeem(names[3], "d")


def test_a_limit_below_what_was_redeemed_holds_until_it_is_raised_or_lifted(api: Api) -> None:
    names = new_codes(5)
    made = api.book(codes=names, limits=books.BookLimits(max_redemptions=9))
    ids = [api.redeem(code, "user").redemption.redemption_id for code in names[:3]]
    api.update(made.book_id, limits=books.BookLimits(max_redemptions=2))
    assert states(api, made.book_id) == ("ACTIVE", "EXHAUSTED")
    api.rollback(ids[0])
    assert states(api, made.book_id) == ("ACTIVE", "EXHAUSTED")
    with refused("BOOK_LIMIT_EXCEEDED"):
        api.redeem(names[3], "user")
    api.update(made.book_id, limits=books.BookLimits(max_redemptions=3))
    api.redeem(names[3], "user")
    assert states(api, made.book_id) == ("ACTIVE", "EXHAUSTED")
    api.update(made.book_id, limits=books.BookLimits())
    api.redeem(names[4], "user")
    assert states(api, made.book_id) == ("ACTIVE", "ACTIVE")
