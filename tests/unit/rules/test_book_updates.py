"""What may be changed of a book, and when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from coupon_service.errors import InvalidArgument, InvalidStateTransition
from coupon_service.model import (
    AmountOff,
    Benefit,
    Book,
    BookLimits,
    BookState,
    EventType,
    LockPolicy,
    OrderPolicy,
    PercentOff,
    Period,
    PeriodLimits,
    Schedule,
    Weekday,
    WeeklyWindow,
)
from coupon_service.model.codes import (
    DEFAULT_ALPHABET,
    EARLIER_DEFAULT_ALPHABET,
    CodeFormat,
)
from coupon_service.model.time_zones import time_zone
from coupon_service.rules.book_updates import check_repeat, state_after, updated, violations

NOW = datetime(2026, 3, 1, tzinfo=UTC)
LOCKS_UNTIL = NOW + timedelta(minutes=16)
LIMITS = BookLimits(100, 5, 4, 3, 2, 10_000)

DRAFT, ACTIVE, PAUSED, CLOSED = (
    BookState.DRAFT,
    BookState.ACTIVE,
    BookState.PAUSED,
    BookState.CLOSED,
)


def book(state: BookState = DRAFT, **fields: Any) -> Book:
    values: dict[str, Any] = {
        "discount": AmountOff(500),
        "currency_code": "EUR",
        "limits": LIMITS,
        "create_time": NOW,
        "update_time": NOW,
        **fields,
    }
    return Book(book_id=UUID(int=1), business_id="bakery", name="spring", state=state, **values)


def changed(before: Book, changes: Mapping[str, Any]) -> Book:
    return updated(before, changes, LOCKS_UNTIL)


@pytest.mark.parametrize(
    ("event", "before", "after"),
    [
        (EventType.BOOK_ACTIVATED, DRAFT, ACTIVE),
        (EventType.BOOK_ACTIVATED, PAUSED, ACTIVE),
        (EventType.BOOK_PAUSED, ACTIVE, PAUSED),
        (EventType.BOOK_CLOSED, DRAFT, CLOSED),
        (EventType.BOOK_CLOSED, ACTIVE, CLOSED),
        (EventType.BOOK_CLOSED, PAUSED, CLOSED),
    ],
)
def test_a_verb_leads_from_its_states_to_its_state(
    event: EventType, before: BookState, after: BookState
) -> None:
    assert state_after(book(before), event) is after


@pytest.mark.parametrize(
    ("event", "before"),
    [
        (EventType.BOOK_ACTIVATED, ACTIVE),
        (EventType.BOOK_ACTIVATED, CLOSED),
        (EventType.BOOK_PAUSED, DRAFT),
        (EventType.BOOK_PAUSED, PAUSED),
        (EventType.BOOK_PAUSED, CLOSED),
        (EventType.BOOK_CLOSED, CLOSED),
    ],
)
def test_a_verb_is_refused_in_every_other_state(event: EventType, before: BookState) -> None:
    with pytest.raises(InvalidStateTransition) as refused:
        state_after(book(before), event)
    assert refused.value.metadata == {"state": before.name}


def test_a_draft_can_be_changed_in_everything() -> None:
    changes: dict[str, Any] = {
        "limits": BookLimits(max_redemptions=0, max_redemptions_per_code=0),
        "currency_code": "USD",
        "code_format": CodeFormat(length=20),
        "discount": PercentOff(1500, 0),
    }
    assert changed(book(), changes) == replace(book(), **changes)
    introduced = {"limits": LIMITS}
    assert changed(book(limits=BookLimits()), introduced).limits == LIMITS


@pytest.mark.parametrize("state", [ACTIVE, PAUSED])
@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("currency_code", {"currency_code": "USD"}),
        ("code_format", {"code_format": CodeFormat(length=20)}),
        (
            "limits.max_redemptions_per_code",
            {"limits": BookLimits(100, 6, 4, 3, 2)},
        ),
        (
            "limits.max_redemptions_per_code",
            {"limits": BookLimits(100, 0, 4, 3, 2)},
        ),
    ],
)
def test_what_codes_were_made_and_used_by_is_fixed_once_a_book_was_active(
    state: BookState, field: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(InvalidStateTransition) as refused:
        changed(book(state), changes)
    assert refused.value.metadata == {"state": state.name, "field": field}


@pytest.mark.parametrize("state", [DRAFT, ACTIVE])
def test_a_book_that_was_made_with_the_earlier_default_keeps_it(state: BookState) -> None:
    made = CodeFormat(alphabet=EARLIER_DEFAULT_ALPHABET)
    before = book(state, code_format=made)
    assert changed(before, {"code_format": CodeFormat(alphabet="")}) == before
    assert changed(before, {"name": "May"}).code_format == made


def test_a_code_format_without_an_alphabet_gets_the_default_else() -> None:
    for alphabet in ("AB", DEFAULT_ALPHABET):
        before = book(DRAFT, code_format=CodeFormat(alphabet=alphabet))
        after = changed(before, {"code_format": CodeFormat(alphabet="")})
        assert after.code_format == CodeFormat()


def test_the_default_alphabet_can_be_named_for_a_draft_of_before() -> None:
    before = book(DRAFT, code_format=CodeFormat(alphabet=EARLIER_DEFAULT_ALPHABET))
    after = changed(before, {"code_format": CodeFormat(alphabet=DEFAULT_ALPHABET)})
    assert after.code_format.alphabet == DEFAULT_ALPHABET


def test_naming_a_fixed_field_without_changing_it_is_no_change() -> None:
    active = book(ACTIVE)
    changes: dict[str, Any] = {
        "currency_code": "EUR",
        "limits": LIMITS,
        "code_format": CodeFormat(),
        "name": "May",
    }
    assert changed(active, changes) == replace(active, name="May")


@pytest.mark.parametrize(
    "limit",
    [
        "max_redemptions",
        "max_redemptions_per_user_per_code",
        "max_redemptions_per_user",
        "max_assignments_per_user",
    ],
)
def test_a_limit_of_an_active_book_can_be_raised_lowered_and_lifted_but_not_introduced(
    limit: str,
) -> None:
    for value in (1000, 1, 0):
        limits = replace(LIMITS, **{limit: value})
        assert changed(book(ACTIVE), {"limits": limits}).limits == limits
    with pytest.raises(InvalidStateTransition) as refused:
        changed(book(PAUSED, limits=replace(LIMITS, **{limit: 0})), {"limits": LIMITS})
    assert refused.value.metadata == {"state": "PAUSED", "field": f"limits.{limit}"}


@pytest.mark.parametrize("state", [DRAFT, ACTIVE, PAUSED, CLOSED])
@pytest.mark.parametrize(
    ("event", "given"),
    [
        (EventType.BOOK_ACTIVATED, ACTIVE),
        (EventType.BOOK_PAUSED, PAUSED),
        (EventType.BOOK_CLOSED, CLOSED),
        (EventType.BOOK_UPDATED, None),
    ],
)
def test_a_repeat_is_told_when_the_book_has_another_state_than_it_was_given(
    event: EventType, given: BookState | None, state: BookState
) -> None:
    if given in (None, state):
        check_repeat(book(state), event)
    else:
        with pytest.raises(InvalidStateTransition) as refused:
            check_repeat(book(state), event)
        assert refused.value.metadata == {"state": state.name}


def test_a_closed_book_is_never_changed() -> None:
    with pytest.raises(InvalidStateTransition) as refused:
        changed(book(CLOSED), {"name": "May"})
    assert refused.value.metadata == {"state": "CLOSED"}


def test_the_fields_of_the_changed_book_have_to_go_together() -> None:
    window = book(start_time=NOW, end_time=NOW + timedelta(days=1))
    with pytest.raises(InvalidArgument) as refused:
        changed(window, {"start_time": NOW + timedelta(days=1), "currency_code": ""})
    assert [it.field for it in refused.value.violations] == [
        "coupon_book.end_time",
        "coupon_book.currency_code",
    ]


def test_a_budget_is_introduced_by_the_name_it_has_in_the_contract_and_only_in_a_draft() -> None:
    unlimited = book(ACTIVE, limits=replace(LIMITS, budget_minor=0))
    with pytest.raises(InvalidStateTransition) as refused:
        changed(unlimited, {"limits": LIMITS})
    assert refused.value.metadata == {"state": "ACTIVE", "field": "limits.max_discount_minor"}
    for budget_minor in (10**18, 1, 0):
        limits = replace(LIMITS, budget_minor=budget_minor)
        assert changed(book(ACTIVE), {"limits": limits}).limits == limits


def test_whether_a_book_is_independent_is_fixed_by_its_first_activation() -> None:
    combinable, exclusive = OrderPolicy.COMBINABLE, OrderPolicy.EXCLUSIVE
    independent = OrderPolicy.INDEPENDENT
    for before, after in ((independent, exclusive), (combinable, independent)):
        with pytest.raises(InvalidStateTransition) as refused:
            changed(book(ACTIVE, order_policy=before), {"order_policy": after})
        assert refused.value.metadata == {"state": "ACTIVE", "field": "order_policy"}
        assert changed(book(order_policy=before), {"order_policy": after}).order_policy is after
    assert changed(book(ACTIVE, order_policy=combinable), {"order_policy": exclusive})


def test_what_is_said_of_an_order_can_be_changed_at_any_time_and_not_in_independent_books() -> None:
    limits = replace(LIMITS, max_redemptions_per_order=1)
    changes = {"limits": limits, "exclusive_group": "shipping"}
    after = changed(book(ACTIVE, order_policy=OrderPolicy.COMBINABLE), changes)
    assert (after.limits, after.exclusive_group) == (limits, "shipping")
    with pytest.raises(InvalidArgument) as refused:
        changed(book(ACTIVE), changes)
    assert [it.field for it in refused.value.violations] == [
        "coupon_book.exclusive_group",
        "coupon_book.limits.max_redemptions_per_order",
    ]


def test_a_benefit_has_no_budget() -> None:
    with pytest.raises(InvalidArgument) as refused:
        changed(book(ACTIVE), {"discount": Benefit("a gift")})
    fields = [it.field for it in refused.value.violations]
    assert fields == ["coupon_book.limits.max_discount_minor"]


def test_only_a_benefit_without_a_least_order_needs_no_currency() -> None:
    def missing(**fields: Any) -> list[str]:
        book_without = book(currency_code="", limits=BookLimits(), **fields)
        return [it.field for it in violations(book_without)]

    assert missing(discount=Benefit("a gift")) == []
    kinds: list[dict[str, Any]] = [
        {"discount": AmountOff(1)},
        {"discount": PercentOff(1, 0)},
        {"discount": Benefit("a gift"), "min_order_amount_minor": 1},
    ]
    for fields in kinds:
        assert missing(**fields) == ["coupon_book.currency_code"]


@pytest.mark.parametrize("before", [LockPolicy.OPTIONAL, LockPolicy.REQUIRED])
@pytest.mark.parametrize("state", [ACTIVE, PAUSED])
def test_locks_that_are_held_when_locking_is_switched_off_are_minded(
    before: LockPolicy, state: BookState
) -> None:
    off = changed(book(state, lock_policy=before), {"lock_policy": LockPolicy.OFF})
    assert off.locks_until == LOCKS_UNTIL
    later = LOCKS_UNTIL + timedelta(minutes=1)
    assert updated(off, {"lock_policy": LockPolicy.OFF}, later).locks_until == LOCKS_UNTIL
    assert updated(off, {"name": "autumn"}, later).locks_until == LOCKS_UNTIL
    assert updated(off, {"lock_policy": before}, later).locks_until is None


def test_a_draft_has_no_locks_to_mind() -> None:
    assert changed(book(DRAFT), {"lock_policy": LockPolicy.OFF}).locks_until is None


MADRID = PeriodLimits(Period.DAY, time_zone("Europe/Madrid"), 9, 3)


@pytest.mark.parametrize(
    ("before", "after", "field"),
    [
        (None, MADRID, "period_limits"),
        (MADRID, replace(MADRID, period=Period.WEEK), "period_limits.period"),
        (MADRID, replace(MADRID, time_zone=time_zone("UTC")), "period_limits.time_zone"),
        (replace(MADRID, max_redemptions=0), MADRID, "period_limits.max_redemptions"),
        (
            replace(MADRID, max_redemptions_per_user=0),
            MADRID,
            "period_limits.max_redemptions_per_user",
        ),
    ],
)
def test_limits_of_periods_that_were_not_counted_are_not_introduced(
    before: PeriodLimits | None, after: PeriodLimits, field: str
) -> None:
    changes = {"period_limits": after}
    assert changed(book(DRAFT, period_limits=before), changes).period_limits == after
    for state in (ACTIVE, PAUSED):
        with pytest.raises(InvalidStateTransition) as caught:
            changed(book(state, period_limits=before), changes)
        assert caught.value.metadata == {"state": state.name, "field": field}


@pytest.mark.parametrize(
    "after", [None, replace(MADRID, max_redemptions=0), replace(MADRID, max_redemptions=1)]
)
def test_limits_of_periods_are_lifted_and_changed(after: PeriodLimits | None) -> None:
    the_book = book(ACTIVE, period_limits=MADRID)
    assert changed(the_book, {"period_limits": after}).period_limits == after


def test_opening_hours_can_be_introduced_at_any_time() -> None:
    hours = Schedule(time_zone("UTC"), (WeeklyWindow((Weekday.MONDAY,), 0, 60),))
    assert changed(book(ACTIVE), {"schedule": hours}).schedule == hours
