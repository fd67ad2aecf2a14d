"""AdjustRedemption."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import uuid4

from unit.rules.commands import call, eur, redeem
from unit.rules.world import MINUTE, NOW, World, book

from coupon_service.errors import BookExpired
from coupon_service.model import Adjust, AmountOff, Done, Event, Terms
from coupon_service.model.terms import CodeTerms

TEN_OFF = Terms(AmountOff(1_000), "EUR", 0)


def redeemed(**changes: Any) -> tuple[World, Event]:
    """A world, and the redemption of A for an order of 40.00."""
    world = World(book(**changes))
    event = world.does(redeem(order="o1", amount=eur(4_000))).event
    world.state.terms[event.event_id] = TEN_OFF
    return world, event


def adjust(redemption: Event, amount_minor: int) -> Adjust:
    return Adjust(
        call=call(),
        code="A",
        event_id=uuid4(),
        fingerprint=1,
        user_id="ann",
        redemption=redemption,
        order_amount=eur(amount_minor),
    )


def test_an_order_grows_no_more_once_the_book_is_over() -> None:
    world, event = redeemed(end_time=NOW + MINUTE)
    world.now = NOW + MINUTE
    assert type(world.refuses(adjust(event, 4_001))) is BookExpired


def test_the_own_discount_of_a_code_goes_before_the_terms_of_the_book() -> None:
    world, event = redeemed()
    own = CodeTerms(discount=AmountOff(700))
    world.put(replace(world.code(), terms=own))
    done = world.does(adjust(event, 3_000))
    assert isinstance(done, Done)
    assert done.event.discount_minor == 700
