"""A command of every kind, and rows on which each of them can be carried out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from unit.rules.commands import (
    assign,
    assign_random,
    disable,
    enable,
    eur,
    extend,
    lock,
    redeem,
    revoke,
    rollback,
    unlock,
)
from unit.rules.world import BOOK_ID, MINUTE, NOW, PERMIT, World, book

from coupon_service.model import Call, Command, LockPolicy

KINDS: Final[dict[str, Callable[[World, Call], Command]]] = {
    "redeem": lambda _, by: redeem("A", by=by, order="o1", amount=eur(900), lease=PERMIT),
    "lock": lambda _, by: lock("A", by=by),
    "assign": lambda _, by: assign("A", by=by),
    "disable": lambda _, by: disable("A", by=by),
    "rollback": lambda world, by: rollback(world.ledger[0], by),
    "extend": lambda world, by: extend(world.ledger[1], NOW + MINUTE, by),
    "unlock": lambda world, by: unlock(world.ledger[1], by),
    "revoke": lambda _, by: revoke("D", by=by),
    "enable": lambda _, by: enable("E", by=by),
    "assign_random": lambda _, by: assign_random(by=by),
}


def world_for_all_kinds() -> World:
    """A is free, B redeemed, C locked, D assigned, E disabled, F picked for whoever asks."""
    world = World(book(lock_policy=LockPolicy.OPTIONAL), codes="ABCDEF")
    world.does(redeem("B", order="o9", lease=PERMIT))
    world.does(lock("C"))
    world.does(assign("D"))
    world.does(disable("E"))
    world.state.candidates = {BOOK_ID: ["F"]}
    return world
