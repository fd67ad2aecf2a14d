"""A repeat tells the truth of now: what was undone or has ended is not answered as if it were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from unit.rules.commands import (
    assign,
    assign_random,
    call,
    disable,
    enable,
    redeem,
    revoke,
    rollback,
)
from unit.rules.world import BOOK_ID, MINUTE, MOMENT, NOW, World, active, book

from coupon_service.errors import (
    AlreadyRolledBack,
    AssignmentNotActive,
    CodeDisabled,
    InvalidStateTransition,
    RequestIdReused,
)
from coupon_service.model import (
    Assignment,
    AssignmentState,
    Command,
    CommandGroup,
    Done,
    Outcome,
)

R1 = call("r1")


class TestRedemptions:
    def test_one_that_was_rolled_back_is_reported_with_the_time_of_it(self) -> None:
        world = World()
        redeemed = world.does(redeem(by=R1, order="o1")).event
        world.now += MINUTE
        world.does(rollback(redeemed))
        world.now += MINUTE
        error = world.refuses(redeem(by=R1, order="o1"))
        assert type(error) is AlreadyRolledBack
        assert error.metadata == {
            "redemption_id": str(redeemed.event_id),
            "rollback_time": (NOW + MINUTE).isoformat(),
        }

    def test_also_when_the_code_was_redeemed_anew(self) -> None:
        world = World()
        world.does(rollback(world.does(redeem(by=R1)).event))
        world.does(redeem(by=call("r2")))
        assert type(world.refuses(redeem(by=R1))) is AlreadyRolledBack

    def test_in_the_batch_of_the_roll_back_as_well(self) -> None:
        world = World()
        redeemed = world.does(redeem(by=R1)).event
        before, _, after, anew = world.batch(
            redeem(by=R1), rollback(redeemed), redeem(by=R1), redeem(by=call("r2"))
        )
        assert isinstance(before, Done)
        assert before.replayed
        assert isinstance(after, AlreadyRolledBack)
        assert isinstance(anew, Done)
        assert not anew.replayed

    def test_other_parameters_are_reported_first(self) -> None:
        world = World()
        world.does(rollback(world.does(redeem(by=R1)).event))
        assert type(world.refuses(redeem(user="bob", by=R1))) is RequestIdReused

    def test_another_roll_back_is_refused_with_the_time_of_the_first(self) -> None:
        world = World()
        redeemed = world.does(redeem()).event
        world.does(rollback(redeemed, R1))
        world.now += MINUTE
        assert world.refuses(rollback(redeemed)).metadata == {
            "redemption_id": str(redeemed.event_id),
            "rollback_time": NOW.isoformat(),
        }
        assert world.does(rollback(redeemed, R1)).replayed


def _answers(outcomes: list[Outcome]) -> list[str]:
    return [
        ("replayed" if it.replayed else "done") if isinstance(it, Done) else type(it).__name__
        for it in outcomes
    ]


class TestAllOrNothing:
    items = tuple(redeem(code, by=R1) for code in "ABC")

    def carried_out(self) -> World:
        """The batch was carried out, and its second item rolled back."""
        world = World(codes="ABCD")
        world.all_or_nothing(*self.items)
        world.does(rollback(world.ledger[1]))
        return world

    def test_what_was_carried_out_answers_for_itself(self) -> None:
        outcomes = self.carried_out().all_or_nothing(*self.items)
        assert _answers(outcomes) == ["replayed", "AlreadyRolledBack", "replayed"]
        assert isinstance(outcomes[1], AlreadyRolledBack)
        assert "item" not in outcomes[1].metadata

    def test_so_does_a_part_of_it(self) -> None:
        world = self.carried_out()
        assert _answers(world.all_or_nothing(*self.items[:2])) == ["replayed", "AlreadyRolledBack"]
        assert _answers(world.all_or_nothing(self.items[1])) == ["AlreadyRolledBack"]

    @pytest.mark.parametrize(
        ("other", "first"),
        [
            (redeem("D", by=R1), "AlreadyRolledBack"),
            (redeem("C", "bob", by=R1), "AlreadyRolledBack"),
        ],
        ids=["new", "changed"],
    )
    def test_with_an_item_that_was_not_in_it_nothing_of_it_is_done(
        self, other: Command, first: str
    ) -> None:
        world = self.carried_out()
        written = len(world.ledger)
        outcomes = world.all_or_nothing(*self.items[:2], other)
        assert _answers(outcomes)[:2] == [first] * 2
        assert not any(isinstance(it, Done) for it in outcomes)
        assert len(world.ledger) == written

    def test_a_roll_back_before_it_in_the_batch_is_seen(self) -> None:
        world = World()
        world.all_or_nothing(*self.items)
        undoing = CommandGroup((rollback(world.ledger[0]),))
        _, outcomes = world.run(undoing, CommandGroup(self.items, atomic=True))
        assert _answers(outcomes) == ["AlreadyRolledBack", "replayed", "replayed"]

    def test_what_was_not_carried_out_is_refused_as_a_whole(self) -> None:
        world = World()
        world.does(disable("B"))
        outcomes = world.all_or_nothing(*self.items)
        assert [type(it) for it in outcomes] == [CodeDisabled] * 3


class TestAssignments:
    def world(self) -> World:
        world = World(book(max_redemptions_per_code=2, assigned_code_validity_s=60))
        world.state.candidates = {BOOK_ID: ["A"]}
        return world

    @pytest.mark.parametrize("make", [assign, assign_random])
    def test_while_it_is_active_it_is_as_it_was_made(self, make: Callable[..., Command]) -> None:
        world = self.world()
        first = world.does(make(by=R1, metadata='{"n": 1}'))
        world.does(redeem())
        world.now += 2 * MINUTE
        again = world.does(make(by=R1, metadata='{"n": 1}'))
        assert again.replayed
        assert again.assignment == first.assignment
        assert again.assignment == active(expire_time=NOW + MINUTE, metadata='{"n": 1}')

    def test_a_random_one_is_reported_without_its_code(self) -> None:
        world = self.world()
        world.does(assign_random(by=R1))
        world.state.codes.clear()
        assert world.does(assign_random(by=R1)).code is None

    @pytest.mark.parametrize("make", [assign, assign_random])
    def test_one_that_is_used_up_or_revoked_is_reported(self, make: Callable[..., Command]) -> None:
        world = self.world()
        world.does(make(by=R1))
        redeemed = [world.does(redeem()).event for _ in range(2)]
        self.is_told(world, make, "REDEEMED")
        world.does(rollback(redeemed[0]))
        assert world.does(make(by=R1)).replayed
        world.does(revoke())
        self.is_told(world, make, "REVOKED")

    @pytest.mark.parametrize("later", [0 * MINUTE, MINUTE, -MINUTE])
    @pytest.mark.parametrize("make", [assign, assign_random])
    def test_one_that_was_made_anew_is_another(
        self, make: Callable[..., Command], later: Any
    ) -> None:
        world = self.world()
        world.does(make(by=R1))
        world.does(revoke())
        world.now += later
        anew = assign(by=call("r2"))
        world.does(anew)
        self.is_told(world, make, "REVOKED")
        assert world.does(anew).replayed

    def test_in_the_batch_of_the_revocation_as_well(self) -> None:
        world = self.world()
        world.does(assign(by=R1))
        before, _, after = world.batch(assign(by=R1), revoke(), assign(by=R1))
        assert isinstance(before, Done)
        assert isinstance(after, AssignmentNotActive)

    def is_told(self, world: World, make: Callable[..., Command], state: str) -> None:
        error = world.refuses(make(by=R1))
        assert type(error) is AssignmentNotActive
        assert error.metadata == {"state": state}


class TestRevocations:
    def test_they_stay_as_recorded(self) -> None:
        world = World(book(max_redemptions_per_code=3))
        world.does(assign(metadata='{"n": 1}'))
        redeemed = world.does(redeem()).event
        first = world.does(revoke(by=R1))
        world.does(rollback(redeemed))
        again = world.does(revoke(by=R1))
        assert again.replayed
        assert again.assignment == first.assignment

    @pytest.mark.parametrize("later", [0 * MINUTE, MINUTE, -MINUTE])
    @pytest.mark.parametrize("revoked_again", [False, True])
    def test_one_before_the_code_was_assigned_anew_does_not_tell_of_that(
        self, later: Any, revoked_again: bool
    ) -> None:
        world = World(book(max_redemptions_per_code=3))
        world.does(assign(metadata='{"n": 1}'))
        world.does(redeem())
        world.does(revoke(by=R1))
        world.now += later
        world.does(assign(metadata='{"n": 2}'))
        world.does(redeem())
        if revoked_again:
            world.does(revoke())
        assert world.does(revoke(by=R1)).assignment == Assignment(
            "A", "ann", BOOK_ID, AssignmentState.REVOKED, redemptions=1
        )


class TestSwitches:
    @pytest.mark.parametrize(
        ("first", "then", "state"),
        [(disable, enable, "AVAILABLE"), (enable, disable, "DISABLED")],
    )
    def test_what_was_disabled_or_enabled_again_is_reported(
        self, first: Callable[..., Command], then: Callable[..., Command], state: str
    ) -> None:
        world = World()
        if first is enable:
            world.does(disable())
        world.does(first(by=R1))
        world.does(then())
        error = world.refuses(first(by=R1))
        assert type(error) is InvalidStateTransition
        assert error.metadata == {"state": state}
        world.does(first())
        assert world.does(first(by=R1)).replayed

    def test_a_code_that_is_enabled_may_have_been_redeemed_since(self) -> None:
        world = World()
        world.does(disable())
        world.does(enable(by=R1))
        world.does(redeem())
        assert world.does(enable(by=R1)).code == world.code()

    def test_in_the_same_batch_as_well(self) -> None:
        world = World()
        world.does(disable(by=R1))
        before, _, after = world.batch(disable(by=R1), enable(), disable(by=R1))
        assert isinstance(before, Done)
        assert isinstance(after, InvalidStateTransition)


def test_times_of_assignments_differ_by_the_least_that_is_stored() -> None:
    world = World()
    world.does(assign(by=R1))
    world.does(revoke())
    assert world.does(assign()).event.event_time == NOW + MOMENT
