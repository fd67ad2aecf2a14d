"""Which code a caller means, where books of two businesses have one of the same name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID

from unit.rules.commands import assign, call, disable, lock, redeem, revoke, rollback, token
from unit.rules.world import BOOK_ID, PERMIT, World, book

from coupon_service.errors import (
    AssignmentNotFound,
    BusinessRequired,
    CodeAlreadyRedeemed,
    CodeNotFound,
    Contention,
    LockTokenMismatch,
)
from coupon_service.model import Code, CodeState, Done, LockPolicy
from coupon_service.rules.code_lookup import find_code

OTHER_ID = UUID(int=2)


def two_businesses(lock_policy: LockPolicy = LockPolicy.OFF) -> World:
    """A book of each, both with a code A."""
    ours = replace(book(lock_policy=lock_policy), business_id="ours")
    theirs = replace(book(OTHER_ID, lock_policy=lock_policy), business_id="theirs")
    world = World(ours, theirs)
    world.put(Code("A", OTHER_ID, CodeState.AVAILABLE, 0, 0))
    return world


def by(business: str) -> dict[str, Any]:
    return {"by": call(business=business)}


class TestTheSameCodeInTwoBusinesses:
    def test_each_redeems_its_own_in_one_batch(self) -> None:
        outcomes = two_businesses().batch(
            redeem(order="o1", **by("ours")),
            redeem(order="o1", **by("theirs")),
            redeem(order="o2", **by("ours")),
        )
        assert [type(it) for it in outcomes] == [Done, Done, CodeAlreadyRedeemed]
        assert [it.event.book_id for it in outcomes if isinstance(it, Done)] == [BOOK_ID, OTHER_ID]

    def test_each_book_is_counted_by_itself(self) -> None:
        world = two_businesses()
        world.batch(redeem(**by("ours")), assign(**by("theirs")))
        ours, theirs = (world.state.codes[it, "A"] for it in (BOOK_ID, OTHER_ID))
        assert (ours.redemptions, ours.assignments) == (1, 0)
        assert (theirs.redemptions, theirs.assignments) == (0, 1)

    def test_the_book_that_is_named_tells_which(self) -> None:
        done = two_businesses().does(redeem(book_id=OTHER_ID))
        assert done.event.book_id == OTHER_ID

    def test_who_sees_several_has_to_say_which(self) -> None:
        state = two_businesses().state
        state.several_businesses = True
        assert isinstance(find_code("A", None, "", state), BusinessRequired)
        for named in (find_code("A", OTHER_ID, "", state), find_code("A", None, "theirs", state)):
            assert not isinstance(named, Exception)
            assert named[0].book_id == OTHER_ID

    def test_a_permit_of_another_book_is_none_of_this_one(self) -> None:
        permit = replace(PERMIT, book_id=OTHER_ID)
        for command in (redeem(lease=permit, **by("ours")), lock(lease=permit, **by("ours"))):
            assert type(two_businesses(LockPolicy.OPTIONAL).refuses(command)) is Contention

    def test_a_book_of_another_business_has_no_codes(self) -> None:
        error = two_businesses().refuses(redeem(book_id=OTHER_ID, **by("ours")))
        assert type(error) is CodeNotFound

    def test_an_assignment_is_of_one_of_them(self) -> None:
        world = two_businesses()
        world.does(assign(**by("ours")))
        assert type(world.refuses(revoke(**by("theirs")))) is AssignmentNotFound
        world.does(revoke(**by("ours")))

    def test_disabling_one_leaves_the_other(self) -> None:
        world = two_businesses()
        world.does(disable(**by("ours")))
        world.does(redeem(**by("theirs")))

    def test_a_roll_back_gives_the_use_back_where_it_was_taken(self) -> None:
        world = two_businesses()
        world.does(redeem(**by("ours")))
        theirs = world.does(redeem(**by("theirs"))).event
        world.does(rollback(theirs))
        assert world.state.codes[BOOK_ID, "A"].redemptions == 1
        assert world.state.codes[OTHER_ID, "A"].redemptions == 0

    def test_a_token_holds_only_for_its_book(self) -> None:
        world = two_businesses(LockPolicy.OPTIONAL)
        ours = world.does(lock(lease=PERMIT, **by("ours"))).event
        used = redeem(lock=token(ours), lease=PERMIT, **by("theirs"))
        assert type(world.refuses(used)) is LockTokenMismatch
        world.does(redeem(lock=token(ours), lease=PERMIT, **by("ours")))

    def test_a_permit_of_the_other_is_not_given_back(self) -> None:
        # Two permits are taken of theirs: one of the redemption, and one of another user's lock.
        world = two_businesses(LockPolicy.OPTIONAL)
        crowded = replace(PERMIT, permits_taken=2)
        first, second = world.batch(
            redeem(lease=PERMIT, **by("ours")), redeem(lease=crowded, **by("theirs"))
        )
        assert isinstance(first, Done)
        assert not isinstance(second, Done)
