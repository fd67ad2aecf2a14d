"""DisableCode and EnableCode."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from unit.rules.commands import assign, call, disable, enable, lock, recorded, redeem
from unit.rules.world import BOOK_ID, NOW, World, active, book

from coupon_service.errors import CodeAlreadyRedeemed, CodeDisabled, InvalidStateTransition
from coupon_service.model import (
    BookState,
    BookStats,
    Code,
    CodeState,
    EventType,
    LockPolicy,
    SetCodeEnabled,
)


@pytest.mark.parametrize(
    ("redemptions", "assignments", "state"),
    [
        (0, 0, CodeState.AVAILABLE),
        (1, 0, CodeState.AVAILABLE),
        (1, 1, CodeState.ASSIGNED),
        (2, 0, CodeState.REDEEMED),
        (2, 2, CodeState.REDEEMED),
    ],
)
def test_a_code_is_what_its_counts_say_when_it_is_enabled(
    redemptions: int, assignments: int, state: CodeState
) -> None:
    world = World(book(max_redemptions_per_code=2))
    before = Code("A", BOOK_ID, state, redemptions, assignments)
    world.put(before)
    disabled = world.does(disable())
    assert disabled.code == world.code()
    assert world.code() == Code("A", BOOK_ID, CodeState.DISABLED, redemptions, assignments)
    assert world.stats == {BOOK_ID: BookStats(**{state.name.lower(): -1, "disabled": 1})}
    enabled = world.does(enable())
    assert enabled.code == world.code() == before
    assert world.stats == {BOOK_ID: BookStats()}


@pytest.mark.parametrize(
    ("make", "event", "before", "after"),
    [
        (disable, EventType.CODE_DISABLED, CodeState.AVAILABLE, CodeState.DISABLED),
        (enable, EventType.CODE_ENABLED, CodeState.DISABLED, CodeState.AVAILABLE),
    ],
)
def test_the_ledger_says_who_did_it(
    make: Callable[..., SetCodeEnabled], event: EventType, before: CodeState, after: CodeState
) -> None:
    world = World()
    world.put(Code("A", BOOK_ID, before, 0, 0))
    command = make(by=call("r1", "admin"))
    done = world.does(command)
    assert world.ledger == [done.event]
    assert done.event == recorded(
        command,
        event,
        user_id=None,
        caller="admin",
        state_before=before,
        state_after=after,
    )


def test_a_disabled_code_cannot_be_disabled() -> None:
    world = World()
    world.does(disable())
    error = world.refuses(disable())
    assert type(error) is InvalidStateTransition
    assert error.metadata == {"state": "DISABLED"}


@pytest.mark.parametrize("state", [CodeState.AVAILABLE, CodeState.ASSIGNED, CodeState.REDEEMED])
def test_only_a_disabled_code_can_be_enabled(state: CodeState) -> None:
    world = World()
    world.put(Code("A", BOOK_ID, state, 0, 0))
    error = world.refuses(enable())
    assert type(error) is InvalidStateTransition
    assert error.metadata == {"state": state.name}


def test_assignments_stay() -> None:
    world = World()
    world.does(assign())
    world.does(disable())
    assert world.assignment() == active()
    world.does(enable())
    world.does(redeem())


def test_until_it_is_enabled_nothing_can_be_done_with_it() -> None:
    world = World(book(lock_policy=LockPolicy.OPTIONAL))
    world.does(disable())
    for command in (redeem(), lock(), assign()):
        assert type(world.refuses(command)) is CodeDisabled
    world.does(enable())
    world.does(lock())


def test_a_used_up_code_does_not_come_back_by_it() -> None:
    world = World()
    world.does(redeem())
    world.does(disable())
    world.does(enable())
    assert type(world.refuses(redeem())) is CodeAlreadyRedeemed


@pytest.mark.parametrize("state", BookState)
def test_it_works_whatever_the_state_of_the_book(state: BookState) -> None:
    world = World(book(state=state, end_time=NOW))
    world.does(disable())
    world.does(enable())
