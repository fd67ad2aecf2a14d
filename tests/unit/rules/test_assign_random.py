"""AssignRandomCode, for one user and for many."""

from __future__ import annotations

from uuid import UUID

import pytest
from unit.rules.commands import assign, assign_random, call, disable, recorded, redeem
from unit.rules.world import BOOK_ID, MINUTE, MOMENT, NOW, World, active, book

from coupon_service.errors import (
    BookExpired,
    BookNotActive,
    BookNotFound,
    Contention,
    NoCodesAvailable,
    UserLimitExceeded,
)
from coupon_service.model import (
    AssignmentState,
    BookState,
    BookStats,
    Code,
    CodeState,
    Command,
    Done,
    EventType,
    UserCounts,
)


def picked(world: World, *codes: str) -> World:
    """Says which available codes were found and locked for the batch."""
    world.state.candidates = {BOOK_ID: list(codes)}
    return world


def test_the_user_gets_one_of_the_candidates() -> None:
    world = picked(World(book(assigned_code_validity_s=60, max_assignments_per_user=2)), "B")
    command = assign_random(by=call("r1"), metadata='{"n": 1}')
    done = world.does(command)
    assert done.code == world.code("B") == Code("B", BOOK_ID, CodeState.ASSIGNED, 0, 1)
    assignment = active(code="B", expire_time=NOW + MINUTE, metadata='{"n": 1}')
    assert done.assignment == world.assignment(code="B") == assignment
    assert world.state.users == {(BOOK_ID, "ann"): UserCounts(assignments=1)}
    assert world.stats == {BOOK_ID: BookStats(available=-1, assigned=1, assignments=1)}
    assert world.ledger == [done.event]
    assert done.event == recorded(
        command,
        EventType.ASSIGNED,
        code="B",
        state_before=CodeState.AVAILABLE,
        state_after=CodeState.ASSIGNED,
        user_code_redemptions=0,
        expire_time=NOW + MINUTE,
        metadata='{"n": 1}',
    )


def test_many_users_get_a_code_each() -> None:
    world = picked(World(), "A", "B", "C")
    by = call("r1")
    outcomes = world.batch(*(assign_random(user, by) for user in ("ann", "bob", "cid")))
    assert {it.event.code for it in outcomes if isinstance(it, Done)} == {"A", "B", "C"}
    assert world.stats == {BOOK_ID: BookStats(available=-3, assigned=3, assignments=3)}


def test_when_none_is_left_the_others_are_told() -> None:
    world = picked(World(codes="A"), "A")
    first, second = world.batch(assign_random("ann"), assign_random("bob"))
    assert isinstance(first, Done)
    assert type(second) is NoCodesAvailable


def test_a_book_without_codes_has_none() -> None:
    assert type(World(codes="").refuses(assign_random())) is NoCodesAvailable


def test_when_others_hold_all_that_are_left_it_can_be_tried_again() -> None:
    world = picked(World())
    world.state.candidates_contended = frozenset({BOOK_ID})
    assert type(world.refuses(assign_random())) is Contention


def test_contention_in_another_book_does_not_matter() -> None:
    world = picked(World(book(), book(UUID(int=2))))
    world.state.candidates_contended = frozenset({UUID(int=2)})
    assert type(world.refuses(assign_random())) is NoCodesAvailable


@pytest.mark.parametrize("before", [assign("A", "bob"), disable("A")])
@pytest.mark.parametrize("uses", [1, 2])
def test_a_candidate_that_the_batch_changed_before_is_passed_over(
    before: Command, uses: int
) -> None:
    world = picked(World(book(max_redemptions_per_code=uses)), "B", "A")
    _, outcome = world.batch(before, assign_random())
    assert isinstance(outcome, Done)
    assert outcome.event.code == "B"


def test_a_candidate_that_the_batch_used_up_before_is_passed_over() -> None:
    world = picked(World(), "B", "A")
    _, outcome = world.batch(redeem("A", "bob"), assign_random())
    assert isinstance(outcome, Done)
    assert outcome.event.code == "B"


def test_a_user_whose_candidate_the_batch_took_can_try_again() -> None:
    # One candidate for one user: there may be thousands of other codes.
    world = picked(World(), "A")
    _, outcome = world.batch(assign("A", "bob"), assign_random())
    assert type(outcome) is Contention


class TestRefusals:
    @pytest.mark.parametrize("state", [BookState.DRAFT, BookState.PAUSED, BookState.CLOSED])
    def test_codes_of_a_book_that_is_not_active_are_not_assigned(self, state: BookState) -> None:
        error = picked(World(book(state=state)), "A").refuses(assign_random())
        assert type(error) is BookNotActive

    def test_codes_are_assigned_before_the_window_begins_until_it_ends(self) -> None:
        world = picked(World(book(start_time=NOW + MINUTE, end_time=NOW + 2 * MINUTE)), "A", "B")
        world.does(assign_random())
        world.now = NOW + 2 * MINUTE
        assert type(world.refuses(assign_random())) is BookExpired
        world.now -= MOMENT
        world.does(assign_random())

    def test_a_user_gets_as_many_codes_as_the_book_allows(self) -> None:
        world = picked(World(book(max_assignments_per_user=2)), "A", "B", "C")
        outcomes = world.batch(*(assign_random() for _ in range(3)), assign_random("bob"))
        assert isinstance(outcomes[0], Done)
        assert isinstance(outcomes[1], Done)
        assert isinstance(outcomes[2], UserLimitExceeded)
        assert outcomes[2].metadata == {"limit_name": "max_assignments_per_user", "limit": "2"}
        assert isinstance(outcomes[3], Done)

    def test_the_limit_is_reported_also_when_no_code_is_left(self) -> None:
        world = World(book(max_assignments_per_user=1))
        world.put(UserCounts(assignments=1))
        assert type(world.refuses(assign_random())) is UserLimitExceeded

    def test_a_bearer_is_not_given_a_code_that_he_used_up(self) -> None:
        world = World(book(max_redemptions_per_code=9, max_redemptions_per_user_per_code=1))
        world.does(redeem("A", "ann"))
        picked(world, "B", "A")
        ann, bob = world.batch(assign_random("ann"), assign_random("bob"))
        assert isinstance(ann, Done)
        assert ann.event.code == "B"
        assert isinstance(bob, Done)
        assert bob.event.code == "A"
        world.does(redeem("C", "cid"))
        assert type(picked(world, "C").refuses(assign_random("cid"))) is Contention

    def test_an_unknown_book_has_no_codes(self) -> None:
        error = World().refuses(assign_random(book_id=UUID(int=9)))
        assert type(error) is BookNotFound


def test_a_revoked_code_can_be_assigned_to_the_same_user_again() -> None:
    world = picked(World(book(max_redemptions_per_code=2)), "A")
    before, revoked = NOW - MINUTE, AssignmentState.REVOKED
    world.put(active(state=revoked, redemptions=1, fence=3, assign_time=before))
    done = world.does(assign_random())
    assert done.assignment == world.assignment() == active(redemptions=1, fence=3)
    assert done.event.user_code_redemptions == 1
