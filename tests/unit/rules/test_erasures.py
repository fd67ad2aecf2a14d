"""Commands of users who are being erased."""

from __future__ import annotations

import pytest
from unit.rules.commands import redeem, rollback
from unit.rules.world import NOW, World

from coupon_service.errors import ErasureInProgress
from coupon_service.model import Command, CommandGroup, Done, ErasureState
from coupon_service.rules import decide

PSEUDONYM = "erased-ann"


def outcome(world: World, command: Command, state: ErasureState) -> object:
    """What a command comes to while the erasure of ann has come so far."""
    world.state.pseudonyms = {"ann": (PSEUDONYM,)}
    world.state.erasures = {PSEUDONYM: state}
    (((decided,),), _) = decide([CommandGroup((command,))], world.state, NOW)
    return decided


@pytest.mark.parametrize("state", [ErasureState.ENDING, ErasureState.ERASING])
def test_who_is_being_erased_gets_nothing(state: ErasureState) -> None:
    assert isinstance(outcome(World(), redeem(), state), ErasureInProgress)


def test_what_the_user_has_comes_to_its_end_before_it_is_erased() -> None:
    world = World()
    undone = rollback(world.does(redeem()).event)
    assert isinstance(outcome(world, undone, ErasureState.ERASING), ErasureInProgress)
    assert isinstance(outcome(world, undone, ErasureState.ENDING), Done)


def test_others_are_not_concerned() -> None:
    assert isinstance(outcome(World(), redeem(user="bob"), ErasureState.ERASING), Done)
