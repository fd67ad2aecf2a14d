"""Commands that are decided together: each sees those before it, and groups that are atomic."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from unit.rules.commands import (
    assign,
    assign_random,
    call,
    disable,
    enable,
    eur,
    lock,
    redeem,
    revoke,
    rollback,
)
from unit.rules.world import BOOK_ID, NOTHING, NOW, PERMIT, World, active, book

from coupon_service.errors import (
    BookLimitExceeded,
    CodeAlreadyAssigned,
    CodeAlreadyRedeemed,
    CodeDisabled,
    CodeLocked,
    CodeNotAssignedToUser,
    CodeNotFound,
    CouponServiceError,
    OrderAlreadyRedeemed,
    Refusal,
    UserLimitExceeded,
)
from coupon_service.model import (
    AssignmentPolicy,
    AssignmentState,
    BookStats,
    BookTotals,
    Code,
    CodeState,
    Command,
    CommandGroup,
    Done,
    Lease,
    LeaseNeeded,
    LockPolicy,
    UserCounts,
)


class TestOrder:
    @pytest.mark.parametrize(
        ("rules", "limit", "reason"),
        [
            ({}, 1, CodeAlreadyRedeemed),
            ({"max_redemptions_per_code": 3}, 3, Refusal),
            (
                {"max_redemptions_per_code": 0, "max_redemptions_per_user_per_code": 2},
                2,
                UserLimitExceeded,
            ),
            (
                {"max_redemptions_per_code": 0, "max_redemptions_per_user": 4},
                4,
                UserLimitExceeded,
            ),
            ({"max_redemptions_per_code": 0, "max_redemptions": 5}, 5, BookLimitExceeded),
        ],
    )
    def test_of_many_at_once_as_many_redeem_as_are_allowed(
        self, rules: dict[str, Any], limit: int, reason: type[Refusal]
    ) -> None:
        world = World(book(**rules))
        outcomes = world.batch(*(redeem() for _ in range(20)))
        assert all(isinstance(it, Done) for it in outcomes[:limit])
        assert all(isinstance(it, reason) for it in outcomes[limit:])
        assert world.code().redemptions == limit

    def test_a_code_is_given_and_used_in_one_batch(self) -> None:
        world = World(book(assignment_policy=AssignmentPolicy.REQUIRED))
        too_early, *others = world.batch(
            redeem(), assign(), redeem(), assign("B"), revoke("B"), redeem("B")
        )
        assert type(too_early) is CodeNotAssignedToUser
        assert all(isinstance(it, Done) for it in others[:-1])
        assert type(others[-1]) is CodeNotAssignedToUser

    def test_a_code_is_disabled_and_enabled_between_redemptions(self) -> None:
        world = World(book(max_redemptions_per_code=5))
        outcomes = world.batch(redeem(), disable(), redeem(), enable(), redeem())
        assert [type(it) for it in outcomes] == [Done, Done, CodeDisabled, Done, Done]
        assert world.code() == Code("A", BOOK_ID, CodeState.AVAILABLE, 2, 0)

    def test_a_use_that_is_given_back_is_there_for_the_next(self) -> None:
        world = World()
        redeemed = world.does(redeem(order="o1")).event
        outcomes = world.batch(redeem(user="bob"), rollback(redeemed), redeem(order="o1"))
        assert [type(it) for it in outcomes] == [CodeAlreadyRedeemed, Done, Done]
        assert world.code().redemptions == 1

    def test_an_order_redeems_a_code_once_also_at_the_same_moment(self) -> None:
        world = World(book(max_redemptions_per_code=9))
        outcomes = world.batch(*(redeem(order="o1") for _ in range(3)))
        assert [type(it) for it in outcomes] == [Done, OrderAlreadyRedeemed, OrderAlreadyRedeemed]

    def test_a_code_goes_to_the_first_who_asks(self) -> None:
        outcomes = World().batch(assign(user="ann"), assign(user="bob"))
        assert [type(it) for it in outcomes] == [Done, CodeAlreadyAssigned]

    def test_of_each_row_the_first_and_the_last_state_are_written(self) -> None:
        world = World(
            book(max_redemptions=9, max_redemptions_per_code=9, max_redemptions_per_user=9)
        )
        world.does(assign())
        world.does(redeem())
        _, write_set = world.decide(CommandGroup((redeem(),)), CommandGroup((redeem(),)))
        assert write_set.codes == {
            (BOOK_ID, "A"): (
                Code("A", BOOK_ID, CodeState.ASSIGNED, 1, 1),
                Code("A", BOOK_ID, CodeState.ASSIGNED, 3, 1),
            )
        }
        assert write_set.assignments == {
            (BOOK_ID, "A", "ann"): (active(redemptions=1), active(redemptions=3))
        }
        assert write_set.users == {(BOOK_ID, "ann"): (UserCounts(1, 1), UserCounts(3, 1))}
        assert write_set.totals == {BOOK_ID: (BookTotals(1), BookTotals(3))}
        assert write_set.stats == {BOOK_ID: BookStats(redemptions=2, discount_minor=1_000)}
        assert len(write_set.events) == 2

    def test_a_new_assignment_was_none_before(self) -> None:
        world = World(book(max_redemptions_per_code=9))
        _, write_set = world.decide(CommandGroup((assign(),)), CommandGroup((redeem(),)))
        assert write_set.assignments == {(BOOK_ID, "A", "ann"): (None, active(redemptions=1))}

    def test_the_ledger_is_in_the_order_of_the_commands(self) -> None:
        world = World(book(), book(UUID(int=2)))
        world.put(Code("X", UUID(int=2), CodeState.AVAILABLE, 0, 0))
        commands = [redeem("X"), redeem("B"), redeem("A")]
        _, write_set = world.decide(*(CommandGroup((it,)) for it in commands))
        assert [it.event_id for it in write_set.events] == [it.event_id for it in commands]
        assert set(write_set.stats) == {BOOK_ID, UUID(int=2)}


class TestAllOrNothing:
    def test_all_are_redeemed_when_none_is_refused(self) -> None:
        world = World()
        outcomes = world.all_or_nothing(redeem("A"), redeem("B"), redeem("C"))
        assert all(isinstance(it, Done) for it in outcomes)
        assert world.stats[BOOK_ID].redemptions == len(world.ledger) == 3

    def test_one_refusal_refuses_all(self) -> None:
        world = World(book(max_redemptions=9, max_redemptions_per_user=9))
        world.does(disable("B"))
        group = CommandGroup((redeem("A", order="o1"), redeem("B"), redeem("C")), atomic=True)
        (outcomes,), write_set = world.decide(group)
        assert write_set == NOTHING
        assert [type(it) for it in outcomes] == [CodeDisabled] * 3

    def test_the_others_have_the_first_error_with_its_index(self) -> None:
        world = World(book(max_redemptions_per_code=2))
        for code in "BC":
            world.does(redeem(code))
            world.does(redeem(code))
        world.does(disable("C"))
        outcomes = world.all_or_nothing(redeem("A"), redeem("B"), redeem("C"), redeem("A"))
        errors = [it for it in outcomes if isinstance(it, CouponServiceError)]
        assert [type(it).__name__ for it in errors] == [
            "CodeLimitExceeded",
            "CodeLimitExceeded",
            "CodeDisabled",
            "CodeLimitExceeded",
        ]
        assert [dict(it.metadata) for it in errors] == [
            {"limit": "2", "item": "1"},
            {"limit": "2"},
            {},
            {"limit": "2", "item": "1"},
        ]
        assert errors[0].message == errors[1].message

    def test_items_of_a_group_see_each_other(self) -> None:
        world = World(book(max_redemptions_per_user=2))
        outcomes = world.all_or_nothing(redeem("A"), redeem("B"), redeem("C"))
        assert [type(it) for it in outcomes] == [UserLimitExceeded] * 3
        assert world.ledger == []

    def test_what_a_refused_group_tried_is_not_there_for_the_next(self) -> None:
        world = World(book(lock_policy=LockPolicy.OPTIONAL, max_redemptions=9), codes="ABCD")
        world.state.candidates = {BOOK_ID: ["D"]}
        refused = CommandGroup(
            (
                redeem("A", order="o1", amount=eur(900), lease=PERMIT),
                assign("B"),
                lock("C"),
                assign_random("bob"),
                redeem("unknown"),
            ),
            atomic=True,
        )
        by = call("r1")
        after = CommandGroup(
            (redeem("A", order="o1", lease=PERMIT), lock("C"), assign_random("cid", by))
        )
        alone, alone_write_set = world.decide(after)
        (outcomes, together), write_set = world.decide(refused, after)
        assert all(isinstance(it, CodeNotFound) for it in outcomes)
        assert [together] == alone
        assert write_set == alone_write_set

    def test_what_a_group_did_is_there_for_the_next(self) -> None:
        world = World()
        first, second = world.run(
            CommandGroup((redeem("A"), redeem("B")), atomic=True),
            CommandGroup((redeem("B"), redeem("C")), atomic=True),
        )
        assert all(isinstance(it, Done) for it in first)
        assert all(isinstance(it, CodeAlreadyRedeemed) for it in second)
        assert world.code("C").redemptions == 0

    def test_a_repeat_of_it_is_answered_as_before(self) -> None:
        world = World()
        items = [redeem(code, by=call("r1")) for code in "AB"]
        first = world.all_or_nothing(*items)
        again = world.all_or_nothing(*items)
        assert [it.event for it in first if isinstance(it, Done)] == [
            it.event for it in again if isinstance(it, Done) and it.replayed
        ]
        assert len(world.ledger) == 2

    def test_when_one_item_needs_a_permit_all_are_to_come_again(self) -> None:
        world = World(book(), book(UUID(int=2), lock_policy=LockPolicy.OPTIONAL))
        world.put(Code("X", UUID(int=2), CodeState.AVAILABLE, 0, 0))
        group = CommandGroup((redeem("A"), redeem("X")), atomic=True)
        (outcomes,), write_set = world.decide(group)
        assert write_set == NOTHING
        assert [it.book.book_id for it in outcomes if isinstance(it, LeaseNeeded)] == [
            BOOK_ID,
            UUID(int=2),
        ]

    def test_an_error_comes_before_the_need_of_a_permit(self) -> None:
        world = World(book(lock_policy=LockPolicy.OPTIONAL))
        outcomes = world.all_or_nothing(redeem("A"), redeem("unknown"), redeem("B", lease=PERMIT))
        assert [type(it) for it in outcomes] == [CodeNotFound] * 3

    def test_two_uses_of_a_code_have_a_permit_each(self) -> None:
        world = World(book(lock_policy=LockPolicy.OPTIONAL, max_redemptions_per_code=2))
        items = [redeem(lease=Lease(permits_taken=n)) for n in (1, 2)]
        assert all(isinstance(it, Done) for it in world.all_or_nothing(*items))
        full = World(book(lock_policy=LockPolicy.OPTIONAL, max_redemptions_per_code=2))
        items = [redeem(lease=Lease(permits_taken=n)) for n in (2, 3)]
        assert [type(it) for it in full.all_or_nothing(*items)] == [CodeLocked] * 2

    def test_a_group_without_commands_is_answered(self) -> None:
        assert World().all_or_nothing() == []


def test_each_item_of_a_group_that_is_not_atomic_stands_for_itself() -> None:
    world = World()
    world.does(disable("B"))
    commands: tuple[Command, ...] = (redeem("A"), redeem("B"), redeem("C"))
    (outcomes,) = world.run(CommandGroup(commands))
    assert [type(it) for it in outcomes] == [Done, CodeDisabled, Done]


def test_nothing_comes_of_nothing() -> None:
    assert World().decide() == ([], NOTHING)
    assert World(now=NOW).run(CommandGroup(())) == [[]]


def test_a_revoked_assignment_shows_in_the_same_batch() -> None:
    world = World()
    _, revoked = world.batch(assign(), revoke())
    assert isinstance(revoked, Done)
    assert revoked.assignment == active(state=AssignmentState.REVOKED)
