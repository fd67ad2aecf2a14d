"""What became of a command, for whoever answers with it."""

from __future__ import annotations

import pytest
from unit.rules.commands import redeem
from unit.rules.world import World, book

from coupon_service.errors import CodeAlreadyRedeemed, Contention
from coupon_service.model import Done, LeaseNeeded, done_of


def test_a_command_that_was_carried_out_is_answered_with_what_was_done() -> None:
    done = World().does(redeem())
    assert isinstance(done, Done)
    assert done_of(done) is done


def test_a_command_that_was_not_carried_out_raises_why() -> None:
    with pytest.raises(CodeAlreadyRedeemed):
        done_of(CodeAlreadyRedeemed())
    with pytest.raises(Contention):
        done_of(LeaseNeeded(book()))
