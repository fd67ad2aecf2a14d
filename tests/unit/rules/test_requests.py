"""request_id: a repeat is answered from the ledger and changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from unit.rules.commands import assign, assign_random, call, eur, lock, redeem
from unit.rules.kinds import KINDS, world_for_all_kinds
from unit.rules.world import NOW, PERMIT, World

from coupon_service.errors import RequestIdReused
from coupon_service.model import (
    BookState,
    Command,
    Done,
)


@pytest.mark.parametrize("kind", KINDS)
class TestEveryCommand:
    def test_a_repeat_is_answered_as_before(self, kind: str) -> None:
        world = world_for_all_kinds()
        first = world.does(KINDS[kind](world, call("r1")))
        written = len(world.ledger)
        again = world.does(KINDS[kind](world, call("r1")))
        assert not first.replayed
        assert again.replayed
        assert again.event == first.event
        assert again.book == first.book
        assert again.assignment == first.assignment
        assert len(world.ledger) == written

    def test_also_years_later_in_a_book_that_is_closed(self, kind: str) -> None:
        world = world_for_all_kinds()
        command = KINDS[kind](world, call("r1"))
        first = world.does(command)
        world.change_book(state=BookState.CLOSED, end_time=NOW)
        if kind not in ("lock", "extend"):  # they have expired by then
            world.now = world.now.replace(year=2040)
        assert world.does(command).event == first.event

    def test_also_at_the_same_moment(self, kind: str) -> None:
        world = world_for_all_kinds()
        command = KINDS[kind](world, call("r1"))
        first, again = world.batch(command, command)
        assert isinstance(first, Done)
        assert isinstance(again, Done)
        assert (first.replayed, again.replayed) == (False, True)
        assert again.event == first.event
        assert again.assignment == first.assignment

    def test_a_refused_one_can_be_tried_again(self, kind: str) -> None:
        world = world_for_all_kinds()
        command = KINDS[kind](world, call("r1", business="another"))
        world.refuses(command)
        assert not world.does(KINDS[kind](world, call("r1"))).replayed


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"rollback", "unlock"}))
def test_a_request_id_is_the_callers_own(kind: str) -> None:
    world = world_for_all_kinds()
    world.does(KINDS[kind](world, call("r1", "shop")))
    (outcome,) = world.batch(KINDS[kind](world, call("r1", "another")))
    assert not (isinstance(outcome, Done) and outcome.replayed)


@pytest.mark.parametrize(
    ("make", "others"),
    [
        (redeem, [{"user": "bob"}, {"order": "o2"}, {"amount": eur(9)}, {"metadata": "{}"}]),
        (lock, [{"metadata": "{}"}]),
        (assign, [{"user": "bob"}, {"metadata": "{}"}]),
        (assign_random, [{"metadata": "{}"}]),
    ],
)
def test_with_other_parameters_it_is_refused(
    make: Callable[..., Command], others: list[dict[str, Any]]
) -> None:
    world = world_for_all_kinds()
    lease: dict[str, Any] = {"lease": PERMIT} if make is redeem else {}
    world.does(make(by=call("r1"), **lease))
    for other in others:
        error = world.refuses(make(by=call("r1"), **{**lease, **other}))
        assert type(error) is RequestIdReused


def test_one_request_id_serves_different_codes() -> None:
    world = World()
    outcomes = world.batch(*(redeem(code, by=call("r1")) for code in "ABC"))
    assert [isinstance(it, Done) and it.replayed for it in outcomes] == [False] * 3


def test_a_repeat_needs_no_permit() -> None:
    world = world_for_all_kinds()
    world.does(KINDS["redeem"](world, call("r1")))
    assert world.does(redeem(by=call("r1"), order="o1", amount=eur(900), lease=None)).replayed
